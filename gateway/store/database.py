"""Transactions: one department each, durable when they return, and honest about a lost commit.

Every transaction begins by naming its department, which row-level security compares with every row; a look on behalf
of staff names all those that they may see. A COMMIT is
never cancelled: if the connection goes while it runs, nobody knows, and `CommitUnknown` says so; what only reads
never commits, so it is never in that doubt. Nothing waits for ever on a server that fell silent. Driver errors may
quote values, so only their SQLSTATE leaves this file.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Collection, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import asyncpg
import structlog
from asyncpg import Record
from asyncpg.pool import PoolConnectionProxy

from gateway.errors import Unavailable
from gateway.services.ports import CommitUnknown
from keys.database import Connection, require_durable

ACQUIRE_TIMEOUT_S = 5.0
STATEMENT_TIMEOUT_S = 5.0
ROLLBACK_TIMEOUT_S = 1.0
CLOSE_TIMEOUT_S = 5.0
LOST_HOST = {"tcp_keepalives_idle": "5", "tcp_keepalives_interval": "2", "tcp_keepalives_count": "3"}
"""How soon the server notices that nobody is there any more; in seconds, and tries."""
LOCK_WAIT_MS = 250
"""How long a batch waits for somebody's lock before it is halved (`store/batch.py`); its halves wait half as long."""
IDLE_STATEMENTS = 1.5
"""A transaction may be idle for so many times the longest statement."""

DEPARTMENT = re.compile(r"[a-z][a-z0-9_]{0,30}")

BUGS = frozenset({"22", "23", "25", "42"})
"""Classes of SQLSTATE that speak of our own statement: data, integrity, transaction state, syntax and access."""

NO_PRIVILEGE = "42501"
"""Somebody took a grant away, which is no bug of ours; nor is what a trigger of others raises."""

CONNECTION_LOST = (asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError)

STALE = (ConnectionError, asyncpg.InterfaceError, *CONNECTION_LOST)

BROKEN = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What a connection raises when it is no good; `TimeoutError` is an `OSError`."""

log = structlog.get_logger()

T = TypeVar("T")


AILING = frozenset({"08", "53", "57", "58", "XX"})
"""Classes that speak of the server: connection, resources, operator, system, internal. Others are one statement's."""


class Disturbed(Unavailable):
    """One statement cannot be carried out now: a lock that lasts, a deadlock, a missing grant, somebody's trigger."""


class StatementRefused(Exception):
    """PostgreSQL refused what no caller can mend: a bug, answered 500."""


