"""One city's keys at work in the tests: a real PostgreSQL, a key store and root of their own, records to be wrapped.

The server starts once for all tests of `keys` that need one; each test finds its tables empty. A record here is a
token whose sealed bytes mean nothing: `keys` never looks at them.
"""

import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import asyncpg
import pytest

from gateway.embedded import EmbeddedPostgres
from gateway.store.migrate import migrate
from keys.audit import AuditPen
from keys.deks import DekTable
from keys.keystore import SET_ASIDE, Keystore, OpenKeystore
from keys.process_keys import read_process_keys
from keys.ring import Ring, WrappedDek
from keys.root_file import FileRoot
from keys.rotation import Rotation
from tests.gateway.store.postgres import Postgres, with_roles

DEPARTMENTS = ("parks", "streets", "utilities")
APPLICATION = "app_of_the_tests"
EMPTIED = (
    *("audit.events", "gateway.deks", "gateway.fingerprints", "gateway.idempotency", "gateway.charges"),
    *("gateway.tokens", "gateway.api_keys", "gateway.fingerprint_versions", "gateway.key_generations"),
    "gateway.key_manifest",
)


@pytest.fixture(scope="session")
async def postgres() -> AsyncIterator[Postgres]:
    """A server with the roles, the schema and three departments."""
    home = Path(tempfile.mkdtemp(prefix="gateway-keys-"))
    home.chmod(0o711)  # the server's user passes through; pytest's own folders are closed to it
    server = EmbeddedPostgres(home)
    try:
        postgres = await with_roles(server, await server.start())
        owner = await postgres.connect("owner")
        await migrate(owner)
        for department in DEPARTMENTS:
            await owner.execute("INSERT INTO gateway.departments VALUES ($1, $1, now())", department)
            await owner.execute(
                "INSERT INTO gateway.applications (department_id, application_id, name, amount_minor_max, scopes,"
                " requests_per_s_max, created_at) VALUES ($1, $2, $2, 1000000, '{}', 100, now())",
                department,
                APPLICATION,
            )
        await owner.close()
        yield postgres
    finally:
        await server.stop()
        shutil.rmtree(home)


@pytest.fixture(scope="session")
async def owner_of_all(postgres: Postgres) -> AsyncIterator[asyncpg.Connection]:
    """Who sees every row."""
    connection = await postgres.connect("owner")
    yield connection
    await connection.close()


@pytest.fixture
async def owner(owner_of_all: asyncpg.Connection) -> asyncpg.Connection:
    """The same, with every table empty."""
    await owner_of_all.execute(";".join(f"DELETE FROM {table}" for table in EMPTIED))
    return owner_of_all


@pytest.fixture
async def city(
    postgres: Postgres,
    owner: asyncpg.Connection,
    store: Keystore,
    root: FileRoot,
    secrets_directory: Path,
    now: datetime,
) -> "City":
    """A key store that was just made, known to the database."""
    city = City(postgres, owner, store, root, secrets_directory, now)
    async with city.changing():
        pass
    await owner.execute("DELETE FROM audit.events")
    return city


@dataclass
class City:
    """A key hierarchy at work. `now` is the time that its commands see."""

    postgres: Postgres
    owner: asyncpg.Connection
    store: Keystore
    root: FileRoot
    secrets: Path
    now: datetime

    @property
    def keys(self) -> OpenKeystore:
        """The key store as it is now."""
        return self.store.open(self.root)

    @property
    def ring(self) -> Ring:
        """Its ring."""
        return self.keys.ring()

    @property
    def pen(self) -> AuditPen:
        """What `keys` writes audit rows with."""
        return AuditPen("keys", read_process_keys(self.secrets, "keys", "audit-mac"))

    @asynccontextmanager
    async def table(self) -> AsyncIterator[DekTable]:
        """The DEK table on a connection of its own, as the role of `keys`."""
        connection = await self.postgres.connect("keys")
        try:
            yield DekTable(connection)
        finally:
            connection.terminate()

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[Rotation]:
        """What a command that changes keys works with."""
        async with self.table() as table:
            yield await Rotation(self.keys, table, self.pen, self.secrets).begin(self.now)

    async def add_records(self, count: int, *, ring: Ring | None = None, prefix: str = "tok") -> dict[str, bytes]:
        """Records of all departments, each with its wrap under the ring's active generation; gives the data keys."""
        ring = ring or self.ring
        rows, deks = [], {}
        for index in range(count):
            department, record = DEPARTMENTS[index % len(DEPARTMENTS)], f"{prefix}_{index:06}"
            dek, wrapped = ring.new_dek(ring.place(department, record), self.now)
            deks[record] = dek.reveal()
            rows.append((department, record, wrapped))
        await insert_records(self.owner, rows, self.now)
        return deks

    async def wraps(self) -> dict[str, tuple[str, WrappedDek]]:
        """Every wrap, by record, with its department."""
        rows = await self.owner.fetch("SELECT * FROM gateway.deks")
        return {
            row["record_id"]: (row["department_id"], WrappedDek(row["generation"], row["wrapped"])) for row in rows
        }

    async def opened(self) -> dict[str, bytes]:
        """Every data key, opened in its place."""
        ring, wraps = self.ring, await self.wraps()
        return {
            record: ring.unwrap(ring.place(department, record), wrapped, self.now).reveal()
            for record, (department, wrapped) in wraps.items()
        }

    async def generations(self) -> dict[int, str]:
        """The mirror of the generations' states."""
        rows = await self.owner.fetch("SELECT generation, state FROM gateway.key_generations ORDER BY 1")
        return {row["generation"]: row["state"] for row in rows}

    async def fingerprint_versions(self) -> dict[int, str]:
        """The mirror of the fingerprint keys' states."""
        rows = await self.owner.fetch("SELECT version, state FROM gateway.fingerprint_versions ORDER BY 1")
        return {row["version"]: row["state"] for row in rows}

    async def version_seen(self) -> int:
        """The manifest version that the database has seen."""
        return await self.owner.fetchval("SELECT version FROM gateway.key_manifest") or 0

    async def audited(self) -> list[str]:
        """The events in the audit log, by name: at one moment they have no other order."""
        rows = await self.owner.fetch("SELECT event FROM audit.events ORDER BY event")
        return [row["event"] for row in rows]

    def aside(self) -> dict[str, bytes]:
        """What was found among the keys and taken away, by name."""
        return {path.name: path.read_bytes() for path in (self.store.directory / SET_ASIDE).glob("*")}

    def files(self) -> dict[str, bytes]:
        """Every file of the key store and of the processes' secrets, by path."""
        parts = (self.store.directory, self.secrets)
        return {str(path): path.read_bytes() for part in parts for path in part.rglob("*") if path.is_file()}


async def insert_records(
    owner: asyncpg.Connection, rows: Sequence[tuple[str, str, WrappedDek]], created: datetime
) -> None:
    """Tokens, and their wraps."""
    tokens = [
        (department, record, APPLICATION, "card", "multi", "active", "unchecked", created, created, b"sealed")
        for department, record, _ in rows
    ]
    columns = [
        *("department_id", "token_id", "application_id", "kind", "usage", "status", "cvc_check"),
        *("created_at", "expires_at", "sealed"),
    ]
    deks = [(department, record, w.generation, w.generation, w.wrapped) for department, record, w in rows]
    async with owner.transaction():
        await owner.copy_records_to_table("tokens", records=tokens, columns=columns, schema_name="gateway")
        columns = ["department_id", "record_id", "generation", "first_generation", "wrapped"]
        await owner.copy_records_to_table("deks", records=deks, columns=columns, schema_name="gateway")
