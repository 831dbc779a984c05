"""What one file becomes, line by line: whose each line is, on which date it counts, and what all of it is in money.

A line belongs to the department and charge whose movement has its reference; one that nobody here knows stands under
the city, by its reference. A line counts on the business date of its moment; where that date is closed, on the first
open one after it, with everything that it says kept as it was.

Money is posted in summary: one posting for each department, batch and date of settlement, one for each deposit, one
for each stage of a chargeback (`rules.postings`).
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from typing import NamedTuple, Protocol
from zoneinfo import ZoneInfo

from gateway.rules import postings
from gateway.rules.calendar import DAY, Calendar, Cutoffs
from gateway.rules.chargebacks import Stage, after
from gateway.rules.ids import new_id
from gateway.rules.journal import Entry
from gateway.rules.settlement import DepositLine, LineKind, SettlementLine
from keys.audit import CITY

Charge = tuple[str, str]
"""Its department and its id."""


class Attributed(NamedTuple):
    """A line of a settlement with whose it is. `subject` is the charge, or the reference where none is known."""

    department: str
    subject: str
    business_date: date
    line: SettlementLine


@dataclass(frozen=True, slots=True)
class Disputed:
    """A charge that a chargeback's line is about. `number` stages it had, and `stage` was the last."""

    captured_minor: int
    convenience_fee_minor: int
    number: int
    stage: Stage | None


@dataclass(frozen=True, slots=True)
class NewStage:
    """A further stage of a chargeback, as a line told of it."""

    department: str
    charge_id: str
    number: int
    stage: Stage
    amount_minor: int
    currency: str
    line: int


@dataclass(frozen=True, slots=True)
class Posting:
    """Entries of one department that belong together, and what they are from."""

    department: str
    posting_id: str
    entries: Sequence[Entry]
    currency: str
    business_date: date
    source: str
    source_id: str


class Book(Protocol):
    """What an import reads, and where it writes, in its transaction."""

    async def cutoffs(self) -> Cutoffs:
        """Of all departments."""

    async def closed(self) -> Mapping[str, Sequence[tuple[date, date]]]:
        """The ranges that are closed, by department."""

    async def whose(self, departments: Collection[str], references: Collection[str]) -> Mapping[str, Charge]:
        """The charge, by reference, of those that a movement has."""

    async def disputed(self, charges: Collection[Charge]) -> Mapping[Charge, Disputed]:
        """Where the chargebacks of charges stand."""

    async def add_lines(self, import_id: str, lines: Sequence[Attributed]) -> None:
        """Write lines of a settlement."""

    async def add_deposits(self, import_id: str, lines: Sequence[DepositLine]) -> None:
        """Write lines of a statement."""

    async def add_stages(self, import_id: str, stages: Sequence[NewStage]) -> None:
        """Write stages of chargebacks."""

    async def add_postings(self, postings: Sequence[Posting]) -> None:
        """Write postings."""


class Dates:
    """On which date something counts: never on one that is closed."""

    def __init__(self, calendar: Calendar, closed: Mapping[str, Sequence[tuple[date, date]]]) -> None:
        self._calendar = calendar
        self._closed = closed
        self._last: dict[str, tuple[datetime, datetime, date]] = {}

    def of(self, department: str, moment: datetime) -> date:
        """Of a moment. The next line's moment is mostly of the same date: it is looked up once."""
        last = self._last.get(department)
        if last is None or not last[0] <= moment < last[1]:
            day = self._calendar.business_date(department, moment)
            interval = self._calendar.interval(department, day, day)
            last = self._last[department] = (*interval, self.open_from(department, day))
        return last[2]

    def open_from(self, department: str, day: date) -> date:
        """The date itself, or the first open one after it."""
        closed = self._closed.get(department, ())
        while ends := [last for first, last in closed if first <= day <= last]:
            day = max(ends) + DAY
        return day


def dates_of(city: ZoneInfo, cutoffs: Cutoffs, closed: Mapping[str, Sequence[tuple[date, date]]]) -> Dates:
    """The dates of a city."""
    return Dates(Calendar(city, cutoffs), closed)


@dataclass(slots=True)
class Sums:
    """What a file comes to so far. `days` are those on which it was settled, or credited."""

    lines: int = 0
    gross_minor: int = 0
    fee_minor: int = 0
    currency: str = "USD"
    days: set[date] = field(default_factory=set)

    def add(self, gross_minor: int, fee_minor: int, currency: str, day: date) -> None:
        """One line more."""
        self.lines += 1
        self.gross_minor += gross_minor
        self.fee_minor += fee_minor
        self.currency = currency
        self.days.add(day)


