"""The wire protocol of the processor double: its messages, and the card numbers that it declines. Pure.

Every call is a `POST` of JSON with `Authorization: Bearer <processor_key>`; unknown fields are refused. A movement
has a `reference` of its own; `charge` is the reference of the sale or authorization that it belongs to.

    /wire/sale, /wire/authorize          {"reference", "amount", "currency", "not_after"?, "card": {…}}
    /wire/capture, /wire/void, /wire/refund
                                         {"reference", "charge", "amount", "currency", "not_after"?}
    /wire/verify                         {"reference", "card": {"number", "exp_month", "exp_year", "name", "cvc"?}}

A sale authorizes and captures in one step, a capture may take less than was authorized, a verification checks a card
without money. `amount` is in minor units, `not_after` in whole seconds since 1970. All answer 200 with one shape
(a verification's amount is 0):

    {"reference", "amount", "currency",
     "status": "captured" | "authorized" | "voided" | "refunded" | "verified" | "declined" | "cancelled" | "expired",
     "decline": {"class": "soft" | "data" | "system", "code": <ISO 8583 field 39, a network's, or ours>} | null,
     "checks": {"cvc": "pass" | "fail" | "unchecked"}}

`cancelled` and `expired` say that this request did nothing; `judgement` lists our codes.

What the processor offers to make sure of a reference depends on its capability, and inquiries tell it:

    A  it dedupes by reference: within the window the first answer is given again, and no money moves; it cancels
    B  it cancels by reference, and does not dedupe
    C  it heeds `not_after`: what is delivered later is `expired`
    D  none of these

Where nothing dedupes, a reference that comes again is carried out anew and its effects add up; what cannot be done
again (everything is refunded already) is answered as it was the first time. With another amount, currency, kind or
charge it is a `reference_conflict`, however old the first one is.

    /wire/cancel   {"reference", "charge"?}   makes void for ever what is not decided: a movement that is delivered
                                              later is `cancelled`, whatever the capability is by then
    /wire/inquire  {"reference"}              what became of a movement

Both answer 200, the movement's answer standing whole in the first; only an inquiry answers the third:

    {"status": "found", "kind": "sale" | "authorization" | "capture" | "void" | "refund" | "verify", "answer": {…}}
    {"status": "cancelled", "reference"}
    {"status": "not_found", "reference", "offers": {"dedupe_window_s": <seconds> | null, "cancel", "expiry"}}

Errors are `{"error": <code>}`, with `"field"` where one is at fault: 400 `invalid_request`, 401 `unauthorized`,
404 `not_found`, 405 `method_not_allowed`, 408 `timeout`, 409 `reference_conflict` and, of a cancel, `not_offered`,
413 `too_large`, 500 `processor_error`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Final, Literal

import msgspec

Kind = Literal["sale", "authorization", "capture", "void", "refund", "verify"]
CardKind = Literal["sale", "authorization", "verify"]
FollowUpKind = Literal["capture", "void", "refund"]
Status = Literal["captured", "authorized", "voided", "refunded", "verified", "declined", "cancelled", "expired"]
CvcCheck = Literal["pass", "fail", "unchecked"]

# `\Z`, not `$`: the latter lets a trailing line feed through.
Reference = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]
Number = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{12,19}\Z")]
Cvc = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{3,4}\Z")]
# ISO 8583 field 4 has twelve digits.
AmountMinor = Annotated[int, msgspec.Meta(gt=0, le=999_999_999_999)]
Currency = Literal["USD"]
# Any, so that a capture in another currency than its charge's is declined, as an issuer would.
AnyCurrency = Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{3}\Z")]
# Until the end of the year 9999.
UnixTime = Annotated[int, msgspec.Meta(ge=0, lt=253_402_300_800)]


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A card as it is sent. It lives for one request, and prints as nothing."""

    number: Number
    exp_month: Annotated[int, msgspec.Meta(ge=1, le=12)]
    exp_year: Annotated[int, msgspec.Meta(ge=2000, le=2099)]
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    cvc: Cvc | msgspec.UnsetType = msgspec.UNSET

    def __repr__(self) -> str:
        return "Card(…)"


class CardRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /wire/sale` and `/wire/authorize`: `amount` in minor units."""

    reference: Reference
    amount: AmountMinor
    currency: Currency
    card: Card
    not_after: UnixTime | msgspec.UnsetType = msgspec.UNSET


class FollowUpRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /wire/capture`, `/wire/void` and `/wire/refund`: `amount` in minor units."""

    reference: Reference
    charge: Reference
    amount: AmountMinor
    currency: AnyCurrency
    not_after: UnixTime | msgspec.UnsetType = msgspec.UNSET


class VerifyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /wire/verify`."""

    reference: Reference
    card: Card


class CancelRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /wire/cancel`; `charge` is remembered, so that comparisons can tell whose reference it was."""

    reference: Reference
    charge: Reference | msgspec.UnsetType = msgspec.UNSET


class InquireRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /wire/inquire`."""

    reference: Reference


class Decline(msgspec.Struct, frozen=True):
    """Why not: `class` says whether another try makes sense, `code` is what the issuer said, or we."""

    category: Literal["soft", "data", "system"] = msgspec.field(name="class")
    code: str


class Checks(msgspec.Struct, frozen=True):
    """What was compared with the issuer's record."""

    cvc: CvcCheck


UNCHECKED: Final = Checks("unchecked")


class Answer(msgspec.Struct, frozen=True):
    """What a movement is answered with; `amount` in minor units."""

    reference: str
    amount: int
    currency: str
    status: Status
    decline: Decline | None
    checks: Checks


class Offers(msgspec.Struct, frozen=True):
    """What the processor offers to make sure of a reference; `dedupe_window_s` null where it does not dedupe."""

    dedupe_window_s: float | None
    cancel: bool
    expiry: bool


class Found(msgspec.Struct, frozen=True, tag_field="status", tag="found"):
    """A movement that was decided."""

    kind: Kind
    answer: Answer


class Cancelled(msgspec.Struct, frozen=True, tag_field="status", tag="cancelled"):
    """A reference that is void for ever."""

    reference: str


class NotFound(msgspec.Struct, frozen=True, tag_field="status", tag="not_found"):
    """A reference that is unknown, or not visible yet."""

    reference: str
    offers: Offers


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
