"""Cards: brands and their ranges, check digits, codes, the last second of an expiry, and numbers hidden in text."""

import random
import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from gateway.errors import CardNumberInText, CardRefused, InvalidRequest
from gateway.rules.card import Brands, Card, check_cvc, read_card, require_valid
from gateway.rules.ids import new_id
from keys.secret import Secret
from tests.cards import PUBLISHED, TRIGGERS, canary, with_check_digit

VISA = "4242424242424242"
AMEX = "378282246310005"
DINERS = "36227206271667"
CITY = ZoneInfo("America/Los_Angeles")
NOW = datetime(2026, 11, 22, tzinfo=UTC)

FULL_WIDTH = str.maketrans("0123456789", "".join(chr(0xFF10 + digit) for digit in range(10)))
ARABIC_INDIC = str.maketrans("0123456789", "".join(chr(0x0660 + digit) for digit in range(10)))
MATHEMATICAL = str.maketrans("0123456789", "".join(chr(0x1D7CE + digit) for digit in range(10)))
SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")

RANGES = [
    *((prefix, "visa") for prefix in ("40", "4999")),
    *((prefix, "mastercard") for prefix in ("51", "52", "53", "54", "55", "222100", "2720", "272099")),
    *((prefix, "amex") for prefix in ("34", "37")),
    *((prefix, "discover") for prefix in ("6011", "644", "645", "649", "65", "6599")),
    *((prefix, "diners") for prefix in ("300", "305", "3095", "36", "38", "39")),
    *((prefix, "jcb") for prefix in ("3528", "3550", "3589")),
    *((prefix, "unionpay") for prefix in ("62", "81")),
    *((prefix, None) for prefix in ("0", "1", "222099", "272100", "50", "56", "306", "3094", "3096", "3527", "3590")),
    *((prefix, None) for prefix in ("31", "33", "60", "6010", "6012", "61", "63", "643", "66", "7", "80", "82", "9")),
]

LENGTHS = {
    "visa": {13, 16, 19},
    "mastercard": {16},
    "amex": {15},
    "discover": {16, 17, 18, 19},
    "diners": {14, 15, 16, 17, 18, 19},
    "jcb": {16, 17, 18, 19},
    "unionpay": {16, 17, 18, 19},
}


@pytest.fixture(scope="module")
def brands() -> Brands:
    return Brands.load()


def _number(prefix: str, length: int = 16) -> str:
    """A number with a right check digit; the fill is not all zeros, so that a wrong prefix cannot hide in it."""
    return with_check_digit((prefix + "7150384629715038462")[: length - 1])


def _grouped(number: str, *sizes: int, by: str = " ") -> str:
    assert sum(sizes) == len(number)
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return by.join(number[start : start + size] for start, size in zip(starts, sizes, strict=True))


def _card(brands: Brands, month: int, year: int, number: str = VISA) -> Card:
    return read_card(brands, Secret(number), month, year)


# --- brands ---


@pytest.mark.parametrize(("number", "brand"), [*PUBLISHED.items(), *((number, "visa") for number in TRIGGERS)])
def test_a_published_number_has_its_brand(brands: Brands, number: str, brand: str) -> None:
    """Every published test number passes, with the brand that its network gave it."""
    assert brands.check(Secret(number)).name == brand


@pytest.mark.parametrize(("prefix", "name"), RANGES)
def test_ranges_end_where_the_networks_say(brands: Brands, prefix: str, name: str | None) -> None:
    """A brand's range holds its first and last prefix and not their neighbours."""
    lowest, highest = prefix.ljust(16, "0"), prefix.ljust(16, "9")

    for number in (lowest, highest):
        brand = brands.of(number)
        assert (brand.name if brand else None) == name


@pytest.mark.parametrize("name", LENGTHS)
def test_each_brand_has_its_lengths(brands: Brands, name: str) -> None:
    """A number passes with exactly the lengths that its network issues."""
    prefix = next(prefix for prefix, brand in RANGES if brand == name)

    for length in range(12, 20):
        number = Secret(_number(prefix, length))
        if length in LENGTHS[name]:
            assert brands.check(number).name == name
        else:
            with pytest.raises(CardRefused, match="wrong length"):
                brands.check(number)


