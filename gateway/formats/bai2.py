"""The bank's statement in BAI2, version 2 (Cash Management Balance Reporting Specifications).

    01  file       ┐        made by whom, when
    02  group      │┐       of which day, in which currency
    03  account    ││┐      its balances
    16  entry      │││      one credit or debit, perhaps with words about it
    88             │││      goes on with the record before it
    49  end        ││┘      sum of all amounts of the account, balances included, and how many records
    98  end        │┘       sum of the accounts, how many, how many records
    99  end        ┘        sum of the groups, how many, how many records

Records end with `/`, unless their last field is text. Amounts have implied decimals. A statement that was cut,
edited in one place or put in another order does not add up, and is refused. Of an entry the amount, the type, the
bank's reference and the settlement batch are kept; account numbers and words are not.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import BinaryIO

from gateway.errors import FileRefused
from gateway.formats.fields import CODE, Unfit, currency, day, holds_card
from gateway.formats.lines import lines, refused
from gateway.rules.settlement import DepositLine

KIND = "deposit"
NAME = "bai2"

FOLLOWS: Mapping[str, tuple[str, ...]] = {
    "": ("01",),
    "01": ("02",),
    "02": ("03",),
    "03": ("16", "49"),
    "16": ("16", "49"),
    "49": ("03", "98"),
    "98": ("02", "99"),
    "99": (),
}
"""Which records may come after which; an 88 is part of the record before it."""
OPENS = ("01", "02", "03")
TRAILERS: Mapping[str, tuple[str, ...]] = {
    "49": ("control total", "records"),
    "98": ("control total", "accounts", "records"),
    "99": ("control total", "groups", "records"),
}
FUNDS: Mapping[str, int] = {"": 0, "0": 0, "1": 0, "2": 0, "Z": 0, "V": 2, "S": 3}
"""How many fields follow a funds type, to say when the money can be used; `D` counts its own pairs."""
CREDITS = range(101, 400)
DEBITS = range(401, 700)
LINES_MAX = 100
"""Of one record."""

AMOUNT = re.compile(r"[0-9]{1,12}")
SIGNED = re.compile(r"[+-]?[0-9]{1,18}")
COUNT = re.compile(r"[0-9]{1,9}")
DATE = re.compile(r"([0-9]{2})([0-9]{2})([0-9]{2})")
TYPE = re.compile(r"[0-9]{3}")
BATCH = re.compile(r"\bBATCH (?=[^ ]*[0-9])([0-9A-Za-z][0-9A-Za-z_.:-]{2,63})")


@dataclass(slots=True)
class Record:
    """One record with its 88s: the line on which it begins, its fields after the code, and how many lines it has."""

    line: int
    code: str
    fields: list[str]
    lines: int = 1

    def get(self, place: int) -> str:
        """A field; empty where the record ends before it."""
        return self.fields[place] if place < len(self.fields) else ""

    def number(self, place: int, form: re.Pattern[str], column: str) -> int:
        """A field of digits; raises `Unfit`."""
        if not form.fullmatch(self.get(place)):
            raise Unfit(column, "digits are missing here, or something else stands between them.")
        return int(self.get(place))

    def funds(self, place: int) -> int:
        """How many fields a funds type takes, itself included; raises `Unfit`."""
        kind = self.get(place)
        if kind == "D":
            return 2 + 2 * self.number(place + 1, COUNT, "funds type")
        if kind not in FUNDS:
            raise Unfit("funds type", "it must be 0, 1, 2, D, S, V, Z or empty.")
        return 1 + FUNDS[kind]


@dataclass(slots=True)
class Level:
    """What an account, a group or the file adds up to so far."""

    total: int = 0
    parts: int = 0
    records: int = 0


@dataclass(slots=True)
class Statement:
    """A file as far as it was read: its levels that are open, and what holds for the entries to come."""

    last: str = ""
    levels: list[Level] = field(default_factory=list)
    day: date = date.min
    group_currency: str = ""
    currency: str = ""

    def take(self, record: Record) -> DepositLine | None:
        """One record more, and the entry that it is; raises `Unfit` where it does not belong or does not add up."""
        if record.code not in FOLLOWS[self.last]:
            expected = " or ".join(FOLLOWS[self.last]) or "nothing"
            raise Unfit("record", f"{expected} must stand here. Is the file whole, and in its order?")
        self.last = record.code
        if record.code in OPENS:
            self.levels.append(Level())
        for level in self.levels:
            level.records += record.lines
        match record.code:
            case "01":
                self._file(record)
            case "02":
                self._group(record)
            case "03":
                self._account(record)
            case "16":
                return self._entry(record)
            case _:
                self._end(record)
        return None

    def _file(self, record: Record) -> None:
        if record.get(7) != "2":
            raise Unfit("version", "only version 2 is taken.")

    def _group(self, record: Record) -> None:
        if record.get(2) != "1":
            raise Unfit("group status", "it must be 1: corrections, deletions and tests are not taken.")
        if not (digits := DATE.fullmatch(record.get(3))):
            raise Unfit("as-of date", "it must be written YYMMDD.")
        self.day = day("as-of date", "20{}-{}-{}".format(*digits.groups()))
        self.group_currency = record.get(5) or "USD"

    def _account(self, record: Record) -> None:
        self.currency = currency("currency", record.get(1) or self.group_currency)
        place = 2
        while place < len(record.fields):
            if record.get(place + 1):
                self.levels[-1].total += record.number(place + 1, SIGNED, "amount")
            place += 3 + record.funds(place + 3)

    def _entry(self, record: Record) -> DepositLine:
        kind = record.number(0, TYPE, "type code")
        amount = record.number(1, AMOUNT, "amount")
        if kind not in CREDITS and kind not in DEBITS:
            raise Unfit("type code", "it must be a credit, 101 to 399, or a debit, 401 to 699.")
        self.levels[-1].total += amount
        place = 2 + record.funds(2)
        return DepositLine(
            line=record.line,
            type_code=record.get(0),
            amount_minor=amount if kind in CREDITS else -amount,
            currency=self.currency,
            deposited_on=self.day,
            batch=_code(record.get(place + 1)) or _named(",".join(record.fields[place + 2 :])),
            bank_reference=_code(record.get(place)),
        )

    def _end(self, record: Record) -> None:
        level = self.levels.pop()
        adds_up = {"control total": level.total, "records": level.records}
        for place, column in enumerate(TRAILERS[record.code]):
            if record.number(place, SIGNED, column) != adds_up.get(column, level.parts):
                raise Unfit(column, "what stands before does not add up to it. Was the file cut or changed?")
        if self.levels:
            self.levels[-1].total += level.total
            self.levels[-1].parts += 1


def read(source: BinaryIO) -> Iterator[DepositLine]:
    """The entries of all groups and accounts that move money; raises `FileRefused`."""
    statement = Statement()
    line = 1
    try:
        for record in _records(source):
            line = record.line
            entry = statement.take(record)
            if entry and entry.amount_minor:
                yield entry
    except Unfit as unfit:
        raise refused(line, unfit.words, unfit.column) from None
    if statement.last != "99":
        raise refused(line, "the file ends here, before its record 99. It is not whole.")


def _records(source: BinaryIO) -> Iterator[Record]:
    """Records with their 88s joined. A `/` ends a record's fields; an 88 brings more of them, or more text."""
    record: Record | None = None
    for number, text in enumerate(lines(source), 1):
        line = text.rstrip(" \r\n")
        code, *fields = line.removesuffix("/").split(",")
        if code == "88" and record:
            record.fields += fields
            record.lines += 1
            if record.lines > LINES_MAX:
                raise refused(number, f"the record goes on over more than {LINES_MAX} lines.")
            continue
        if record:
            yield record
        if not record and code != "01":
            raise refused(number, "a BAI2 statement begins with its record 01. Is this the right file?")
        if code != "16" and not line.endswith("/"):
            raise refused(number, "this record must end with a /. Is the file whole?")
        record = Record(number, code, fields)
    if not record:
        raise FileRefused("The file is empty.", ["/lines/1"])
    yield record


def _code(text: str) -> str:
    """A reference, where it can be kept. One of a bank may look like a card number by chance: then it is left out."""
    return text if CODE.fullmatch(text) and not holds_card(text) else ""


def _named(text: str) -> str:
    found = BATCH.search(text)
    return _code(found[1]) if found else ""
