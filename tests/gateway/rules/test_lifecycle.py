"""The life of money: every progress with every event, and what every kind of movement means wherever it stands.

The tables are written out a second time, on purpose: an edge more is money moved twice.
"""

import re
from itertools import product
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import errors
from gateway.rules.lifecycle import (
    AUDIT,
    EDGES,
    FOLLOWS,
    MEANINGS,
    OPEN,
    REQUESTED,
    UNDECIDED,
    VERDICTS,
    Event,
    IllegalEvent,
    Kind,
    Progress,
    RefundStatus,
    Status,
    after,
    amount_to_capture,
    amount_to_refund,
    diagram,
    require_may_begin,
    sources,
    where_to_begin,
)

LEADS = {
    ("awaiting_approval", "release"): "sending",
    ("awaiting_approval", "reject"): "failed",
    ("sending", "lost"): "unknown",
    ("sending", "park"): "in_review",
    ("sending", "do"): "done",
    ("sending", "refuse"): "refused",
    ("sending", "fail"): "failed",
    ("unknown", "park"): "in_review",
    ("unknown", "do"): "done",
    ("unknown", "refuse"): "refused",
    ("unknown", "fail"): "failed",
    ("in_review", "do"): "done",
    ("in_review", "refuse"): "refused",
    ("in_review", "fail"): "failed",
}
FINAL = {"done", "refused", "failed"}

IN_DOUBT = {"sending": "pending", "unknown": "pending", "in_review": "in_review"}
BACK = {"done": "", "refused": "authorized", "failed": "authorized"}
SHOWN: dict[str, dict[str, str]] = {
    "sale": IN_DOUBT | {"done": "succeeded", "refused": "declined", "failed": "failed"},
    "authorization": IN_DOUBT | {"done": "authorized", "refused": "declined", "failed": "failed"},
    "capture": IN_DOUBT | BACK | {"done": "succeeded"},
    "void": IN_DOUBT | BACK | {"done": "voided"},
    "refund": IN_DOUBT
    | {"in_review": "pending", "done": "succeeded", "refused": "failed", "failed": "failed"}
    | {"awaiting_approval": "awaiting_approval"},
}
"""The contract's public status of each state: of a charge, and in the last row of a refund."""
NEVER_CHANGE = {"succeeded", "declined", "failed", "voided"}

IN_THE_WAY: dict[str, dict[str, type[errors.GatewayError] | None]] = {
    "pending": dict.fromkeys(("capture", "void", "refund"), errors.ChargeUnresolved),
    "in_review": dict.fromkeys(("capture", "void", "refund"), errors.ChargeUnresolved),
    "authorized": {"capture": None, "void": None, "refund": errors.ChargeNotCaptured},
    "succeeded": {"capture": errors.ChargeCaptured, "void": errors.ChargeCaptured, "refund": None},
    "declined": dict.fromkeys(("capture", "void", "refund"), errors.ChargeNotMade),
    "failed": dict.fromkeys(("capture", "void", "refund"), errors.ChargeNotMade),
    "voided": dict.fromkeys(("capture", "void", "refund"), errors.ChargeVoided),
}
"""What a charge of each status answers to each movement that is asked of it."""

WAYS = ("lost", "park", "do", "refuse", "fail")
TOLD = {
    "sale": ("charge.unclear", "charge.in_review", "charge.captured", "charge.declined", "charge.failed"),
    "authorization": ("charge.unclear", "charge.in_review", "charge.authorized", "charge.declined", "charge.failed"),
    "capture": ("capture.unclear", "capture.in_review", "capture.done", "capture.refused", "capture.failed"),
    "void": ("void.unclear", "void.in_review", "void.done", "void.refused", "void.failed"),
    "refund": ("refund.unclear", "refund.in_review", "refund.done", "refund.refused", "refund.failed"),
}


@pytest.mark.parametrize(("progress", "event"), list(product(Progress, Event)))
def test_every_pair_leads_where_it_should_or_nowhere(progress: Progress, event: Event) -> None:
    """A legal event leads to its place; every other one raises, and says which it was."""
    expected = LEADS.get((progress.value, event.value))

    if expected is not None:
        assert after(progress, event) is Progress(expected)
    else:
        with pytest.raises(IllegalEvent, match=f"{event.value} .* {progress.value}"):
            after(progress, event)


@pytest.mark.parametrize("event", Event)
def test_sources_are_the_places_where_an_event_may_happen(event: Event) -> None:
    """The WHERE of a compare-and-set names exactly the places that have this edge, once each."""
    assert sorted(source.value for source in sources(event)) == sorted(
        place for place, name in LEADS if name == event.value
    )


def test_an_event_leads_to_one_place_from_wherever_it_happens() -> None:
    """A compare-and-set writes where the event leads without reading where it came from."""
    for event in Event:
        assert len({after(source, event) for source in sources(event)}) == 1


