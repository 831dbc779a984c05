"""Tables for spreadsheets: CSV (RFC 4180) and XLSX, written row by row, whatever their length.

A spreadsheet takes text that begins like a formula for one (ASVS 1.2.10). In CSV such text has a `'` put before it,
also where quotes, or what shows nothing, stand first; who reads a file back takes one `'` away where it stands before
such text. In XLSX every text is of a text cell, which stays text when somebody edits it. An amount is a number with
two digits, in columns of amounts alone, and the last row has their sums.
"""

import csv
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Literal, Protocol

import xlsxwriter

from gateway.errors import ExportTooLarge
from gateway.rules.money import ENABLED

SheetFormat = Literal["csv", "xlsx"]
MEDIA_TYPES = {
    "csv": "text/csv; charset=utf-8",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
}
(DIGITS,) = set(ENABLED.values())

BEGINS = "=+-\u2212@\t\r\n"
QUOTES = "\"'"
UNSEEN = "CZ"
"""Categories of Unicode, by their first letters: controls, marks of format, and spaces of any width."""

Cell = str | int | None
"""Text, an amount in minor units, or nothing."""


@dataclass(frozen=True, slots=True)
class Column:
    """What stands in a column, under which name."""

    name: str
    is_amount: bool = False


class Sheet(Protocol):
    """A file that is being written."""

    def add(self, rows: Iterable[Sequence[Cell]]) -> None:
        """Rows, each with a cell for every column."""

    def end(self) -> None:
        """The sums, and the file is whole."""

    def abandon(self) -> None:
        """Let go of a file that will never be whole."""


class Sums:
    """How many rows there were, at most `rows_max`, and what each column of amounts comes to."""

    def __init__(self, columns: Sequence[Column], rows_max: int) -> None:
        self.rows = 0
        self._rows_max = rows_max
        self._minor = [0 if column.is_amount else None for column in columns]

    def count(self, row: Sequence[Cell]) -> None:
        """One row more; raises `ExportTooLarge`."""
        self.rows += 1
        if self.rows > self._rows_max:
            raise ExportTooLarge
        for place, so_far in enumerate(self._minor):
            value = row[place]
            if so_far is not None and isinstance(value, int):
                self._minor[place] = so_far + value

    def last_row(self) -> list[Cell]:
        """What stands under everything."""
        return [f"Total of {self.rows}", *self._minor[1:]]


class CsvSheet:
    """UTF-8, lines end with CRLF, quotes where they are needed."""

    def __init__(self, path: Path, columns: Sequence[Column], sums: Sums) -> None:
        self._file = path.open("x", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerow([column.name for column in columns])
        self._sums = sums

    def add(self, rows: Iterable[Sequence[Cell]]) -> None:
        """See `Sheet`."""
        for row in rows:
            self._sums.count(row)
            self._writer.writerow(map(_plain, row))

    def end(self) -> None:
        """See `Sheet`."""
        self._writer.writerow(map(_plain, self._sums.last_row()))
        self._file.close()

    def abandon(self) -> None:
        """See `Sheet`."""
        self._file.close()


class XlsxSheet:
    """One sheet of a workbook; what is written does not stay in memory."""

    def __init__(self, path: Path, columns: Sequence[Column], sums: Sums) -> None:
        options = {
            "constant_memory": True,
            "strings_to_formulas": False,
            "strings_to_urls": False,
            "strings_to_numbers": False,
            "tmpdir": str(path.parent),
        }
        self._book = xlsxwriter.Workbook(path, options)
        self._sheet = self._book.add_worksheet()
        self._text = self._book.add_format({"num_format": "@", "quote_prefix": True})
        self._amount = self._book.add_format({"num_format": "0.00"})
        self._sums = sums
        self._rows = 0
        self._sheet.freeze_panes(1, 0)
        self._sheet.set_column(0, len(columns) - 1, 18)
        self._write([column.name for column in columns])

    def add(self, rows: Iterable[Sequence[Cell]]) -> None:
        """See `Sheet`."""
        for row in rows:
            self._sums.count(row)
            self._write(row)

    def end(self) -> None:
        """See `Sheet`."""
        self._write(self._sums.last_row())
        self._book.close()

    def abandon(self) -> None:
        """See `Sheet`."""
        self._sheet.row_data_fh.close()

    def _write(self, row: Sequence[Cell]) -> None:
        for place, value in enumerate(row):
            if isinstance(value, int):
                self._sheet.write_number(self._rows, place, _decimal(value), self._amount)
            elif value:
                self._sheet.write_string(self._rows, place, value, self._text)
        self._rows += 1


SHEETS: Mapping[SheetFormat, Callable[[Path, Sequence[Column], Sums], Sheet]] = {"csv": CsvSheet, "xlsx": XlsxSheet}


def neutral(text: str) -> str:
    """The text as a CSV may hold it; also full-width signs begin a formula, once a spreadsheet has read them."""
    for character in unicodedata.normalize("NFKC", text):
        if character in BEGINS:
            return f"'{text}"
        if character not in QUOTES and unicodedata.category(character)[0] not in UNSEEN:
            break
    return text


def _plain(value: Cell) -> str:
    if isinstance(value, int):
        return str(_decimal(value))
    return neutral(value) if value else ""


def _decimal(minor: int) -> Decimal:
    return Decimal(minor).scaleb(-DIGITS)
