"""The search itself on PostgreSQL: by the books' own dates and codes, and along the index however many there are."""

import json
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg
import pytest

from gateway.rules.staff import Role, Staff
from gateway.services.charge_search import ChargeSearch, Question
from gateway.services.reach import Reach
from gateway.store.approvals import ApprovalStore
from gateway.store.charge_search import ChargeStore
from gateway.store.database import Database
from tests.gateway.store.charged import charged
from tests.gateway.store.postgres import SERVICE

pytestmark = pytest.mark.server

CITY = ZoneInfo("America/Los_Angeles")
MANY = 10_000


@pytest.fixture
def search(admin: Database) -> ChargeSearch:
    """As it is wired."""
    return ChargeSearch(ChargeStore(admin), Reach(ApprovalStore(admin).departments), CITY)


def somebody(department: str) -> Staff:
    """Of finance, of one department."""
    return Staff("st_1", "p1", frozenset({Role.FINANCE}), frozenset({department}))


async def days_of(search: ChargeSearch, department: str, **asked: Any) -> list[tuple[str, date, list[str]]]:
    """What is found: id, business date and codes."""
    page = await search.search(somebody(department), Question(200, **asked))
    return [(one.charge.charge_id, one.day, list(one.gl_codes)) for one in page.found]


async def test_a_change_of_codes_at_midnight_is_of_later_dates_only(
    search: ChargeSearch, owner: asyncpg.Connection, borough: str
) -> None:
    """One charge a second before midnight, one at it: each has its own date's codes, and is found by them alone."""
    midnight = datetime(2026, 11, 2, tzinfo=CITY)
    made = []
    for moment in (midnight - timedelta(seconds=1), midnight):
        one = await charged(owner, borough, when=moment)
        await owner.execute("UPDATE gateway.charges SET service = $2 WHERE charge_id = $1", one.charge_id, SERVICE)
        made.append(one.charge_id)
    for since, code in ((date(2026, 1, 1), "old"), (date(2026, 11, 2), "new"), (date(2026, 11, 2), "both")):
        await owner.execute("INSERT INTO gateway.gl_codes VALUES ($1, $2, $3, $4, 1)", borough, SERVICE, since, code)

    before, after = [(made[0], date(2026, 11, 1), ["old"])], [(made[1], date(2026, 11, 2), ["both", "new"])]
    assert sorted(await days_of(search, borough)) == sorted(before + after)
    assert await days_of(search, borough, gl_code="old") == before
    assert await days_of(search, borough, gl_code="new") == await days_of(search, borough, gl_code="both") == after
    assert await days_of(search, borough, gl_code="1") == []
    assert await days_of(search, borough, gl_code="new", last=date(2026, 11, 1)) == []


async def test_every_hour_of_the_long_day_is_of_one_date(
    search: ChargeSearch, owner: asyncpg.Connection, borough: str
) -> None:
    """A charge each half hour around 2026-11-01, which has 25 hours, and a cut-off that begins then: none is lost."""
    await owner.execute("INSERT INTO gateway.cutoffs VALUES ($1, '2026-11-02', $2)", borough, time(17))
    began = datetime(2026, 10, 31, 6, tzinfo=UTC)
    made = [(await charged(owner, borough, when=began + n * timedelta(minutes=30))).charge_id for n in range(160)]

    by_day = {day: await days_of(search, borough, first=day, last=day) for day in _days(date(2026, 10, 30), 7)}
    assert sorted(charge for found in by_day.values() for charge, _, _ in found) == sorted(made)
    assert all(day == told for day, found in by_day.items() for _, told, _ in found)
    assert len(by_day[date(2026, 11, 1)]) == 50
    assert len(by_day[date(2026, 11, 2)]) == 34


async def test_a_page_of_many_walks_along_the_index(
    search: ChargeSearch, admin: Database, owner: asyncpg.Connection, borough: str
) -> None:
    """Of a ledger of many charges a page reads as many rows as it shows, from wherever it goes on."""
    made = await charged(owner, borough, when=datetime(2026, 1, 1, tzinfo=UTC))
    columns = (
        "application_id, token_id, amount_minor, currency, convenience_fee_minor, captured_minor, cvc_check, kind"
    )
    await owner.execute(
        "INSERT INTO gateway.charges (department_id, charge_id, reference, processor_reference, created_at, progress,"
        f" {columns}) SELECT department_id, charge_id || n, 'R', processor_reference || n, created_at + n * interval"
        f" '1 minute', progress, {columns} FROM gateway.charges CROSS JOIN generate_series(1, {MANY}) n"
        " WHERE department_id = $1",
        borough,
    )
    await owner.execute("ANALYZE gateway.charges")
    store = ChargeStore(admin)
    span = f"'{{{borough}}}', '{{NULL}}', '{{2026-01-01 00:00Z}}', '{{2027-01-01 00:00Z}}'"
    for since in ("NULL", "'2026-01-10 00:00Z'"):
        async with admin.reading_departments([borough]) as connection:
            await connection.execute(store._sql.along_the_index)
            # By EXECUTE, so that it is the plan that serves every question, and not one for these values.
            await connection.execute(f"PREPARE walk AS {store._sql.walk}")
            plan = await connection.fetchval(
                f"EXPLAIN (ANALYZE, FORMAT JSON, TIMING OFF) EXECUTE walk({span}, NULL, NULL, {since}, 'ch_', 51)"
            )
            await connection.execute("DEALLOCATE walk")
        walked = [node for node in _nodes(json.loads(plan)[0]["Plan"]) if node.get("Relation Name") == "charges"]
        assert [node["Index Name"] for node in walked] == ["charges_by_time"]
        assert [node["Actual Rows"] + node.get("Rows Removed by Filter", 0) for node in walked] == [51]
    page = await search.search(somebody(borough), Question(50, starting_after=f"{made.charge_id}100"))
    assert [one.charge.charge_id for one in page.found] == [f"{made.charge_id}{n}" for n in range(99, 49, -1)]


def _days(first: date, count: int) -> list[date]:
    return [first + timedelta(n) for n in range(count)]


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for part in plan.get("Plans", []) for node in _nodes(part))]
