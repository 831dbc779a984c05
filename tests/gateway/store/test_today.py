"""Today at a glance on a real database: sums by business date, ages, what waits, and nobody else's departments."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import asyncpg
import pytest

from gateway.errors import NotPermitted
from gateway.rules.staff import EVERYWHERE, Role, Staff
from gateway.services.reach import Reach
from gateway.services.today import DaySum, Glance, TodayPage
from gateway.store.approvals import ApprovalStore
from gateway.store.database import Database
from gateway.store.today import TodayStore
from tests.gateway.store.conftest import settle
from tests.gateway.store.postgres import APPLICATION, Postgres
from tests.gateway.store.till import EMPTY_RUN

pytestmark = pytest.mark.server

NOW = datetime(2026, 3, 11, 1, 30, tzinfo=UTC)  # 18:30 of the tenth in Los Angeles
LANTERNS, HARBOR = "lanterns", "harbor"


class Still:
    """A clock that stands still."""

    def now(self) -> datetime:
        return NOW

    def monotonic(self) -> float:
        return 0.0


@dataclass
class Books:
    """Two departments, and who writes into them."""

    owner: asyncpg.Connection
    page: TodayPage

    async def glance(self, *departments: str, role: Role = Role.FINANCE) -> Glance:
        """What somebody of these departments sees."""
        return await self.page.glance(Staff("st_1", "f.diaz", frozenset({role}), frozenset(departments)))

    async def charge(
        self, department: str, at: datetime, amount: int, kind: str = "sale", ended: str = "done"
    ) -> None:
        """One that was made and ended at a moment; a refund is one of a charge long ago."""
        number = await self.owner.fetchval("SELECT count(*) FROM gateway.movements")
        token, charge, movement, code = (
            f"tok_{number}",
            f"ch_{number}",
            f"mv_{number}",
            "no" if ended == "refused" else None,
        )
        made = at if kind == "sale" else at - timedelta(days=90)
        await self.owner.execute(
            "INSERT INTO gateway.tokens (department_id, token_id, application_id, kind, usage, status, cvc_check,"
            " created_at, expires_at, sealed)"
            " VALUES ($1, $2, $3, 'card', 'multi', 'active', 'pass', $4, $4, '\\x00')",
            *(department, token, APPLICATION, made),
        )
        await self.owner.execute(
            "INSERT INTO gateway.charges (department_id, charge_id, application_id, token_id, amount_minor, currency,"
            " convenience_fee_minor, reference, processor_reference, kind, progress, captured_minor, cvc_check,"
            " created_at, decline_code)"
            " VALUES ($1, $2, $3, $4, $5, 'USD', 0, 'r', $2, 'sale', $6, $9, 'pass', $7, $8)",
            *(department, charge, APPLICATION, token, amount, ended, made, code),
            amount if ended == "done" else 0,
        )
        await self.owner.execute(
            "INSERT INTO gateway.movements (department_id, movement_id, charge_id, kind, amount_minor, currency,"
            " reference, application_id, route, idempotency_key, progress, with_cvc, created_at, first_sent_at,"
            " not_after, lease_until, sends, decline_code)"
            " VALUES ($1, $2, $3, $4, $5, 'USD', $2, $6, 'r', $2, $7, false, $8, $8, $8, $8, 1, $9)",
            *(department, movement, charge, kind, amount, APPLICATION, ended, at, code),
        )
        if ended == "done":
            await self.owner.execute(
                "INSERT INTO gateway.journal VALUES ($1, $2, 1, 'processor_due', 'receivable', $3, 'USD', $4)",
                *(department, movement, amount, at),
            )

    async def exception(self, department: str, name: str, age: int, *acts: str, state: str = "missing_there") -> None:
        """A difference of one dollar, so many days old, and what became of it."""
        await self.owner.execute(
            "INSERT INTO gateway.exceptions VALUES ($1, $2, 'rec_1', $3, 'r', NULL, 'r', -100, 'USD', $4, $5)",
            *(department, name, state, date(2026, 3, 11) - timedelta(days=age), NOW),
        )
        for number, act in enumerate(acts, 1):
            await self.owner.execute(
                "INSERT INTO gateway.exception_acts VALUES ($1, $2, $3, $4, '', '', 'st_1', $5)",
                *(department, name, number, act, NOW),
            )


@pytest.fixture(scope="module")
async def books(postgres: Postgres) -> AsyncIterator[Books]:
    """The dates of one department end at five in the afternoon, those of the other at midnight."""
    owner = await postgres.connect("owner")
    for department in (LANTERNS, HARBOR):
        await settle(owner, department)
    await owner.execute("INSERT INTO gateway.cutoffs VALUES ($1, '2026-01-01', $2)", LANTERNS, time(17))
    await owner.execute(
        "INSERT INTO gateway.reconciliations VALUES ('rec_1', $1, '2026-03-01', '2026-03-09', $3, $4, '{}',"
        " 'st_1', $2)",
        *([LANTERNS], NOW, EMPTY_RUN[0], EMPTY_RUN[1].replace('"awaiting_deposit":0', '"awaiting_deposit":700')),
    )
    database = await Database.open(postgres.arguments("admin"), 2)
    reach = Reach(ApprovalStore(database).departments)
    yield Books(owner, TodayPage(TodayStore(database), reach, ZoneInfo("America/Los_Angeles"), Still()))
    await database.close()
    await owner.execute("DELETE FROM gateway.imports WHERE import_id = 'imp_1'")
    await owner.close()


async def test_a_day_is_each_departments_own(books: Books) -> None:
    """At half past six one department is in the next business date already, the other is not."""
    four, six = (datetime(2026, 3, 10, hour, tzinfo=ZoneInfo("America/Los_Angeles")) for hour in (16, 18))
    for department, amount in ((LANTERNS, 1), (HARBOR, 1_000)):
        await books.charge(department, four, amount)
        await books.charge(department, six, 10 * amount)
        await books.charge(department, six, 5 * amount, kind="refund")
        await books.charge(department, four, 7, ended="refused")
        await books.charge(department, six, 7, ended="in_review")
        await books.charge(department, four - timedelta(days=40), 99_999)

    lanterns, both = await books.glance(LANTERNS), await books.glance(LANTERNS, HARBOR)
    assert (lanterns.day, len(lanterns.days), lanterns.days[-1]) == (date(2026, 3, 11), 30, date(2026, 3, 11))
    assert lanterns.today == DaySum(taken_minor=10, taken=1, refunded_minor=5, refunded=1, declined=0)
    assert lanterns.yesterday == DaySum(taken_minor=1, taken=1, refunded_minor=0, refunded=0, declined=1)
    assert both.today == DaySum(11_010, 3, 5_005, 2, 1)
    assert both.yesterday == DaySum(1, 1, 0, 0, 1)
    assert both.departments == [HARBOR, LANTERNS]
    assert both.taken_minor == {
        (LANTERNS, date(2026, 3, 10)): 1,
        (LANTERNS, date(2026, 3, 11)): 10,
        (HARBOR, date(2026, 3, 10)): 11_000,
    }
    assert (lanterns.seen.waiting.in_review, both.seen.waiting.in_review) == (1, 2)
    assert await books.glance(LANTERNS, HARBOR) == both  # the second look counts no ended date again


async def test_what_is_open_is_counted_by_its_age(books: Books) -> None:
    """The last act says whether it is; what only waits for a file is counted apart."""
    for age in (0, 1, 2, 5, 6, 10, 11, 400):
        await books.exception(LANTERNS, f"ex_{age}", age)
    await books.exception(LANTERNS, "ex_taken", 3, "taken", "proposed")
    await books.exception(LANTERNS, "ex_again", 3, "resolved", "reopened")
    for settled in ("resolved", "approved", "cleared"):
        await books.exception(LANTERNS, f"ex_{settled}", 3, "taken", settled)
    await books.exception(LANTERNS, "ex_transit", 3, state="timing")
    glance = await books.glance(LANTERNS)

    assert glance.ageing == [(2, 200), (4, 400), (2, 200), (2, 200)]
    assert (glance.unmatched, glance.in_transit, glance.seen.waiting.exceptions) == (10, 1, 1)


async def test_nobody_sees_what_is_not_theirs(books: Books) -> None:
    """Another department's exceptions and runs, and the city's files, stay out; some roles see nothing at all."""
    await books.owner.execute(
        "INSERT INTO gateway.imports"
        " VALUES ('imp_1', 'settlement', 'native', $1, 3, 300, 9, 291, 'USD', '{}', 'st_1', $2)",
        *(bytes(32), datetime.now(UTC)),  # the latest, whatever other tests have imported
    )
    of_harbor, of_lanterns = await books.glance(HARBOR), await books.glance(LANTERNS)
    of_all = await books.glance(EVERYWHERE, role=Role.AUDITOR)

    assert (of_harbor.unmatched, of_harbor.seen.run, of_harbor.seen.imports) == (0, None, [])
    assert of_lanterns.seen.run is not None
    assert (of_lanterns.seen.run.awaiting_deposit_minor, of_lanterns.seen.imports) == (700, [])
    assert "imp_1" in [one.import_id for one in of_all.seen.imports]
    with pytest.raises(NotPermitted):
        await books.glance(LANTERNS, role=Role.RECORDS)
