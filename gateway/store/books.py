"""What the days and the general-ledger codes of departments are, as the owner has set them."""

from collections.abc import Collection

from gateway.rules.gl import Mapped, Share
from gateway.services.books import Kept
from gateway.store.database import Database
from keys.queries import load_queries


class BookStore:
    """Implements `services.books.BookStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = load_queries("gateway.store", "books.sql")

    async def kept(self, departments: Collection[str]) -> Kept:
        """See the port."""
        mine, kept = list(departments), Kept({}, [], {})
        async with self._database.reading_departments(departments) as connection:
            for row in await connection.fetch(self._sql.cutoffs, mine):
                kept.cutoffs.setdefault(row["department_id"], []).append((row["valid_from"], row["at"]))
            for department, service, valid_from, gl_code, share in await connection.fetch(self._sql.mapped, mine):
                kept.mapped.append(Mapped(department, service, valid_from, Share(gl_code, share)))
            for department, service, gl_code in await connection.fetch(self._sql.registered, mine):
                kept.registered[department, service] = gl_code
        return kept
