"""Reconciliations on a real database: what agrees, what does not, what was known before, and who sees which of it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg
import pytest

from gateway.clock import SystemClock
from gateway.errors import NotFound, NotPermitted, PeriodRefused
from gateway.rules.match import State
from gateway.rules.staff import Role, Staff
from gateway.services.reach import Reach
from gateway.services.reconciliations import ReconciledItem, Reconciliation, Reconciliations
from gateway.store import reconciliations as store_module
from gateway.store.database import Database
from gateway.store.reconciliations import ReconciliationStore
from keys.audit import AuditPen
from keys.primitives import new_key
from keys.queries import load_queries
from tests.gateway.store.postgres import PARKS
from tests.gateway.store.till import FEES, Line, Till, line, net

pytestmark = pytest.mark.server

YEAR = 2025
CITY = ZoneInfo("America/Los_Angeles")
DAY = timedelta(days=1)
NOTHING = dict.fromkeys(map(str, State), 0)


@dataclass
class Desk:
    """Finance of one department, or of all that there is: the department and the city."""

    service: Reconciliations
    owner: asyncpg.Connection
    till: Till

    def staff(self, *departments: str, role: Role = Role.FINANCE) -> Staff:
        """Somebody who is signed in."""
        return Staff("st_reconciles", "a.chen", frozenset({role}), frozenset(departments or {"*"}))

    async def make(
        self, before: int = 0, after: int = 0, department: str | None = None, staff: Staff | None = None
    ) -> Reconciliation:
        """The till's day, and so many more before and after."""
        first, last = self.till.day - before * DAY, self.till.day + after * DAY
        return await self.service.make(staff or self.staff(), first, last, department, "req_1")

    async def items(self, made: Reconciliation, *states: State) -> list[ReconciledItem]:
        """All of them, page by page."""
        found: list[ReconciledItem] = []
        while page := await self.service.items(
            self.staff(), made.reconciliation_id, states or list(State), 3, found[-1].item if found else 0
        ):
            found += page
        return found

    async def told(self, made: Reconciliation) -> list[tuple[str, str]]:
        """State and reason of what is not matched, sorted."""
        return sorted((item.state, item.reason) for item in await self.items(made) if item.state != State.MATCHED)

    async def exceptions(self) -> dict[str, list[str]]:
        """What happened to each exception of the department and of the city's on those days."""
        rows = await self.owner.fetch(
            "SELECT e.exception_id, array_agg(a.what ORDER BY a.act) FILTER (WHERE a.what IS NOT NULL) AS acts"
            " FROM gateway.exceptions e LEFT JOIN gateway.exception_acts a USING (department_id, exception_id)"
            " WHERE e.department_id IN ($1, 'city') AND e.business_date BETWEEN $2 AND $3 GROUP BY 1",
            *(self.till.department, self.till.day - DAY, self.till.day + DAY),
        )
        return {row["exception_id"]: row["acts"] or [] for row in rows}


def counted(**states: int) -> dict[str, int]:
    """All seven states."""
    return NOTHING | states


@pytest.fixture
def desk(admin: Database, owner: asyncpg.Connection, borough: str, days: Callable[[], date]) -> Desk:
    """Finance, with a department and a date of its own."""

    async def departments() -> list[str]:
        return [borough, PARKS]

    service = Reconciliations(
        *(ReconciliationStore(admin), Reach(departments), AuditPen("admin", {1: new_key()}), SystemClock()),
        zone=CITY,
        fees=FEES,
        deposit_days_max=5,
    )
    return Desk(service, owner, Till(owner, borough, days()))


# --- what it says -----------------------------------------------------------------------------------------------


async def test_all_agrees(desk: Desk) -> None:
    """Ledger, file and bank say the same: everything is matched, sums tie, files are named, nobody is asked."""
    charges = [await desk.till.capture(amount) for amount in (100, 4_321, 999_999)]
    refund = await desk.till.refund(charges[2], 5_000)
    hashes = [
        await desk.till.settle(*map(line, charges), Line(refund, -5_000, charges[2], "refund")),
        await desk.till.deposit(net(*charges) - 5_000),
    ]
    made = await desk.make()

    assert made.counts == counted(matched=4)
    fees = sum(FEES.fee(charge.amount) for charge in charges)
    paid = net(*charges) - 5_000
    assert made.totals == {
        "currency": "USD",
        "ledger": 999_420,
        "settled": 999_420,
        "gross": 1_004_420,
        "fees": fees,
        "refunds": 5_000,
        "chargebacks": 0,
        "adjustments": 0,
        "net": paid,
        "deposited": paid,
        "awaiting_deposit": 0,
        "unmatched": 0,
        "timing": 0,
    }
    assert list(made.inputs) == sorted(hashes)
    (item, *_) = [one for one in await desk.items(made) if one.charge_id == charges[0].charge_id]
    assert (item.ledger_minor, item.settled_minor, item.deposited_minor) == (100, 100, net(charges[0]))
    assert await desk.exceptions() == {}
    shown = await desk.service.get(desk.staff(), made.reconciliation_id)
    assert replace(shown, inputs=tuple(shown.inputs), departments=tuple(shown.departments)) == replace(
        made, departments=tuple(made.departments)
    )


