"""What PostgreSQL itself refuses, whatever the code does: tried by SQL, as the role of each process."""

import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest

from gateway.rules.lifecycle import Event, Kind
from gateway.services.ports import Charge
from gateway.store.ledger import Ledger
from tests.gateway.store.charges import authorized, begun, captured, followed, following, move
from tests.gateway.store.postgres import APPLICATION, PARKS, SERVICE, UTILITIES, Postgres

pytestmark = pytest.mark.server

NOT_API = ("admin", "worker", "reseal", "keys")
ROLES = ("api", *NOT_API)
MOVEMENT = """
INSERT INTO gateway.movements (department_id, movement_id, charge_id, kind, amount_minor, currency, reference,
  application_id, route, idempotency_key, progress, with_cvc, decline_class, decline_code, created_at, first_sent_at,
  not_after, lease_until)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'route', 'key', $9, false, $10, $11, now(), now(), now(), now())
"""
CHARGE = """
INSERT INTO gateway.charges (department_id, charge_id, application_id, token_id, amount_minor, currency,
  convenience_fee_minor, service, reference, processor_reference, kind, progress, captured_minor, refunded_minor,
  refunding_minor, cvc_check, decline_code, created_at)
SELECT department_id, $1, application_id, token_id, $2, 'USD', 0, service, reference, $1, $3, $4, $5, $6, $7,
  cvc_check, $8, created_at FROM gateway.charges WHERE charge_id = $9
"""
ENTRY = "INSERT INTO gateway.journal VALUES ($1, $2, $3, $4, $5, $6, $7, now())"
NAMES: Iterator[int] = itertools.count()


@pytest.fixture
async def api(postgres: Postgres) -> AsyncIterator[asyncpg.Connection]:
    """The api's role, on behalf of the parks."""
    connection = await postgres.connect("api")
    await connection.execute(f"SET gateway.department = '{PARKS}'")
    yield connection
    await connection.close()


async def insert_movement(api: asyncpg.Connection, of: Charge, kind: str, progress: str, **change: Any) -> None:
    """A row as no code of ours would write it."""
    name = f"wall_{next(NAMES)}"
    row = {"department": PARKS, "id": name, "charge": of.charge_id, "kind": kind, "amount": 1, "currency": "USD"}
    row |= {"reference": name, "application": APPLICATION, "progress": progress, "class": None, "code": None}
    await api.execute(MOVEMENT, *(row | change).values())


# --- movements --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sale", "authorization"])
async def test_a_charge_has_one_beginning(store: Ledger, api: asyncpg.Connection, kind: str) -> None:
    """A second sale or authorization of a charge is refused, wherever the first stands."""
    for charge in (await captured(store), await authorized(store), (await begun(store)).charge):
        for progress in ("sending", "failed"):
            with pytest.raises(asyncpg.UniqueViolationError, match="movements_one_beginning"):
                await insert_movement(api, charge, kind, progress)


async def test_a_charge_is_captured_once(store: Ledger, api: asyncpg.Connection) -> None:
    """A second capture that is done is refused, after a capture and after a sale."""
    by_capture = await followed(store, await authorized(store), Kind.CAPTURE, Event.DO)
    for charge in (by_capture, await captured(store)):
        with pytest.raises(asyncpg.UniqueViolationError, match="movements_one_capture"):
            await insert_movement(api, charge, "capture", "done")
        await insert_movement(api, charge, "capture", "sending")
        with pytest.raises(asyncpg.UniqueViolationError, match="movements_one_capture"):
            await api.execute(
                "UPDATE gateway.movements SET progress = 'done' WHERE charge_id = $1 AND progress = 'sending'",
                charge.charge_id,
            )


