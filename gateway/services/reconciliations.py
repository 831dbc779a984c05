"""Reconciliations: the ledger of some departments and dates beside the processor's files and the bank's, once judged.

    what it reads   movements that were done, and lines of the files that were there when it began
    what it writes  the items and their sums, exceptions for differences that nobody has seen before, `cleared` for
                    open ones that are no more: all of it in one commit, with its audit rows

Subjects come from the database in order, some thousand rows at a time, and leave as items: what is kept between is
sums, however long the month. Lines outside the dates are judged with their charge, and told by the run of their own
dates. A run looks at a day more on both sides, because batches are of UTC dates and days are the city's.
"""

import asyncio
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import date, datetime
from itertools import chain
from typing import NamedTuple, Protocol
from zoneinfo import ZoneInfo

from gateway.errors import NotFound, Unavailable
from gateway.rules.calendar import DAY, Calendar, Cutoffs, require_period
from gateway.rules.deposits import Banked, Batch, Deposit, bank, judge_deposits
from gateway.rules.ids import new_id
from gateway.rules.match import Item, Moved, Settled, State, Terms, exception_id, expected_net, judge
from gateway.rules.money import ENABLED
from gateway.rules.settlement import FeeSchedule
from gateway.rules.staff import Permission, Staff
from gateway.rules.statement import Statement
from gateway.services.ports import Clock, CommitUnknown
from gateway.services.reach import Reach
from keys.audit import CITY, AuditEvent, AuditPen, AuditRow, Outcome

AT_ONCE_MAX = 2
"""Each has a connection to itself, for as long as it takes; the others wait, without one."""
(CURRENCY,) = ENABLED
ID = re.compile(r"rc_[a-z2-7]{26}")


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """One that was made. `inputs`: SHA-256, in hex, of every file whose lines took part."""

    reconciliation_id: str
    departments: Sequence[str]
    from_date: date
    to_date: date
    counts: Mapping[str, int]
    totals: Mapping[str, str | int | None]
    inputs: Sequence[str]
    staff_id: str
    made_at: datetime


@dataclass(frozen=True, slots=True)
class ReconciledItem:
    """An item as it is shown; amounts are signed minor units."""

    department: str
    item: int
    state: str
    reason: str
    kind: str
    charge_id: str | None
    movement_id: str | None
    reference: str
    ledger_minor: int | None
    settled_minor: int | None
    deposited_minor: int | None
    fee_minor: int | None
    expected_fee_minor: int | None
    difference_minor: int
    currency: str
    batch: str
    business_date: date
    exception_id: str | None


class InputFile(NamedTuple):
    """An imported file, `settled_on` its dates."""

    import_id: str
    kind: str
    sha256: str
    settled_on: Sequence[date]


class Subject(NamedTuple):
    """A charge, or a reference that nobody here knows, with all that is known of it; dates are given by the calendar.

    A movement is told without its business date.
    """

    name: str
    moved: Sequence[tuple[str, str, str, int, str, datetime]]
    settled: Sequence[Settled]


class NewItems(NamedTuple):
    """Items of a department that stand together in a reconciliation, from a number on; their exceptions, or None."""

    department: str
    first: int
    items: Sequence[Item]
    exceptions: Sequence[str | None]


@dataclass(frozen=True, slots=True)
class Asked:
    """What of a department is wanted: movements between two instants, lines of these dates or in these batches."""

    department: str
    since: datetime
    until: datetime
    first: date
    last: date
    batches: Sequence[str]
    files: Sequence[str]


class Run(Protocol):
    """One commit."""

    async def files(self) -> Sequence[InputFile]:
        """All that are imported, in their order."""

    async def cutoffs(self) -> Cutoffs:
        """Of the departments that are seen."""

    async def batches(self, first: date, last: date, files: Sequence[str]) -> Sequence[Batch]:
        """Those with lines of these dates, and those that a deposit of these dates names."""

    async def deposits(
        self, first: date, last: date, batches: Sequence[str], files: Sequence[str]
    ) -> Sequence[Deposit]:
        """Those of these dates, and those that name one of these batches."""

    def subjects(self, asked: Asked) -> AsyncIterator[Sequence[Subject]]:
        """Some thousand at a time, in order of their names."""

    async def add_items(self, reconciliation_id: str, new: NewItems) -> None:
        """Write some."""

    async def finish(self, made: Reconciliation, audit: Sequence[AuditRow]) -> None:
        """Write the reconciliation, its exceptions and what is cleared or found again."""


