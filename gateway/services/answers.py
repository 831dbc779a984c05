"""What callers are shown of tokens and charges: the public shapes, and the bytes that are stored and repeated.

Nothing that a person typed is in here: no name, no details, no number beyond its last four digits.
"""

from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from gateway.rules.lifecycle import OPEN, UNDECIDED, Kind, Progress, RefundStatus, Status
from gateway.rules.problems import problem
from gateway.services.ports import Answer, Charge, Declined, Movement, Token

Check = Literal["pass", "fail", "unavailable", "unchecked"]


class Checks(msgspec.Struct, frozen=True):
    """What the issuer compared."""

    cvc: Check
    address: Check = "unchecked"


class CardObject(msgspec.Struct, frozen=True):
    """What may be shown of a card."""

    brand: Literal["visa", "mastercard", "amex", "discover", "diners", "jcb", "unionpay"]
    last4: str
    fingerprint: str


class TokenObject(msgspec.Struct, frozen=True, omit_defaults=True):
    """A token. An erased one has no `card`."""

    object: Literal["token"] = msgspec.field(name="object")
    id: str
    department: str
    kind: Literal["card"]
    usage: Literal["single", "multi"]
    status: Literal["active", "spent", "erased"]
    checks: Checks
    created: str
    expires: str
    card: CardObject | None = None


class ChargeObject(msgspec.Struct, frozen=True):
    """A charge. Amounts are minor units; `convenience_fee` is part of `amount`."""

    object: Literal["charge"]
    id: str
    token: str
    department: str
    amount: int
    currency: str
    status: Status
    captured: int
    refunded: int
    reference: str
    service: str | None
    convenience_fee: int
    processor_reference: str
    checks: Checks
    created: str


class RefundObject(msgspec.Struct, frozen=True):
    """A refund. `amount` is minor units."""

    object: Literal["refund"]
    id: str
    charge: str
    department: str
    amount: int
    currency: str
    status: RefundStatus
    processor_reference: str
    created: str


class ListObject(msgspec.Struct, frozen=True):
    """A page of charges, newest first."""

    object: Literal["list"]
    data: list[ChargeObject]
    has_more: bool


def token_object(token: Token) -> TokenObject:
    """The public shape of a token."""
    card = None
    if token.brand is not None and token.last4 is not None and token.fingerprint_id is not None:
        card = CardObject(token.brand, token.last4, token.fingerprint_id)  # type: ignore[arg-type] # a CHECKed column
    return TokenObject(
        object="token",
        id=token.token_id,
        department=token.department,
        kind="card",
        usage=token.usage,  # type: ignore[arg-type] # a CHECKed column
        status=token.status,  # type: ignore[arg-type] # a CHECKed column
        card=card,
        checks=_checks(token.cvc_check),
        created=_time(token.created_at),
        expires=_time(token.expires_at),
    )


def charge_object(charge: Charge) -> ChargeObject:
    """The public shape of a charge."""
    return ChargeObject(
        object="charge",
        id=charge.charge_id,
        token=charge.token_id,
        department=charge.department,
        amount=charge.amount_minor,
        currency=charge.currency,
        status=charge.status,
        captured=charge.captured_minor,
        refunded=charge.refunded_minor,
        reference=charge.reference,
        service=charge.service,
        convenience_fee=charge.convenience_fee_minor,
        processor_reference=charge.processor_reference,
        checks=_checks(charge.cvc_check),
        created=_time(charge.created_at),
    )


def token_answer(token: Token) -> Answer:
    """The answer to who asked for this token: 201, and the token as it is."""
    return Answer(201, msgspec.json.encode(token_object(token)))


def verification_declined(outcome: Declined) -> Answer:
    """402: the issuer refused the card, nothing was stored."""
    return Answer(402, problem("card-declined", "The issuer refused the card.", decline=_decline(outcome)))


def refund_object(refund: Movement) -> RefundObject:
    """The public shape of a refund."""
    return RefundObject(
        object="refund",
        id=refund.movement_id,
        charge=refund.charge_id,
        department=refund.department,
        amount=refund.amount_minor,
        currency=refund.currency,
        status=refund.status,
        processor_reference=refund.reference,
        created=_time(refund.created_at),
    )


def movement_answer(charge: Charge, movement: Movement) -> Answer:
    """The answer to who asked for this movement, by where it stands: 202 as long as nothing is final."""
    match movement.kind:
        case Kind.SALE | Kind.AUTHORIZATION:
            return _first_answer(charge, movement)
        case Kind.REFUND:
            shown, location = msgspec.to_builtins(refund_object(movement)), f"/v1/refunds/{movement.movement_id}"
            return _later_answer(movement, 201, shown, location)
        case _:
            shown = msgspec.to_builtins(charge_object(charge))
            return _later_answer(movement, 200, shown, f"/v1/charges/{charge.charge_id}")


def _first_answer(charge: Charge, movement: Movement) -> Answer:
    shown = msgspec.to_builtins(charge_object(charge))
    if movement.progress in OPEN:
        return Answer(202, msgspec.json.encode(shown), f"/v1/charges/{charge.charge_id}")
    if movement.progress is Progress.FAILED:
        return Answer(502, problem("charge-failed", "Nothing was charged. Try again with a new key.", charge=shown))
    if charge.decline_class is None or charge.decline_code is None:
        return Answer(201, msgspec.json.encode(shown))
    outcome = Declined(charge.cvc_check, charge.decline_class, charge.decline_code)
    declined = problem("card-declined", "The issuer declined the charge.", charge=shown, decline=_decline(outcome))
    return Answer(402, declined)


def _later_answer(movement: Movement, status: int, shown: dict[str, Any], location: str) -> Answer:
    if movement.progress in UNDECIDED:
        return Answer(202, msgspec.json.encode(shown), location)
    if movement.progress is Progress.DONE:
        return Answer(status, msgspec.json.encode(shown))
    extra: dict[str, Any] = {shown["object"]: shown}
    if movement.sends == 0:
        detail = "An approver rejected it; nothing was given back. Use a new key."
        return Answer(502, problem(f"{movement.kind}-failed", detail, (), **extra))
    if movement.decline_class is None or movement.decline_code is None:
        return Answer(502, problem(f"{movement.kind}-failed", "Nothing was changed. Use a new key.", (), **extra))
    extra["decline"] = {"class": movement.decline_class, "code": movement.decline_code}
    return Answer(402, problem(f"{movement.kind}-refused", "The processor refused it.", (), **extra))


def _decline(outcome: Declined) -> dict[str, Any]:
    return {"class": outcome.decline_class, "code": outcome.decline_code}


def _checks(cvc: str) -> Checks:
    return Checks(cvc)  # type: ignore[arg-type] # a CHECKed column


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
