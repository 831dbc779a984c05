"""What the processor double decides about a movement: by the card, or by where its charge stands. Pure.

Our own codes, all of class `system`, for captures, voids and refunds:

    NOCHARGE  nothing stands under that reference of a charge
    NOTAUTH   it was declined, so there is nothing to capture, void or refund
    NOTCAPT   it is not captured yet, so there is nothing to refund
    CAPTURED  it is captured already, so nothing can be captured or voided any more
    VOIDED    it was voided
    CURRENCY  it is in another currency
    OVERAUTH  the amount is above what was authorized
    OVERLEFT  the amount is above what is captured and not refunded
"""

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Final, Literal

import msgspec

from gateway.processor.stub.protocol import (
    DECLINES,
    UNCHECKED,
    WRONG_CVC,
    Answer,
    Card,
    CardRequest,
    Checks,
    Decline,
    FollowUpKind,
    FollowUpRequest,
    Kind,
    Status,
    VerifyRequest,
)

Standing = Literal["authorized", "captured", "voided", "declined"]

DONE: Final[Mapping[Kind, Status]] = MappingProxyType(
    {
        "sale": "captured",
        "authorization": "authorized",
        "capture": "captured",
        "void": "voided",
        "refund": "refunded",
        "verify": "verified",
    }
)
"""The status of a movement that was carried out."""

FOLLOWS: Final[Mapping[Kind, Standing]] = MappingProxyType(
    {"capture": "authorized", "void": "authorized", "refund": "captured"}
)
"""Where a charge must stand for this to follow."""

OBSTACLES: Final[Mapping[Standing, str]] = MappingProxyType(
    {"authorized": "NOTCAPT", "captured": "CAPTURED", "voided": "VOIDED", "declined": "NOTAUTH"}
)
"""The code when it stands elsewhere."""


class Verdict(msgspec.Struct, frozen=True):
    """What the issuer says of a card, and all that is remembered of it: the last four digits."""

    decline: Decline | None
    checks: Checks
    last4: str


class Movement(msgspec.Struct, frozen=True):
    """A movement as it was asked for, without its card. `amount` in minor units, `not_after` in seconds since 1970.

    `verdict` is the issuer's, of a movement that came with a card; what follows it is decided when it is carried out.
    """

    kind: Kind
    reference: str
    charge: str
    amount: int
    currency: str
    not_after: int | None
    verdict: Verdict | None

    def answer(self, status: Status, decline: Decline | None = None, checks: Checks = UNCHECKED) -> Answer:
        """Say what became of it."""
        return Answer(self.reference, self.amount, self.currency, status, decline, checks)


class Charge(msgspec.Struct, frozen=True):
    """A sale or authorization with all that followed it. Amounts are minor units, times are UTC.

    `amount` is what was captured, if it was, else what was asked for; `authorized` what the issuer allowed;
    `refunded` all that went back. `effects` is how often a capture moved money. `created` is when the reference was
    first seen, `applied` when it was last carried out: they differ only when it came again.
    """

    reference: str
    kind: Kind
    amount: int
    currency: str
    status: Standing
    decline: Decline | None
    checks: Checks
    last4: str
    authorized: int
    refunded: int
    effects: int
    created: datetime
    applied: datetime

    @property
    def left(self) -> int:
        """What can still be refunded."""
        return self.amount * self.effects - self.refunded


def read_card_movement(kind: Literal["sale", "authorization"], request: CardRequest) -> Movement:
    """A sale or an authorization. The card goes no further than this."""
    reference = request.reference
    not_after = _or_none(request.not_after)
    verdict = _judge_card(request.card)
    return Movement(kind, reference, reference, request.amount, request.currency, not_after, verdict)


def read_verification(request: VerifyRequest) -> Movement:
    """A verification: a movement of nothing."""
    return Movement("verify", request.reference, request.reference, 0, "USD", None, _judge_card(request.card))


def read_follow_up(kind: FollowUpKind, request: FollowUpRequest) -> Movement:
    """A capture, a void or a refund."""
    not_after = _or_none(request.not_after)
    return Movement(kind, request.reference, request.charge, request.amount, request.currency, not_after, None)


def judge(movement: Movement, charge: Charge | None, *, done: bool) -> Decline | None:
    """Why a movement of this charge is refused, if so.

    `done` says that this very reference was carried out before: what it did itself is no obstacle.
    """
    if movement.verdict is not None:
        return movement.verdict.decline
    code = _obstacle(movement, charge, done=done)
    return None if code is None else Decline("system", code)


def _obstacle(movement: Movement, charge: Charge | None, *, done: bool) -> str | None:
    if charge is None:
        return "NOCHARGE"
    if charge.currency != movement.currency:
        return "CURRENCY"
    if charge.status != FOLLOWS[movement.kind] and not done:
        return OBSTACLES[charge.status]
    if movement.kind == "refund":
        return "OVERLEFT" if movement.amount > charge.left else None
    return "OVERAUTH" if movement.amount > charge.authorized else None


def _judge_card(card: Card) -> Verdict:
    return Verdict(DECLINES.get(card.number), Checks(_check_cvc(card)), card.number[-4:])


def _check_cvc(card: Card) -> Literal["pass", "fail", "unchecked"]:
    if card.number == WRONG_CVC:
        return "fail"
    return "unchecked" if card.cvc is msgspec.UNSET else "pass"


def _or_none(value: int | msgspec.UnsetType) -> int | None:
    return None if value is msgspec.UNSET else value