def test_nothing_leaves_what_is_final() -> None:
    """Done, refused and failed have no edge out; what is under way has one to each of them."""
    assert {progress.value for progress in UNDECIDED} == {progress.value for progress in Progress} - FINAL
    assert {source for source, _ in EDGES} == set(UNDECIDED)
    for progress in OPEN:
        assert {target.value for (source, _), target in EDGES.items() if source is progress} >= FINAL


def test_what_waits_for_an_approver_is_moved_by_nothing_else() -> None:
    """Not among what is under way: no worker's event touches it, and nothing leads back to it."""
    assert set(UNDECIDED) - set(OPEN) == {Progress.AWAITING}
    assert {event for source, event in EDGES if source is Progress.AWAITING} == set(VERDICTS.values())
    assert Progress.AWAITING not in EDGES.values()
    assert not {event for source, event in EDGES if source in OPEN} & set(VERDICTS.values())


@pytest.mark.parametrize(
    ("kind", "amount", "limit", "begins"),
    [
        (Kind.REFUND, 1, None, "sending"),
        (Kind.REFUND, 499, 500, "sending"),
        (Kind.REFUND, 500, 500, "sending"),
        (Kind.REFUND, 501, 500, "awaiting_approval"),
        (Kind.CAPTURE, 501, 500, "sending"),
        (Kind.VOID, 501, 500, "sending"),
    ],
)
def test_only_a_refund_above_the_limit_waits(kind: Kind, amount: int, limit: int | None, begins: str) -> None:
    """Equal to the limit is within it; no limit holds nothing back, and nothing but refunds is held back."""
    assert where_to_begin(kind, amount, limit).value == begins


def test_every_place_can_be_reached() -> None:
    """From where movements begin, and nothing but an approver's word leads back there."""
    reached, before = {Progress.SENDING, Progress.AWAITING}, set[Progress]()
    while reached != before:
        before = set(reached)
        reached |= {target for (source, _), target in EDGES.items() if source in before}

    assert reached == set(Progress)
    assert [edge for edge, target in EDGES.items() if target is Progress.SENDING] == [
        (Progress.AWAITING, Event.RELEASE)
    ]


def test_what_has_no_meaning_is_no_state() -> None:
    """Each kind can stand in each place, but for waiting for an approver: only refunds do."""
    assert set(product(Kind, Progress)) - set(MEANINGS) == {
        (kind, Progress.AWAITING) for kind in Kind if kind is not Kind.REFUND
    }


@pytest.mark.parametrize(("kind", "progress"), MEANINGS)
def test_every_state_has_its_meaning_outside(kind: Kind, progress: Progress) -> None:
    """Public status and finality of each pair are those of the contract."""
    meaning = MEANINGS[kind, progress]

    assert meaning.status == SHOWN[kind.value][progress.value]
    assert meaning.status in get_args(RefundStatus if kind is Kind.REFUND else Status)
    assert meaning.final is (meaning.status in NEVER_CHANGE)
    assert meaning.final or kind is not Kind.REFUND or progress in UNDECIDED


def test_only_an_authorization_waits_for_more_without_doubt() -> None:
    """A charge that is neither in doubt nor final is authorized; nothing of a refund is."""
    waiting = {
        pair: meaning.status for pair, meaning in MEANINGS.items() if not meaning.final and pair[1] not in UNDECIDED
    }

    assert set(waiting.values()) == {"authorized"}
    assert {kind for kind, _ in waiting} == {Kind.AUTHORIZATION, Kind.CAPTURE, Kind.VOID}


@pytest.mark.parametrize(("status", "kind"), list(product(get_args(Status), FOLLOWS)))
def test_what_may_follow_and_what_stands_in_its_way(status: Status, kind: Kind) -> None:
    """A capture or void follows an authorization, a refund a capture; each refusal has its own name."""
    obstacle = IN_THE_WAY[status][kind.value]

    if obstacle is None:
        require_may_begin(kind, status)
    else:
        with pytest.raises(obstacle) as caught:
            require_may_begin(kind, status)
        assert type(caught.value) is obstacle


def test_a_charge_begins_with_what_follows_nothing() -> None:
    """A sale and an authorization follow nothing; all else is asked of a charge, and audited as asked."""
    assert set(Kind) - set(FOLLOWS) == {Kind.SALE, Kind.AUTHORIZATION}
    assert dict(REQUESTED) == {
        Kind.CAPTURE: "capture.requested",
        Kind.VOID: "void.requested",
        Kind.REFUND: "refund.requested",
    }


def test_every_edge_of_every_kind_has_its_audit_event() -> None:
    """Each says what happened to what; what becomes of a refused or failed movement is never called done."""
    approvers = {(Kind.REFUND, Event.RELEASE): "refund.released", (Kind.REFUND, Event.REJECT): "refund.rejected"}

    assert dict(AUDIT) == approvers | {
        (Kind(kind), Event(event)): word
        for kind, words in TOLD.items()
        for event, word in zip(WAYS, words, strict=True)
    }


