"""Transactions on a real server: walled by department, silent about values, and honest when the wire breaks."""

import asyncio
import logging
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

import asyncpg
import pytest
from structlog.testing import capture_logs

from gateway.errors import NotFound, Unavailable
from gateway.services.ports import CommitUnknown
from gateway.store.database import LOCK_WAIT_MS, ROLLBACK_TIMEOUT_S, Database, StatementRefused
from gateway.store.ledger import Ledger
from tests.cards import canary
from tests.gateway.store.charges import captured
from tests.gateway.store.postgres import (
    PARKS,
    UTILITIES,
    Cut,
    Postgres,
    Wire,
    slow_commits,
)

pytestmark = pytest.mark.server

CANARY = canary(62_001)
NAME = "Ramona Testholder"
WALLED = ("services", "deks", "fingerprints", "tokens", "charges", "movements", "journal", "idempotency")
DIGEST = bytes(32)
ADD_TOKEN = """INSERT INTO gateway.tokens
VALUES ($1, 't', $2, 'card', 'multi', 'active', NULL, NULL, NULL, 'pass', now(), now(), '')"""
ADD_KEY = "INSERT INTO gateway.idempotency VALUES ($1, 'r', $2, $3, NULL, NULL, 's', NULL, NULL, now(), now())"


async def count(database: Database, table: str, department: str = PARKS) -> int:
    """The rows that a department sees."""
    async with database.reading(department) as connection:
        rows: int = await connection.fetchval(f"SELECT count(*) FROM gateway.{table}")
    return rows


async def backend(database: Database) -> int:
    """Which of the server's processes the first connection leads to."""
    async with database.reading(PARKS) as connection:
        pid: int = await connection.fetchval("SELECT pg_backend_pid()")
    return pid


async def run(database: Database, statement: str, *values: object, department: str = PARKS) -> None:
    """One statement, committed."""
    async with database.transaction(department) as connection:
        await connection.execute(statement, *values)


async def add(database: Database, key: str) -> None:
    """One row, committed."""
    await run(database, ADD_KEY, PARKS, key, DIGEST)


async def is_stored(owner: asyncpg.Connection, key: str) -> bool:
    """Whether that row is there."""
    return bool(await owner.fetchval("SELECT count(*) FROM gateway.idempotency WHERE idempotency_key = $1", key))


# --- walls ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
async def a_charge(store: Ledger) -> None:
    """A row of the parks in every walled table."""
    await captured(store)


@pytest.mark.parametrize("table", WALLED)
async def test_rows_are_seen_by_their_department_only(
    postgres: Postgres, database: Database, a_charge: None, table: str
) -> None:
    """A department sees its rows; another one, and a transaction that names none, see nothing of them."""
    async with database.reading(UTILITIES) as connection:
        assert not await connection.fetch(f"SELECT FROM gateway.{table} WHERE department_id = $1", PARKS)
    assert await count(database, table) > 0
    nobody = await postgres.connect()
    try:
        assert await nobody.fetchval(f"SELECT count(*) FROM gateway.{table}") == 0
        async with nobody.transaction():
            await nobody.execute(f"SET LOCAL gateway.department = '{PARKS}'")
        assert await nobody.fetchval(f"SELECT count(*) FROM gateway.{table}") == 0
    finally:
        await nobody.close()


async def test_a_department_writes_no_other_s_rows(database: Database, a_charge: None) -> None:
    """Row-level security refuses what is written for another department, and finds none of its rows to change."""
    with pytest.raises(Unavailable):
        await run(database, ADD_KEY, PARKS, "foreign", DIGEST, department=UTILITIES)
    async with database.transaction(UTILITIES) as connection:
        assert (
            await connection.execute("UPDATE gateway.tokens SET status = 'spent' WHERE department_id = 'parks'")
            == "UPDATE 0"
        )


