"""Request bodies: hostile JSON, limits, card numbers where none may be, and refusals that repeat nothing.

Numbers in comments are those of the security battery (input, items 53-73).
"""

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest

from gateway.errors import CardNumberInText, GatewayError, InvalidRequest
from gateway.rules.card import Brands
from gateway.services.charges import ChargeRequest
from gateway.services.mint import CardGiven
from gateway.web.bodies import (
    AmountBody,
    CardBody,
    ChargeBody,
    TokenBody,
    VoidBody,
    card_given,
    charge_request,
)
from gateway.web.problems import response
from gateway.web.schema import read_body
from tests.cards import canary

Json = dict[str, Any]

NUMBER = canary(11)
CARD: Json = {"number": NUMBER, "exp_month": 12, "exp_year": 2031, "cvc": "737"}
TOKEN: Json = {
    "name": "Ada Resident",
    "card": CARD,
    "usage": "multi",
    "kind": "card",
    "consent": {"text": "I agree", "version": 3},
    "details": {"address": {"street": "1 Main St", "number": 1}, "tags": ["a", "b"]},
}
CHARGE: Json = {
    "amount": 1999,
    "currency": "USD",
    "reference": "invoice 7",
    "token": "tok_abc",
    "service": "pool",
    "convenience_fee": 99,
    "capture": True,
    "details": {"pool": "north", "lanes": [3, 4]},
}
CARD_CHARGE: Json = {name: value for name, value in CHARGE.items() if name != "token"} | {"name": "Ada", "card": CARD}
DOCUMENTS = {"token": TOKEN, "charge": CHARGE, "card-charge": CARD_CHARGE}


@pytest.fixture(scope="module")
def brands() -> Brands:
    return Brands.load()


def _raw(document: object) -> bytes:
    return json.dumps(document).encode()


def _with(document: Json, path: tuple[str, ...], value: object) -> Json:
    """The document with another value at one place."""
    copy = deepcopy(document)
    place = copy
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return copy


def _read(brands: Brands, document: bytes | Json) -> CardGiven | ChargeRequest:
    """All that happens to a body before its service: a token's if it has a usage, else a charge's."""
    raw = document if isinstance(document, bytes) else _raw(document)
    if b'"usage"' in raw:
        return card_given(read_body(raw, TokenBody), brands)
    return charge_request(read_body(raw, ChargeBody), brands, "req_x")


def _told(error: GatewayError) -> str:
    """All that an error says, and the answer that is made of it."""
    answer = response(error)
    assert answer is not None
    assert isinstance(answer.body, bytes)
    return " ".join([str(error), repr(error), error.detail, *error.pointers, repr(error.args), answer.body.decode()])


def _refusal(brands: Brands, document: Json) -> str:
    """All that is said of a document, nothing when it is right."""
    try:
        _read(brands, document)
    except GatewayError as error:
        return _told(error)
    return ""


# --- what is right ---


def test_a_token_body_is_read(brands: Brands) -> None:
    """Everything that a resident typed arrives, what must not be shown as a `Secret`."""
    given = _read(brands, TOKEN)

    assert isinstance(given, CardGiven)
    assert (given.card.number.reveal(), given.card.expiry, given.name.reveal()) == (NUMBER, "2031-12", "Ada Resident")
    assert given.cvc is not None
    assert given.cvc.reveal() == "737"
    assert (given.details, given.consent) == (TOKEN["details"], TOKEN["consent"])


def test_charge_bodies_are_read(brands: Brands) -> None:
    """A charge of a token, and one of a card."""
    by_token, by_card = _read(brands, CHARGE), _read(brands, CARD_CHARGE)

    assert isinstance(by_token, ChargeRequest)
    assert isinstance(by_card, ChargeRequest)
    for asked in (by_token, by_card):
        assert (asked.amount_minor, asked.currency, asked.reference) == (1999, "USD", "invoice 7")
        assert (asked.service, asked.fee_minor, asked.capture, asked.details) == ("pool", 99, True, CHARGE["details"])
    assert (by_token.token_id, by_token.given, by_card.token_id) == ("tok_abc", None, None)
    assert by_card.given is not None
    assert by_card.given.card.number.reveal() == NUMBER


def test_what_may_be_left_out_has_a_default(brands: Brands) -> None:
    """The shortest charge has no service, no fee, no details, and is captured."""
    asked = _read(brands, {"amount": 1, "currency": "USD", "reference": "r", "token": "t"})

    assert isinstance(asked, ChargeRequest)
    assert (asked.service, asked.fee_minor, asked.capture, asked.details) == (None, 0, True, None)


