"""Migrations: plain SQL files, forward only, applied in order by asyncpg-trek under one lock.

A file's name ends in the revision that it leads to; the last is `HEAD`. A file that was applied is never edited:
the next change is the next file.
"""

from importlib.resources import as_file, files

import asyncpg
from asyncpg_trek import Direction, execute, plan
from asyncpg_trek.asyncpg import AsyncpgBackend

HEAD = "0006"
LOCK = 0x6761_7465_7761_79
"""Any constant: the advisory lock that lets one migration run at a time."""


async def migrate(connection: asyncpg.Connection) -> int:
    """Bring the schema to `HEAD`; gives how many migrations ran. The connection belongs to the schema's owner."""
    await connection.execute("SELECT pg_advisory_lock($1)", LOCK)
    try:
        backend = AsyncpgBackend(connection, schema="gateway")
        with as_file(files("gateway.store") / "migrations") as folder:
            steps = await plan(backend, folder, target_revision=HEAD, direction=Direction.up)
            await execute(backend, steps)
        return len(steps)
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", LOCK)
