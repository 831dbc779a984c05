"""Transactions: one department each, durable when they return, and honest about a lost commit.

Every transaction begins by naming its department, which row-level security compares with every row. A COMMIT is
never cancelled: if the connection goes while it runs, nobody knows, and `CommitUnknown` says so. Driver errors
may quote values, so only their SQLSTATE leaves this file.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import structlog

from gateway.errors import Unavailable
from gateway.services.ports import CommitUnknown
from keys.database import Connection, require_durable

ACQUIRE_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 5.0

DEPARTMENT = re.compile(r"[a-z][a-z0-9_]{0,30}")

PASSING = frozenset({"08", "40", "53", "57"})
"""Classes of SQLSTATE that a later try may not meet: connection, rollback, resources, operator. Others are bugs."""

CONNECTION_LOST = (asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError)

log = structlog.get_logger()


class StatementRefused(Exception):
    """PostgreSQL refused what no caller can mend: a bug, answered 500."""


class Database:
    """A pool of connections of one role."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    @classmethod
    async def open(cls, connect: dict[str, Any], pool_max: int) -> "Database":
        """Connect and refuse a server that may lose data; raises `keys.errors.DatabaseRefused`."""
        pool = await asyncpg.create_pool(**connect, min_size=1, max_size=pool_max)
        async with pool.acquire() as connection:
            await require_durable(connection)
        return cls(pool)

    async def close(self) -> None:
        """Close the pool; connections that hang are dropped."""
        try:
            await asyncio.wait_for(self._pool.close(), CLOSE_TIMEOUT_S)
        except TimeoutError:
            self._pool.terminate()

    @property
    def connections(self) -> int:
        """Open now."""
        return self._pool.get_size()

    @property
    def connections_idle(self) -> int:
        """Open and unused now."""
        return self._pool.get_idle_size()

    @asynccontextmanager
    async def transaction(self, department: str) -> AsyncIterator[Connection]:
        """One commit on behalf of one department.

        Raises:
            Unavailable: the database cannot be reached, or refused in a way that no caller can mend.
            CommitUnknown: the connection was lost while committing.
        """
        async with self._connection() as connection:
            # A literal, because SET takes no parameter and the literal form reaches every shard. The name comes
            # from our own table, whose CHECK allows [a-z0-9_] only; assert it again where it is spliced.
            assert DEPARTMENT.fullmatch(department), "internal error: not a department's name"
            await connection.execute(f"BEGIN; SET LOCAL gateway.department = '{department}'")
            try:
                yield connection
            except BaseException:
                await self._rollback(connection)
                raise
            await _commit(connection)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        try:
            async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
                yield connection
        except asyncpg.PostgresError as error:
            sqlstate = error.sqlstate or "?????"
            log.warning("database.refused", sqlstate=sqlstate, error=type(error).__name__)
            if sqlstate[:2] in PASSING:
                raise Unavailable from None
            raise StatementRefused(f"internal error: SQLSTATE {sqlstate}") from None
        except (OSError, asyncpg.InterfaceError, TimeoutError) as error:
            log.warning("database.unreachable", error=type(error).__name__)
            raise Unavailable from None

    async def _rollback(self, connection: Connection) -> None:
        try:
            await connection.execute("ROLLBACK")
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection.terminate()


async def _commit(connection: Connection) -> None:
    # Shielded: asyncpg would turn a cancellation into a cancel request, and a commit half-cancelled is a riddle.
    try:
        await asyncio.shield(asyncio.ensure_future(connection.execute("COMMIT")))
    except (OSError, asyncpg.InterfaceError, *CONNECTION_LOST) as error:
        log.warning("database.commit_unknown", error=type(error).__name__)
        raise CommitUnknown from None