async def test_every_difference_is_found_once(desk: Desk) -> None:
    """One of each kind, among charges that agree; the bank paid by the file and has no difference of its own."""
    till = desk.till
    good, dropped, repeated, cent, fee, sign, back = [await till.capture(10_000 + n) for n in range(7)]
    refund = await till.refund(good, 300)
    lines = [
        *(line(good), line(repeated), line(cent, 1), line(fee, 0, 7), line(back), line(repeated)),
        Line(sign.reference, -sign.amount, sign, fee=FEES.fee(sign.amount)),
        Line(f"nobody-{till.day}", 5_000),
        Line(back.reference, -back.amount, back, "chargeback"),
        Line("adjusted", -25, None, "adjustment"),
        Line(refund, -300, good, "refund"),
    ]
    await till.settle(*lines)
    await till.deposit(
        sum(each.gross - (each.fee or 0) for each in lines if each.fee is not None)
        - 300
        - 25
        + 5_000
        - FEES.fee(5_000)
        - back.amount
    )
    made = await desk.make()

    assert made.counts == counted(
        matched=4, missing_there=1, duplicate=1, amount_differs=2, fee_differs=1, missing_here=3
    )
    assert await desk.told(made) == [
        ("amount_differs", "amount_differs"),
        ("amount_differs", "sign_differs"),
        ("duplicate", "repeated"),
        ("fee_differs", "fee_differs"),
        ("missing_here", "adjustment"),
        ("missing_here", "chargeback"),
        ("missing_here", "unknown_reference"),
        ("missing_there", "not_settled"),
    ]
    (missing,) = await desk.items(made, State.MISSING_THERE)
    assert (missing.charge_id, missing.difference_minor) == (dropped.charge_id, -dropped.amount)
    sums: dict[str, Any] = dict(made.totals)
    assert sums["settled"] - sums["ledger"] == sums["unmatched"]
    assert sums["settled"] == sums["gross"] - sums["refunds"] - sums["chargebacks"] + sums["adjustments"]
    assert sums["net"] == sums["settled"] - sums["fees"] == sums["deposited"]
    assert len(await desk.exceptions()) == 8


async def test_a_bank_that_knows_better_has_no_difference(desk: Desk) -> None:
    """A line was dropped from the file, and the bank paid for it all the same: one difference, not two."""
    there, dropped = await desk.till.capture(), await desk.till.capture(7_777)
    await desk.till.settle(line(there))
    await desk.till.deposit(net(there, dropped))
    made = await desk.make()

    assert await desk.told(made) == [("missing_there", "not_settled")]
    assert made.totals["deposited"] == net(there, dropped)


async def test_a_deposit_that_is_off(desk: Desk) -> None:
    """By a cent: one difference of the batch, and every charge matched."""
    charge = await desk.till.capture()
    await desk.till.settle(line(charge))
    await desk.till.deposit(net(charge) - 1)
    made = await desk.make()

    assert made.counts == counted(matched=1, amount_differs=1)
    (item,) = await desk.items(made, State.AMOUNT_DIFFERS)
    assert (item.department, item.reason, item.reference) == ("city", "deposit_differs", desk.till.batch)
    assert (item.settled_minor, item.deposited_minor, item.difference_minor) == (net(charge), net(charge) - 1, -1)
    assert made.totals["deposited"] == net(charge) - 1


async def test_what_waits(desk: Desk) -> None:
    """No file yet: timing. A file and no deposit: matched, and its net awaited. Then both are there."""
    charge = await desk.till.capture()
    early = await desk.make()
    assert (early.counts, early.totals["unmatched"]) == (counted(timing=1), -charge.amount)
    assert early.totals["timing"] == -charge.amount
    await desk.till.settle(line(charge))
    waiting = await desk.make()
    assert waiting.counts == counted(matched=1)
    assert (waiting.totals["awaiting_deposit"], waiting.totals["deposited"]) == (net(charge), 0)
    await desk.till.deposit(net(charge) - 100, 100)
    made = await desk.make()
    assert made.counts == counted(matched=1)
    assert (made.totals["awaiting_deposit"], made.totals["deposited"]) == (0, net(charge))


