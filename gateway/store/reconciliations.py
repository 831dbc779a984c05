"""Reconciliations as they are read and kept: a month goes through here some thousand rows at a time."""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import date
from types import SimpleNamespace

import asyncpg
import msgspec

from gateway.rules.calendar import Cutoffs
from gateway.rules.deposits import Batch, Deposit
from gateway.rules.match import Item, Settled, State
from gateway.services.reconciliations import Asked, InputFile, NewItems, ReconciledItem, Reconciliation, Subject
from gateway.store.books import cutoffs
from gateway.store.database import Database
from gateway.store.dates import Dates
from gateway.store.mirror import Mirror
from keys.audit import AuditRow, audit_values
from keys.database import Connection
from keys.queries import load_queries

ROWS = 2_000
"""So many at a time: a few hundredths of a second of work between two looks at the rest of the process."""
LONG_S = 60.0
"""For what sorts or sums up a whole range."""
MOVED = slice(1, 7)
SETTLED = slice(7, None)
KEPT = Item._fields.index("net_minor")
"""So many fields of an item are columns of its row."""


class ReconciliationStore(Mirror):
    """Implements `services.reconciliations.ReconciliationStore`."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._sql = load_queries("gateway.store", "reconciliations.sql")
        self._dates = Dates()

    @asynccontextmanager
    async def run(self, departments: Collection[str]) -> AsyncIterator["ReconciliationRun"]:
        """See the port."""
        async with self._database.writing_departments(departments) as connection:
            await connection.execute(self._sql.prepare)
            await self._dates.hold(connection)  # what a close has seen settled is not found to differ meanwhile
            yield ReconciliationRun(connection, self._sql, self._mirror)

    async def reconciliation(self, departments: Collection[str], reconciliation_id: str) -> Reconciliation | None:
        """See the port."""
        async with self._database.reading_departments(departments) as connection:
            row = await connection.fetchrow(self._sql.reconciliation, reconciliation_id, list(departments))
        return _reconciliation(row) if row else None

    async def reconciliations(
        self, departments: Collection[str], limit: int, starting_after: str | None
    ) -> Sequence[Reconciliation]:
        """See the port."""
        async with self._database.reading_departments(departments) as connection:
            rows = await connection.fetch(self._sql.reconciliations, list(departments), starting_after, limit)
        return [_reconciliation(row) for row in rows]

    async def items(
        self,
        departments: Collection[str],
        reconciliation_id: str,
        states: Collection[str],
        limit: int,
        starting_after: int,
    ) -> Sequence[ReconciledItem]:
        """See the port."""
        asked = reconciliation_id, starting_after, list(states), limit
        async with self._database.reading_departments(departments) as connection:
            rows = await connection.fetch(self._sql.items, list(departments), *asked)
        return [ReconciledItem(**row) for row in rows]


class ReconciliationRun:
    """Implements `services.reconciliations.Run` inside a transaction.

    What it reads is as of several instants, and still one picture: the files are those that were there when it began,
    which never change, and of a department all movements are read by one statement.
    """

    def __init__(self, connection: Connection, sql: SimpleNamespace, mirror: SimpleNamespace) -> None:
        self._connection = connection
        self._sql = sql
        self._mirror = mirror

    async def files(self) -> Sequence[InputFile]:
        """See the port."""
        return [InputFile(*row) for row in await self._connection.fetch(self._sql.files)]

    async def cutoffs(self) -> Cutoffs:
        """See the port."""
        return await cutoffs(self._connection)

    async def batches(self, first: date, last: date, files: Sequence[str]) -> Sequence[Batch]:
        """See the port."""
        rows = await self._connection.fetch(self._sql.batches, first, last, files, timeout=LONG_S)
        return [Batch(*row) for row in rows]

    async def deposits(
        self, first: date, last: date, batches: Sequence[str], files: Sequence[str]
    ) -> Sequence[Deposit]:
        """See the port."""
        rows = await self._connection.fetch(self._sql.deposits, first, last, batches, files, timeout=LONG_S)
        return [Deposit(*row) for row in rows]

    async def subjects(self, asked: Asked) -> AsyncIterator[Sequence[Subject]]:
        """See the port. A subject is given once its last row was read: the next row is another's."""
        cursor = await self._connection.cursor(
            self._sql.subjects,
            *(asked.department, asked.since, asked.until, asked.first, asked.last, asked.batches, asked.files),
            timeout=LONG_S,
        )
        held: list[asyncpg.Record] = []
        while rows := await cursor.fetch(ROWS, timeout=LONG_S):
            subjects = []
            for row in rows:
                if held and held[0][0] != row[0]:
                    subjects.append(_subject(held))
                    held = []
                held.append(row)
            yield subjects
        if held:
            yield [_subject(held)]

    async def add_items(self, reconciliation_id: str, new: NewItems) -> None:
        """See the port."""
        rows = [
            (*item[:KEPT], 0 if item.state is State.MATCHED else item.difference_minor, exception_id)
            for item, exception_id in zip(new.items, new.exceptions, strict=True)
        ]
        await self._connection.execute(self._sql.add_items, reconciliation_id, new.department, new.first, rows)

    async def finish(self, made: Reconciliation, audit: Sequence[AuditRow]) -> None:
        """See the port."""
        execute, departments = self._connection.execute, list(made.departments)
        counts, totals = (msgspec.json.encode(told).decode() for told in (made.counts, made.totals))
        await execute(
            self._sql.add_reconciliation,
            *(made.reconciliation_id, departments, made.from_date, made.to_date, counts, totals),
            *(list(made.inputs), made.staff_id, made.made_at),
        )
        await execute(self._sql.add_exceptions, made.reconciliation_id, made.made_at, departments, timeout=LONG_S)
        await execute(
            self._sql.add_acts,
            *(made.reconciliation_id, departments, made.from_date, made.to_date, made.staff_id, made.made_at),
            timeout=LONG_S,
        )
        for row in audit:
            await execute(self._mirror.insert_audit, *audit_values(row))


def _subject(rows: Sequence[asyncpg.Record]) -> Subject:
    """Of a charge's rows, which have each movement beside each line."""
    first = rows[0]
    if len(rows) == 1:
        moved = () if first[1] is None else (first[MOVED],)
        settled = () if first[7] is None else (Settled._make(first[SETTLED]),)
        return Subject(first[0], moved, settled)
    movements = {row[1]: row[MOVED] for row in rows if row[1] is not None}
    lines = {row[7:9]: Settled._make(row[SETTLED]) for row in rows if row[7] is not None}
    return Subject(first[0], tuple(movements.values()), tuple(lines.values()))


def _reconciliation(row: asyncpg.Record) -> Reconciliation:
    told = dict(row)
    counts, totals = (msgspec.json.decode(told.pop(name)) for name in ("counts", "totals"))
    return Reconciliation(**told, counts=counts, totals=totals)