class ReconciliationStore(Protocol):
    """What reconciliations need of the database."""

    def run(self, departments: Collection[str]) -> AbstractAsyncContextManager[Run]:
        """Begin one on behalf of these departments, and commit it when all went well."""

    async def reconciliation(self, departments: Collection[str], reconciliation_id: str) -> Reconciliation | None:
        """One whose departments are all among these."""

    async def reconciliations(
        self, departments: Collection[str], limit: int, starting_after: str | None
    ) -> Sequence[Reconciliation]:
        """The latest first."""

    async def items(
        self,
        departments: Collection[str],
        reconciliation_id: str,
        states: Collection[str],
        limit: int,
        starting_after: int,
    ) -> Sequence[ReconciledItem]:
        """In the order of their numbers."""


class Reconciliations:
    """Makes reconciliations, and shows them."""

    def __init__(
        self,
        store: ReconciliationStore,
        reach: Reach,
        pen: AuditPen,
        clock: Clock,
        *,
        zone: ZoneInfo,
        fees: FeeSchedule,
        deposit_days_max: int,
    ) -> None:
        self._store = store
        self._reach = reach
        self._pen = pen
        self._clock = clock
        self._zone = zone
        self._fees = fees
        self._days_max = deposit_days_max
        self._places = asyncio.Semaphore(AT_ONCE_MAX)

    async def make(
        self, staff: Staff, first: date, last: date, department: str | None, request_id: str
    ) -> Reconciliation:
        """Reconcile business dates, both included; the last may lie ahead. Without a department, all of the grant.

        Raises:
            NotPermitted: nothing for the roles of the account.
            NotFound: no such department, or not one of the grant.
            PeriodRefused: the dates are no range, or too long a one.
            Unavailable: also where the commit was lost, and nobody knows.
        """
        staff.require(Permission.RECONCILIATIONS_MAKE)
        require_period(first, last)
        departments = await self._reach.of(staff, department)
        seen = await self._reach.of(staff)
        made = Reconciliation(
            *(new_id("rc"), sorted(departments), first, last, {}, {}, (), staff.staff_id, self._clock.now())
        )
        audit = [self._row(made, one, request_id) for one in made.departments]
        try:
            async with self._places, self._store.run(seen) as run:
                work = _Work(run, made, self._zone, self._fees, self._days_max, knows_bank=CITY in seen)
                made = await work.done()
                await run.finish(made, audit)
        except CommitUnknown:
            raise Unavailable(
                "It is not known whether this was written down: look at the list, or repeat it."
            ) from None
        return made

    async def departments(self, staff: Staff) -> Sequence[str]:
        """What somebody may reconcile by itself."""
        return sorted(await self._reach.of(staff) - {CITY})

    async def get(self, staff: Staff, reconciliation_id: str) -> Reconciliation:
        """One of the grant's departments; raises `NotFound`."""
        staff.require(Permission.LEDGER_READ)
        if not ID.fullmatch(reconciliation_id):
            raise NotFound
        found = await self._store.reconciliation(await self._reach.of(staff), reconciliation_id)
        if found is None:
            raise NotFound
        return found

    async def latest(self, staff: Staff, limit: int, starting_after: str | None = None) -> Sequence[Reconciliation]:
        """Those of the grant's departments, the latest first; raises `NotFound` for a place that is none."""
        staff.require(Permission.LEDGER_READ)
        if starting_after is not None and not ID.fullmatch(starting_after):
            raise NotFound
        return await self._store.reconciliations(await self._reach.of(staff), limit, starting_after)

    async def items(
        self, staff: Staff, reconciliation_id: str, states: Collection[State], limit: int, starting_after: int = 0
    ) -> Sequence[ReconciledItem]:
        """Items of a reconciliation in these states, after a number; raises `NotFound`."""
        made = await self.get(staff, reconciliation_id)
        return await self._store.items(made.departments, reconciliation_id, states, limit, starting_after)

    def _row(self, made: Reconciliation, department: str, request_id: str) -> AuditRow:
        told = AuditEvent(
            *(department, "reconciliation.made", Outcome.DONE, made.staff_id, made.reconciliation_id),
            request_id=request_id,
        )
        return self._pen.row(told, made.made_at)


