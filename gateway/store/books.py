"""What the days and the general-ledger codes of departments are, as the owner has set them."""

from collections.abc import Collection
from types import SimpleNamespace

from gateway.rules.gl import Mapped, Share
from gateway.services.books import Kept
from gateway.store.database import Database
from keys.database import Connection
from keys.queries import load_queries


class BookStore:
    """Implements `services.books.BookStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = load_queries("gateway.store", "books.sql")

    async def kept(self, departments: Collection[str]) -> Kept:
        """See the port."""
        async with self._database.reading_departments(departments) as connection:
            return await kept(connection, self._sql, departments)


async def kept(connection: Connection, sql: SimpleNamespace, departments: Collection[str]) -> Kept:
    """What is set of these departments, in a transaction that reads other things, too. `sql` are our queries."""
    mine, kept = list(departments), Kept({}, [], {})
    for department, valid_from, at in await connection.fetch(sql.cutoffs, mine):
        kept.cutoffs.setdefault(department, []).append((valid_from, at))
    for department, service, valid_from, gl_code, share in await connection.fetch(sql.mapped, mine):
        kept.mapped.append(Mapped(department, service, valid_from, Share(gl_code, share)))
    for department, service, gl_code in await connection.fetch(sql.registered, mine):
        kept.registered[department, service] = gl_code
    return kept
