"""A month of known truth, through the imports and a reconciliation on a real database.

Each difference that was planted is found once and named right, nothing else is flagged, every movement and every cent
of every file ends in one state, and the three sides tie.
"""

import io
import secrets
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from typing import Literal

import asyncpg
import pytest
from month import CITY, DEPARTMENTS, Month, busy_month, insert
from month_far import FLAWS, File

from gateway.clock import SystemClock
from gateway.rules.match import State
from gateway.rules.settlement import FeeSchedule
from gateway.rules.staff import Role, Staff
from gateway.services.imports import Imported, Imports
from gateway.services.reach import Reach
from gateway.services.reconciliations import ReconciledItem, Reconciliation, Reconciliations
from gateway.store.database import Database
from gateway.store.imports import ImportStore
from gateway.store.reconciliations import ReconciliationStore
from keys.audit import AuditPen
from keys.primitives import new_key
from tests.gateway.store.postgres import Postgres

pytestmark = pytest.mark.server

FIRST = date(2023, 10, 12)
"""A month with its end in it, and the day of 25 hours: 2023-11-05; no other test has business there."""
FINANCE = Staff("st_truth", "a.chen", frozenset({Role.FINANCE}), frozenset({"*"}))
PLANTED = {kind: 3 * count for kind, count in FLAWS.items()}


@dataclass
class Books:
    """The month, what each file was imported as, and what came of it."""

    month: Month
    imported: list[tuple[File, Imported]]
    made: Reconciliation
    items: list[ReconciledItem]


@pytest.fixture(scope="module")
async def books(postgres: Postgres, owner: asyncpg.Connection) -> AsyncIterator[Books]:
    """Ten thousand charges, all files in any order, one reconciliation of all of it."""
    mark = secrets.token_hex(3)
    departments = {f"{name}_{mark}": services for name, services in DEPARTMENTS.items()}
    month = busy_month(11, 10_000, FIRST, departments=departments, flaws=PLANTED)
    await insert(owner, month)

    async def known() -> list[str]:
        return list(departments)

    admin, pen, reach = (
        await Database.open(postgres.arguments("admin"), 4),
        AuditPen("admin", {1: new_key()}),
        Reach(known),
    )
    imports = Imports(ImportStore(admin), reach, pen, SystemClock(), CITY)
    service = Reconciliations(
        *(ReconciliationStore(admin), reach, pen, SystemClock()),
        zone=CITY,
        fees=FeeSchedule(290, 30),
        deposit_days_max=5,
    )
    imported = []
    for file in shuffled(month.files):
        kind: Literal["settlement", "deposit"] = "settlement" if file.kind == "settlements" else "deposit"
        source = io.BytesIO(file.content)
        imported.append((file, await imports.take(FINANCE, kind, file.format, source, "req_1", lambda _: None)))
    made = await service.make(FINANCE, month.first_day, month.last_day, None, "req_2")
    items: list[ReconciledItem] = []
    while page := await service.items(
        FINANCE, made.reconciliation_id, list(State), 2_000, items[-1].item if items else 0
    ):
        items += page
    yield Books(month, imported, made, items)
    await admin.close()


def shuffled(files: Sequence[File]) -> list[File]:
    """In an order that has nothing to do with their dates, and is the same in every run."""
    return sorted(files, key=lambda file: (sha256(file.content).digest(), file.name))


async def test_each_difference_is_found_once_and_nothing_else(books: Books) -> None:
    """State, reason, reference and business date of what is not matched: as planted, no more and no less."""
    found = Counter(
        (item.state, item.reason, item.reference, item.business_date)
        for item in books.items
        if item.state != State.MATCHED
    )

    assert found == books.month.flagged
    assert found.total() == sum(books.made.counts[state] for state in State if state != State.MATCHED) > 100
    assert sum(books.made.counts.values()) == len(books.items)
    assert sum(one.already_imported for _, one in books.imported) == PLANTED["duplicate_file"]


async def test_every_movement_and_every_line_is_in_one_item(books: Books) -> None:
    """Ledger items are there once each, on their business date; the files' cents are all there, and no others."""
    told = [item for item in books.items if item.movement_id is not None]
    by_day: dict[date, int] = defaultdict(int)
    for one in books.month.done:
        by_day[one.local(CITY)] += one.line.gross
    judged: dict[date, int] = defaultdict(int)
    for item in told:
        judged[item.business_date] += item.ledger_minor or 0

    assert len(told) == len({item.movement_id for item in told}) == len(books.month.done)
    assert judged == by_day
    settled = sum(item.settled_minor or 0 for item in books.items if item.kind != "deposit")
    assert settled == sum(
        one.gross_minor for file, one in books.imported if file.kind == "settlements" and not one.already_imported
    )


async def test_the_three_sides_tie(books: Books) -> None:
    """Ledger and movements, net and its parts, bank and batches with the deposits that were planted."""
    totals = {name: value for name, value in books.made.totals.items() if isinstance(value, int)}
    off = -700 * PLANTED["deposit_off"]
    strays = sum(item.deposited_minor or 0 for item in books.items if item.reason == "deposit_without_settlement")

    assert totals["ledger"] == sum(one.line.gross for one in books.month.done)
    gross, taken = totals["gross"], totals["fees"] + totals["refunds"] + totals["chargebacks"]
    assert totals["net"] == gross - taken + totals["adjustments"]
    assert totals["deposited"] + totals["awaiting_deposit"] == totals["net"] + off + strays
