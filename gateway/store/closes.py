"""Closes of finance as they are kept: proposed, approved and opened again, one change at a time."""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date, datetime
from typing import Any

import asyncpg
import msgspec

from gateway.errors import ExceptionsOpen, PeriodClosed
from gateway.rules.calendar import Cutoffs
from gateway.rules.pack import Seal
from gateway.services.closes import Acted, Close, CloseAct, Evidence, Intervals, Proposed
from gateway.store.books import cutoffs
from gateway.store.database import Database
from gateway.store.dates import Dates
from gateway.store.evidence import LONG_S, evidence_of
from gateway.store.mirror import Mirror
from keys.audit import AuditRow
from keys.database import Connection
from keys.queries import load_queries

FILES_CAME = (
    "Files with lines of these dates came after this was proposed, so that it was not seen whether they agree. Reject"
    " it and propose it anew."
)


class CloseStore(Mirror):
    """Implements `services.closes.CloseStore`."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._sql = load_queries("gateway.store", "closes.sql")
        self._dates = Dates()

    async def cutoffs(self, departments: Collection[str]) -> Cutoffs:
        """See the port."""
        async with self._database.reading_departments(departments) as connection:
            return await cutoffs(connection, departments)

    async def page(self, departments: Collection[str], limit: int, after: str | None) -> Sequence[Close]:
        """See the port."""
        async with self._database.reading_departments(departments) as connection:
            rows = await connection.fetch(self._sql.page, list(departments), after, limit)
            return await self._with_acts(connection, departments, rows)

    async def one(self, departments: Collection[str], close_id: str) -> Close | None:
        """See the port."""
        async with self._database.reading_departments(departments) as connection:
            rows = await connection.fetch(self._sql.one, list(departments), close_id)
            return next(iter(await self._with_acts(connection, departments, rows)), None)

    async def require_free(self, departments: Collection[str], first: date, last: date) -> None:
        """See the port."""
        async with self._database.reading_departments(departments) as connection:
            await self._require_free(connection, departments, first, last)

    async def propose(self, proposed: Proposed, audit: Sequence[AuditRow]) -> None:
        """See the port."""
        departments, first, last = sorted(proposed.departments), proposed.first, proposed.last
        async with self._database.writing_departments(departments) as connection:
            await self._dates.change(connection)
            await self._require_free(connection, departments, first, last)
            await self._require_settled(connection, departments, first, last)
            await connection.execute(
                self._sql.add, departments, proposed.close_id, first, last, proposed.reconciliation_id
            )
            acted = Acted(1, "proposed", "", proposed.staff_id)
            await self._write(connection, departments, proposed.close_id, acted, await self._now(connection))
            await self._tell(connection, audit)

    async def approve(
        self,
        close: Close,
        acted: Acted,
        intervals: Intervals,
        seal: Callable[[Evidence], Seal],
        audit: Sequence[AuditRow],
    ) -> bool:
        """See the port."""
        async with self._database.writing_departments(close.departments) as connection:
            await self._dates.change(connection)
            await self._require_settled(connection, close.departments, close.first, close.last)
            seen = close.departments, close.first, close.last, close.reconciliation_id
            if await connection.fetchval(self._sql.unseen, *seen):
                raise ExceptionsOpen(FILES_CAME)
            now = await self._now(connection)
            sealed = seal(await evidence_of(connection, self._sql, close, now, intervals))
            if not await self._write(connection, close.departments, close.close_id, acted, now, sealed):
                return False
            await self._tell(connection, audit)
        return True

    async def act(self, close: Close, acted: Acted, audit: Sequence[AuditRow]) -> bool:
        """See the port."""
        async with self._database.writing_departments(close.departments) as connection:
            await self._dates.change(connection)
            now = await self._now(connection)
            if not await self._write(connection, close.departments, close.close_id, acted, now):
                return False
            await self._tell(connection, audit)
        return True

    async def evidence(self, close: Close, at: datetime, intervals: Intervals) -> Evidence:
        """See the port."""
        async with self._database.reading_departments(close.departments) as connection:
            return await evidence_of(connection, self._sql, close, at, intervals)

    async def record(self, audit: Sequence[AuditRow]) -> None:  # type: ignore[override]
        """See the port."""
        async with self._database.writing_departments([row.event.department for row in audit]) as connection:
            await self._tell(connection, audit)

    async def _require_free(
        self, connection: Connection, departments: Collection[str], first: date, last: date
    ) -> None:
        if await connection.fetchval(self._sql.taken, list(departments), first, last):
            raise PeriodClosed("Some of these dates are closed, or somebody has proposed to close them.")

    async def _require_settled(
        self, connection: Connection, departments: Collection[str], first: date, last: date
    ) -> None:
        asked = list(departments), first, last
        row: Any = await connection.fetchrow(self._sql.unsettled, *asked, timeout=LONG_S)
        unsettled, late = row
        if unsettled > late:
            raise ExceptionsOpen(f"{_many(unsettled - late)} not settled. Resolve them first, or have them approved.")
        if late:
            raise ExceptionsOpen(
                f"{_many(late, 'that are closed')} not settled: a file came later. Resolve them first."
            )

    async def _now(self, connection: Connection) -> datetime:
        """After whatever this transaction waited for."""
        now: datetime = await connection.fetchval(self._sql.now)
        return now

    async def _write(
        self,
        connection: Connection,
        departments: Collection[str],
        close_id: str,
        acted: Acted,
        now: datetime,
        sealed: Seal | None = None,
    ) -> bool:
        seal = (sealed.sha256, sealed.signature, sealed.key) if sealed else (None, None, None)
        values = (close_id, acted.number, acted.what, acted.reason, acted.staff_id, now, *seal)
        said = await connection.execute(self._sql.act, sorted(departments), *values)
        return bool(said != "INSERT 0 0")

    async def _tell(self, connection: Connection, audit: Sequence[AuditRow]) -> None:
        for row in audit:
            await self._audit(connection, row)

    async def _with_acts(
        self, connection: Connection, departments: Collection[str], rows: Sequence[asyncpg.Record]
    ) -> Sequence[Close]:
        acts: dict[str, list[CloseAct]] = {row["close_id"]: [] for row in rows}
        for row in await connection.fetch(self._sql.acts, list(departments), list(acts)) if acts else ():
            close_id, number, what, reason, staff_id, by, at, sha256, signature, key = row
            seal = Seal(sha256, signature, key) if sha256 else None
            acts[close_id].append(CloseAct(number, what, reason, staff_id, by, at, seal))
        return [_close(row, acts[row["close_id"]]) for row in rows]


def _many(exceptions: int, which: str = "") -> str:
    dates = f"dates {which}" if which else "these dates"
    return f"One exception of {dates} is" if exceptions == 1 else f"{exceptions:,} exceptions of {dates} are"


def _close(row: asyncpg.Record, acts: Sequence[CloseAct]) -> Close:
    counts: Mapping[str, int] = msgspec.json.decode(row["counts"]) if row["whole"] else {}
    totals: Mapping[str, int | str] = msgspec.json.decode(row["totals"]) if row["whole"] else {}
    return Close(
        row["close_id"],
        tuple(row["departments"]),
        row["from_date"],
        row["to_date"],
        row["reconciliation_id"],
        row["whole"],
        counts,
        totals,
        tuple(acts),
    )