def test_an_unknown_issuer_is_refused(brands: Brands) -> None:
    """A number of no known range is refused although its check digit is right."""
    with pytest.raises(CardRefused, match="no known brand"):
        brands.check(Secret(_number("9999")))


# --- the number itself ---


@pytest.mark.parametrize("number", PUBLISHED)
def test_one_mistyped_digit_is_noticed(brands: Brands, number: str) -> None:
    """Every single wrong digit in every place is refused."""
    for place, right in enumerate(number):
        for wrong in set("0123456789") - {right}:
            with pytest.raises(CardRefused):
                brands.check(Secret(number[:place] + wrong + number[place + 1 :]))


@pytest.mark.parametrize("number", PUBLISHED)
def test_two_swapped_digits_are_noticed(brands: Brands, number: str) -> None:
    """Every swap of neighbours is refused, but for 09 and 90, which the Luhn formula cannot tell apart."""
    for place, (first, second) in enumerate(pairwise(number)):
        swapped = Secret(number[:place] + second + first + number[place + 2 :])
        if first == second or {first, second} == {"0", "9"}:
            brands.check(swapped)
        else:
            with pytest.raises(CardRefused):
                brands.check(swapped)


@pytest.mark.parametrize(
    "spoil",
    [
        *(lambda number, table=table: number.translate(table) for table in (FULL_WIDTH, ARABIC_INDIC, MATHEMATICAL)),
        lambda number: number.translate(SUPERSCRIPT),
        lambda number: number[:-1] + number[-1].translate(FULL_WIDTH),
        lambda number: number + "\n",
        lambda number: "\n" + number,
        lambda number: " " + number,
        lambda number: number + " ",
        lambda number: "+" + number,
        lambda number: number + "\0",
        lambda number: _grouped(number, 4, 4, 4, 4),
        lambda number: _grouped(number, 4, 4, 4, 4, by="-"),
        lambda number: _grouped(number, 4, 4, 4, 4, by="_"),
        lambda number: number[:-1] + "x",
        lambda number: with_check_digit(number[:10]),
        lambda number: with_check_digit(number + "123"),
        lambda number: "",
    ],
)
def test_only_ascii_digits_are_a_number(brands: Brands, spoil: Callable[[str], str]) -> None:
    """A number is 12 to 19 ASCII digits and nothing else; what else was sent is not repeated."""
    given = spoil(VISA)

    with pytest.raises(InvalidRequest) as refused:
        brands.check(Secret(given))
    assert refused.value.pointers == ("/card/number",)
    assert not given or given.strip() not in repr(refused.value)


def test_eleven_and_twenty_digits_were_tried(brands: Brands) -> None:
    """The cases above hold the lengths just outside, and those just inside fail for another reason."""
    assert len(with_check_digit(VISA[:10])) == 11
    assert len(with_check_digit(VISA + "123")) == 20

    for length in (12, 18):
        with pytest.raises(CardRefused, match="wrong length"):
            brands.check(Secret(_number("4", length)))


@pytest.mark.parametrize("number", ["0" * 16, _number("9999"), VISA[:-1] + "3", canary(7) + "0"])
def test_a_refusal_does_not_repeat_the_number(brands: Brands, number: str) -> None:
    """No digit of what was refused is in the error."""
    with pytest.raises(CardRefused) as refused:
        brands.check(Secret(number))

    assert not re.search(r"[0-9]", repr(refused.value) + refused.value.detail + "".join(refused.value.pointers))


def test_a_card_shows_no_number(brands: Brands) -> None:
    """A card prints its last four digits, brand and expiry, and the rest of it nowhere."""
    card = _card(brands, 2, 31, number=canary(3))

    assert (card.expiry, card.last4, card.brand.name) == ("2031-02", canary(3)[-4:], "visa")
    assert canary(3)[:12] not in repr(card) + str(card)


# --- the code ---


@pytest.mark.parametrize(("number", "digits"), [(VISA, 3), (AMEX, 4), (DINERS, 3), ("3530111333300000", 3)])
def test_the_code_has_its_brands_length(brands: Brands, number: str, digits: int) -> None:
    """American Express prints four digits, all others three."""
    brand = brands.check(Secret(number))
    other = 7 - digits

    check_cvc(brand, Secret("0" * digits))
    with pytest.raises(CardRefused) as refused:
        check_cvc(brand, Secret("9" * other))
    assert refused.value.pointers == ("/card/cvc",)
    assert "9" not in repr(refused.value)


