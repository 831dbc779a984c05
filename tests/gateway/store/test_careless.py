"""The second wall: a query that forgot its department still reaches nobody else's rows.

Every query of the store that names the department is mutated, one at a time: the predicate goes. What the parks ask
about rows of the utilities is then answered as about rows that do not exist, because the policies of PostgreSQL stand
behind the query. Without those policies (the schema's owner is above them) the same mutants leak, which shows that
they are mutants.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from gateway.errors import NotFound
from gateway.rules.ids import new_id
from gateway.rules.lifecycle import Kind
from gateway.services.ports import Begun, Charge
from gateway.store.database import Database
from gateway.store.ledger import Ledger
from tests.gateway.store.charges import begun, captured
from tests.gateway.store.postgres import PARKS, UTILITIES, Postgres, asked, asking, audit, intent, shown

pytestmark = pytest.mark.server

PREDICATE = re.compile(r"\b(?:\w+\.)?department_id = \$1")
TABLES = ("tokens", "charges", "movements", "journal", "deks", "fingerprints", "idempotency")
NAMED = sorted(
    f"{part}.{name}"
    for part in ("_sql", "_ledger", "_steps")
    for name, text in vars(getattr(Ledger(Database(None)), part)).items()  # type: ignore[arg-type] # only its queries
    if PREDICATE.search(text)
)


class Careless(Ledger):
    """The store as it would be if somebody had forgotten the department in one query."""

    def __init__(self, database: Database, query: str) -> None:
        super().__init__(database)
        part, name = query.split(".")
        queries = getattr(self, part)
        setattr(queries, name, PREDICATE.sub("$1::text IS NOT NULL", getattr(queries, name)))


@pytest.fixture(scope="module")
async def above(postgres: Postgres) -> AsyncIterator[Database]:
    """A pool whose role no policy holds back."""
    database = await Database.open(postgres.arguments("owner"), 2)
    yield database
    await database.close()


async def theirs(store: Ledger) -> tuple[Charge, Begun]:
    """A captured charge of the utilities, and one that waits for its outcome."""
    return await captured(store, department=UTILITIES), await begun(store, department=UTILITIES)


async def rows(owner: asyncpg.Connection) -> dict[str, list[Any]]:
    """All that the utilities have."""
    query = "SELECT t::text FROM gateway.{} t WHERE department_id = $1 ORDER BY 1"
    return {table: [row[0] for row in await owner.fetch(query.format(table), UTILITIES)] for table in TABLES}


async def leaks(store: Ledger, charge: Charge, waiting: Begun) -> list[str]:
    """What the parks get to see or move of the utilities, by the names of the store's methods."""
    found = []
    what = asked(charge, Kind.REFUND)
    for name, call in {
        "token": lambda: store.token(PARKS, charge.token_id),
        "charge": lambda: store.charge(PARKS, charge.charge_id),
        "movement": lambda: store.movement(PARKS, waiting.movement.movement_id),
        "erase_token": lambda: store.erase_token(PARKS, charge.token_id, shown, audit()),
        "begin_charge": lambda: store.begin_charge(intent(charge.token_id), audit()),
        "begin_movement": lambda: store.begin_movement(
            asked(_as_parks(charge), Kind.REFUND), asking(what, new_id("key")), audit()
        ),
    }.items():
        if not await _is_refused(call):
            found.append(name)
    claimed = await store.claimed(PARKS, waiting.movement.route, waiting.movement.idempotency_key)
    listed = await store.charges(PARKS, charge.reference, 1000, None)
    taken = [case.movement for case in await store.take(PARKS, 1000)]
    resent = await store.take_marked(PARKS, lambda _: audit())
    found += ["claimed"] if claimed else []
    found += ["charges"] if any(one.department != PARKS for one in listed) else []
    found += ["take"] if any(one.department != PARKS for one in taken) else []
    found += ["take_marked"] if resent and resent.begun.movement.department != PARKS else []
    return found


def _as_parks(charge: Charge) -> Charge:
    return Charge(**{name: getattr(charge, name) for name in Charge.__dataclass_fields__} | {"department": PARKS})


async def _is_refused(call: Callable[[], Awaitable[object]]) -> bool:
    try:
        await call()
    except NotFound:
        return True
    return False


@pytest.mark.parametrize("query", NAMED)
async def test_query_without_its_department_reaches_nobody_else(
    database: Database, store: Ledger, owner: asyncpg.Connection, query: str
) -> None:
    """The parks see nothing of the utilities, and change nothing, whichever query forgets to ask."""
    charge, waiting = await theirs(store)
    before = await rows(owner)
    assert await leaks(Careless(database, query), charge, waiting) == []
    assert await rows(owner) == before


async def test_mutants_leak_without_the_wall(above: Database, store: Ledger) -> None:
    """Above the policies the same forgetfulness shows the utilities' rows to the parks: the mutants are real."""
    charge, waiting = await theirs(store)
    assert await leaks(Ledger(above), charge, waiting) == []
    for query, leaking in (("_steps.charge", "charge"), ("_steps.token", "token"), ("_steps.claimed", "claimed")):
        assert leaking in await leaks(Careless(above, query), charge, waiting)