# --- amounts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "captured"), [(None, 500), (1, 1), (499, 499), (500, 500)])
def test_a_capture_takes_all_unless_less_is_asked(asked: int | None, captured: int) -> None:
    """All that was authorized, or a part of it from one minor unit up."""
    assert amount_to_capture(asked, 500) == captured


@pytest.mark.parametrize("asked", [0, -1, 501, 2**63, -(2**63)])
def test_a_capture_beyond_what_was_authorized_is_refused(asked: int) -> None:
    """Zero, negative, or more than was authorized: refused, and the field is named."""
    with pytest.raises(errors.AmountRefused) as caught:
        amount_to_capture(asked, 500)
    assert caught.value.pointers == ("/amount",)
    assert str(asked) not in caught.value.detail.split()


@pytest.mark.parametrize(
    ("asked", "left", "result"),
    [
        (None, 500, 500),
        (None, 1, 1),
        (1, 500, 1),
        (500, 500, 500),
        (501, 500, errors.RefundTooLarge),
        (2**63, 500, errors.RefundTooLarge),
        (0, 500, errors.AmountRefused),
        (-1, 500, errors.AmountRefused),
        (None, 0, errors.NothingLeftToRefund),
        (1, 0, errors.NothingLeftToRefund),
        (0, 0, errors.AmountRefused),
    ],
)
def test_a_refund_gives_back_what_is_left(
    asked: int | None, left: int, result: int | type[errors.GatewayError]
) -> None:
    """All that is left unless less is asked; nothing left, too much, and no amount at all are three refusals."""
    if isinstance(result, int):
        assert amount_to_refund(asked, left) == result
    else:
        with pytest.raises(result) as caught:
            amount_to_refund(asked, left)
        assert caught.value.pointers == (() if result is errors.NothingLeftToRefund else ("/amount",))


@given(st.integers(1, 10**12), st.lists(st.none() | st.integers(-5, 10**12), max_size=20))
def test_refunds_in_any_order_never_give_back_more_than_was_captured(captured: int, asked: list[int | None]) -> None:
    """Whatever is asked one after the other, what is left is never below zero, and each refund is at least one."""
    left = captured
    for amount in asked:
        try:
            given_back = amount_to_refund(amount, left)
        except errors.GatewayError:
            continue
        assert 1 <= given_back <= left
        left -= given_back


# --- the picture ------------------------------------------------------------------------------------------------

ARROW = re.compile(r"  (\S+) --> (\w+): (.+)")
LABEL = re.compile(r"  (\w+): (\w+) (\w+) \((\w+)(, final)?\)")


def arrows() -> set[tuple[str, str, str]]:
    """Every arrow of the diagram: from, to, and what it says."""
    matches = (ARROW.fullmatch(line) for line in diagram().splitlines())
    return {(match[1], match[2], match[3]) for match in matches if match}


def test_the_diagram_has_every_edge_and_no_other() -> None:
    """Each edge of each kind with its audit event, each beginning, and what may follow what."""
    lives = {
        (f"{kind}_{source}", f"{kind}_{target}", TOLD[kind][WAYS.index(event)])
        for kind in TOLD
        for (source, event), target in LEADS.items()
        if event in WAYS
    }
    lives |= {
        ("refund_awaiting_approval", "refund_sending", "refund.released"),
        ("refund_awaiting_approval", "refund_failed", "refund.rejected"),
    }
    births = {("[*]", f"{kind}_sending", "card.opened, card.received") for kind in ("sale", "authorization")}
    births |= {("[*]", f"refund_{first}", "refund.requested") for first in ("sending", "awaiting_approval")}
    authorized = ("authorization_done", "capture_refused", "capture_failed", "void_refused", "void_failed")
    follow = {
        (source, f"{kind}_sending", f"{kind}.requested") for source in authorized for kind in ("capture", "void")
    }

    assert arrows() == lives | births | follow


def test_the_diagram_names_every_state() -> None:
    """Each state is drawn once, with its public status and whether that is final; nothing leaves a final one."""
    matches = [match for line in diagram().splitlines() if (match := LABEL.fullmatch(line))]
    drawn = {match[1]: (match[4], match[5] is not None) for match in matches}

    assert len(matches) == len(drawn) == len(MEANINGS)
    assert drawn == {
        f"{kind}_{progress}": (status, status in NEVER_CHANGE)
        for kind, statuses in SHOWN.items()
        for progress, status in statuses.items()
    }
    assert not {source for source, _, _ in arrows()} & {state for state, (_, final) in drawn.items() if final}


def test_the_diagram_is_mermaid() -> None:
    """It begins as Mermaid wants, and holds nothing but arrows, labels and comments."""
    first, *rest = diagram().splitlines()

    assert first == "stateDiagram-v2"
    assert all(ARROW.fullmatch(line) or LABEL.fullmatch(line) or line.startswith("  %% ") for line in rest)