@pytest.mark.parametrize(
    ("raw", "amount_minor"),
    [
        (b"{}", None),
        (b'{"amount": 1}', 1),
        (b'{"amount": 0}', 0),
        (b'{"amount": -5}', -5),
        (b'{"amount": 99999999999999999999}', 99_999_999_999_999_999_999),
    ],
)
def test_an_amount_that_is_left_out_means_all(raw: bytes, amount_minor: int | None) -> None:
    """A capture or refund takes any whole amount to its rules; without one it is all that there is."""
    assert read_body(raw, AmountBody).amount_minor == amount_minor


@pytest.mark.parametrize(
    "amount",
    ["null", "1.0", "1.5", "1e2", "true", '"1"', "[]", "{}", "NaN", '1, "amount": 1', '1, "currency": "USD"'],
)
def test_what_is_no_whole_amount_is_refused(amount: str) -> None:
    """No float, not even a round one, no text, nothing twice, and no other field."""
    with pytest.raises(InvalidRequest):
        read_body(f'{{"amount": {amount}}}'.encode(), AmountBody)


def test_a_void_says_nothing() -> None:
    """An empty object is all that a void takes."""
    assert read_body(b"{}", VoidBody) == VoidBody()
    for raw in (b'{"amount": 1}', b"[]", b"null", b""):
        with pytest.raises(InvalidRequest):
            read_body(raw, VoidBody)


# --- hostile JSON ---

DEEP = 100_000


