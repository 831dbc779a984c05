"""The life of money, as tables. Nothing else may name a next state, a public status or an audit event of it.

Money moves in *movements*: a sale, or an authorization and then its capture or void, and any number of refunds.
Each is sent to the processor under a reference of its own, and all of them live the same short life:

    (intent) -> sending -> done | refused | failed
                  |  `---> unknown -> done | refused | failed
                  |           |
                  `---------> in_review -> done | refused | failed

A refund above its application's limit is held back before that: nothing is sent until an approver has released it.

    (intent) -> awaiting_approval -> sending | failed

*Unknown* is not failed: only what the processor says of the reference, or proof that it can never happen any more,
ends it. `sending` is durable before the first byte leaves, and after a crash means what `unknown` means. What nobody
can decide is `in_review`, and is still asked for. The last three are final: no edge leaves them.

Where a charge stands is where its latest movement stands, refunds aside (`MEANINGS`). A charge is born with its sale
or authorization; `FOLLOWS` says what may follow.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from typing import Literal

from gateway.errors import (
    AmountRefused,
    ChargeCaptured,
    ChargeNotCaptured,
    ChargeNotMade,
    ChargeUnresolved,
    ChargeVoided,
    GatewayError,
    NothingLeftToRefund,
    RefundTooLarge,
)

Status = Literal["pending", "authorized", "succeeded", "declined", "failed", "voided", "in_review"]
RefundStatus = Literal["pending", "succeeded", "failed", "awaiting_approval"]
Verdict = Literal["approved", "rejected"]
"""What an approver says of a refund, once."""


class Kind(StrEnum):
    """What a movement is."""

    SALE = "sale"
    AUTHORIZATION = "authorization"
    CAPTURE = "capture"
    VOID = "void"
    REFUND = "refund"


class Progress(StrEnum):
    """Where a movement stands."""

    AWAITING = "awaiting_approval"
    SENDING = "sending"
    UNKNOWN = "unknown"
    IN_REVIEW = "in_review"
    DONE = "done"
    REFUSED = "refused"
    """By the processor or the issuer, definitely."""
    FAILED = "failed"
    """It never happened and never will."""


class Event(StrEnum):
    """What can happen to a movement."""

    RELEASE = "release"
    REJECT = "reject"
    LOST = "lost"
    PARK = "park"
    DO = "do"
    REFUSE = "refuse"
    FAIL = "fail"


OPEN = (Progress.SENDING, Progress.UNKNOWN, Progress.IN_REVIEW)
"""Under way: what the processor did is not known yet."""

UNDECIDED = (Progress.AWAITING, *OPEN)
"""Not final."""

SAID: Mapping[Event, Progress] = {
    Event.DO: Progress.DONE,
    Event.REFUSE: Progress.REFUSED,
    Event.FAIL: Progress.FAILED,
}
"""What ends a movement that is under way."""

ENDS: Mapping[Event, Progress] = {**SAID, Event.REJECT: Progress.FAILED}

VERDICTS: Mapping[Verdict, Event] = {"approved": Event.RELEASE, "rejected": Event.REJECT}

EDGES: Mapping[tuple[Progress, Event], Progress] = {
    (Progress.AWAITING, Event.RELEASE): Progress.SENDING,
    (Progress.AWAITING, Event.REJECT): Progress.FAILED,
    (Progress.SENDING, Event.LOST): Progress.UNKNOWN,
    (Progress.SENDING, Event.PARK): Progress.IN_REVIEW,
    (Progress.UNKNOWN, Event.PARK): Progress.IN_REVIEW,
    **{(progress, event): end for progress in OPEN for event, end in SAID.items()},
}


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a state means outside. A final one never changes again; refunds change nothing of it."""

    status: Status | RefundStatus
    final: bool


_IN_DOUBT = {
    Progress.SENDING: Meaning("pending", final=False),
    Progress.UNKNOWN: Meaning("pending", final=False),
    Progress.IN_REVIEW: Meaning("in_review", final=False),
}
_AUTHORIZED = Meaning("authorized", final=False)

MEANINGS: Mapping[tuple[Kind, Progress], Meaning] = {
    **{(kind, progress): _IN_DOUBT[progress] for kind, progress in product(Kind, OPEN)},
    (Kind.SALE, Progress.DONE): Meaning("succeeded", final=True),
    (Kind.SALE, Progress.REFUSED): Meaning("declined", final=True),
    (Kind.SALE, Progress.FAILED): Meaning("failed", final=True),
    (Kind.AUTHORIZATION, Progress.DONE): _AUTHORIZED,
    (Kind.AUTHORIZATION, Progress.REFUSED): Meaning("declined", final=True),
    (Kind.AUTHORIZATION, Progress.FAILED): Meaning("failed", final=True),
    (Kind.CAPTURE, Progress.DONE): Meaning("succeeded", final=True),
    (Kind.CAPTURE, Progress.REFUSED): _AUTHORIZED,
    (Kind.CAPTURE, Progress.FAILED): _AUTHORIZED,
    (Kind.VOID, Progress.DONE): Meaning("voided", final=True),
    (Kind.VOID, Progress.REFUSED): _AUTHORIZED,
    (Kind.VOID, Progress.FAILED): _AUTHORIZED,
    # Of a refund, which is an object of its own, and the only one that may have to wait.
    (Kind.REFUND, Progress.AWAITING): Meaning("awaiting_approval", final=False),
    (Kind.REFUND, Progress.IN_REVIEW): Meaning("pending", final=False),
    (Kind.REFUND, Progress.DONE): Meaning("succeeded", final=True),
    (Kind.REFUND, Progress.REFUSED): Meaning("failed", final=True),
    (Kind.REFUND, Progress.FAILED): Meaning("failed", final=True),
}