class Database:
    """A pool of connections of one role."""

    def __init__(self, pool: asyncpg.Pool, acquire_timeout_s: float = ACQUIRE_TIMEOUT_S) -> None:
        self._pool = pool
        self._acquire_timeout_s = acquire_timeout_s

    @classmethod
    async def open(
        cls,
        connect: dict[str, Any],
        pool_max: int,
        *,
        acquire_timeout_s: float = ACQUIRE_TIMEOUT_S,
        statement_timeout_s: float = STATEMENT_TIMEOUT_S,
    ) -> "Database":
        """Connect and refuse a server that may lose data; raises `keys.errors.DatabaseRefused`."""
        # Who is stopped inside a transaction, or lost with its host, must not stop everybody else.
        idle_ms = str(round(statement_timeout_s * IDLE_STATEMENTS * 1000))
        # A transaction says itself how long it waits for a lock: this is for a statement that is one.
        bounds = {"idle_in_transaction_session_timeout": idle_ms, "lock_timeout": str(LOCK_WAIT_MS), **LOST_HOST}
        connect = connect | {"server_settings": connect.get("server_settings", {}) | bounds}
        pool = await asyncpg.create_pool(
            **connect,
            min_size=1,
            max_size=pool_max,
            command_timeout=statement_timeout_s,
            reset=_leave_as_it_is,
        )
        try:
            async with pool.acquire() as connection:
                await require_durable(connection)
        except BaseException:
            pool.terminate()
            raise
        return cls(pool, acquire_timeout_s)

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
    async def transaction(self, department: str, lock_wait_ms: int | None = None) -> AsyncIterator[Connection]:
        """One commit on behalf of one department, which may wait for somebody's lock for so long.

        Raises:
            Unavailable: the database cannot be reached, or refused in a way that no caller can mend.
            Disturbed: the same, because of somebody else's transaction.
            StatementRefused: it refused a statement.
            CommitUnknown: the connection was lost while committing.
        """
        async with self._begun("BEGIN", "gateway.department", [department], lock_wait_ms) as connection:
            yield connection
            await _commit(connection)

    async def commit_one(self, query: str, department: str, *values: object) -> list[Record]:
        """One statement that is a transaction, and names its department itself; durable when this returns.

        It waits for a lock for `LOCK_WAIT_MS`. Raises as `transaction` does; a connection that went away while it was
        idle, and nobody heard, is `CommitUnknown` here, where `transaction` begins on another one.
        """
        async with _driver_errors(), self._lent() as connection:
            return await _committed(connection.fetch(query, department, *values))

    @asynccontextmanager
    async def reading(self, department: str) -> AsyncIterator[Connection]:
        """A look at what one department has: writes nothing, hence commits nothing. Raises `Unavailable`."""
        async with self._begun("BEGIN READ ONLY", "gateway.department", [department]) as connection:
            yield connection
            await _rollback(connection)

    @asynccontextmanager
    async def reading_departments(self, departments: Collection[str]) -> AsyncIterator[Connection]:
        """The same at what several have, for the admin process: with none, nothing is seen. Raises `Unavailable`."""
        async with self._begun("BEGIN READ ONLY", "gateway.departments", departments) as connection:
            yield connection
            await _rollback(connection)

    @asynccontextmanager
    async def writing_departments(self, departments: Collection[str]) -> AsyncIterator[Connection]:
        """One commit of staff's on behalf of several departments, or of the city. Raises as `transaction` does."""
        async with self._begun("BEGIN", "gateway.departments", departments) as connection:
            yield connection
            await _commit(connection)

    @asynccontextmanager
    async def _begun(
        self, begin: str, setting: str, departments: Collection[str], lock_wait_ms: int | None = None
    ) -> AsyncIterator[Connection]:
        # A literal, because SET takes no parameter. The names come from our own table, whose CHECK allows
        # [a-z0-9_] only; assert it again where they are spliced.
        assert all(map(DEPARTMENT.fullmatch, departments)), "internal error: not a department's name"
        names = ",".join(sorted(departments))
        statements = f"{begin}; SET LOCAL lock_timeout = {lock_wait_ms or 0}; SET LOCAL {setting} = '{names}'"
        async with _driver_errors(), self._connection(statements) as connection:
            try:
                yield connection
            except BaseException:
                await _rollback(connection)
                raise

    @asynccontextmanager
    async def _connection(self, begin: str) -> AsyncIterator[Connection]:
        try:
            connection = await self._begin(begin)
        except STALE:  # it went away while it was idle, and nothing was done on it
            connection = await self._begin(begin)
        try:
            yield connection
        finally:
            await self._give_back(connection)

    @asynccontextmanager
    async def _lent(self) -> AsyncIterator[Connection]:
        connection = await self._pool.acquire(timeout=self._acquire_timeout_s)
        try:
            yield connection
        except BaseException:
            await _rollback(connection)  # the driver may have left a statement half asked
            raise
        finally:
            await self._give_back(connection)

    async def _begin(self, begin: str) -> PoolConnectionProxy:
        connection = await self._pool.acquire(timeout=self._acquire_timeout_s)
        try:
            await connection.execute(begin)
        except BaseException:
            await _rollback(connection)
            await self._give_back(connection)
            raise
        return connection

    async def _give_back(self, connection: PoolConnectionProxy) -> None:
        # The pool rolls back what is open. Should that fail, it drops the connection; what was committed stays so.
        with suppress(*BROKEN):
            await self._pool.release(connection)


@asynccontextmanager
async def _driver_errors() -> AsyncIterator[None]:
    """Ours instead of the driver's, which may quote values."""
    try:
        yield
    except asyncpg.PostgresError as error:
        sqlstate = error.sqlstate or "?????"
        log.warning("database.refused", sqlstate=sqlstate, error=type(error).__name__)
        if sqlstate[:2] in BUGS and sqlstate != NO_PRIVILEGE:
            raise StatementRefused(f"internal error: SQLSTATE {sqlstate}") from None
        raise (Unavailable if sqlstate[:2] in AILING else Disturbed) from None
    except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        log.warning("database.unreachable", error=type(error).__name__)
        if isinstance(error, ValueError):  # the driver's own: it never reached the server
            raise StatementRefused("internal error: a value that is not of its column's type") from None
        raise Unavailable from None


async def _leave_as_it_is(_connection: Connection) -> None:
    """Instead of the pool's own reset, a round trip: nothing here outlives its transaction."""


async def _rollback(connection: Connection) -> None:
    try:
        # Not `asyncio.timeout`, which does not count in a task that is being cancelled.
        await asyncio.wait_for(connection.execute("ROLLBACK"), ROLLBACK_TIMEOUT_S)
    except BROKEN:
        with suppress(asyncpg.InterfaceError):  # gone already, and back in the pool
            connection.terminate()


async def _commit(connection: Connection) -> None:
    if await _committed(connection.execute("COMMIT")) != "COMMIT":
        raise StatementRefused("internal error: a transaction that had failed was to be committed")


async def _committed(statement: Coroutine[Any, Any, T]) -> T:
    """What ends a transaction, and what it gave; raises `CommitUnknown` when nobody knows whether it did."""
    # Shielded: asyncpg would turn a cancellation into a cancel request, and a commit half-cancelled is a riddle.
    committing = asyncio.ensure_future(statement)
    try:
        return await asyncio.shield(committing)
    except asyncio.CancelledError:
        await asyncio.wait([committing])  # until the connection is at rest; its statements have their time-outs
        raise
    except asyncpg.QueryCanceledError:  # by an operator: it was rolled back
        raise
    except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError, *CONNECTION_LOST) as error:
        log.warning("database.commit_unknown", error=type(error).__name__)
        raise CommitUnknown from None
