"""A PostgreSQL whose clock a test sets, for the comparison of the two stores."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from gateway.store.approvals import ApprovalStore
from gateway.store.database import Database
from gateway.store.ledger import Ledger
from gateway.store.migrate import migrate
from tests.gateway.store.conftest import open_home, populate, postgres
from tests.gateway.store.postgres import Postgres, employ
from tests.simulation.twins import STAFF

__all__ = ["open_home", "postgres"]

NAME = "twin"
HASTE = {"synchronous_commit": "off"}
CLOCK = """
CREATE SCHEMA testclock;
CREATE UNLOGGED TABLE testclock.moment (at timestamptz NOT NULL);
INSERT INTO testclock.moment VALUES (now());
CREATE FUNCTION testclock.now() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT at FROM testclock.moment';
GRANT USAGE ON SCHEMA testclock TO PUBLIC;
GRANT SELECT ON testclock.moment TO PUBLIC;
"""


@dataclass
class Twin:
    """A database of its own, as the processes reach it, and who sets its clock."""

    api: Ledger
    worker: Ledger
    admin: ApprovalStore
    owner: asyncpg.Connection

    async def set_clock(self, now: datetime) -> None:
        """What `now()` is from now on."""
        await self.owner.execute("UPDATE testclock.moment SET at = $1", now)

    async def clock(self) -> datetime:
        """What `now()` is."""
        at: datetime = await self.owner.fetchval("SELECT at FROM testclock.moment")
        return at.astimezone(UTC)


async def hasty(connect: dict[str, Any]) -> Database:
    """A pool whose commits wait for no disk: compared is what they say, not what outlives a power cut."""
    return Database(await asyncpg.create_pool(**connect, min_size=1, max_size=2, server_settings=HASTE))


@pytest.fixture
async def twin(postgres: Postgres) -> AsyncIterator[Twin]:
    """The schema as in service, but for `now()`: an earlier place on the search path is found first."""
    superuser = await postgres.server.connect_superuser()
    await superuser.execute(f"CREATE DATABASE {NAME} OWNER gateway_owner")
    for role in ("gateway_api", "gateway_worker", "gateway_admin"):
        await superuser.execute(f"ALTER ROLE {role} IN DATABASE {NAME} SET search_path = testclock, pg_catalog")
    owner = await postgres.connect("owner", database=NAME)
    await migrate(owner)
    await populate(owner)
    await employ(owner, STAFF)
    await owner.execute(CLOCK)
    await owner.execute("SET synchronous_commit = off")
    opened = [await hasty(postgres.arguments(role) | {"database": NAME}) for role in ("api", "worker", "admin")]
    api, worker, admin = opened
    yield Twin(Ledger(api), Ledger(worker), ApprovalStore(admin), owner)
    for database in opened:
        await database.close()
    await owner.close()
    await superuser.execute(f"DROP DATABASE {NAME} WITH (FORCE)")
    await superuser.close()