class _Work:
    """One run: reads, judges, writes items, sums up."""

    def __init__(
        self, run: Run, made: Reconciliation, zone: ZoneInfo, fees: FeeSchedule, days_max: int, *, knows_bank: bool
    ) -> None:
        self._run = run
        self._made = made
        self._zone = zone
        self._fees = fees
        self._days_max = days_max
        self._knows_bank = knows_bank
        self._statement = Statement(CURRENCY, knows_bank=knows_bank)
        self._number = 0
        self._used: set[int] = set()
        self._off: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        """By batch and reason: what lines are off."""
        self._missing: dict[date, list[int]] = defaultdict(list)
        """By UTC date: the net of each movement that is not there."""

    async def done(self) -> Reconciliation:
        """The reconciliation with its sums; its items are written."""
        first, last = self._made.from_date, self._made.to_date
        files = await self._run.files()
        self._files = [file.import_id for file in files]
        self._calendar = Calendar(self._zone, await self._run.cutoffs())
        batches, banked = await self._bank(first, last)
        covered = frozenset(day for file in files if file.kind == "settlement" for day in file.settled_on)
        self._terms = Terms(self._fees, covered, banked.by_batch.keys())
        near = [one.batch for one in batches if first <= one.settled_on <= last]
        for department in self._made.departments:
            since, until = self._calendar.interval(department, first - DAY, last + DAY)
            asked = Asked(department, since, until, first - DAY, last + DAY, near, self._files)
            async for subjects in self._run.subjects(asked):
                # Also where the item is of its movement's date, and another run's.
                self._used.update(
                    line.file for one in subjects for line in one.settled if first <= line.business_date <= last
                )
                await self._write(department, [item for one in subjects for item in self._judged(department, one)])
        if CITY in self._made.departments:
            await self._judge_bank(batches, banked)
        inputs = sorted({files[place].sha256 for place in self._used})
        return replace(
            self._made, counts=self._statement.counts(), totals=self._statement.totals(), inputs=tuple(inputs)
        )

    async def _bank(self, first: date, last: date) -> tuple[Sequence[Batch], Banked]:
        """All batches and deposits that may have to do with the dates, whoever is asked for."""
        if not self._knows_bank:
            return (), Banked({}, ())
        margin = (2 * self._days_max + 2) * DAY
        batches = await self._run.batches(first - margin, last + margin, self._files)
        names = [batch.batch for batch in batches]
        deposits = await self._run.deposits(first - margin, last + margin, names, self._files)
        return batches, bank(batches, deposits, self._days_max)

    def _judged(self, department: str, subject: Subject) -> list[Item]:
        date_of = self._calendar.business_date
        moved = [Moved(*one, date_of(department, one[5])) for one in subject.moved]
        items = judge(None if department == CITY else subject.name, moved, subject.settled, self._terms)
        if self._knows_bank:
            for item in items:
                if item.state is not State.MATCHED:
                    self._note(item, moved)
        return items

    def _note(self, item: Item, moved: Sequence[Moved]) -> None:
        """What an item is off explains a deposit that is off by the same."""
        if item.net_minor is not None:
            self._off[item.batch][item.reason] += item.net_minor - expected_net(item, self._fees)
        elif item.state is State.MISSING_THERE:
            (moment,) = (one.moment for one in moved if one.movement_id == item.movement_id)
            self._missing[moment.date()].append(expected_net(item, self._fees))

    async def _judge_bank(self, batches: Sequence[Batch], banked: Banked) -> None:
        first, last = self._made.from_date, self._made.to_date
        flagged = {batch: list(off.values()) for batch, off in self._off.items()}
        items = judge_deposits(*(batches, banked, flagged, self._missing), self._terms.covered, self._days_max)
        await self._write(CITY, items)
        for batch in batches:
            if first <= batch.settled_on <= last and (parts := banked.by_batch.get(batch.batch)):
                self._used.update(part.file for part in parts)
                self._statement.add_deposited(sum(part.amount_minor for part in parts) - batch.net_minor)
        loose = [deposit for deposit in banked.loose if first <= deposit.deposited_on <= last]
        self._statement.add_deposited(sum(deposit.amount_minor for deposit in loose))
        every = chain(banked.loose, *banked.by_batch.values())
        self._used.update(deposit.file for deposit in every if first <= deposit.deposited_on <= last)

    async def _write(self, department: str, items: Sequence[Item]) -> None:
        """Those of the dates; others are another run's."""
        first, last = self._made.from_date, self._made.to_date
        items = [item for item in items if first <= item.business_date <= last]
        if not items:
            return
        self._statement.add(items)
        self._used.update(item.place[0] for item in items if item.place)
        exceptions = [self._exception(department, item) for item in items]
        new = NewItems(department, self._number + 1, items, exceptions)
        self._number += len(items)
        await self._run.add_items(self._made.reconciliation_id, new)

    def _exception(self, department: str, item: Item) -> str | None:
        if item.state is State.MATCHED:
            return None
        source = f"{self._files[item.place[0]]}:{item.place[1]}" if item.place else ""
        return exception_id(department, item, source)