async def test_the_whole_range_is_its_days(desk: Desk) -> None:
    """An evening in the city is the next UTC date, a refund comes days later, a file is late: each is in one day."""
    till = desk.till
    morning, evening = await till.capture(1_000), await till.capture(2_000, hour=30)
    refund = await till.refund(morning, 400, days=2)
    await till.settle(line(morning), line(evening), Line(refund, -400, morning, "refund"), dated=till.day + 4 * DAY)
    days = [
        await desk.service.make(desk.staff(), till.day + n * DAY, till.day + n * DAY, None, "r") for n in range(-2, 6)
    ]
    whole = await desk.make(2, 5)

    assert [day.counts["matched"] for day in days] == [0, 0, 2, 0, 1, 0, 0, 0]
    assert whole.counts == counted(matched=3) == {state: sum(day.counts[state] for day in days) for state in NOTHING}
    for name in ("ledger", "settled", "fees", "net", "awaiting_deposit"):
        assert whole.totals[name] == sum(int(day.totals[name] or 0) for day in days)


async def test_a_cut_off_moves_the_evening(desk: Desk) -> None:
    """With the department's date ending at 17:00, what was captured at 18:00 is of the next date."""
    await desk.owner.execute(
        "INSERT INTO gateway.cutoffs VALUES ($1, $2, $3)", desk.till.department, date(2020, 1, 1), time(17)
    )
    await desk.till.capture(hour=26)

    assert (await desk.make()).counts == counted()
    assert (await desk.make(after=1)).counts == counted(timing=1)


# --- what was known before --------------------------------------------------------------------------------------


async def test_an_exception_is_made_once(desk: Desk) -> None:
    """Two runs at once, and one more of a wider range: equal results, one exception a difference."""
    charges = [await desk.till.capture(1_000 + n) for n in range(5)]
    await desk.till.settle(*(line(charge, 1) for charge in charges))
    both = await asyncio.gather(desk.make(), desk.make())
    wider = await desk.make(1, 1)

    assert both[0].counts == both[1].counts == wider.counts == counted(amount_differs=5)
    ids = [[item.exception_id for item in await desk.items(made)] for made in (*both, wider)]
    assert ids[0] == ids[1] == ids[2]
    assert await desk.exceptions() == {one: [] for one in ids[0]}


async def test_what_is_no_more_is_cleared(desk: Desk) -> None:
    """A file that comes late clears what waited for it; what somebody settled already stays as it is."""
    late, settled, kept = [await desk.till.capture(1_000 + n) for n in range(3)]
    first = await desk.items(await desk.make())
    by_charge = {item.charge_id: item.exception_id or "" for item in first}
    await desk.owner.execute(
        "INSERT INTO gateway.exception_acts VALUES ($1, $2, 1, 'resolved', 'timing', '', 'st_1', now())",
        *(desk.till.department, by_charge[settled.charge_id]),
    )
    await desk.till.settle(line(late), line(settled))
    made = await desk.make()

    assert made.counts == counted(matched=2, missing_there=1)
    (missing,) = await desk.items(made, State.MISSING_THERE)
    assert await desk.exceptions() == {
        by_charge[late.charge_id]: ["cleared"],
        by_charge[settled.charge_id]: ["resolved"],
        by_charge[kept.charge_id]: ["cleared"],
        missing.exception_id: [],
    }
    again = await desk.make()
    assert again.counts == made.counts
    assert await desk.exceptions() == {
        by_charge[late.charge_id]: ["cleared"],
        by_charge[settled.charge_id]: ["resolved"],
        by_charge[kept.charge_id]: ["cleared"],
        missing.exception_id: [],
    }


async def test_a_cleared_one_that_is_found_again_is_open(desk: Desk) -> None:
    """Somebody's clearing does not make a difference go away."""
    charge = await desk.till.capture()
    await desk.till.settle(line(charge, 5))
    (item,) = await desk.items(await desk.make())
    await desk.owner.execute(
        "INSERT INTO gateway.exception_acts VALUES ($1, $2, 1, 'cleared', '', '', 'st_1', now())",
        *(desk.till.department, item.exception_id),
    )
    await desk.make()

    assert await desk.exceptions() == {item.exception_id: ["cleared", "reopened"]}


