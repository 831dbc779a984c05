"""Yardsticks over HTTP, each a process: what aiohttp gives over TLS, without and with one commit a request.

*bare* reads the body and gives a constant answer. *commit* inserts one row first: a random text key and 400 bytes,
durable when it is answered (`synchronous_commit` on), one transaction each.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
from aiohttp import web

from gateway.daemon import stop_signal
from gateway.rules.ids import new_id
from gateway.web.server import assert_safe_parser, tls_context
from keys.database import connect_arguments
from keys.queries import load_queries
from keys.settings import DatabaseSection

CONNECTIONS = 10
"""As many as the gateway's pool has."""
ROW_BYTES = 400


class Yardstick(msgspec.Struct, frozen=True):
    """What one is started with: paths, the answer's body; with a DSN it commits, as the schema's owner."""

    port: int
    cert: str
    key: str
    client_ca: str
    answer: str
    dsn: str = ""
    secrets: str = ""


async def serve(asked: Yardstick) -> None:
    """Until it is told to stop."""
    assert_safe_parser()
    pool = await _pool(asked) if asked.dsn else None
    insert = load_queries("gateway.bench", "bench.sql").insert_row
    answer = asked.answer.encode()

    async def handle(request: web.Request) -> web.Response:
        await request.read()
        if pool is not None:
            async with pool.acquire() as connection:
                await connection.execute(insert, new_id("row"), os.urandom(ROW_BYTES))
        return web.Response(status=201, body=answer, content_type="application/json")

    application = web.Application()
    application.router.add_post("/v1/tokens", handle)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    tls = tls_context(Path(asked.cert), Path(asked.key), Path(asked.client_ca))
    await web.TCPSite(runner, "127.0.0.1", asked.port, ssl_context=tls, backlog=512).start()
    await stop_signal()
    await runner.cleanup()
    if pool is not None:
        await pool.close()


async def _pool(asked: Yardstick) -> asyncpg.Pool:
    async def as_it_is(_connection: Any) -> None:
        """Nothing is set in a session, so that nothing is to be reset: a round trip saved."""

    connect = connect_arguments(DatabaseSection(dsn=asked.dsn), "owner", Path(asked.secrets))
    return await asyncpg.create_pool(**connect, min_size=CONNECTIONS, max_size=CONNECTIONS, reset=as_it_is)


def main() -> None:
    """`python -m gateway.bench.yardsticks FILE`: the file holds a `Yardstick` in JSON."""
    asyncio.run(serve(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Yardstick)))


if __name__ == "__main__":
    main()