@pytest.mark.parametrize("progress", ["sending", "unknown", "in_review"])
@pytest.mark.parametrize("kind", ["capture", "void"])
async def test_one_movement_at_a_time(store: Ledger, api: asyncpg.Connection, kind: str, progress: str) -> None:
    """While one is open another is refused; refunds are not counted, in either direction."""
    charge = await authorized(store)
    await following(store, charge, Kind.CAPTURE)
    with pytest.raises(asyncpg.UniqueViolationError, match="movements_one_at_a_time"):
        await insert_movement(api, charge, kind, progress)
    paid = await captured(store)
    for _ in range(2):
        await insert_movement(api, paid, "refund", progress)
    await insert_movement(api, paid, kind, progress)
    with pytest.raises(asyncpg.UniqueViolationError, match="movements_one_at_a_time"):
        await insert_movement(api, paid, kind, progress)


async def test_a_reference_is_one_movement_s(store: Ledger, api: asyncpg.Connection) -> None:
    """No two movements of a department share a reference, of whichever charges they are."""
    first, other = await captured(store), await captured(store)
    with pytest.raises(asyncpg.UniqueViolationError, match="movements_department_id_reference_key"):
        await insert_movement(api, other, "refund", "sending", reference=first.processor_reference)


@pytest.mark.parametrize(
    ("kind", "progress", "change"),
    [
        ("chargeback", "sending", {}),
        ("refund", "captured", {}),
        ("refund", "sending", {"amount": 0}),
        ("refund", "sending", {"amount": -1}),
        ("refund", "sending", {"currency": "usd"}),
        ("refund", "refused", {}),
        ("refund", "done", {"class": "soft", "code": "05"}),
    ],
)
async def test_a_movement_is_well_formed(
    store: Ledger, api: asyncpg.Connection, kind: str, progress: str, change: dict[str, Any]
) -> None:
    """Of a kind and a place that the table knows, of an amount above zero, with a code iff it was refused."""
    charge = await captured(store)
    with pytest.raises(asyncpg.CheckViolationError):
        await insert_movement(api, charge, kind, progress, **change)


async def test_a_movement_belongs_to_a_charge(store: Ledger, api: asyncpg.Connection) -> None:
    """Of its own department, by an application of its own department; another department's row is not written."""
    charge = await captured(store)
    for change in ({"charge": "ch_none"}, {"application": "app_none"}):
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await insert_movement(api, charge, "refund", "sending", **change)
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
        await insert_movement(api, charge, "refund", "sending", department=UTILITIES)


