"""Tables in CSV (RFC 4180): a header that has what is needed, and rows that have what the header has."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

from gateway.errors import FileRefused
from gateway.formats.lines import lines, refused

ROW_LINES_MAX = 100
"""However long a file is, a row of it is not."""


def rows(source: BinaryIO) -> Iterator[tuple[int, Sequence[str]]]:
    """The rows of a file, each with the number of the line on which it begins; raises `FileRefused`.

    A quoted field may go on over several lines. An empty file is refused, and so is an empty line.
    """
    begins = 1

    def bounded() -> Iterator[str]:
        for number, line in enumerate(lines(source), 1):
            if number - begins >= ROW_LINES_MAX:
                raise refused(begins, f"a quote is opened here, and not closed within {ROW_LINES_MAX} lines.")
            yield line

    reader = csv.reader(bounded(), strict=True)
    try:
        for row in reader:
            if not row:
                raise refused(begins, "this line is empty. Take it out.")
            yield begins, row
            begins = reader.line_num + 1
    except csv.Error:
        raise refused(begins, "the quotes do not pair. Text in quotes has each quote in it doubled.") from None
    if begins == 1:
        raise FileRefused("The file is empty.", ["/lines/1"])


class Header:
    """Which column stands where. Columns that nobody asks for are passed over: what is in them is never held."""

    def __init__(self, names: Sequence[str], needed: Sequence[str], welcome: Sequence[str] = ()) -> None:
        """Raises `FileRefused` where a column that is needed is missing, or any column stands twice."""
        if missing := [name for name in needed if name not in names]:
            several = "s" if len(missing) > 1 else ""
            raise refused(1, f"the header lacks the column{several} {', '.join(missing)}. Is this the right format?")
        if len(set(names)) < len(names):
            raise refused(1, "a column stands twice in the header.")
        self._width = len(names)
        self._places = [(name, names.index(name)) for name in (*needed, *welcome) if name in names]

    def cells(self, line: int, row: Sequence[str]) -> Mapping[str, str]:
        """A row's cells by column; raises `FileRefused` where their number is not the header's."""
        if len(row) != self._width:
            raise refused(line, f"this line has {len(row)} columns, and the header has {self._width}.")
        return {name: row[place] for name, place in self._places}
