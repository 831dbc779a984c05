"""Migrations on a real server: once is enough, and at once is as good as one after the other."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from gateway.store.migrate import HEAD, migrate
from tests.gateway.store.postgres import Postgres

pytestmark = pytest.mark.server


@pytest.fixture
async def empty(postgres: Postgres) -> AsyncIterator[str]:
    """A database of the owner with nothing in it."""
    superuser = await postgres.server.connect_superuser()
    await superuser.execute("CREATE DATABASE empty OWNER gateway_owner")
    yield "empty"
    await superuser.execute("DROP DATABASE empty WITH (FORCE)")
    await superuser.close()


async def test_a_second_run_does_nothing(owner: asyncpg.Connection) -> None:
    """A schema at its head is left as it is."""
    assert await migrate(owner) == 0


async def test_two_runs_at_once(postgres: Postgres, empty: str) -> None:
    """Of several that start together one migrates, the others wait and find nothing to do; no lock is left."""
    connections = [await postgres.connect("owner", database=empty) for _ in range(3)]
    try:
        steps = await asyncio.gather(*(migrate(connection) for connection in connections))
        assert sorted(steps) == [0, 0, int(HEAD)]
        assert await connections[0].fetchval("SELECT count(*) FROM gateway.departments") == 0
        assert await connections[0].fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
    finally:
        for connection in connections:
            await connection.close()


async def test_nobody_else_may_migrate(postgres: Postgres) -> None:
    """The api's own role can change nothing of a schema."""
    connection = await postgres.connect("api")
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("ALTER TABLE gateway.tokens DISABLE ROW LEVEL SECURITY")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("CREATE TABLE public.mine (n int)")
    finally:
        await connection.close()
