"""Request bodies of the public API: their schemas, and from there to the services' own types.

Messages name our fields and never repeat what was sent.
"""

import unicodedata
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec

from gateway.errors import InvalidRequest
from gateway.rules.card import Brands, check_cvc, read_card
from gateway.services.charges import ChargeRequest
from gateway.services.mint import CardGiven
from keys.secret import Secret

DETAILS_BYTES_MAX = 4096
DETAILS_DEPTH_MAX = 8

UNSEEN = frozenset({"Cc", "Cs", "Zl", "Zp"})
BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""What turns the order of a text around, so that people read what is not there."""

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
Code = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Details = dict[str, Any]


class CardBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A card as a resident types it. `number` is 12 to 19 digits, `cvc` 3 or 4; both are never returned."""

    number: str
    exp_month: int
    exp_year: int
    cvc: str | None = None

    def __repr__(self) -> str:
        return "CardBody(…)"


class TokenBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/tokens`. `name`, `card`, `details` and `consent` are sealed and never returned."""

    name: Name
    card: CardBody
    usage: Literal["single", "multi"]
    kind: Literal["card"] = "card"
    consent: Text | Details | None = None
    details: Details | None = None

    def __repr__(self) -> str:
        return "TokenBody(…)"


class ChargeBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/charges`. Amounts are minor units; either `token`, or `name` and `card`."""

    amount: int
    currency: str
    reference: Text
    token: Code | None = None
    name: Name | None = None
    card: CardBody | None = None
    service: Code | None = None
    convenience_fee: int = 0
    capture: bool = True
    details: Details | None = None

    def __repr__(self) -> str:
        return "ChargeBody(…)"


class AmountBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/charges/{id}/capture` and `/refunds`. `amount` in minor units; without it all that there is."""

    amount: int | msgspec.UnsetType = msgspec.UNSET

    @property
    def amount_minor(self) -> int | None:
        """What is asked for, None for all."""
        return None if self.amount is msgspec.UNSET else self.amount


class VoidBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/charges/{id}/void`: nothing is asked."""


def card_given(body: TokenBody | ChargeBody, brands: Brands) -> CardGiven:
    """The card of a body; raises `InvalidRequest`, `CardRefused` or `CardNumberInText`."""
    if body.card is None or body.name is None:
        raise InvalidRequest("Send `name` and `card` together.", ["/name", "/card"])
    number = Secret(body.card.number)
    card = read_card(brands, number, body.card.exp_month, body.card.exp_year)
    cvc = None if body.card.cvc is None else Secret(body.card.cvc)
    if cvc is not None:
        check_cvc(card.brand, cvc)
    _require_printable("/name", body.name)
    brands.require_none("/name", body.name)
    consent = body.consent if isinstance(body, TokenBody) else None
    _check_free("/consent", consent, brands)
    details = body.details if isinstance(body, TokenBody) else None
    _check_free("/details", details, brands)
    return CardGiven(card, Secret(body.name), cvc, details, consent)


def charge_request(body: ChargeBody, brands: Brands, request_id: str) -> ChargeRequest:
    """A charge's body as its service wants it."""
    if (body.token is None) == (body.card is None):
        raise InvalidRequest("Send either `token`, or `name` and `card`.", ["/token", "/card"])
    if body.token is not None and body.name is not None:
        raise InvalidRequest("`name` goes with `card`; a token knows its own.", ["/name"])
    for pointer, text in (("/reference", body.reference), ("/service", body.service), ("/token", body.token)):
        _require_printable(pointer, text or "x")
        brands.require_none(pointer, text or "")
    _check_free("/details", body.details, brands)
    return ChargeRequest(
        amount_minor=body.amount,
        currency=body.currency,
        reference=body.reference,
        service=body.service,
        fee_minor=body.convenience_fee,
        capture=body.capture,
        token_id=body.token,
        given=None if body.card is None else card_given(body, brands),
        details=body.details,
        request_id=request_id,
    )


def _check_free(pointer: str, value: Any, brands: Brands) -> None:
    """Free JSON is bounded in depth and size, and holds no card number: not as a name, not as a number."""
    if value is None:
        return
    if _is_deeper(value, DETAILS_DEPTH_MAX) or len(msgspec.json.encode(value)) > DETAILS_BYTES_MAX:
        raise InvalidRequest("At most 4096 bytes of JSON, nested at most 8 deep.", [pointer])
    brands.require_none(pointer, *_texts(value))


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects nest more than `levels` deep; looks no further down than that."""
    if not isinstance(value, dict | list):
        return False
    items = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in items)


def _texts(value: Any) -> Iterator[str]:
    """What stands in free JSON, unescaped: the escape of a form feed ends in a letter that would hide a number."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    else:
        yield str(value)


def _require_printable(pointer: str, text: str) -> None:
    # Joiners and odd spaces stay: names in Persian or Hindi need the ones, copied names bring the others.
    if any(unicodedata.category(character) in UNSEEN or character in BIDI for character in text):
        raise InvalidRequest("Control characters have no place here.", [pointer])