# --- who ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lines", "nested"), [(0, "on"), (1_000_000, "off")])
async def test_right_after_a_large_import(desk: Desk, lines: int, nested: str) -> None:
    """While the planner knows nothing of the lines, it may not look through all of them for each charge."""
    sql = load_queries("gateway.store", "reconciliations.sql")
    await desk.owner.execute("ANALYZE gateway.settlement_lines")
    transaction = desk.owner.transaction()
    await transaction.start()
    await desk.owner.execute("UPDATE gateway.imports SET lines = 0")
    await desk.owner.execute(
        "INSERT INTO gateway.imports VALUES"
        " ('im_large', 'settlement', 'native', sha256('large'), $1, 0, 0, 0, 'USD', '{}', 'st_1', now())",
        lines,
    )
    await desk.owner.execute(sql.prepare)
    assert await desk.owner.fetchval("SHOW enable_nestloop") == nested
    await transaction.rollback()


async def test_ones_own_departments_only(desk: Desk) -> None:
    """Who has one department sees no line of the city's, no bank, no foreign run, and cannot ask for another one."""
    charge = await desk.till.capture()
    await desk.till.settle(line(charge), Line(f"nobody-{desk.till.day}", 5_000))
    await desk.till.deposit(1)
    own = desk.staff(desk.till.department)
    made, whole = await desk.make(staff=own), await desk.make()

    assert made.counts == counted(matched=1)
    assert made.totals["deposited"] is made.totals["awaiting_deposit"] is None
    assert list(made.departments) == [desk.till.department]
    assert whole.counts == counted(matched=1, missing_here=1, amount_differs=1)
    listed = [one.reconciliation_id for one in await desk.service.latest(own, 10)]
    assert (made.reconciliation_id in listed, whole.reconciliation_id in listed) == (True, False)
    with pytest.raises(NotFound):
        await desk.service.items(own, whole.reconciliation_id, list(State), 10)
    with pytest.raises(NotFound):
        await desk.make(department=PARKS, staff=own)
    with pytest.raises(NotPermitted):
        await desk.make(staff=desk.staff(role=Role.AUDITOR))


async def test_one_department_of_all(desk: Desk) -> None:
    """Who sees the bank sees it for a single department, too; the city's own lines are not of it."""
    charge = await desk.till.capture()
    await desk.till.settle(line(charge), Line(f"nobody-{desk.till.day}", 5_000))
    made = await desk.make(department=desk.till.department)

    assert made.counts == counted(matched=1)
    assert made.totals["awaiting_deposit"] == net(charge)
    assert list(made.departments) == [desk.till.department]


@pytest.mark.parametrize(
    ("first", "last"),
    [
        (date(2026, 1, 2), date(2026, 1, 1)),
        (date(2025, 1, 1), date(2026, 2, 5)),
        (date.min, date.min),
        (date.max, date.max),
    ],
)
async def test_what_is_no_range(desk: Desk, first: date, last: date) -> None:
    """Backwards, longer than 400 days, or nowhere near: refused with words, and nothing is written."""
    with pytest.raises(PeriodRefused, match=r"\w"):
        await desk.service.make(desk.staff(), first, last, None, "r")


async def test_it_is_written_down(desk: Desk) -> None:
    """Each department's audit log says who reconciled."""
    made = await desk.make()
    rows = await desk.owner.fetch(
        "SELECT department_id, event, actor FROM audit.events WHERE subject = $1 ORDER BY 1", made.reconciliation_id
    )
    assert [tuple(row) for row in rows] == [
        (department, "reconciliation.made", "st_reconciles") for department in made.departments
    ]


async def test_many_rows_at_a_time(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few rows are fetched at once, no charge is torn apart and none is lost."""
    till = desk.till
    charges = [await till.capture(1_000 + n) for n in range(6)]
    refunds = [await till.refund(charge, 10 + n) for n, charge in enumerate(charges[:3]) for _ in range(2)]
    lines = [Line(refund, -10 - n // 2, charges[n // 2], "refund") for n, refund in enumerate(refunds)]
    await till.settle(*map(line, charges), *lines, Line("", -7, None, "adjustment"))
    expected = counted(matched=12, missing_here=1)
    for rows in (1, 2, 3, 7, 2_000):
        monkeypatch.setattr(store_module, "ROWS", rows)
        assert (await desk.make()).counts == expected


async def test_the_latest_first(desk: Desk) -> None:
    """Pages of the list, by who came last."""
    own = desk.staff(desk.till.department)
    made = [(await desk.make(staff=own)).reconciliation_id for _ in range(5)]
    found: list[str] = []
    while page := await desk.service.latest(own, 2, found[-1] if found else None):
        found += [one.reconciliation_id for one in page]

    assert found == made[::-1]
    assert (await desk.service.get(own, made[0])).made_at < datetime.now(UTC)