@pytest.mark.parametrize(
    ("role", "column"),
    [
        *itertools.product(
            ROLES, ("department_id", "movement_id", "charge_id", "kind", "amount_minor", "currency", "reference")
        ),
        *itertools.product(ROLES, ("department_id", "movement_id", "charge_id", "kind", "amount_minor", "currency")),
        *itertools.product(ROLES, ("reference", "application_id", "route", "idempotency_key")),
        *itertools.product(ROLES, ("with_cvc", "created_at")),
        *itertools.product(NOT_API, ("first_sent_at", "not_after", "sends")),
    ],
)
async def test_what_a_movement_is_never_changes(postgres: Postgres, role: str, column: str) -> None:
    """Amount and names are written once; when and how often it was sent, the api alone says, for it alone sends."""
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await refused(postgres, role, f"UPDATE gateway.movements SET {column} = {column}")


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("table", ["movements", "charges", "journal", "idempotency"])
async def test_nothing_of_money_is_deleted(postgres: Postgres, role: str, table: str) -> None:
    """No role may delete a row, nor empty a table."""
    for statement in (f"DELETE FROM gateway.{table}", f"TRUNCATE gateway.{table} CASCADE"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await refused(postgres, role, statement)


@pytest.mark.parametrize("end", [Event.DO, Event.REFUSE, Event.FAIL])
@pytest.mark.parametrize("kind", ["sale", "refund"])
async def test_what_is_final_stays_so(
    store: Ledger, postgres: Postgres, owner: asyncpg.Connection, kind: str, end: Event
) -> None:
    """Neither the api nor a worker can move a movement that has ended, nor take it, mark it, or change its code."""
    started = await begun(store) if kind == "sale" else await following(store, await captured(store), Kind.REFUND)
    await move(store, started.movement, end)
    look = "SELECT * FROM gateway.movements WHERE movement_id = $1"
    before = await owner.fetchrow(look, started.movement.movement_id)
    for role, change in itertools.product(
        ("api", "worker"),
        (
            *(f"progress = '{progress}'" for progress in ("sending", "unknown", "done", "failed")),
            "progress = 'refused', decline_code = '05'",
            *("decline_code = NULL", "epoch = epoch + 1", "lease_until = now()", "resend_until = now()"),
        ),
    ):
        mine = f"WHERE movement_id = '{started.movement.movement_id}'"
        await refused(postgres, role, f"UPDATE gateway.movements SET {change} {mine}")
    assert await owner.fetchrow(look, started.movement.movement_id) == before


async def refused(postgres: Postgres, role: str, statement: str) -> None:
    """One statement on behalf of the parks."""
    connection = await postgres.connect(role)
    try:
        await connection.execute(f"SET gateway.department = '{PARKS}'")
        await connection.execute(statement)
    finally:
        await connection.close()


# --- charges ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "progress", "captured_minor", "refunded_minor", "refunding_minor", "code"),
    [
        ("refund", "done", 0, 0, 0, None),
        ("sale", "captured", 0, 0, 0, None),
        # Captured iff a sale or a capture was done, and never more than was authorized.
        ("sale", "done", 0, 0, 0, None),
        ("sale", "unknown", 100, 0, 0, None),
        ("authorization", "done", 100, 0, 0, None),
        ("capture", "failed", 100, 0, 0, None),
        ("void", "done", 100, 0, 0, None),
        ("sale", "done", 101, 0, 0, None),
        ("sale", "done", -1, 0, 0, None),
        # Refunded, and in refunds, never more than was captured, and never less than nothing.
        ("sale", "done", 100, 101, 0, None),
        ("sale", "done", 100, 0, 101, None),
        ("sale", "done", 100, 60, 41, None),
        ("sale", "done", 100, -1, 0, None),
        ("sale", "done", 100, 0, -1, None),
        ("authorization", "done", 0, 0, 1, None),
        # A code iff the issuer declined.
        ("sale", "refused", 0, 0, 0, None),
        ("sale", "done", 100, 0, 0, "05"),
        ("capture", "refused", 0, 0, 0, "05"),
    ],
)
async def test_a_charge_is_well_formed(
    store: Ledger,
    api: asyncpg.Connection,
    kind: str,
    progress: str,
    captured_minor: int,
    refunded_minor: int,
    refunding_minor: int,
    code: str | None,
) -> None:
    """Its sums agree with where it stands, whoever writes them."""
    charge = await captured(store)
    sums = captured_minor, refunded_minor, refunding_minor
    with pytest.raises(asyncpg.CheckViolationError):
        await api.execute(CHARGE, f"wall_{next(NAMES)}", 100, kind, progress, *sums, code, charge.charge_id)


@pytest.mark.parametrize(
    ("kind", "progress", "sums", "code"),
    [
        ("sale", "done", (100, 0, 0), None),
        ("capture", "done", (60, 20, 40), None),
        ("sale", "refused", (0, 0, 0), "05"),
        ("capture", "refused", (0, 0, 0), None),
        ("void", "done", (0, 0, 0), None),
    ],
)
async def test_the_walls_let_through_what_is_right(
    store: Ledger, api: asyncpg.Connection, kind: str, progress: str, sums: tuple[int, int, int], code: str | None
) -> None:
    """The same statement with sums that agree is taken, so that the walls above are walls and not a broken query."""
    charge = await captured(store)
    await api.execute(CHARGE, f"wall_{next(NAMES)}", 100, kind, progress, *sums, code, charge.charge_id)
    assert charge.service == SERVICE


async def test_a_refund_beyond_the_charge_is_refused(store: Ledger, api: asyncpg.Connection) -> None:
    """Were the code to begin one refund too many, the charge's own sums would not take it."""
    charge = await captured(store)
    await following(store, charge, Kind.REFUND, 4_000)
    with pytest.raises(asyncpg.CheckViolationError):
        await api.execute(
            "UPDATE gateway.charges SET refunding_minor = refunding_minor + 322 WHERE charge_id = $1",
            charge.charge_id,
        )


