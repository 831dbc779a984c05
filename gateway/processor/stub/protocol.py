"""The wire protocol of the processor double: its messages, its published triggers, and its judgement. Pure.

Every call is a `POST` of JSON with `Authorization: Bearer <processor_key>`; unknown fields are refused.

`/wire/sale` authorizes and captures in one step, `/wire/verify` checks a card without money:

    {"reference", "amount", "currency", "card": {"number", "exp_month", "exp_year", "name", "cvc"?}}
    {"reference", "card": {…}}

Both answer 200 with the same shape (a verification's amount is 0):

    {"reference", "amount", "currency", "status": "captured" | "verified" | "declined",
     "decline": {"class": "soft" | "data" | "system", "code": <ISO 8583 field 39, or a network's>} | null,
     "checks": {"cvc": "pass" | "fail" | "unchecked"}}

`/wire/inquire` takes `{"reference"}` and answers 200, the original answer standing whole in the second:

    {"status": "not_found"}
    {"status": "found", "kind": "sale" | "verify", "answer": {…}}

Errors are `{"error": <code>}`, with `"field"` where one is at fault: 400 `invalid_request`,
401 `unauthorized`, 404 `not_found`, 405 `method_not_allowed`, 408 `timeout`, 409 `reference_conflict`,
413 `too_large`, 500 `processor_error`.

The same reference again, within the dedupe window, gets the first answer again and moves no money. With
another amount, currency or kind it is a `reference_conflict`, however old the first one is.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Final, Literal

import msgspec

Kind = Literal["sale", "verify"]
Status = Literal["captured", "verified", "declined"]
CvcCheck = Literal["pass", "fail", "unchecked"]

# `\Z`, not `$`: the latter lets a trailing line feed through.
Reference = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]
Number = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{12,19}\Z")]
Cvc = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{3,4}\Z")]
# ISO 8583 field 4 has twelve digits.
AmountMinor = Annotated[int, msgspec.Meta(gt=0, le=999_999_999_999)]
Currency = Literal["USD"]


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A card as it is sent. It lives for one request, and prints as nothing."""

    number: Number
    exp_month: Annotated[int, msgspec.Meta(ge=1, le=12)]
    exp_year: Annotated[int, msgspec.Meta(ge=2000, le=2099)]
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    cvc: Cvc | msgspec.UnsetType = msgspec.UNSET

    def __repr__(self) -> str:
        return "Card(…)"


class SaleRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /wire/sale`: `amount` in minor units."""

    reference: Reference
    amount: AmountMinor
    currency: Currency
    card: Card


class VerifyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /wire/verify`."""

    reference: Reference
    card: Card


class InquireRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /wire/inquire`."""

    reference: Reference


class Decline(msgspec.Struct, frozen=True):
    """Why not: `class` says whether another try makes sense, `code` is what the issuer said."""

    category: Literal["soft", "data", "system"] = msgspec.field(name="class")
    code: str


class Checks(msgspec.Struct, frozen=True):
    """What was compared with the issuer's record."""

    cvc: CvcCheck


class Answer(msgspec.Struct, frozen=True):
    """What a sale or a verification is answered with; `amount` in minor units."""

    reference: str
    amount: int
    currency: str
    status: Status
    decline: Decline | None
    checks: Checks


class Found(msgspec.Struct, frozen=True, tag_field="status", tag="found"):
    """An inquiry's answer about a known reference."""

    kind: Kind
    answer: Answer


class NotFound(msgspec.Struct, frozen=True, tag_field="status", tag="not_found"):
    """An inquiry's answer about a reference that is unknown, or not visible yet."""


class Decision(msgspec.Struct, frozen=True):
    """An answer and what is remembered beside it: of the card, the last four digits and no more."""

    kind: Kind
    answer: Answer
    last4: str

    @property
    def effects(self) -> int:
        """How often carrying it out moves money: once, or not at all."""
        return int(self.answer.status == "captured")


WRONG_CVC: Final = "4000000000000127"
DECLINES: Final[Mapping[str, Decline]] = MappingProxyType(
    {
        "4000000000000002": Decline("soft", "05"),  # declined, no reason given
        "4000000000000069": Decline("data", "54"),  # expired
        WRONG_CVC: Decline("data", "N7"),
        "4000000000000119": Decline("system", "96"),  # processing error
        "4000000000009995": Decline("soft", "51"),  # insufficient funds
    }
)


def decide_sale(request: SaleRequest) -> Decision:
    """Authorize and capture in one step."""
    return _decide("sale", request.reference, request.amount, request.currency, request.card)


def decide_verification(request: VerifyRequest) -> Decision:
    """Ask the issuer about the card, for no money."""
    return _decide("verify", request.reference, 0, "USD", request.card)


def _decide(kind: Kind, reference: str, amount: int, currency: Currency, card: Card) -> Decision:
    decline = DECLINES.get(card.number)
    approved: Status = "captured" if kind == "sale" else "verified"
    answer = Answer(
        reference=reference,
        amount=amount,
        currency=currency,
        status="declined" if decline else approved,
        decline=decline,
        checks=Checks(_check_cvc(card)),
    )
    return Decision(kind, answer, card.number[-4:])


def _check_cvc(card: Card) -> CvcCheck:
    if card.number == WRONG_CVC:
        return "fail"
    return "unchecked" if card.cvc is msgspec.UNSET else "pass"