class SettlementIntake:
    """Lines of a settlement, chunk by chunk."""

    def __init__(self, book: Book, import_id: str, dates: Dates, departments: Collection[str]) -> None:
        self.sums = Sums()
        self._book = book
        self._import_id = import_id
        self._dates = dates
        self._departments = set(departments) - {CITY}  # which nobody has charged for
        self._batches: dict[tuple[str, str, date, str], _Batch] = defaultdict(_Batch)

    async def add(self, lines: Sequence[SettlementLine | DepositLine]) -> None:
        """Write them, with whose they are."""
        mine = [line for line in lines if isinstance(line, SettlementLine)]
        known = await self._book.whose(self._departments, {line.reference for line in mine})
        attributed = [self._attribute(line, known.get(line.reference)) for line in mine]
        await self._book.add_lines(self._import_id, attributed)
        await self._dispute([each for each in attributed if _is_dispute(each)])

    async def end(self) -> None:
        """Post what each department and batch came to."""
        await self._book.add_postings(
            [
                Posting(
                    department=department,
                    posting_id=new_id("po"),
                    entries=postings.settlement(sums.gross_minor, sums.fee_minor),
                    currency=currency,
                    business_date=self._dates.open_from(department, day),
                    source="settlement",
                    source_id=self._import_id,
                )
                for (department, _batch, day, currency), sums in sorted(
                    self._batches.items(), key=lambda each: each[0]
                )
            ]
        )

    def _attribute(self, line: SettlementLine, charge: Charge | None) -> Attributed:
        department, subject = charge or (CITY, line.reference)
        self.sums.add(line.gross_minor, line.fee_minor, line.currency, line.settled_on)
        batch = self._batches[department, line.batch, line.settled_on, line.currency]
        batch.gross_minor[line.kind] += line.gross_minor
        batch.fee_minor += line.fee_minor
        return Attributed(department, subject, self._dates.of(department, line.created_at), line)

    async def _dispute(self, told: Sequence[Attributed]) -> None:
        """Stages of chargebacks, in the order of the lines; a line that fits no stage changes nothing."""
        if not told:
            return
        disputed = dict(await self._book.disputed({(each.department, each.subject) for each in told}))
        stages, posted = [], []
        for each in told:
            charge, line = (each.department, each.subject), each.line
            stood = disputed[charge]
            stage = after(stood.stage, line)
            if stage is None:
                continue
            disputed[charge] = replace(stood, number=stood.number + 1, stage=stage)
            amount_minor = abs(line.gross_minor)
            stages.append(NewStage(*charge, stood.number + 1, stage, amount_minor, line.currency, line.line))
            entries = postings.chargeback(stage, amount_minor, stood.captured_minor, stood.convenience_fee_minor)
            what = each.business_date, "chargeback", each.subject
            posted.append(Posting(each.department, new_id("po"), entries, line.currency, *what))
        await self._book.add_stages(self._import_id, stages)
        await self._book.add_postings(posted)


class DepositIntake:
    """Lines of a statement, chunk by chunk. All of them are the city's."""

    def __init__(self, book: Book, import_id: str, dates: Dates) -> None:
        self.sums = Sums()
        self._book = book
        self._import_id = import_id
        self._dates = dates

    async def add(self, lines: Sequence[SettlementLine | DepositLine]) -> None:
        """Write them, and post each."""
        mine = [line for line in lines if isinstance(line, DepositLine)]
        for line in mine:
            self.sums.add(line.amount_minor, 0, line.currency, line.deposited_on)
        await self._book.add_deposits(self._import_id, mine)
        await self._book.add_postings([self._posting(line) for line in mine])

    async def end(self) -> None:
        """Nothing is left to do: each line was posted."""

    def _posting(self, line: DepositLine) -> Posting:
        return Posting(
            department=CITY,
            posting_id=new_id("po"),
            entries=postings.deposit(line.amount_minor),
            currency=line.currency,
            business_date=self._dates.open_from(CITY, line.deposited_on),
            source="deposit",
            source_id=self._import_id,
        )


@dataclass(slots=True)
class _Batch:
    """What a department has of a batch."""

    gross_minor: dict[LineKind, int] = field(default_factory=lambda: defaultdict(int))
    fee_minor: int = 0


def _is_dispute(each: Attributed) -> bool:
    return each.line.kind is LineKind.CHARGEBACK and each.department != CITY
