"""Imports in PostgreSQL: one transaction for all that a file holds, and looks at what was kept."""

from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import date
from types import SimpleNamespace
from typing import Any

from gateway.formats import Kind
from gateway.rules.calendar import Cutoffs
from gateway.rules.chargebacks import Stage
from gateway.rules.settlement import DepositLine, LineKind, SettlementLine
from gateway.services.imports import Header, Imported, ImportShown, LineShown, Part
from gateway.services.intake import Attributed, Charge, Disputed, NewStage, Posting
from gateway.store.books import cutoffs
from gateway.store.database import Database
from gateway.store.mirror import Mirror
from keys.audit import CITY, AuditRow, audit_values
from keys.database import Connection
from keys.queries import load_queries

WAIT_S = 60.0
"""For an import that is being written; and for PostgreSQL to look whether a large one holds together."""


class ImportStore(Mirror):
    """Implements `services.imports.ImportStore`."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._sql = load_queries("gateway.store", "imports.sql")

    @asynccontextmanager
    async def writing(self, departments: Collection[str]) -> AsyncIterator["ImportBook"]:
        """See the port."""
        async with self._database.writing_departments(departments) as connection:
            yield ImportBook(connection, self._sql, self._mirror.insert_audit)

    async def imports(
        self, departments: Collection[str], kind: Kind, limit: int, after: str | None
    ) -> Sequence[ImportShown]:
        """See the port."""
        return await self._imports(departments, kind, None, after, limit)

    async def one(self, departments: Collection[str], kind: Kind, import_id: str) -> ImportShown | None:
        """See the port."""
        return next(iter(await self._imports(departments, kind, import_id, None, 1)), None)

    async def parts(self, departments: Collection[str], import_id: str) -> Sequence[Part]:
        """See the port."""
        rows = await self._fetch(departments, self._sql.parts, import_id)
        return [Part(**row) for row in rows]

    async def settlement_lines(
        self, departments: Collection[str], import_id: str, limit: int, after: int
    ) -> Sequence[LineShown]:
        """See the port."""
        rows = await self._fetch(departments, self._sql.settlement_lines, import_id, after, limit)
        return [_line(*row) for row in rows]

    async def deposit_lines(
        self, departments: Collection[str], import_id: str, limit: int, after: int
    ) -> Sequence[DepositLine]:
        """See the port."""
        rows = await self._fetch(departments, self._sql.deposit_lines, import_id, after, limit)
        return [DepositLine(**row) for row in rows]

    async def _imports(
        self, departments: Collection[str], kind: Kind, only: str | None, after: str | None, limit: int
    ) -> Sequence[ImportShown]:
        async with self._database.reading_departments(departments) as connection:
            if CITY in departments:
                rows = await connection.fetch(self._sql.imports, kind, only, after, limit)
            else:
                rows = await connection.fetch(self._sql.imports_of, kind, only, after, limit, list(departments))
        return [ImportShown(**row) for row in rows]

    async def _fetch(self, departments: Collection[str], query: str, *values: object) -> Sequence[Any]:
        async with self._database.reading_departments(departments) as connection:
            rows: Sequence[Any] = await connection.fetch(query, list(departments), *values)
        return rows


class ImportBook:
    """Implements `services.imports.ImportBook`."""

    def __init__(self, connection: Connection, sql: SimpleNamespace, insert_audit: str) -> None:
        self._connection = connection
        self._sql = sql
        self._insert_audit = insert_audit

    async def earlier(self, sha256: bytes) -> Imported | None:
        """See the port."""
        await self._connection.execute(self._sql.one_at_a_time, timeout=WAIT_S)
        row = await self._connection.fetchrow(self._sql.earlier, sha256)
        return Imported(**row, already_imported=True) if row else None

    async def cutoffs(self) -> Cutoffs:
        """See the port."""
        return await cutoffs(self._connection)

    async def closed(self) -> Mapping[str, Sequence[tuple[date, date]]]:
        """See the port."""
        found: dict[str, list[tuple[date, date]]] = defaultdict(list)
        for department, first, last in await self._connection.fetch(self._sql.closed):
            found[department].append((first, last))
        return found

    async def whose(self, departments: Collection[str], references: Collection[str]) -> Mapping[str, Charge]:
        """See the port."""
        rows = await self._connection.fetch(self._sql.whose, list(departments), list(references))
        return {reference: (department, charge_id) for department, reference, charge_id in rows}

    async def disputed(self, charges: Collection[Charge]) -> Mapping[Charge, Disputed]:
        """See the port."""
        rows = await self._connection.fetch(self._sql.disputed, *_columns(charges, 2))
        return {
            (department, charge_id): Disputed(captured, fee, number, Stage(stage) if stage else None)
            for department, charge_id, captured, fee, number, stage in rows
        }

    async def add_lines(self, import_id: str, lines: Sequence[Attributed]) -> None:
        """See the port."""
        rows = [(department, subject, day, *line) for department, subject, day, line in lines]
        await self._connection.execute(self._sql.add_lines, import_id, rows)

    async def add_deposits(self, import_id: str, lines: Sequence[DepositLine]) -> None:
        """See the port."""
        rows = (
            (
                *(line.line, line.type_code, line.amount_minor, line.currency, line.deposited_on),
                *(line.batch, line.bank_reference),
            )
            for line in lines
        )
        await self._connection.execute(self._sql.add_deposits, import_id, *_columns(rows, 7))

    async def add_stages(self, import_id: str, stages: Sequence[NewStage]) -> None:
        """See the port."""
        rows = (
            (
                *(stage.department, stage.charge_id, stage.number, stage.stage, stage.amount_minor),
                *(stage.currency, stage.line),
            )
            for stage in stages
        )
        await self._connection.execute(self._sql.add_stages, import_id, *_columns(rows, 7))

    async def add_postings(self, postings: Sequence[Posting]) -> None:
        """See the port."""
        rows = (
            (
                *(posting.department, posting.posting_id, line, entry.debit, entry.credit, entry.amount_minor),
                *(posting.currency, posting.business_date, posting.source, posting.source_id),
            )
            for posting in postings
            for line, entry in enumerate(posting.entries, 1)
        )
        await self._connection.execute(self._sql.add_postings, *_columns(rows, 10))

    async def finish(self, header: Header, audit: AuditRow) -> None:
        """See the port."""
        what = header.imported
        await self._connection.execute(
            self._sql.add_import,
            *(what.id, what.kind, what.format, header.sha256, what.lines),
            *(what.gross_minor, what.fee_minor, what.net_minor, what.currency),
            *(header.settled_on, header.staff_id, header.imported_at),
        )
        await self._connection.execute(self._insert_audit, *audit_values(audit))
        await self._connection.execute(self._sql.hold_together, timeout=WAIT_S)


def _columns(rows: Iterable[tuple[object, ...]], width: int) -> Sequence[Sequence[object]]:
    """Rows as arrays, which `unnest` makes rows of again: one statement however many they are."""
    return list(zip(*rows, strict=True)) or [()] * width


def _line(department: str, charge_id: str | None, day: date, number: int, kind: str, *rest: Any) -> LineShown:
    return LineShown(department, charge_id, SettlementLine(number, LineKind(kind), *rest), day)
