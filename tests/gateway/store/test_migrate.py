"""Migrations on a real server: once is enough, and at once is as good as one after the other."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.resources import as_file, files

import asyncpg
import pytest
from asyncpg_trek import Direction, execute, plan
from asyncpg_trek.asyncpg import AsyncpgBackend

from gateway.rules.lifecycle import Event, Kind, Progress
from gateway.services.intents import first_movement_id
from gateway.services.ports import Approved
from gateway.store.database import Database
from gateway.store.ledger import Ledger
from gateway.store.migrate import HEAD, migrate
from tests.gateway.store.charges import following, move
from tests.gateway.store.postgres import APPLICATION, PARKS, ROUTE, SERVICE, UTILITIES, Postgres, audit, told

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
        here = "(SELECT oid FROM pg_database WHERE datname = current_database())"
        locks = f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = {here}"
        assert await connections[0].fetchval(locks) == 0
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


# --- 0002 to 0003 -----------------------------------------------------------------------------------------------

OLD = {
    "ch_sending": ("sending", 1_999, 0, None),
    "ch_unknown": ("unknown", 1_999, 99, None),
    "ch_captured": ("captured", 1_999, 0, None),
    "ch_captured_fee": ("captured", 1_999, 99, None),
    "ch_captured_all_fee": ("captured", 1_999, 1_999, None),
    "ch_declined": ("declined", 1_999, 99, "05"),
    "ch_rejected": ("rejected", 1_999, 0, None),
}
"""Charges as 0002 knew them: state, amount, fee, decline code."""
NEW = {
    "ch_sending": (Progress.SENDING, "pending", []),
    "ch_unknown": (Progress.UNKNOWN, "pending", []),
    "ch_captured": (Progress.DONE, "succeeded", [("receivable", 1_999)]),
    "ch_captured_fee": (Progress.DONE, "succeeded", [("receivable", 1_900), ("convenience_fees", 99)]),
    "ch_captured_all_fee": (Progress.DONE, "succeeded", [("convenience_fees", 1_999)]),
    "ch_declined": (Progress.REFUSED, "declined", []),
    "ch_rejected": (Progress.FAILED, "failed", []),
}
"""Where each stands after it, its public status, and what the processor is debited for it."""


@asynccontextmanager
async def at_0002(postgres: Postgres) -> AsyncIterator[tuple[str, asyncpg.Connection]]:
    """A database of before, with a charge in every state, of two departments."""
    name = "old_" + secrets.token_hex(4)
    superuser = await postgres.server.connect_superuser()
    await superuser.execute(f"CREATE DATABASE {name} OWNER gateway_owner")
    owner = await postgres.connect("owner", database=name)
    try:
        backend = AsyncpgBackend(owner, schema="gateway")
        with as_file(files("gateway.store") / "migrations") as folder:
            await execute(backend, await plan(backend, folder, target_revision="0002", direction=Direction.up))
        for department in (PARKS, UTILITIES):
            await populate_0002(owner, department)
        yield name, owner
    finally:
        await owner.close()
        await superuser.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await superuser.close()


async def populate_0002(owner: asyncpg.Connection, department: str) -> None:
    """A token, and one charge of each state with its key; final ones have their answer."""
    given = department, APPLICATION
    await owner.execute("INSERT INTO gateway.departments VALUES ($1, $1, now())", department)
    await owner.execute("INSERT INTO gateway.applications VALUES ($1, $2, $2, NULL, 1000000, now())", *given)
    await owner.execute("INSERT INTO gateway.services VALUES ($1, $2, $2, '1', now())", department, SERVICE)
    await owner.execute(
        "INSERT INTO gateway.tokens VALUES ($1, 'tok_old', $2, 'card', 'single', 'spent', 'visa', '4242', 'fp_old',"
        " 'pass', now(), now() + interval '1 day', 'sealed')",
        *given,
    )
    for charge_id, (state, amount, fee, code) in OLD.items():
        final = state not in {"sending", "unknown"}
        await owner.execute(
            "INSERT INTO gateway.charges (department_id, charge_id, application_id, token_id, idempotency_key,"
            " amount_minor, currency, convenience_fee_minor, service, reference, processor_reference, state,"
            " captured_minor, cvc_check, with_cvc, decline_class, decline_code, created_at, lease_until)"
            " VALUES ($1, $3, $2, 'tok_old', 'key-' || $3, $4, 'USD', $5, $6, 'R-1', $3, $7, $8, 'pass', $9, $10,"
            " $11, now() - interval '3 days', now() - interval '2 days')",
            *given,
            charge_id,
            amount,
            fee,
            SERVICE,
            state,
            amount if state == "captured" else 0,
            state == "unknown",
            "soft" if code else None,
            code,
        )
        await owner.execute(
            "INSERT INTO gateway.idempotency VALUES ($1, $2, 'key-' || $3, $4, NULL, NULL, $3, $5, $6,"
            " now() - interval '3 days', now() - interval '2 days')",
            department,
            ROUTE,
            charge_id,
            bytes(32),
            201 if final else None,
            charge_id.encode() if final else None,
        )


async def test_old_charges_are_movements_now(postgres: Postgres) -> None:
    """Each old charge has one sale, under its own reference and key, that stands where the charge stood."""
    async with at_0002(postgres) as (name, owner):
        assert await migrate(owner) == 4
        database = await Database.open(postgres.arguments() | {"database": name}, 2)
        store = Ledger(database)
        for charge_id, (state, amount, _, code) in OLD.items():
            progress, status, posted = NEW[charge_id]
            charge, movement = await store.movement(PARKS, first_movement_id(charge_id))
            assert (charge.kind, charge.progress, charge.status) == (Kind.SALE, progress, status)
            assert (movement.kind, movement.progress, movement.reference) == (Kind.SALE, progress, charge_id)
            assert (movement.amount_minor, movement.route, movement.idempotency_key) == (
                amount,
                ROUTE,
                f"key-{charge_id}",
            )
            assert (movement.epoch, movement.sends, movement.running) == (0, 1, False)
            assert movement.with_cvc is (state == "unknown")
            assert movement.decline_code == charge.decline_code == code
            assert charge.captured_minor == (amount if state == "captured" else 0)
            assert (charge.refunded_minor, charge.refunding_minor) == (0, 0)
            rows = await owner.fetch(
                "SELECT * FROM gateway.journal WHERE department_id = $1 AND movement_id = $2 ORDER BY line",
                PARKS,
                movement.movement_id,
            )
            assert [(row["debit"], row["credit"], row["amount_minor"]) for row in rows] == [
                ("processor_due", credit, part) for credit, part in posted
            ]
        assert await owner.fetchval("SELECT count(*) FROM gateway.movements") == 2 * len(OLD)
        await database.close()


async def test_old_keys_keep_their_answers(postgres: Postgres) -> None:
    """What was answered is answered again, byte for byte; what was not is answered once it is known."""
    async with at_0002(postgres) as (name, owner):
        await migrate(owner)
        database = await Database.open(postgres.arguments() | {"database": name}, 2)
        store = Ledger(database)
        for charge_id in OLD:
            kept = await store.claimed(PARKS, ROUTE, f"key-{charge_id}")
            assert kept is not None
            assert kept.subject_id == charge_id
            assert (kept.body == charge_id.encode()) is (NEW[charge_id][0] not in {"sending", "unknown"})
        await database.close()


async def test_old_doubts_are_resolved(postgres: Postgres) -> None:
    """A worker takes what was sending or unknown, and ends it; nothing else is taken."""
    async with at_0002(postgres) as (name, owner):
        await migrate(owner)
        opened = [await Database.open(postgres.arguments(p) | {"database": name}, 2) for p in ("worker", "api")]
        worker, store = (Ledger(database) for database in opened)
        cases = {case.movement.charge_id: case for case in await worker.take(PARKS, 100)}
        assert set(cases) == {"ch_sending", "ch_unknown"}
        assert cases["ch_sending"].may_resend
        assert not cases["ch_unknown"].may_resend
        for case in cases.values():
            assert case.age_s > 2 * 86_400
            ended = await worker.finish(case.movement, Event.DO, Approved("pass"), told, audit())
            assert (ended.moved, ended.charge.captured_minor) == (True, 1_999)
            kept = await store.claimed(PARKS, ROUTE, case.movement.idempotency_key)
            assert kept is not None
            assert kept.body == ended.answer.body
        for database in opened:
            await database.close()


async def test_old_charges_can_be_refunded(postgres: Postgres) -> None:
    """What was captured before is refunded now, and what was never captured is not."""
    async with at_0002(postgres) as (name, owner):
        await migrate(owner)
        database = await Database.open(postgres.arguments() | {"database": name}, 2)
        store = Ledger(database)
        charge = await store.charge(UTILITIES, "ch_captured_fee")
        started = await following(store, charge, Kind.REFUND, 1_000)
        ended = await move(store, started.movement, Event.DO)
        assert ended.charge == replace(charge, refunded_minor=1_000)
        await database.close()


async def test_an_empty_database_has_nothing_to_carry_over(postgres: Postgres, empty: str) -> None:
    """From nothing to the newest schema, with no movement and no entry in it."""
    owner = await postgres.connect("owner", database=empty)
    try:
        assert await migrate(owner) == int(HEAD)
        for table in ("charges", "movements", "journal"):
            assert await owner.fetchval(f"SELECT count(*) FROM gateway.{table}") == 0
    finally:
        await owner.close()
