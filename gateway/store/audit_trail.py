"""What an auditor reads of the audit log."""

from collections.abc import Collection, Sequence
from datetime import datetime

from gateway.errors import NotFound
from gateway.services.audit_trail import Told, Wanted
from gateway.store.database import Database
from keys.queries import load_queries


class AuditTrailStore:
    """Implements `services.audit_trail.AuditStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = load_queries("gateway.store", "audit_trail.sql")

    async def search(
        self, departments: Collection[str], wanted: Wanted, starts: datetime, ends: datetime, limit: int
    ) -> Sequence[Told]:
        """See the port."""
        mine, after = list(departments), wanted.starting_after
        async with self._database.reading_departments(departments) as connection:
            since: datetime | None = None
            if after is not None and (since := await connection.fetchval(self._sql.place, mine, after)) is None:
                raise NotFound
            await connection.execute(self._sql.along_the_index)
            rows = await connection.fetch(
                self._sql.search, mine, starts, ends, wanted.event, wanted.actor, wanted.subject, since, after, limit
            )
        return [Told(**row) for row in rows]
