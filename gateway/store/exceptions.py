"""Exceptions of finance as they are kept: rows that are only ever added, read with all that was done about them."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import date

import asyncpg

from gateway.errors import PeriodClosed
from gateway.rules.ids import new_id
from gateway.services.exceptions import STATUSES, Act, Acted, Charged, Difference, FoundItem, Sought
from gateway.store.database import Database
from gateway.store.dates import Dates
from gateway.store.mirror import Mirror
from keys.audit import AuditRow
from keys.database import Connection
from keys.queries import load_queries


class ExceptionStore(Mirror):
    """Implements `services.exceptions.ExceptionStore`."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._sql = load_queries("gateway.store", "exceptions.sql")
        self._dates = Dates()

    async def page(
        self, departments: Collection[str], sought: Sought, limit: int, after: str | None
    ) -> Sequence[Difference]:
        """See the port."""
        statuses = {"open", "proposed"} if sought.to_settle else {sought.status}
        last_acts = [what for what, status in STATUSES.items() if status in statuses]
        hinders = sought.to_settle and sought.state is None
        asked = (sought.state, last_acts or None, sought.owner, sought.first, sought.last, after, limit, hinders)
        async with self._database.reading_departments(departments) as connection:
            rows = await connection.fetch(self._sql.page, list(departments), *asked)
            return await self._with_acts(connection, rows)

    async def one(self, departments: Collection[str], exception_id: str) -> Difference | None:
        """See the port."""
        async with self._database.reading_departments(departments) as connection:
            rows = await connection.fetch(self._sql.one, list(departments), exception_id)
            return next(iter(await self._with_acts(connection, rows)), None)

    async def items(self, departments: Collection[str], exception: Difference) -> Sequence[FoundItem]:
        """See the port."""
        async with self._database.reading_departments(departments) as connection:
            rows = await connection.fetch(self._sql.items, exception.department, exception.exception_id)
        return [FoundItem(**row) for row in rows]

    async def act(self, exception: Difference, acted: Acted, audit: AuditRow) -> bool:
        """See the port."""
        where = exception.department, exception.exception_id
        async with self._database.writing_departments([exception.department]) as connection:
            await self._dates.hold(connection)
            day = await self._dates.first_open(connection, exception.department, exception.business_date)
            if acted.only_open_date and day != exception.business_date:
                raise PeriodClosed("Its business date is closed: what was settled there stays so.")
            what = acted.what, acted.resolution, acted.note, acted.staff_id
            if await connection.fetchval(self._sql.act, *where, acted.number, *what) is None:
                return False
            await self._post(connection, exception, acted, day)
            await self._audit(connection, audit)
        return True

    async def disputed(self, exception: Difference) -> Charged | None:
        """See the port."""
        where = exception.department, exception.charge_id, exception.difference_minor
        async with self._database.reading_departments([exception.department]) as connection:
            row = await connection.fetchrow(self._sql.disputed, *where)
        return Charged(**row) if row else None

    async def _post(self, connection: Connection, exception: Difference, acted: Acted, day: date) -> None:
        posting = new_id("po")
        lines = [
            (
                *(exception.department, posting, line, entry.debit, entry.credit, entry.amount_minor),
                *(exception.currency, day, exception.exception_id),
            )
            for line, entry in enumerate(acted.entries, 1)
        ]
        await connection.executemany(self._sql.post, lines)

    async def _with_acts(self, connection: Connection, rows: Sequence[asyncpg.Record]) -> Sequence[Difference]:
        found = {(row["department"], row["exception_id"]): Difference(**row) for row in rows}
        departments, ids = {key[0] for key in found}, [key[1] for key in found]
        for row in await connection.fetch(self._sql.acts, list(departments), ids) if found else ():
            department, exception_id, *values = row
            one = found[department, exception_id]
            found[department, exception_id] = replace(one, acts=(*one.acts, Act(*values)))
        return list(found.values())
