"""What finance reads of charges, and of one of them."""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from types import SimpleNamespace

from gateway.errors import NotFound
from gateway.services.books import Kept
from gateway.services.charge_search import Filter, Row, Step
from gateway.store.books import kept
from gateway.store.database import Database
from keys.database import Connection
from keys.queries import load_queries


class ChargeStore:
    """Implements `services.charge_search.ChargeStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = load_queries("gateway.store", "charge_search.sql")

    @asynccontextmanager
    async def looking(self, departments: Collection[str]) -> AsyncIterator["ChargeLook"]:
        """See the port."""
        async with self._database.reading_departments(departments) as connection:
            yield ChargeLook(connection, self._sql)


class ChargeLook:
    """Implements `services.charge_search.Look`."""

    def __init__(self, connection: Connection, sql: SimpleNamespace) -> None:
        self._connection = connection
        self._sql = sql

    async def kept(self, departments: Collection[str]) -> Kept:
        """See the port."""
        return await kept(self._connection, departments)

    async def search(self, departments: Collection[str], wanted: Filter, limit: int) -> Sequence[Row]:
        """See the port."""
        asked, spans, connection = wanted.question, wanted.spans, self._connection
        since = await self._place(departments, asked.starting_after)
        values = (
            [span.department for span in spans],
            [span.service for span in spans],
            [span.starts for span in spans],
            [span.ends for span in spans],
            *(wanted.states, asked.amount_minor, since, asked.starting_after, limit),
        )
        if asked.reference is None and asked.last4 is None:
            await connection.execute(self._sql.along_the_index)
            found = await connection.fetch(self._sql.walk, *values)
        else:
            found = await connection.fetch(self._sql.find, *values, asked.reference, asked.last4)
        return await self._rows([row[0] for row in found], [row[1] for row in found])

    async def charge(self, departments: Collection[str], charge_id: str) -> Row | None:
        """See the port."""
        rows = await self._rows(list(departments), [charge_id] * len(departments))
        return rows[0] if rows else None

    async def story(self, charge: Row, *, audit: bool) -> Sequence[Step]:
        """See the port."""
        rows = await self._connection.fetch(self._sql.story, charge.department, charge.charge_id, audit)
        return [Step(**row) for row in rows]

    async def _rows(self, departments: list[str], ids: list[str]) -> list[Row]:
        return [Row(*row) for row in await self._connection.fetch(self._sql.charges, departments, ids)]

    async def _place(self, departments: Collection[str], charge_id: str | None) -> datetime | None:
        if charge_id is None:
            return None
        since: datetime | None = await self._connection.fetchval(self._sql.place, list(departments), charge_id)
        if since is None:
            raise NotFound
        return since