@pytest.mark.parametrize("department", ["", "Parks", "parks'; RESET ALL; --", "parks\n", "p" * 32, "pärks"])
async def test_only_names_are_spliced(database: Database, department: str) -> None:
    """What is no department's name never becomes a part of a statement."""
    with pytest.raises(AssertionError, match="internal error"):
        await run(database, "SELECT", department=department)


async def test_reading_writes_nothing(database: Database) -> None:
    """A look is read-only by the server's own word."""

    async def look() -> None:
        async with database.reading(PARKS) as connection:
            await connection.execute("DELETE FROM gateway.deks")

    with pytest.raises(StatementRefused, match="25006"):
        await look()


async def test_a_transaction_waits_for_a_lock_as_long_as_it_was_told(
    database: Database, owner: asyncpg.Connection
) -> None:
    """Without a bound for twice as long as a lone statement would; with one no longer than that."""
    lock = "SELECT FROM gateway.key_generations FOR UPDATE"

    async def locking(wait_ms: int | None) -> None:
        async with database.transaction(PARKS, wait_ms) as connection:
            await connection.execute("UPDATE gateway.key_generations SET wraps_reserved = wraps_reserved")

    async with owner.transaction():
        await owner.execute(lock)
        waiting = asyncio.create_task(locking(None))
        with capture_logs(), pytest.raises(Unavailable):
            await locking(20)
        await asyncio.sleep(2 * LOCK_WAIT_MS / 1000)
        assert not waiting.done()
    await waiting


async def test_a_failed_block_leaves_nothing(database: Database, owner: asyncpg.Connection) -> None:
    """An error inside a transaction undoes it."""

    async def fail() -> None:
        async with database.transaction(PARKS) as connection:
            await connection.execute(ADD_KEY, PARKS, "undone", DIGEST)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert not await is_stored(owner, "undone")


async def test_a_swallowed_failure_is_not_committed(database: Database) -> None:
    """A COMMIT that PostgreSQL answers with ROLLBACK is an error, not a success."""

    async def swallow() -> None:
        async with database.transaction(PARKS) as connection:
            with pytest.raises(asyncpg.DivisionByZeroError):
                await connection.fetchval("SELECT 1 / 0")

    with pytest.raises(StatementRefused, match="had failed"):
        await swallow()


# --- silence about values ---------------------------------------------------------------------------------------

QUOTING: Mapping[str, tuple[str, tuple[object, ...]]] = {
    "23505": (ADD_KEY, (PARKS, CANARY, DIGEST)),
    "23514": (ADD_KEY, (PARKS, CANARY + NAME, b"short")),
    "23503": (ADD_TOKEN, (PARKS, CANARY)),
    "22000": ("SELECT $1::int", (CANARY,)),
    "22P02": ("SELECT $1::text::int", (NAME + CANARY,)),
    "42703": (f'SELECT "{CANARY}"', ()),
    "P0001": (f"DO $$ BEGIN RAISE '{CANARY} {NAME}'; END $$", ()),
}
"""Statements that PostgreSQL or its driver refuses with a text that quotes the value; by SQLSTATE."""


@pytest.mark.parametrize("sqlstate", QUOTING)
async def test_no_value_leaves_with_an_error(
    database: Database, owner: asyncpg.Connection, open_home: Path, caplog: pytest.LogCaptureFixture, sqlstate: str
) -> None:
    """Of a refusal only the SQLSTATE gets out: no value is in the error, its traceback, or any log."""
    statement, values = QUOTING[sqlstate]
    await owner.execute(ADD_KEY + " ON CONFLICT DO NOTHING", PARKS, CANARY, DIGEST)
    with pytest.raises(asyncpg.PostgresError) as plain:
        await owner.fetch(statement, *values)
    assert CANARY in f"{plain.value} {plain.value.as_dict()}", "the driver does quote it"

    caplog.set_level(logging.DEBUG)
    refusal = Unavailable if sqlstate == "P0001" else StatementRefused  # a trigger of others is no bug of ours
    with capture_logs() as logs, pytest.raises(refusal) as caught:
        await run(database, statement, *values)
    assert [entry["sqlstate"] for entry in logs] == [sqlstate]
    shown_chain = "".join(traceback.format_exception(caught.value))
    server_log = (open_home / "log" / "postgresql.log").read_text()
    told = f"{shown_chain}{logs}{caplog.text}{server_log}"
    assert CANARY not in told
    assert NAME not in told


