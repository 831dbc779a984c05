"""What the days and the general-ledger codes of departments are, as the owner has set them.

Stores that need it beside other things ask `cutoffs` or `kept` in a transaction of their own.
"""

from collections import defaultdict
from collections.abc import Collection
from datetime import date, time
from functools import cache
from types import SimpleNamespace

from gateway.rules.calendar import Cutoffs
from gateway.rules.gl import Mapped, Share
from gateway.services.books import Kept
from gateway.store.database import Database
from keys.database import Connection
from keys.queries import load_queries


class BookStore:
    """Implements `services.books.BookStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def kept(self, departments: Collection[str]) -> Kept:
        """See the port."""
        async with self._database.reading_departments(departments) as connection:
            return await kept(connection, departments)


async def cutoffs(connection: Connection, departments: Collection[str] | None = None) -> Cutoffs:
    """When the dates of these departments end; without any, those of all that the transaction sees."""
    found: dict[str, list[tuple[date, time]]] = defaultdict(list)
    mine = None if departments is None else list(departments)
    for department, valid_from, at in await connection.fetch(_sql().cutoffs, mine):
        found[department].append((valid_from, at))
    return found


async def kept(connection: Connection, departments: Collection[str]) -> Kept:
    """All that is set of these departments."""
    mine, kept = list(departments), Kept(await cutoffs(connection, departments), [], {})
    for department, service, valid_from, gl_code, share in await connection.fetch(_sql().mapped, mine):
        kept.mapped.append(Mapped(department, service, valid_from, Share(gl_code, share)))
    for department, service, gl_code in await connection.fetch(_sql().registered, mine):
        kept.registered[department, service] = gl_code
    return kept


@cache
def _sql() -> SimpleNamespace:
    return load_queries("gateway.store", "books.sql")