@pytest.mark.parametrize(
    "cvc",
    [
        "",
        "12",
        "12345",
        "12a",
        "123\n",
        " 123",
        "123".translate(FULL_WIDTH),
        "345".translate(ARABIC_INDIC),
        "-12",
        "1.2",
    ],
)
def test_a_malformed_code_is_refused(brands: Brands, cvc: str) -> None:
    """A code is three or four ASCII digits."""
    with pytest.raises(InvalidRequest) as refused:
        check_cvc(brands.check(Secret(VISA)), Secret(cvc))

    assert not cvc or cvc.strip() not in repr(refused.value)


# --- expiry ---


@pytest.mark.parametrize(
    ("month", "year", "last_second"),
    [
        (11, 2026, "2026-12-01T07:59:59Z"),  # Pacific Standard Time
        (12, 2026, "2027-01-01T07:59:59Z"),
        (2, 2028, "2028-03-01T07:59:59Z"),  # a leap day
        (3, 2027, "2027-04-01T06:59:59Z"),  # summer time began within the month
        (7, 2027, "2027-08-01T06:59:59Z"),
        (10, 2027, "2027-11-01T06:59:59Z"),  # summer time still holds; it ends on the 7th
        (11, 2027, "2027-12-01T07:59:59Z"),  # summer time ended within the month
    ],
)
def test_a_card_holds_to_the_last_second_of_its_month(
    brands: Brands, month: int, year: int, last_second: str
) -> None:
    """Expiry is counted in the city's time zone, summer time included."""
    card, last = _card(brands, month, year), datetime.fromisoformat(last_second)

    require_valid(card, CITY, last)
    require_valid(card, CITY, last + timedelta(microseconds=999_999))
    with pytest.raises(CardRefused, match="expired") as refused:
        require_valid(card, CITY, last + timedelta(seconds=1))
    assert refused.value.pointers == ("/card/exp_month", "/card/exp_year")


def test_expiry_follows_the_city_and_not_the_clock_zone(brands: Brands) -> None:
    """The same moment is another month elsewhere."""
    card, moment = _card(brands, 11, 2026), datetime(2026, 12, 1, 3, tzinfo=UTC)

    require_valid(card, CITY, moment)
    with pytest.raises(CardRefused):
        require_valid(card, ZoneInfo("Europe/Paris"), moment)


@pytest.mark.parametrize(("given", "meant"), [(0, 2000), (7, 2007), (31, 2031), (99, 2099), (100, 100), (2031, 2031)])
def test_cards_print_two_digits_of_the_year(brands: Brands, given: int, meant: int) -> None:
    """A year of two digits is of this century; other years are taken as they stand."""
    assert _card(brands, 12, given).exp_year == meant


@pytest.mark.parametrize("year", [-1, 0, 25, 100, 2025, 10**30])
def test_impossible_years_are_refused(brands: Brands, year: int) -> None:
    """Years that are past, or beyond what any card bears, are refused."""
    with pytest.raises(CardRefused):
        require_valid(_card(brands, 12, year), CITY, NOW)


def test_twenty_years_ahead_is_the_limit(brands: Brands) -> None:
    """A card may hold for twenty years and no more."""
    require_valid(_card(brands, 12, 2046), CITY, NOW)
    with pytest.raises(CardRefused, match="too far ahead"):
        require_valid(_card(brands, 1, 2047), CITY, NOW)


@pytest.mark.parametrize("month", [-1, 0, 13, 10**30])
def test_there_are_twelve_months(brands: Brands, month: int) -> None:
    """A month is 1 to 12."""
    with pytest.raises(CardRefused) as refused:
        _card(brands, month, 2031)

    assert refused.value.pointers == ("/card/exp_month",)


# --- numbers in text ---

VISA_GROUPS = _grouped(VISA, 4, 4, 4, 4)


