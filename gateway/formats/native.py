"""The settlement file as we define it: one line for each thing that the processor settled, and a total.

    reference,type,gross,fee,net,currency,created,settled,batch
    ch_5pQ…,charge,20.00,0.88,19.12,USD,2026-11-23T18:04:05Z,2026-11-24,B20261124
    re_9sT…,refund,-5.00,0.00,-5.00,USD,2026-11-23T19:00:00Z,2026-11-24,B20261124
    #total,2,15.00,0.88,14.12

Columns may stand in any order, beside others. The last line counts the lines between the header and itself, and
sums them: a file that was cut, or edited in one place, is refused.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from gateway.errors import FileRefused
from gateway.formats.fields import Unfit, code, currency, day, minor, moment
from gateway.formats.lines import refused
from gateway.formats.table import Header, rows
from gateway.rules.settlement import LineKind, SettlementLine

KIND = "settlement"
NAME = "native"
COLUMNS = ("reference", "type", "gross", "fee", "net", "currency", "created", "settled", "batch")
KINDS: Mapping[str, LineKind] = {str(kind): kind for kind in LineKind}
TOTAL = "#total"
COUNT = re.compile(r"0|[1-9][0-9]{0,8}")


@dataclass(slots=True)
class Tally:
    """What the lines so far sum to."""

    lines: int = 0
    gross_minor: int = 0
    fee_minor: int = 0

    def add(self, line: SettlementLine) -> None:
        """One more."""
        self.lines += 1
        self.gross_minor += line.gross_minor
        self.fee_minor += line.fee_minor

    def check(self, line: int, row: Sequence[str]) -> None:
        """Raises `FileRefused` unless the file's last line says the same."""
        if len(row) != 5 or not COUNT.fullmatch(row[1]):  # noqa: PLR2004 - the form of the line
            raise refused(line, f"write the total as {TOTAL},lines,gross,fee,net.")
        if int(row[1]) != self.lines:
            raise refused(line, f"the file has {self.lines} lines, and its total counts others. Is it whole?")
        sums = {"gross": self.gross_minor, "fee": self.fee_minor, "net": self.gross_minor - self.fee_minor}
        for (column, summed), text in zip(sums.items(), row[2:], strict=True):
            if minor(f"total of {column}", text) != summed:
                raise refused(line, "the lines sum to another amount. Was the file changed?", f"total of {column}")


def read(source: BinaryIO) -> Iterator[SettlementLine]:
    """The lines between header and total; raises `FileRefused`."""
    table = rows(source)
    header = Header(next(table)[1], COLUMNS)
    tally = Tally()
    line = 1
    for line, row in table:
        try:
            if row[0] == TOTAL:
                tally.check(line, row)
                break
            settled = _line(line, header.cells(line, row))
        except Unfit as unfit:
            raise refused(line, unfit.words, unfit.column) from None
        tally.add(settled)
        yield settled
    else:
        raise FileRefused(
            f"The last line is no total: the file is not whole. It ends after line {line}.", [f"/lines/{line}"]
        )
    if after := next(table, None):
        raise refused(after[0], "nothing may follow the total.")


def _line(line: int, cells: Mapping[str, str]) -> SettlementLine:
    kind = KINDS.get(cells["type"])
    if kind is None:
        raise Unfit("type", f"write one of {', '.join(KINDS)}.")
    gross, fee, net = minor("gross", cells["gross"]), minor("fee", cells["fee"]), minor("net", cells["net"])
    if net != gross - fee:
        raise Unfit("net", "it must be gross less fee.")
    return SettlementLine(
        line,
        kind,
        code("reference", cells["reference"]),
        gross,
        fee,
        net,
        currency("currency", cells["currency"]),
        moment("created", cells["created"]),
        day("settled", cells["settled"]),
        code("batch", cells["batch"]),
    )
