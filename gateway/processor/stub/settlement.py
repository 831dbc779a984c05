"""What the processor says it settled of one day, line by line, and the files that say it.

Everything that moved money on a UTC date is settled on that date, in one batch: `B20261123`. Of a charge the
processor keeps 2.9 % and 0.30, rounded half up; of a refund nothing. A movement that was carried out twice has two
lines, each on its own date. Amounts are minor units, negative where money leaves the city; net is gross less fee.

A capture is told under the reference of its charge, everything else under its own.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from typing import Final, Literal

import msgspec

from gateway.processor.stub.book import Entry

FEE_BASIS_POINTS: Final = 290
FEE_FIXED_MINOR: Final = 30
NATIVE_COLUMNS: Final = ("reference", "type", "gross", "fee", "net", "currency", "created", "settled", "batch")
STRIPE_COLUMNS: Final = (
    "automatic_payout_id",
    "automatic_payout_effective_at_utc",
    "balance_transaction_id",
    "created_utc",
    "available_on_utc",
    "currency",
    "gross",
    "fee",
    "net",
    "reporting_category",
    "source_id",
    "description",
    "charge_id",
)
"""Of Stripe's `payout_reconciliation.itemized.5`, those that say something without a cardholder."""

LineType = Literal["charge", "refund", "chargeback", "adjustment"]
STRIPE_CATEGORIES: Final[dict[LineType, str]] = {
    "charge": "charge",
    "refund": "refund",
    "chargeback": "dispute",
    "adjustment": "other_adjustment",
}


class Line(msgspec.Struct, frozen=True):
    """One line. `charge` is the reference of the charge that it is about; `created` is UTC."""

    reference: str
    type: LineType
    charge: str
    gross: int
    fee: int
    currency: str
    created: datetime
    settled: date

    @property
    def net(self) -> int:
        """What reaches the bank."""
        return self.gross - self.fee

    @property
    def batch(self) -> str:
        """What its day is paid under."""
        return batch_of(self.settled)


def batch_of(day: date) -> str:
    """`B20261123`."""
    return f"B{day:%Y%m%d}"


def fee_of(amount_minor: int) -> int:
    """What the processor keeps of a charge."""
    return (amount_minor * FEE_BASIS_POINTS + 5_000) // 10_000 + FEE_FIXED_MINOR


def settle(entries: Iterable[Entry]) -> list[Line]:
    """The lines of those movements that moved money, in their order."""
    moved = (entry for entry in entries if entry.kind in {"sale", "capture", "refund"} and entry.effects)
    return [_line(entry, moment) for entry in moved for moment in _moments(entry)]


def native(lines: Sequence[Line]) -> str:
    """The native file: decimals with two digits, and a last line with the totals of all others."""
    rows = [
        (
            *(line.reference, line.type, *_amounts(line), line.currency),
            *(_instant(line.created), line.settled.isoformat(), line.batch),
        )
        for line in lines
    ]
    gross, fee = sum(line.gross for line in lines), sum(line.fee for line in lines)
    return _csv([NATIVE_COLUMNS, *rows, ("#total", len(lines), decimal(gross), decimal(fee), decimal(gross - fee))])


def stripe(lines: Sequence[Line]) -> str:
    """The same in Stripe's columns: the payout is the batch, `source_id` our reference, and there are no totals."""
    rows = [
        (
            *(line.batch, f"{line.settled} 00:00:00", f"txn_{line.batch}_{number}"),
            *(f"{line.created:%Y-%m-%d %H:%M:%S}", f"{line.settled} 00:00:00", line.currency.lower()),
            *(*_amounts(line), STRIPE_CATEGORIES[line.type], line.reference, "", line.charge),
        )
        for number, line in enumerate(lines, 1)
    ]
    return _csv([STRIPE_COLUMNS, *rows])


def decimal(amount_minor: int) -> str:
    """`-12.34`."""
    return f"{'-' if amount_minor < 0 else ''}{abs(amount_minor) // 100}.{abs(amount_minor) % 100:02d}"


def _moments(entry: Entry) -> list[datetime]:
    """When money moved: first when the reference was first carried out, after that when it last was."""
    return [entry.created, *[entry.applied] * (entry.effects - 1)]


def _line(entry: Entry, moment: datetime) -> Line:
    if entry.kind == "refund":
        return Line(entry.reference, "refund", entry.charge, -entry.amount, 0, entry.currency, moment, moment.date())
    fee = fee_of(entry.amount)
    return Line(entry.charge, "charge", entry.charge, entry.amount, fee, entry.currency, moment, moment.date())


def _amounts(line: Line) -> tuple[str, str, str]:
    return decimal(line.gross), decimal(line.fee), decimal(line.net)


def _instant(moment: datetime) -> str:
    """RFC 3339, whole seconds."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _csv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
