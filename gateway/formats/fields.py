"""The fields of an imported line: strict, and refused in words. What is refused is never repeated.

Each reader takes the column's name first, for the refusal, then the text. Digits are ASCII digits.
"""

import re
from datetime import UTC, date, datetime
from functools import cache, lru_cache

from gateway.rules.card import Brands
from gateway.rules.money import ENABLED

# Ten digits before the point, of a total too: no sum of as many lines as a file can have is more than a bigint holds.
AMOUNT = re.compile(r"(?!-0\.00)-?(?:0|[1-9][0-9]{0,9})\.[0-9]{2}")
CODE = re.compile(r"[!-~]{1,64}")
MANY_DIGITS = re.compile(r"[0-9](?:-?[0-9]){12}")
"""A text without this holds no card number; it is asked of every line, so it must be quick."""
DAY = r"20[0-9]{2}-[0-9]{2}-[0-9]{2}"
TIME = r"[0-9]{2}:[0-9]{2}:[0-9]{2}"
MOMENT = re.compile(rf"{DAY}(?:T{TIME}(?:\.[0-9]{{1,9}})?(?:Z|[+-][0-9]{{2}}:[0-9]{{2}}))?")
PLAIN_MOMENT = re.compile(rf"{DAY} {TIME}")


class Unfit(Exception):
    """A field that cannot be right: the column, and words to follow the line's number."""

    def __init__(self, column: str, words: str) -> None:
        self.column = column
        self.words = words
        super().__init__(f"{column}: {words}")


def minor(column: str, text: str) -> int:
    """An amount in minor units. Every currency that is enabled has two digits."""
    if not AMOUNT.fullmatch(text):
        raise Unfit(column, "write an amount with two digits after the point, like 12.50 or -3.00.")
    return int(text.replace(".", ""))


def currency(column: str, text: str) -> str:
    """An enabled one, in upper case."""
    if text not in ENABLED:
        raise Unfit(column, f"only {', '.join(ENABLED)} is taken, in upper case.")
    return text


def moment(column: str, text: str) -> datetime:
    """A date-time of RFC 3339, in UTC; a bare date is its midnight UTC. Of this century, so that no sum overflows."""
    if not MOMENT.fullmatch(text):
        raise Unfit(column, "write a time with its offset, like 2026-11-23T18:04:05Z, or a date, like 2026-11-23.")
    read = _calendar(column, text)
    return read.astimezone(UTC) if read.tzinfo else read.replace(tzinfo=UTC)


def utc_moment(column: str, text: str) -> datetime:
    """As `moment`, or as processors write UTC: `2026-11-23 18:04:05`."""
    if PLAIN_MOMENT.fullmatch(text):
        return _calendar(column, text).replace(tzinfo=UTC)
    return moment(column, text)


@lru_cache(1024)  # a file has few days and many lines
def day(column: str, text: str) -> date:
    """The date in UTC of what `utc_moment` takes."""
    return utc_moment(column, text).date()


def code(column: str, text: str) -> str:
    """A reference or a batch: 1 to 64 visible ASCII characters, no card number among them."""
    if not CODE.fullmatch(text):
        raise Unfit(column, "write 1 to 64 plain letters, digits or signs, without spaces.")
    if holds_card(text):
        raise Unfit(column, "a card number stands here. Nothing was kept; ask for a file without it.")
    return text


def holds_card(text: str) -> bool:
    """Whether a card number stands in a text of ASCII."""
    return MANY_DIGITS.search(text) is not None and _brands().find(text)


@cache
def _brands() -> Brands:
    return Brands.load()


def _calendar(column: str, text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise Unfit(column, "there is no such date or time; count hours to 23, minutes and seconds to 59.") from None