# --- what cannot be reached -------------------------------------------------------------------------------------


async def test_an_exhausted_pool_is_unavailable(postgres: Postgres) -> None:
    """Who gets no connection in time is told so, in that time, and the next is served."""
    database = await Database.open(postgres.arguments(), 1, acquire_timeout_s=0.2)
    try:
        async with database.reading(PARKS):
            assert (database.connections, database.connections_idle) == (1, 0)
            started_s = time.monotonic()
            with capture_logs(), pytest.raises(Unavailable):
                await count(database, "services")
            assert 0.1 < time.monotonic() - started_s < 1
        assert await count(database, "services") == 1
    finally:
        await database.close()


async def test_a_server_that_is_away_is_unavailable(wire: Wire, frail_database: Database) -> None:
    """While nobody listens every transaction is refused at once; later it is served, without a restart."""
    assert await count(frail_database, "services") == 1
    await wire.stop()
    for _ in range(2):
        with capture_logs(), pytest.raises(Unavailable):
            await count(frail_database, "services")
    await wire.start()
    assert await count(frail_database, "services") == 1


async def test_a_silent_server_is_unavailable(wire: Wire, frail_database: Database) -> None:
    """A server that falls silent keeps nobody: each statement has its time, and so has the way back."""
    assert await count(frail_database, "services") == 1
    wire.silent = True
    async with asyncio.timeout(2 + ROLLBACK_TIMEOUT_S):
        with capture_logs() as logs, pytest.raises(Unavailable):
            await count(frail_database, "services")
    assert logs[-1]["error"] == "TimeoutError"
    wire.silent = False
    assert await count(frail_database, "services") == 1


async def test_a_silent_server_keeps_no_lone_statement(wire: Wire, frail_database: Database) -> None:
    """A statement that is a transaction is given up in its time, too; whether it was carried out nobody knows."""
    assert await frail_database.commit_one("SELECT $1::text", PARKS)
    wire.silent = True
    async with asyncio.timeout(2 + ROLLBACK_TIMEOUT_S):
        with capture_logs(), pytest.raises(CommitUnknown):
            await frail_database.commit_one("SELECT $1::text", PARKS)
    wire.silent = False
    assert await count(frail_database, "services") == 1


async def test_a_silent_server_holds_no_cancellation_up(postgres: Postgres, wire: Wire) -> None:
    """Whoever stops waiting for a silent server gets away within the time of a rollback."""
    patient = await Database.open(postgres.arguments(port=wire.port), 1)

    async def be_hasty() -> None:
        async with asyncio.timeout(0.1), patient.transaction(PARKS) as connection:
            wire.silent = True
            await connection.execute("SELECT")

    started_s = time.monotonic()
    with capture_logs(), pytest.raises(TimeoutError):
        await be_hasty()
    assert time.monotonic() - started_s < 0.1 + ROLLBACK_TIMEOUT_S + 0.5
    await patient.close()


# --- a commit that breaks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [Cut.BEFORE_COMMIT, Cut.BEFORE_ANSWER])
async def test_a_lost_commit_is_unknown(
    wire: Wire, frail_database: Database, owner: asyncpg.Connection, cut: Cut
) -> None:
    """Whether a broken COMMIT was carried out cannot be told from here, and is not; the next transaction works."""
    wire.cut_at(cut)
    with capture_logs() as logs, pytest.raises(CommitUnknown) as caught:
        await add(frail_database, cut.name)
    assert wire.cut is None
    assert [entry["event"] for entry in logs] == ["database.commit_unknown"]
    assert caught.value.__cause__ is None
    assert await is_stored(owner, cut.name) is (cut is Cut.BEFORE_ANSWER)
    assert await count(frail_database, "services") == 1


