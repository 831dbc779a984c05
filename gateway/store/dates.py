"""Business dates that are closed: whoever writes for a date holds the closes still, and learns where it may write.

    async with database.writing_departments([department]) as connection:
        await dates.hold(connection)                                # from here on no date closes
        day = await dates.first_open(connection, department, day)   # the date itself, or the next open one

Without the hold, a date could close between the question and the commit.
"""

from datetime import date

from keys.database import Connection
from keys.queries import load_queries

WAIT_S = 60.0
"""A long import, a run over a month and the pack of one take their time."""


class Dates:
    """Asks inside a transaction of somebody else."""

    def __init__(self) -> None:
        self._sql = load_queries("gateway.store", "dates.sql")

    async def hold(self, connection: Connection) -> None:
        """Keep all closes as they are until the transaction ends; many may at once."""
        await connection.execute(self._sql.hold, timeout=WAIT_S)

    async def change(self, connection: Connection) -> None:
        """Wait for all who hold, and for an import, and keep everybody out until the transaction ends."""
        await connection.execute(self._sql.keep_files_out, timeout=WAIT_S)
        await connection.execute(self._sql.change, timeout=WAIT_S)

    async def is_closed(self, connection: Connection, department: str, day: date) -> bool:
        """Whether a business date of the department is closed."""
        return bool(await connection.fetchval(self._sql.is_closed, department, day))

    async def first_open(self, connection: Connection, department: str, day: date) -> date:
        """The date, or where it is closed the first open one after it."""
        found: date = await connection.fetchval(self._sql.first_open, department, day)
        return found
