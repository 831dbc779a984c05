"""The mirror of the key store in the database, and the audit log: what every process that holds keys asks and writes.

The mirror is the referee. A process may hold a ring that is up to two seconds old; what it makes with a key is stored
only if that key is active here at that moment.
"""

from gateway.errors import Unavailable
from gateway.services.ports import KeysMoved
from gateway.store.database import Database
from keys.audit import CITY, AuditRow, audit_values
from keys.database import Connection
from keys.errors import KeysExhausted
from keys.queries import load_queries
from keys.ring import WRAPS_MAX
from keys.states import Seen


class Mirror:
    """Implements `ports.KeyStore`; the stores of single processes are built on it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._mirror = load_queries("gateway.store", "mirror.sql")

    async def manifest_seen(self) -> Seen:
        """See `ports.KeyStore`."""
        async with self._database.reading(CITY) as connection:
            row = await connection.fetchrow(self._mirror.seen)
        return Seen(*row) if row else Seen()

    async def reserve_wraps(self, generation: int, count: int) -> None:
        """See `ports.KeyStore`."""
        async with self._database.transaction(CITY) as connection:
            if await connection.fetchval(self._mirror.reserve_wraps, generation, count, WRAPS_MAX) is not None:
                return
            if not await connection.fetchval(self._mirror.generation_is_active, generation):
                raise KeysMoved
            raise KeysExhausted(f"generation {generation} may wrap no more: rotate with `keys rotate`")

    async def record(self, audit: AuditRow) -> None:
        """See `ports.KeyStore`."""
        async with self._database.transaction(audit.event.department) as connection:
            await self._audit(connection, audit)

    async def require_audit(self) -> None:
        """Raises `Unavailable` when no audit row could be written."""
        async with self._database.reading(CITY) as connection:
            if not await connection.fetchval(self._mirror.may_audit):
                raise Unavailable

    async def _audit(self, connection: Connection, audit: AuditRow) -> None:
        await connection.execute(self._mirror.insert_audit, *audit_values(audit))
