"""A server that may lose what it acknowledged is refused by name of the setting, and no connection stays behind."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from gateway import embedded
from gateway.embedded import EmbeddedPostgres
from gateway.store.database import Database
from keys.database import require_durable
from keys.errors import DatabaseRefused
from tests.gateway.store.postgres import Postgres

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def careless_home() -> Iterator[Path]:
    """The home of a server that is started anew with other settings."""
    home = Path(tempfile.mkdtemp(prefix="gateway-careless-"))
    home.chmod(0o711)
    yield home
    shutil.rmtree(home)


@asynccontextmanager
async def serving(home: Path) -> AsyncIterator[asyncpg.Connection]:
    """A server of that home, and a connection to it."""
    server = EmbeddedPostgres(home)
    await server.start()
    connection = await server.connect_superuser()
    try:
        yield connection
    finally:
        await connection.close()
        await server.stop()


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes", "synchronous_commit"])
async def test_careless_servers_are_refused(
    careless_home: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    """Each setting that loses data refuses the server, and the message says which and what it should be."""
    careless = tuple(told.replace(f"{setting}=on", f"{setting}=off") for told in embedded.SETTINGS)
    assert careless != embedded.SETTINGS
    monkeypatch.setattr(embedded, "SETTINGS", careless)
    async with serving(careless_home) as connection:
        with pytest.raises(DatabaseRefused, match=rf"{setting}=off .* set (it to|{setting}=)\s?on$"):
            await require_durable(connection)


async def test_a_standby_is_refused(careless_home: Path) -> None:
    """A server that only follows another one is refused, and the message says where to point instead."""
    async with serving(careless_home) as connection:
        await require_durable(connection)
    (signal := careless_home / "postgres" / "data" / "standby.signal").touch()
    async with serving(careless_home) as connection:
        with pytest.raises(DatabaseRefused, match=r"standby: name the primary in database\.dsn"):
            await require_durable(connection)
    signal.unlink()


@pytest.mark.parametrize("value", ["on", "local", "remote_write", "remote_apply"])
async def test_durable_commits_are_accepted(postgres: Postgres, value: str) -> None:
    """Every kind of commit that waits for this server's own disk will do."""
    connection = await postgres.connect(server_settings={"synchronous_commit": value})
    try:
        await require_durable(connection)
    finally:
        await connection.close()


async def test_a_refused_server_is_left(postgres: Postgres, owner: asyncpg.Connection) -> None:
    """A pool on careless terms is not opened: its connection is closed again, and the password is not shown."""
    careless = {"synchronous_commit": "off", "application_name": "careless"}
    with pytest.raises(DatabaseRefused, match="synchronous_commit=off") as caught:
        await Database.open(postgres.arguments() | {"server_settings": careless}, 2)
    assert postgres.arguments()["password"] not in str(caught.value)
    async with asyncio.timeout(5):
        while await owner.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'careless'"):
            await asyncio.sleep(0.01)