def _hostile() -> Iterator[bytes]:
    good, text = _raw(CHARGE), json.dumps(CHARGE)
    # 53: not one JSON document, or none
    yield from (b"", b" ", b"null", b"true", b"1", b'"x"', b"[]", b"[1,]", b"{", b"}", b"{}", good[:-1], good + b"x")
    yield from (
        good + good,
        good + b"\0",
        b"// why\n" + good,
        b"/**/" + good,
        good[:-1] + b",}",
        b"\xef\xbb\xbf" + good,
    )
    yield from (
        text.replace('"', "'").encode(),
        b'{"amount" 1}',
        b"{amount: 1}",
        b"(" + good + b")",
        b"[" + good + b"]",
    )
    # 54: nesting without end
    yield from (b"[" * DEEP, b"[" * DEEP + b"]" * DEEP, b'{"a":' * DEEP, b'{"a":' * DEEP + b"1" + b"}" * DEEP)
    # 56: names that stand twice, also deep down and in another spelling
    yield good.replace(b'"amount": 1999', b'"amount": 1999, "amount": 9')
    yield good.replace(b'"amount": 1999', b'"amount": 1999, "\\u0061mount": 1999')
    yield good.replace(b'"pool": "north"', b'"pool": "north", "pool": "south"')
    yield good.replace(b'"lanes"', b'"deep": [{"a": 1, "a": 1}], "lanes"')
    # 57: numbers that are not finite, and 61: longer than Python reads
    for number in (b"NaN", b"Infinity", b"-Infinity", b"1e309", b"-1e309", b"9" * 5000, b"1e" + b"9" * 5000):
        yield from (good.replace(b"1999", number), good.replace(b"[3,", b"[" + number + b","))
    # 58: what neither UTF-8 nor PostgreSQL can hold
    for bad in (rb"\ud800", rb"\udfff", rb"\ude00\ud83d", rb"\u0000", rb"a\u0000", b"\0", b"\x1f", b"\n", b"\t"):
        yield from (good.replace(b"north", bad), good.replace(b'"pool":', b'"' + bad + b'":'))
        yield good.replace(b"invoice 7", bad)
    # 59: other encodings
    yield from (text.encode(name) for name in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"))
    yield from (
        good.replace(b"north", bad) for bad in (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xe9", b"\xf5\x80\x80\x80")
    )
    # 60, 73: what is no integer, or not written like one
    for number in (b"1.10", b"1e2", b"100.0", b'"100"', b"true", b"null", b"[1]", b"{}", b'"\xd9\xa3"', b'" 12 "'):
        yield from (
            good.replace(b"1999", number),
            good.replace(b'"convenience_fee": 99', b'"convenience_fee": ' + number),
        )
    yield from (
        good.replace(b"1999", number) for number in (b"01", b"+1", b"0x1", b"1_000", b".5", b"5.", b"1 0", b"-")
    )
    yield from (good.replace(b": true", b": " + other) for other in (b"1", b'"true"', b"True", b"null"))


@pytest.mark.parametrize("raw", list(_hostile()), ids=lambda raw: repr(raw[:40]))
def test_hostile_json_is_an_invalid_request(brands: Brands, raw: bytes) -> None:
    """What is not one strict JSON document of the schema is refused as a whole, whatever it does to parsers."""
    assert raw != _raw(CHARGE), "the case spoils nothing"

    with pytest.raises(InvalidRequest):
        _read(brands, raw)


@pytest.mark.parametrize("shape", ["[]", '{"":}'])
def test_no_depth_is_too_deep_to_be_refused(brands: Brands, shape: str) -> None:
    """Every depth above eight is the same refusal, at those also where one parser gives up and another does not."""
    opening, closing = shape[:-1], shape[-1]

    for depth in [*range(8, 1100, 7), 5000]:
        inner = f"{opening * depth}{'1' if ':' in shape else ''}{closing * depth}"
        with pytest.raises(InvalidRequest):
            _read(brands, _raw(CHARGE).replace(b'"north"', inner.encode()))


@pytest.mark.parametrize("field", ["exp_month", "exp_year"])
@pytest.mark.parametrize("value", ["12", 12.0, True, None, [], "\u0663", " 12 "])
def test_a_date_is_made_of_integers(brands: Brands, field: str, value: object) -> None:
    """Month and year are JSON integers."""
    with pytest.raises(InvalidRequest) as refused:
        _read(brands, _with(TOKEN, ("card", field), value))

    assert refused.value.pointers == (f"/card/{field}",)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_unknown_fields_are_refused(brands: Brands, name: str) -> None:
    """A field that the schema does not know is refused at every level of the schema."""
    document = DOCUMENTS[name]
    places = [("pin",), ("card", "track2")] if "card" in document else [("pin",)]

    for place in places:
        with pytest.raises(InvalidRequest, match="does not know"):
            _read(brands, _with(document, place, "1"))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_missing_fields_are_named(brands: Brands, name: str) -> None:
    """What is required is named by our own word for it."""
    required = {"token": {"name", "card", "usage"}, "charge": {"amount", "currency", "reference"}}
    for field in required.get(name, {"amount", "currency", "reference"}):
        document = {key: value for key, value in DOCUMENTS[name].items() if key != field}
        kind = TokenBody if name == "token" else ChargeBody
        with pytest.raises(InvalidRequest, match=f"missing required field `{field}`"):
            read_body(_raw(document), kind)


@pytest.mark.parametrize(
    "changes",
    [
        {"token": "tok_abc"},
        {"token": None, "card": None, "name": None},
        {"card": None},
        {"name": None},
        {"token": "tok_abc", "card": None},
    ],
)
def test_a_charge_is_of_a_token_or_of_a_card_and_its_name(brands: Brands, changes: Json) -> None:
    """Either `token`, or `name` and `card`: not both, not neither, not half of one."""
    with pytest.raises(InvalidRequest):
        _read(brands, CARD_CHARGE | changes)


# --- limits ---

LIMITS = [
    (TOKEN, ("name",), 100),
    (TOKEN, ("consent",), 200),
    (CARD_CHARGE, ("name",), 100),
    (CHARGE, ("reference",), 200),
    (CHARGE, ("token",), 64),
    (CHARGE, ("service",), 64),
]


@pytest.mark.parametrize(("document", "path", "length_max"), LIMITS)
@pytest.mark.parametrize("character", ["x", "\u00e9", "\U0001f3ca"])
def test_texts_have_limits(
    brands: Brands, document: Json, path: tuple[str, ...], length_max: int, character: str
) -> None:
    """One character and the limit pass; none and one more do not. Characters are counted, not bytes."""
    for length in (1, length_max - 1, length_max):
        _read(brands, _with(document, path, character * length))
    for length in (0, length_max + 1):
        with pytest.raises(InvalidRequest) as refused:
            _read(brands, _with(document, path, character * length))
        assert refused.value.pointers == ("/" + "/".join(path),)


@pytest.mark.parametrize(("name", "field"), [("token", "details"), ("token", "consent"), ("charge", "details")])
def test_free_json_has_limits(brands: Brands, name: str, field: str) -> None:
    """4096 bytes and a depth of eight pass, one more of either does not."""
    document = DOCUMENTS[name]
    nested: Any = 1
    for _ in range(7):
        nested = [nested]

    for good in ({"a": "x" * 4088}, {"a": "\u00e9" * 2044}, {"a": nested}, {"a": [nested[0], {"b": 1}]}, {}):
        _read(brands, _with(document, (field,), good))
    for bad in ({"a": "x" * 4089}, {"a": "\u00e9" * 2045}, {"a": [nested]}, {"a": {"b": nested}}):
        with pytest.raises(InvalidRequest) as refused:
            _read(brands, _with(document, (field,), bad))
        assert refused.value.pointers == (f"/{field}",)


@pytest.mark.parametrize(("name", "field"), [("token", "details"), ("card-charge", "details")])
@pytest.mark.parametrize("value", ["text", 1, True, [], [{}]])
def test_details_are_an_object(brands: Brands, name: str, field: str, value: object) -> None:
    """Details have names."""
    with pytest.raises(InvalidRequest):
        _read(brands, _with(DOCUMENTS[name], (field,), value))


@pytest.mark.parametrize(
    ("name", "field"),
    [("token", "name"), ("card-charge", "name"), ("charge", "reference"), ("charge", "service"), ("charge", "token")],
)
@pytest.mark.parametrize("character", ["\n", "\r", "\t", "\x1b", "\x7f", "\u0085", "\u2028", "\u202e", "\u2066"])
def test_control_characters_are_refused(brands: Brands, name: str, field: str, character: str) -> None:
    """Nothing that moves a cursor, breaks a line or turns the writing round gets into a line of text."""
    with pytest.raises(InvalidRequest) as refused:
        _read(brands, _with(DOCUMENTS[name], (field,), f"a{character}b"))

    assert refused.value.pointers == (f"/{field}",)


# --- card numbers where none may be (68) ---

GROUPED = " ".join([NUMBER[:4], NUMBER[4:8], NUMBER[8:12], NUMBER[12:]])
IN_TEXT = [
    ("token", "name"),
    ("card-charge", "name"),
    ("charge", "reference"),
    ("charge", "service"),
    ("charge", "token"),
]
IN_JSON = [("token", "details"), ("token", "consent"), ("charge", "details"), ("card-charge", "details")]


@pytest.mark.parametrize(("name", "field"), [*IN_TEXT, ("token", "consent")])
@pytest.mark.parametrize("text", [NUMBER, f"pay {NUMBER}", GROUPED, GROUPED.replace(" ", "-"), f"2031 {GROUPED}"])
def test_a_card_number_in_a_text_is_refused(brands: Brands, name: str, field: str, text: str) -> None:
    """No text field takes a card number, in one run or in groups."""
    with pytest.raises(CardNumberInText) as refused:
        _read(brands, _with(DOCUMENTS[name], (field,), text))

    assert refused.value.pointers == (f"/{field}",)
    assert NUMBER[:8] not in _told(refused.value)


@pytest.mark.parametrize(("name", "field"), IN_JSON)
@pytest.mark.parametrize(
    "value",
    [
        {"a": NUMBER},
        {NUMBER: 1},
        {"a": int(NUMBER)},
        {"a": -int(NUMBER)},
        {"a": float(NUMBER)},
        {"a": [1, ["x", {"b": [NUMBER]}]]},
        {"a": {"b": {NUMBER: {}}}},
        {"a": GROUPED},
        {"a": f"expires 2031 {GROUPED}"},
        {"a": [True, None, int(NUMBER)]},
        *({"a": f"{control}{NUMBER}"} for control in '\b\f\n\r\t\x1a\x1f"\\'),
        *({f"{control}{NUMBER}": 1} for control in "\b\f\x1c"),
    ],
    ids=repr,
)
def test_a_card_number_in_free_json_is_refused(brands: Brands, name: str, field: str, value: Json) -> None:
    """As a value, as a name, as a number, at any depth, and beside characters that JSON escapes."""
    with pytest.raises(CardNumberInText) as refused:
        _read(brands, _with(DOCUMENTS[name], (field,), value))

    assert refused.value.pointers == (f"/{field}",)
    assert NUMBER[:8] not in _told(refused.value)


def test_numbers_that_are_no_cards_pass(brands: Brands) -> None:
    """A wrong check digit, digits in two fields, a hexadecimal neighbour: ordinary details."""
    wrong = NUMBER[:-1] + str((int(NUMBER[-1]) + 1) % 10)
    details = {"a": wrong, "b": int(wrong), "c": [NUMBER[:8], NUMBER[8:]], "d": f"{NUMBER}ab", "e": 1.5, "f": None}

    _read(brands, _with(CHARGE, ("details",), details))


# --- refusals repeat nothing ---

CANARY = "zqcanary"
DISGUISED = [
    CANARY,
    f"x - at `$.{CANARY}",
    f"` - at `$.{CANARY}`",
    f"Expected `int` - at `$.{CANARY}",
    f"card.{CANARY}",
]
WRONG_KINDS: list[Any] = [
    *DISGUISED,
    *([text] for text in DISGUISED),
    *({text: text} for text in DISGUISED),
    f"{CANARY}\n",
    CANARY * 100,
    {"details": [CANARY] * 1000},
]


def _places(document: Json) -> Iterator[tuple[str, ...]]:
    for name, value in document.items():
        yield (name,)
        if name == "card":
            yield from (("card", inner) for inner in value)


@pytest.mark.parametrize(
    ("name", "place"),
    [(name, place) for name, document in DOCUMENTS.items() for place in _places(document)],
    ids=lambda part: part if isinstance(part, str) else "/".join(part),
)
def test_a_refusal_never_repeats_a_value(brands: Brands, name: str, place: tuple[str, ...]) -> None:
    """Whatever stands wrongly in whatever field, no part of it is in the error or in the answer."""
    said = [_refusal(brands, _with(DOCUMENTS[name], place, value)) for value in WRONG_KINDS]

    assert sum(map(bool, said)) > 2
    assert not [text for text in said if "zq" in text or "canary" in text]


@pytest.mark.parametrize("text", DISGUISED)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_refusal_never_repeats_the_name_of_a_field(brands: Brands, name: str, text: str) -> None:
    """Names of unknown fields stay unsaid, also those that look like a place in the document."""
    document = DOCUMENTS[name]
    for place in [(text,), ("card", text)] if "card" in document else [(text,)]:
        with pytest.raises(InvalidRequest) as refused:
            _read(brands, _with(document, place, CANARY))
        assert "zq" not in _told(refused.value)


@pytest.mark.parametrize("place", [("card", "number"), ("card", "cvc"), ("card", "exp_month"), ("card", "exp_year")])
@pytest.mark.parametrize(
    "value", [NUMBER + "7", int(NUMBER), float(NUMBER), [NUMBER], NUMBER[:-1] + "x", "9173", 9173]
)
def test_a_refusal_never_repeats_a_digit_of_a_card(brands: Brands, place: tuple[str, ...], value: object) -> None:
    """Numbers and codes in the wrong place or of the wrong kind are not in the error."""
    said = _refusal(brands, _with(TOKEN, place, value))

    assert said or place == ("card", "exp_year"), "only the date of today makes a year wrong"
    assert NUMBER[:6] not in said
    assert "9173" not in said


def test_nothing_typed_is_printed(brands: Brands) -> None:
    """Bodies and what is made of them print neither names, nor cards, nor what was sealed."""
    private = {NUMBER, "737", "Resident", "I agree", "Main St", "north"}
    bodies = [read_body(_raw(TOKEN), TokenBody), read_body(_raw(CARD_CHARGE), ChargeBody), CardBody(**CARD)]
    shown = " ".join(f"{thing!r} {thing}" for thing in [*bodies, _read(brands, TOKEN), _read(brands, CARD_CHARGE)])

    assert not [text for text in private if text in shown]


# --- what a repeated request must share ---


def test_the_digest_knows_business_fields_only(brands: Brands) -> None:
    """Order of fields, spaces, code and details may differ in a repeated request."""
    asked = _read(brands, CARD_CHARGE)
    assert isinstance(asked, ChargeRequest)

    again = [CARD_CHARGE | {"details": {"other": 1}}, _with(CARD_CHARGE, ("card", "cvc"), "111")]
    again += [dict(sorted(CARD_CHARGE.items())), dict(reversed(CARD_CHARGE.items()))]
    for raw in (*map(_raw, again), json.dumps(CARD_CHARGE, indent=2).encode()):
        repeated = _read(brands, raw)
        assert isinstance(repeated, ChargeRequest)
        assert repeated.digest == asked.digest


@pytest.mark.parametrize(
    "change",
    [
        {"amount": 2000},
        {"currency": "EUR"},
        {"reference": "invoice 8"},
        {"service": "rink"},
        {"service": None},
        {"convenience_fee": 0},
        {"capture": False},
        {"token": "tok_abd"},
    ],
)
def test_the_digest_knows_every_business_field(brands: Brands, change: Json) -> None:
    """Another amount, currency, reference, service, fee, capture or token is another request."""
    asked, other = _read(brands, CHARGE), _read(brands, CHARGE | change)

    assert isinstance(asked, ChargeRequest)
    assert isinstance(other, ChargeRequest)
    assert other.digest != asked.digest