async def test_a_silent_commit_is_unknown(wire: Wire, frail_database: Database) -> None:
    """A COMMIT that is not answered in time is unknown, too."""

    async def commit_into_silence() -> None:
        async with frail_database.transaction(PARKS):
            wire.silent = True

    with capture_logs(), pytest.raises(CommitUnknown):
        await commit_into_silence()


async def test_a_lone_statement_that_is_cancelled_was_not_carried_out(database: Database, postgres: Postgres) -> None:
    """An operator cancels it: that is no riddle, as a lost answer is."""
    superuser = await postgres.server.connect_superuser("gateway")
    sleeping = asyncio.create_task(database.commit_one("SELECT pg_sleep(5), $1::text", PARKS))
    cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(5)%'"
    while not await superuser.fetchval(f"{cancel} AND state = 'active'"):
        await asyncio.sleep(0.01)
    with capture_logs(), pytest.raises(Unavailable):
        await sleeping
    await superuser.close()


async def test_a_value_that_cannot_be_sent_leaves_nothing_open(database: Database, owner: asyncpg.Connection) -> None:
    """The driver had asked the server to prepare its statement, and stopped there: no lock is left."""
    with capture_logs(), pytest.raises(StatementRefused):
        await database.commit_one("SELECT $1::text, $2::text FROM gateway.tokens LIMIT 0", PARKS, 7)
    held = "SELECT count(*) FROM pg_locks WHERE relation = 'gateway.tokens'::regclass AND pid <> pg_backend_pid()"
    assert await owner.fetchval(held) == 0


async def test_what_was_committed_stays_so(wire: Wire, frail_database: Database, owner: asyncpg.Connection) -> None:
    """A connection that breaks after the answer to its COMMIT, on its way back to the pool, is nobody's error."""
    wire.cut_at(Cut.AFTER_ANSWER)
    await add(frail_database, "after")
    assert wire.cut is None
    assert await is_stored(owner, "after")
    assert await count(frail_database, "services") == 1


async def test_a_look_is_never_in_doubt(wire: Wire, frail: Ledger) -> None:
    """What only reads sends no COMMIT, so a lost one cannot make it unknown."""
    wire.cut_at(Cut.BEFORE_COMMIT)
    assert (await frail.manifest_seen()).version >= 1
    assert await frail.credentials() == {}
    await frail.require_audit()
    await frail.unresolved()
    await frail.charges(PARKS, None, 1, None)
    assert await frail.claimed(PARKS, "r", "never used") is None
    for look in (frail.token(PARKS, "tok_none"), frail.charge(PARKS, "ch_none")):
        with pytest.raises(NotFound):
            await look
    assert wire.commits == 0


async def test_a_cancelled_commit_is_waited_for(
    wire: Wire, frail_database: Database, owner: asyncpg.Connection
) -> None:
    """A task cancelled while it commits ends cancelled, with its commit whole and its connection in use again."""
    async with slow_commits(owner):
        before = await backend(frail_database)
        task = asyncio.create_task(add(frail_database, "slow"))
        while not wire.commits:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await is_stored(owner, "slow")
    assert await backend(frail_database) == before


async def test_who_stops_inside_a_transaction_stops_nobody_else(postgres: Postgres) -> None:
    """Whoever falls asleep while it holds a row loses its connection, and what it had begun; the others go on."""
    sleeper = await Database.open(postgres.arguments(), 1, statement_timeout_s=0.4)
    other = await Database.open(postgres.arguments(), 1)
    lock = "SELECT FROM gateway.key_generations FOR UPDATE"
    try:
        with pytest.raises(Unavailable):  # noqa: PT012 - it is its end that raises
            async with sleeper.transaction(PARKS) as connection:
                await connection.execute(lock)
                async with asyncio.timeout(4), other.transaction(PARKS) as waiting:
                    await waiting.execute(lock)
                await connection.execute("SELECT 1")
    finally:
        await sleeper.close()
        await other.close()