# --- the journal ------------------------------------------------------------------------------------------------


async def entry(api: asyncpg.Connection, charge: Charge, **change: Any) -> None:
    """One more journal entry for the sale of a charge."""
    row = {"department": PARKS, "movement": "mv_" + charge.charge_id.removeprefix("ch_"), "line": 7}
    row |= {"debit": "processor_due", "credit": "receivable", "amount": 1, "currency": "USD"}
    await api.execute(ENTRY, *(row | change).values())


@pytest.mark.parametrize(
    "change",
    [
        {"credit": "processor_due"},
        {"debit": "receivable"},
        {"debit": "petty_cash"},
        {"credit": "petty_cash"},
        {"amount": 0},
        {"amount": -1},
        {"line": 0},
        {"currency": "usd"},
    ],
)
async def test_an_entry_takes_from_one_account_and_gives_to_another(
    store: Ledger, api: asyncpg.Connection, change: dict[str, Any]
) -> None:
    """Debit equals credit because they are one row: two accounts that are known and differ, an amount above zero."""
    charge = await captured(store)
    with pytest.raises(asyncpg.CheckViolationError):
        await entry(api, charge, **change)
    await entry(api, charge)
    with pytest.raises(asyncpg.UniqueViolationError):
        await entry(api, charge)


async def test_an_entry_belongs_to_a_movement(store: Ledger, api: asyncpg.Connection) -> None:
    """Of the same department."""
    charge = await captured(store)
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await entry(api, charge, movement="mv_none")
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
        await entry(api, charge, department=UTILITIES)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("column", ["debit", "credit", "amount_minor", "currency", "line", "recorded_at"])
async def test_the_journal_only_grows(postgres: Postgres, role: str, column: str) -> None:
    """No role may change an entry."""
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await refused(postgres, role, f"UPDATE gateway.journal SET {column} = {column}")


@pytest.mark.parametrize("role", ["admin", "reseal", "keys"])
async def test_who_moves_no_money_writes_no_entry(postgres: Postgres, role: str) -> None:
    """The journal is written by the api and the worker, and by nobody else."""
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await refused(postgres, role, "INSERT INTO gateway.journal (department_id) VALUES ('parks')")


async def test_the_journal_agrees_with_the_charges(store: Ledger, owner: asyncpg.Connection, borough: str) -> None:
    """After a mixed day each department's accounts sum to what its charges have captured and given back."""
    for fee in (0, 99):
        paid = await captured(store, department=borough, convenience_fee_minor=fee)
        held = await authorized(store, department=borough, convenience_fee_minor=fee)
        part = await followed(store, held, Kind.CAPTURE, Event.DO, 1_000)
        for charge, event in itertools.product((paid, part), (Event.DO, Event.FAIL, Event.LOST)):
            await followed(store, charge, Kind.REFUND, event, 300)
        await followed(store, await authorized(store, department=borough), Kind.VOID, Event.DO)
        await move(store, (await begun(store, department=borough)).movement, Event.REFUSE)
    sums = await owner.fetchrow(
        "SELECT sum(captured_minor) AS captured, sum(refunded_minor) AS refunded FROM gateway.charges"
        " WHERE department_id = $1",
        borough,
    )
    assert sums is not None
    posted = await owner.fetch("SELECT * FROM gateway.journal WHERE department_id = $1", borough)
    balances: Counter[str] = Counter()
    for row in posted:
        balances[row["debit"]] += row["amount_minor"]
        balances[row["credit"]] -= row["amount_minor"]
    assert (sums["captured"], sums["refunded"]) == (2 * (4_321 + 1_000), 4 * 300)
    assert balances == {
        "processor_due": sums["captured"] - sums["refunded"],
        "convenience_fees": -2 * 99,
        "receivable": -(sums["captured"] - 2 * 99),
        "refunds": sums["refunded"],
    }
