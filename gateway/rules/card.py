"""Cards: which numbers are one, until when they hold, and where in a text one hides.

Digits are ASCII digits: `str.isdigit` and `int` would take those of other alphabets. No message here repeats
what was given.
"""

import re
import tomllib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from zoneinfo import ZoneInfo

from stdnum import luhn
from stdnum.exceptions import ValidationError

from gateway.errors import CardNumberInText, CardRefused, InvalidRequest
from keys.secret import Secret

NUMBER = re.compile(r"[0-9]{12,19}")
CVC = re.compile(r"[0-9]{3,4}")
YEARS_AHEAD_MAX = 20
CENTURY = 2000

# A number in one run, or in the groups that cards print, with no digit and no letter a-f beside it: so the
# groups of a random UUID never match. It matches nothing and captures, so that a number is found at each place,
# also behind other groups of digits.
PRINTED = re.compile(
    r"(?<![0-9a-f])(?=("
    r"[0-9]{13,19}"
    r"|[0-9]{4}[ -][0-9]{4}[ -][0-9]{4}[ -][0-9]{4}"
    r"|[0-9]{4}[ -][0-9]{6}[ -][0-9]{5}"
    r"|[0-9]{4}[ -][0-9]{6}[ -][0-9]{4}"
    r")(?![0-9a-f]))",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Brand:
    """What a network's numbers look like."""

    name: str
    lengths: frozenset[int]
    cvc_digits: int


UNKNOWN_BRAND = Brand("unknown", frozenset(), 3)
"""Of a card that was accepted under an older table."""


@dataclass(frozen=True, slots=True)
class Card:
    """A card that passed every check. What must not be shown is a `Secret`."""

    number: Secret[str]
    exp_month: int
    exp_year: int
    brand: Brand
    last4: str

    @property
    def expiry(self) -> str:
        """`YYYY-MM`."""
        return f"{self.exp_year:04d}-{self.exp_month:02d}"


class Brands:
    """The table of issuer ranges, ready to be asked. Numbers in `refused` are no cards, whatever else is right."""

    def __init__(self, by_prefix: Mapping[str, Brand], refused: frozenset[str] = frozenset()) -> None:
        self._by_prefix = by_prefix
        self._refused = refused
        self._longest = max(map(len, by_prefix))

    @classmethod
    def load(cls, *, refuse_published: bool = False) -> "Brands":
        """Read `brands.toml`. In production the published test numbers are refused."""
        table = tomllib.loads(files("gateway.rules").joinpath("brands.toml").read_text())
        by_prefix = {}
        for row in table["brand"]:
            brand = Brand(row["name"], frozenset(row["lengths"]), row["cvc_digits"])
            by_prefix.update(dict.fromkeys(_expand(row["prefixes"]), brand))
        return cls(by_prefix, frozenset(table["published"] if refuse_published else ()))

    def of(self, number: str) -> Brand | None:
        """The brand of a number, by its longest known prefix."""
        for length in range(self._longest, 0, -1):
            if brand := self._by_prefix.get(number[:length]):
                return brand
        return None

    def check(self, number: Secret[str]) -> Brand:
        """The brand of a card number; raises `InvalidRequest` for its form, `CardRefused` for its content."""
        digits = number.reveal()
        if not NUMBER.fullmatch(digits):
            raise InvalidRequest("The card number must be 12 to 19 digits and nothing else.", ["/card/number"])
        brand = self.of(digits)
        if brand is None:
            raise CardRefused("The card number belongs to no known brand.", ["/card/number"])
        if len(digits) not in brand.lengths:
            raise CardRefused("The card number has a wrong length for its brand.", ["/card/number"])
        if not _check_digit_holds(digits):
            raise CardRefused("The card number is mistyped: its check digit is wrong.", ["/card/number"])
        if digits in self._refused:
            raise CardRefused("The card number is a published test number, which no bank issues.", ["/card/number"])
        return brand

    def find(self, text: str) -> bool:
        """Whether a card number stands in a text: known issuer, allowed length and right check digit."""
        return any(self._is_number(re.sub("[ -]", "", m[1])) for m in PRINTED.finditer(_ascii_digits(text)))

    def require_none(self, pointer: str, *texts: str) -> None:
        """Raises `CardNumberInText` when one of the texts holds a card number."""
        if any(self.find(text) for text in texts):
            raise CardNumberInText(pointers=[pointer])

    def _is_number(self, digits: str) -> bool:
        brand = self.of(digits)
        return brand is not None and len(digits) in brand.lengths and _check_digit_holds(digits)


def read_card(brands: Brands, number: Secret[str], exp_month: int, exp_year: int) -> Card:
    """A card that may exist; raises `InvalidRequest` or `CardRefused`. Whether it has expired is a question apart."""
    brand = brands.check(number)
    year = exp_year + CENTURY if 0 <= exp_year < 100 else exp_year  # noqa: PLR2004 - cards print two digits
    if not 1 <= exp_month <= 12:  # noqa: PLR2004 - months
        raise CardRefused("exp_month must be 1 to 12.", ["/card/exp_month"])
    return Card(number, exp_month, year, brand, number.reveal()[-4:])


def require_valid(card: Card, city: ZoneInfo, now: datetime) -> None:
    """A card holds through the last day of its month, in the city's time zone; raises `CardRefused`."""
    today = now.astimezone(city)
    if card.exp_year > today.year + YEARS_AHEAD_MAX:
        raise CardRefused("exp_year is too far ahead.", ["/card/exp_year"])
    if (card.exp_year, card.exp_month) < (today.year, today.month):
        raise CardRefused("The card has expired.", ["/card/exp_month", "/card/exp_year"])


def check_cvc(brand: Brand, cvc: Secret[str]) -> None:
    """The verification code has the brand's length; raises `InvalidRequest` or `CardRefused`."""
    digits = cvc.reveal()
    if not CVC.fullmatch(digits):
        raise InvalidRequest("cvc must be 3 or 4 digits.", ["/card/cvc"])
    if len(digits) != brand.cvc_digits:
        raise CardRefused(f"The code of this brand has {brand.cvc_digits} digits.", ["/card/cvc"])


def _check_digit_holds(digits: str) -> bool:
    try:
        luhn.validate(digits)
    except ValidationError:
        return False
    return True


def _ascii_digits(text: str) -> str:
    """The text with full-width and other alphabets' digits, spaces and hyphens made plain."""
    if text.isascii():
        return text
    return "".join(_plain(character) for character in unicodedata.normalize("NFKC", text))


def _plain(character: str) -> str:
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    if unicodedata.category(character) in {"Pd", "Sm"}:
        return "-"
    return " " if character.isspace() else character


def _expand(prefixes: Iterable[str]) -> Iterable[str]:
    for prefix in prefixes:
        first, _, last = prefix.partition("-")
        yield from map(str, range(int(first), int(last or first) + 1))
