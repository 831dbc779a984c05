"""What a query asks for, read strictly: business dates, amounts, how much of a list.

A date is `YYYY-MM-DD` and nothing else: no time, no offset, four digits of a year that there can be. A card number is
refused whatever is asked with it, and never shown again to who typed it.
"""

import re
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from functools import cache

from gateway.errors import InvalidRequest
from gateway.rules.calendar import FIRST, LAST
from gateway.rules.card import Brands
from gateway.rules.money import ENABLED

DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
LIMIT = re.compile(r"[1-9][0-9]{0,2}")
LIMIT_USUAL, LIMIT_MAX = 50, 200
NUMBER = re.compile(r"[0-9]{1,9}")
MINOR = re.compile(r"[0-9]{1,15}")
TYPED = re.compile(r"(?:[0-9]{1,13}|[0-9]{1,3}(?:,[0-9]{3}){1,3})(?:\.[0-9]{2})?")
DIGITS = max(ENABLED.values())
LENGTH_MAX = 128


def day(asked: Mapping[str, str], name: str) -> date | None:
    """A business date, if one is asked for; raises `InvalidRequest`."""
    text = asked.get(name)
    if text is None:
        return None
    try:
        found = date.fromisoformat(text) if DATE.fullmatch(text) else None
    except ValueError:
        found = None
    if found is None or not FIRST <= found <= LAST:
        raise InvalidRequest("Write a date as 2026-11-23: year, month, day.", [f"/{name}"])
    return found


def days(asked: Mapping[str, str]) -> tuple[date | None, date | None]:
    """`from` and `to`, if they are asked for; raises `InvalidRequest`."""
    first, last = day(asked, "from"), day(asked, "to")
    if first and last and last < first:
        raise InvalidRequest("The first date comes after the last one.", ["/to"])
    return first, last


def limit(asked: Mapping[str, str]) -> int:
    """How many of a list; raises `InvalidRequest`."""
    text = asked.get("limit", str(LIMIT_USUAL))
    if not LIMIT.fullmatch(text) or int(text) > LIMIT_MAX:
        raise InvalidRequest(f"`limit` must be 1 to {LIMIT_MAX}.", ["/limit"])
    return int(text)


def place(asked: Mapping[str, str]) -> int:
    """The number behind which a numbered list goes on, 0 at its beginning; raises `InvalidRequest`."""
    text = asked.get("starting_after", "0")
    if not NUMBER.fullmatch(text):
        raise InvalidRequest("`starting_after` is the id of an item of this list.", ["/starting_after"])
    return int(text)


def amount_minor(asked: Mapping[str, str], *, typed: bool) -> int | None:
    """An amount, in minor units, or as a person has `typed` it: 12, 12.50 or 1,250.00. Raises `InvalidRequest`."""
    text = asked.get("amount")
    if text is None:
        return None
    if not (TYPED if typed else MINOR).fullmatch(text):
        told = "Write an amount like 12.50." if typed else "`amount` is a whole number of minor units."
        raise InvalidRequest(told, ["/amount"])
    return int(Decimal(text.replace(",", "")).scaleb(DIGITS)) if typed else int(text)


def text(asked: Mapping[str, str], name: str) -> str | None:
    """A line of text; raises `InvalidRequest` for what nothing of ours can be equal to, and `CardNumberInText`."""
    given = asked.get(name)
    if given is not None and (len(given) > LENGTH_MAX or not given.isprintable()):
        raise InvalidRequest(f"`{name}` is one line of at most {LENGTH_MAX} characters.", [f"/{name}"])
    _brands().require_none(f"/{name}", given or "")
    return given


def shown_again(typed: Mapping[str, str]) -> Mapping[str, str]:
    """What stands again in a form that was refused: all that was typed; nothing where a card number is in it."""
    return {} if any(map(_brands().find, typed.values())) else typed


@cache
def _brands() -> Brands:
    return Brands.load()
