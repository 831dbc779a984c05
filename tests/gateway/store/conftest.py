"""One PostgreSQL for the tests of the store, and stores on it."""

import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import date
from pathlib import Path

import asyncpg
import pytest

from gateway.embedded import EmbeddedPostgres
from gateway.store.database import Database
from gateway.store.ledger import Ledger
from gateway.store.migrate import migrate
from tests.gateway.store.city import City, founded
from tests.gateway.store.office import Office, office_of
from tests.gateway.store.postgres import (
    APPLICATION,
    FINGERPRINTS,
    GENERATION,
    PARKS,
    RETIRED,
    SERVICE,
    UTILITIES,
    Postgres,
    Wire,
    with_roles,
)
from tests.gateway.store.quarter import Quarter, quarter_of

POOL_MAX = 10


@pytest.fixture(scope="session")
def open_home() -> Iterator[Path]:
    """A folder that the server's user may enter (pytest's own are closed to it)."""
    home = Path(tempfile.mkdtemp(prefix="gateway-store-"))
    home.chmod(0o711)
    yield home
    shutil.rmtree(home)


@pytest.fixture(scope="session")
async def postgres(open_home: Path) -> AsyncIterator[Postgres]:
    """A server with the roles, the schema, two departments and two generations of the key."""
    server = EmbeddedPostgres(open_home)
    address = await server.start()
    try:
        postgres = await with_roles(server, address)
        owner = await postgres.connect("owner")
        await migrate(owner)
        await populate(owner)
        await owner.close()
        yield postgres
    finally:
        await server.stop()


async def populate(owner: asyncpg.Connection) -> None:
    """What every test finds."""
    for department in (PARKS, UTILITIES):
        await settle(owner, department)
    await owner.execute(
        "INSERT INTO gateway.key_generations VALUES ($1, 'active'), ($2, 'retired')", GENERATION, RETIRED
    )
    await owner.executemany("INSERT INTO gateway.fingerprint_versions VALUES ($1, $2)", FINGERPRINTS.items())
    await owner.execute("INSERT INTO gateway.key_manifest (version) VALUES (1)")


async def settle(owner: asyncpg.Connection, department: str) -> None:
    """A department with an application and a service."""
    await owner.execute("INSERT INTO gateway.departments VALUES ($1, $1, now())", department)
    await owner.execute(
        "INSERT INTO gateway.applications (department_id, application_id, name, amount_minor_max, scopes,"
        " requests_per_s_max, created_at) VALUES ($1, $2, $2, 1000000, '{}', 100, now())",
        department,
        APPLICATION,
    )
    await owner.execute("INSERT INTO gateway.services VALUES ($1, $2, $2, '1', now())", department, SERVICE)


@pytest.fixture(scope="session")
async def owner(postgres: Postgres) -> AsyncIterator[asyncpg.Connection]:
    """Who sees every row."""
    connection = await postgres.connect("owner")
    yield connection
    await connection.close()


@pytest.fixture(scope="session")
async def database(postgres: Postgres) -> AsyncIterator[Database]:
    """The api process' pool."""
    database = await Database.open(postgres.arguments(), POOL_MAX)
    yield database
    await database.close()


@pytest.fixture(scope="session")
def store(database: Database) -> Ledger:
    """The store on it."""
    return Ledger(database)


@pytest.fixture
async def borough(owner: asyncpg.Connection) -> str:
    """A department of the test's own, where nobody else's charges wait."""
    await settle(owner, name := "borough_" + secrets.token_hex(4))
    return name


@pytest.fixture(scope="session")
async def working(postgres: Postgres) -> AsyncIterator[Database]:
    """A worker's pool."""
    database = await Database.open(postgres.arguments("worker"), POOL_MAX)
    yield database
    await database.close()


@pytest.fixture(scope="session")
def worker(working: Database) -> Ledger:
    """The store as a worker has it."""
    return Ledger(working)


@pytest.fixture
async def city(postgres: Postgres, tmp_path: Path) -> AsyncIterator[City]:
    """A city that a test may rotate as it likes."""
    async with founded(postgres, "city_" + secrets.token_hex(4), tmp_path) as city:
        yield city


@pytest.fixture(scope="session")
async def town(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    """A city that many tests share: nobody rotates its keys, and each test makes its own charges."""
    async with founded(postgres, "town", tmp_path_factory.mktemp("town")) as city:
        yield city


@pytest.fixture
async def quarter(town: City) -> Quarter:
    """A department of the town for one test."""
    return await quarter_of(town, "quarter_" + secrets.token_hex(4))


@pytest.fixture
async def wire(postgres: Postgres) -> AsyncIterator[Wire]:
    """A wire that is whole until a test cuts it."""
    wire = Wire(postgres.address.port)
    await wire.start()
    yield wire
    await wire.stop()


@pytest.fixture
async def frail_database(postgres: Postgres, wire: Wire) -> AsyncIterator[Database]:
    """A pool behind that wire, less patient than in service."""
    database = await Database.open(
        postgres.arguments(port=wire.port), 2, acquire_timeout_s=1.0, statement_timeout_s=1.0
    )
    yield database
    wire.silent = False
    await database.close()


@pytest.fixture
def frail(frail_database: Database) -> Ledger:
    """The store behind that wire."""
    return Ledger(frail_database)


@pytest.fixture(scope="module")
async def admin(postgres: Postgres) -> AsyncIterator[Database]:
    """The admin process' pool."""
    database = await Database.open(postgres.arguments("admin"), 5)
    yield database
    await database.close()


@pytest.fixture
async def office(admin: Database, owner: asyncpg.Connection, borough: str, days: Callable[[], date]) -> Office:
    """Finance, with a department and a date of its own."""
    return await office_of(owner, admin, borough, days())
