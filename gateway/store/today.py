"""What the start page of the finance staff reads, in one transaction that writes nothing."""

from collections.abc import Collection, Sequence
from datetime import date

from gateway.rules.calendar import Cutoffs
from gateway.services.today import (
    AGE_FROM,
    CURRENCY,
    LastClose,
    LastImport,
    LastRun,
    Seen,
    Span,
    Taken,
    Unsettled,
    Waiting,
)
from gateway.store.books import cutoffs
from gateway.store.database import Database
from keys.audit import CITY
from keys.queries import load_queries


class TodayStore:
    """Implements `services.today.TodayStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = load_queries("gateway.store", "today.sql")

    async def cutoffs(self, departments: Collection[str]) -> Cutoffs:
        """See the port."""
        async with self._database.reading_departments(departments) as connection:
            return await cutoffs(connection, departments)

    async def look(
        self, departments: Collection[str], spans: Sequence[Span], recent: Sequence[Span], day: date
    ) -> Seen:
        """See the port."""
        mine = list(departments)
        async with self._database.reading_departments(departments) as connection:
            taken = await connection.fetch(self._sql.taken, *_columns(spans), CURRENCY)
            declined = await connection.fetch(self._sql.declined, *_columns(recent))
            [waiting] = await connection.fetch(self._sql.waiting, mine)
            unsettled = await connection.fetch(self._sql.unsettled, mine, day, AGE_FROM)
            imports = await connection.fetch(self._sql.imports) if CITY in departments else []
            run = await connection.fetchrow(self._sql.run)
            close = await connection.fetchrow(self._sql.close, mine)
        return Seen(
            [Taken(**row) for row in taken],
            {(row["department"], row["day"]): row["declined"] for row in declined},
            Waiting(**waiting),
            [Unsettled(**row) for row in unsettled],
            [LastImport(**row) for row in imports],
            LastRun(**run) if run else None,
            LastClose(**close) if close else None,
        )


def _columns(spans: Sequence[Span]) -> tuple[list[object], ...]:
    """As `unnest` takes them."""
    return (
        [span.department for span in spans],
        [span.day for span in spans],
        [span.since for span in spans],
        [span.until for span in spans],
    )