@pytest.mark.parametrize(
    "text",
    [
        *PUBLISHED,
        *(f"({number})" for number in TRIGGERS),
        VISA_GROUPS,
        VISA_GROUPS.replace(" ", "-"),
        VISA_GROUPS.replace(" ", "-", 1),
        _grouped(AMEX, 4, 6, 5),
        _grouped(AMEX, 4, 6, 5, by="-"),
        _grouped(DINERS, 4, 6, 4),
        f"ref {VISA}, thanks",
        f"2027 {VISA_GROUPS}",
        f"{VISA_GROUPS} 2027",
        f"1234-5678-{VISA_GROUPS}",
        f"{canary(1)[:-1]}x {VISA}",
        f"no_{VISA}_g{VISA}g",
        f"\n{VISA}\t",
        f'{{"number": {VISA}.0}}',
        f"é{VISA}é",
        *(VISA.translate(table) for table in (FULL_WIDTH, ARABIC_INDIC, MATHEMATICAL, SUPERSCRIPT)),
        VISA[:8] + VISA[8:].translate(FULL_WIDTH),
        *(VISA_GROUPS.replace(" ", space) for space in "\u00a0\u2007\u202f\u3000"),
        *(VISA_GROUPS.replace(" ", hyphen) for hyphen in "\u2010\u2011\u2012\u2013\u2014\u2212\uff0d"),
    ],
)
def test_a_card_number_in_text_is_found(brands: Brands, text: str) -> None:
    """In one run or in printed groups, in any digits, beside anything but digits and the letters a to f."""
    assert brands.find(text)
    with pytest.raises(CardNumberInText) as refused:
        brands.require_none("/reference", "harmless", text)
    assert refused.value.pointers == ("/reference",)
    assert VISA[:8] not in repr(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "invoice 2026-11-22",
        *(beside + VISA for beside in "0123456789abcdefABCDEF"),
        *(VISA + beside for beside in "0123456789abcdefABCDEF"),
        *(beside + VISA_GROUPS for beside in "4aF"),
        *(VISA_GROUPS + beside for beside in "4aF"),
        VISA.translate(FULL_WIDTH) + "\uff44",
        VISA[:-1] + "3",
        _number("9999"),
        _number("4", 14),
        "0" * 16,
        VISA_GROUPS.replace(" ", "  "),
        VISA_GROUPS.replace(" ", "\n"),
        VISA_GROUPS.replace(" ", "/"),
        _grouped(VISA, 8, 8),
        _grouped(AMEX, 4, 4, 4, 3),
    ],
)
def test_other_digits_are_not_a_card_number(brands: Brands, text: str) -> None:
    """A wrong check digit, length, issuer or grouping, or a hexadecimal neighbour: nothing is found."""
    assert not brands.find(text)
    brands.require_none("/reference", text)


def test_random_uuids_raise_no_alarm(brands: Brands) -> None:
    """A random UUID never passes for a card number, not even one that happens to hold digits only."""
    chance = random.Random(20261122)  # noqa: S311 - a sample that repeats
    random_uuids = (str(uuid.UUID(int=chance.getrandbits(128), version=4)) for _ in range(100_000))
    digits_only = (str(uuid.UUID("".join(chance.choices("0123456789", k=32)))) for _ in range(10_000))

    for text in (*random_uuids, *digits_only):
        assert not brands.find(text)
        assert not brands.find(text.replace("-", "").upper())


def test_our_own_ids_and_times_raise_no_alarm(brands: Brands) -> None:
    """What the gateway itself writes into texts is never taken for a card number."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    moments = (start + timedelta(seconds=33_333.123457 * step) for step in range(10_000))

    for moment in moments:
        text = f"{new_id('ch')} {moment.isoformat()} {moment:%Y%m%d%H%M%S} {moment.timestamp() * 1e6:.0f}"
        assert not brands.find(text), text


@pytest.mark.parametrize("number", [*PUBLISHED, *TRIGGERS])
def test_published_numbers_are_nobody_s_card_in_production(brands: Brands, number: str) -> None:
    """Every published test number is taken in a demo, and refused where real cards are."""
    _card(brands, 12, 2031, number)
    with pytest.raises(CardRefused) as refused:
        _card(Brands.load(refuse_published=True), 12, 2031, number)
    assert refused.value.pointers == ("/card/number",)
    assert number not in str(refused.value)


def test_production_takes_every_other_number() -> None:
    """A number beside a published one is a card like any other, and a published one in a text is still found."""
    production = Brands.load(refuse_published=True)

    assert _card(production, 12, 2031, canary(7)).last4 == canary(7)[-4:]
    assert production.find(VISA)