FOLLOWS: Mapping[Kind, Status] = {
    Kind.CAPTURE: "authorized",
    Kind.VOID: "authorized",
    Kind.REFUND: "succeeded",
}
"""In which status of its charge a movement may begin; one at a time, but for refunds."""

_OBSTACLES: Mapping[Status, type[GatewayError]] = {
    "pending": ChargeUnresolved,
    "in_review": ChargeUnresolved,
    "authorized": ChargeNotCaptured,
    "succeeded": ChargeCaptured,
    "declined": ChargeNotMade,
    "failed": ChargeNotMade,
    "voided": ChargeVoided,
}

_NAMES: Mapping[Kind, tuple[str, str, str]] = {
    Kind.SALE: ("charge", "captured", "declined"),
    Kind.AUTHORIZATION: ("charge", "authorized", "declined"),
    Kind.CAPTURE: ("capture", "done", "refused"),
    Kind.VOID: ("void", "done", "refused"),
    Kind.REFUND: ("refund", "done", "refused"),
}

AUDIT: Mapping[tuple[Kind, Event], str] = {
    (Kind.REFUND, Event.RELEASE): "refund.released",
    (Kind.REFUND, Event.REJECT): "refund.rejected",
} | {
    (kind, event): f"{subject}.{word}"
    for kind, (subject, done, refused) in _NAMES.items()
    for event, word in {
        Event.LOST: "unclear",
        Event.PARK: "in_review",
        Event.DO: done,
        Event.REFUSE: refused,
        Event.FAIL: "failed",
    }.items()
}
"""The audit event of each edge that a kind of movement has."""

DECIDED: Mapping[Verdict, str] = {"approved": "refund.approved", "rejected": "refund.disapproved"}
"""The audit event of an approver's word; what comes of it has its own, above."""

REQUESTED: Mapping[Kind, str] = {kind: f"{kind}.requested" for kind in FOLLOWS}
"""The audit event with which a movement that opens no card begins."""


class IllegalEvent(Exception):
    """This cannot happen to a movement that stands there; nothing was changed."""


def after(progress: Progress, event: Event) -> Progress:
    """Where an event leads to; raises `IllegalEvent`."""
    try:
        return EDGES[progress, event]
    except KeyError:
        raise IllegalEvent(f"{event} cannot happen to a movement that is {progress}") from None


def sources(event: Event) -> list[Progress]:
    """Where an event may happen: the WHERE of a compare-and-set."""
    return [progress for progress, possible in EDGES if possible is event]


def where_to_begin(kind: Kind, given_back_minor: int, approval_above_minor: int | None) -> Progress:
    """Where a movement begins: with an approver, if it is a refund after which more than the limit is given back.

    `given_back_minor` is of the charge, this refund included; without a limit, None, nothing waits.
    """
    if kind is Kind.REFUND and approval_above_minor is not None and given_back_minor > approval_above_minor:
        return Progress.AWAITING
    return Progress.SENDING


def require_may_begin(kind: Kind, status: Status) -> None:
    """Raises what stands in the way of a capture, void or refund of a charge with this status."""
    if FOLLOWS[kind] != status:
        raise _OBSTACLES[status]


def amount_to_capture(asked_minor: int | None, authorized_minor: int) -> int:
    """What a capture captures, all of it unless less is asked for; the rest is released. Raises `AmountRefused`."""
    if asked_minor is None:
        return authorized_minor
    if not 1 <= asked_minor <= authorized_minor:
        raise AmountRefused("Capture at least 1 minor unit and at most what was authorized.", ["/amount"])
    return asked_minor


def amount_to_refund(asked_minor: int | None, left_minor: int) -> int:
    """What a refund gives back, all that is left unless less is asked for.

    `left_minor` is what was captured and neither refunded nor in a refund that is not decided yet.

    Raises:
        AmountRefused: zero or less.
        RefundTooLarge: more than is left.
        NothingLeftToRefund: nothing is.
    """
    if asked_minor is not None and asked_minor < 1:
        raise AmountRefused("A refund is at least 1 minor unit.", ["/amount"])
    if left_minor == 0:
        raise NothingLeftToRefund
    if asked_minor is None:
        return left_minor
    if asked_minor > left_minor:
        raise RefundTooLarge(pointers=["/amount"])
    return asked_minor


def diagram() -> str:
    """Both machines as one Mermaid diagram: where a charge and a refund can stand, and what leads where."""
    lines = ["stateDiagram-v2", "  %% a charge"]
    lines += [f"  [*] --> {kind}_sending: card.opened, card.received" for kind in (Kind.SALE, Kind.AUTHORIZATION)]
    lines += [
        f"  {before}_{progress} --> {kind}_sending: {REQUESTED[kind]}"
        for kind in (Kind.CAPTURE, Kind.VOID)
        for (before, progress), meaning in MEANINGS.items()
        if before is not Kind.REFUND and meaning.status == FOLLOWS[kind]
    ]
    for kind in Kind:
        if kind is Kind.REFUND:
            lines.append("  %% a refund")
            lines += [
                f"  [*] --> {kind}_{first}: {REQUESTED[kind]}" for first in (Progress.SENDING, Progress.AWAITING)
            ]
        lines += [
            f"  {kind}_{progress} --> {kind}_{following}: {AUDIT[kind, event]}"
            for (progress, event), following in EDGES.items()
            if (kind, event) in AUDIT
        ]
    lines.append("  %% what each means outside")
    for (kind, progress), meaning in MEANINGS.items():
        final = ", final" if meaning.final else ""
        lines.append(f"  {kind}_{progress}: {kind} {progress} ({meaning.status}{final})")
    return "\n".join(lines)
