"""What is exported, read a page after the other at one moment, however much it is."""

from collections.abc import AsyncGenerator, Collection, Sequence
from datetime import date
from typing import Any

import asyncpg

from gateway.services.books import Span
from gateway.services.charge_search import Row
from gateway.services.exports import Entry, Item, Reconciled
from gateway.store.database import Database
from keys.queries import load_queries

PAGE_ROWS = 2000


class ExportStore:
    """Implements `services.exports.ExportStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = load_queries("gateway.store", "exports.sql")

    async def charges(self, departments: Collection[str], spans: Sequence[Span]) -> AsyncGenerator[list[Row], None]:
        """See the port."""
        asked = [(span.department, span.starts, span.ends) for span in spans]
        async for page in self._pages(departments, self._sql.charges, asked):
            yield [Row(**row) for row in page]

    async def journal(
        self, departments: Collection[str], spans: Sequence[Span], first: date, last: date
    ) -> AsyncGenerator[list[Entry], None]:
        """See the port."""
        asked = [(span.department, span.starts, span.ends, first, last) for span in spans]
        async for page in self._pages(departments, self._sql.journal, asked):
            yield [Entry(*tuple(row)[:-1]) for row in page]

    async def reconciled(self, departments: Collection[str], reconciliation_id: str) -> Reconciled | None:
        """See the port."""
        async with self._database.reading_departments(departments) as connection:
            row = await connection.fetchrow(self._sql.reconciliation, reconciliation_id)
        return Reconciled(*row) if row else None

    async def items(self, departments: Collection[str], reconciliation_id: str) -> AsyncGenerator[list[Item], None]:
        """See the port."""
        asked = [(department, reconciliation_id) for department in sorted(departments)]
        async for page in self._pages(departments, self._sql.items, asked):
            yield [Item(**row) for row in page]

    async def _pages(
        self, departments: Collection[str], query: str, asked: Sequence[tuple[Any, ...]]
    ) -> AsyncGenerator[list[asyncpg.Record], None]:
        """What a query finds for each of these values, one after the other."""
        async with self._database.reading_departments(departments) as connection:
            await connection.execute(self._sql.at_one_moment)
            for values in asked:
                cursor = await connection.cursor(query, *values)
                while page := await cursor.fetch(PAGE_ROWS):
                    yield page
