"""Refunds above the limit, on a real database: held back, decided about once, and sent once by an api process."""

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import asyncpg
import msgspec
import pytest

from gateway.errors import (
    AlreadyDecided,
    NotFound,
    NotPermitted,
    RefundTooLarge,
    Unavailable,
)
from gateway.rules.lifecycle import Kind, Verdict
from gateway.rules.recovery import Offers
from gateway.rules.staff import Role, Staff
from gateway.services.approvals import Approvals, WaitingRefund
from gateway.services.movements import MovementRequest
from gateway.services.points import Point
from gateway.services.ports import Answer, Approved, Begun, CommitUnknown, NotSent, Unknown
from gateway.services.ports import NotFound as Unseen
from gateway.store.approvals import ApprovalStore
from gateway.store.batch import Batches, Steps
from gateway.store.database import Database
from keys.audit import AuditPen
from keys.primitives import new_key
from keys.queries import load_queries
from tests.gateway.store.city import City, Page, caller
from tests.gateway.store.far import FarSide
from tests.gateway.store.postgres import Cut, Postgres, Wire, employ
from tests.gateway.store.quarter import OwnLedger, Quarter, quarter_of

pytestmark = pytest.mark.server

T = TypeVar("T")

CARD = 75_001
LIMIT, CAPTURED = 500, 4_321
APPROVER = "st_of_the_approvals"
CANNOT_TELL = Unknown("timeout")


@dataclass
class Desk:
    """The admin process of the town."""

    database: Database
    approvals: Approvals
    store: ApprovalStore

    async def decide(self, quarter: Quarter, refund_id: str, verdict: Verdict = "approved") -> WaitingRefund:
        """What an approver of the quarter says."""
        return await self.approvals.decide(staff(quarter.department), refund_id, verdict, "req_2")

    async def waiting(self, *departments: str) -> list[str]:
        """The ids of what somebody of these departments is shown."""
        return [refund.refund_id for refund in await self.approvals.waiting(staff(*departments))]


def desk_on(database: Database, city: City) -> Desk:
    """The services of the admin process on a pool."""
    store = ApprovalStore(database)
    return Desk(database, Approvals(store, AuditPen("admin", {1: new_key()}), city.clock), store)


@pytest.fixture(scope="module")
async def desk(postgres: Postgres, town: City) -> AsyncIterator[Desk]:
    """The admin process, and an approver with an account."""
    await employ(town.owner, APPROVER)
    database = await Database.open(postgres.arguments("admin") | {"database": town.database}, 10)
    yield desk_on(database, town)
    await database.close()


@pytest.fixture
async def role(postgres: Postgres, town: City) -> AsyncIterator[Callable[..., Any]]:
    """Raw connections of any role to the town, on behalf of a department."""
    opened: list[asyncpg.Connection] = []

    async def connect(process: str, department: str) -> asyncpg.Connection:
        opened.append(connection := await postgres.connect(process, database=town.database))
        await connection.execute(f"SET gateway.department = '{department}'")
        return connection

    yield connect
    for connection in opened:
        await connection.close()


def staff(*departments: str, role: Role = Role.APPROVER) -> Staff:
    """Somebody who is signed in."""
    return Staff(APPROVER, "a.chen", frozenset({role}), frozenset(departments))


async def ask(
    page: Page, amount: int | None, key: str = "key", *, limit: int | None = LIMIT, of: str | None = None
) -> Answer:
    """Ask for a refund, of a new charge unless one is named."""
    charge_id = of or (await page.charge(f"charge-{secrets.token_hex(4)}", card=CARD))["id"]
    who = replace(caller(page.department), refund_minor_max=limit)
    return await page.movements.refund(who, MovementRequest(charge_id, amount, "req_1"), key)


def shown(answer: Answer) -> dict[str, Any]:
    """The refund that an answer shows."""
    body: dict[str, Any] = msgspec.json.decode(answer.body)
    refund: dict[str, Any] = body.get("refund", body)
    return refund


async def held(page: Page, amount: int | None = LIMIT + 1, key: str = "key", of: str | None = None) -> dict[str, Any]:
    """A refund that waits."""
    answer = await ask(page, amount, key, of=of)
    assert (answer.status, shown(answer)["status"]) == (202, "awaiting_approval")
    return shown(answer)


def refunds_sent(page: Page) -> list[str]:
    """The refunds that left the house."""
    return [movement.movement_id for movement in page.far.sent if movement.kind is Kind.REFUND]


async def told(quarter: Quarter, refund_id: str) -> list[tuple[str, str, str]]:
    """Process, event and outcome of the audit rows of a refund, in order."""
    rows = await quarter.owner.fetch(
        "SELECT process, event, outcome FROM audit.events WHERE subject = $1 ORDER BY occurred_at, event_id",
        refund_id,
    )
    return [tuple(row) for row in rows]


async def status_of(page: Page, refund_id: str) -> str:
    """What the application is shown of it."""
    return (await page.movements.show_refund(caller(page.department), refund_id)).status


# --- what waits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "limit", "status"),
    [(LIMIT - 1, LIMIT, 201), (LIMIT, LIMIT, 201), (LIMIT + 1, LIMIT, 202), (None, LIMIT, 202), (None, None, 201)],
)
async def test_only_above_the_limit_it_waits(
    quarter: Quarter, amount: int | None, limit: int | None, status: int
) -> None:
    """Equal to the limit is within it; "all that is left" counts as what it comes to."""
    page = quarter.page()
    answer = await ask(page, amount, limit=limit)
    assert answer.status == status
    assert len(refunds_sent(page)) == (status == 201)
    assert answer.location == (f"/v1/refunds/{shown(answer)['id']}" if status == 202 else None)


async def test_while_it_waits_nothing_moves(quarter: Quarter, desk: Desk) -> None:
    """No api process sends it and no worker asks for it, however old it is; its key says the same again and again."""
    page = quarter.page()
    refund = await held(page)
    await quarter.expire(3_600.0)
    assert await page.resender.turn() == 0
    assert await quarter.recovery(page.far).turn() == 0
    assert refunds_sent(page) == []
    assert page.far.inquired == []
    again = await ask(page, LIMIT + 1, of=refund["charge"])
    assert (again.status, shown(again), again.location) == (202, refund, f"/v1/refunds/{refund['id']}")
    assert await status_of(page, refund["id"]) == "awaiting_approval"
    counts = await page.movements._store.unresolved()  # type: ignore[attr-defined]
    assert counts == {"awaiting_approval": 1, "sending": 0, "unknown": 0, "in_review": 0}
    assert await desk.waiting(quarter.department) == [refund["id"]]


async def test_its_money_is_held_back(quarter: Quarter, desk: Desk) -> None:
    """Ten at once want 1000 of 4321: four wait, the others are told at once; released, they are 4000 and no more."""
    page = quarter.page()
    charge_id = (await page.charge("charge", card=CARD))["id"]
    answers = await asyncio.gather(
        *(ask(page, 1_000, f"key-{n}", of=charge_id) for n in range(10)), return_exceptions=True
    )
    ends = Counter(answer.status if isinstance(answer, Answer) else type(answer) for answer in answers)
    assert ends == {202: 4, RefundTooLarge: 6}
    for refund_id in await desk.waiting(quarter.department):
        await desk.decide(quarter, refund_id)
    assert await page.resender.turn() == 4
    charge = (await quarter.rows("charges"))[charge_id]
    assert (charge["refunded_minor"], charge["refunding_minor"]) == (4_000, 0)


# --- what is decided --------------------------------------------------------------------------------------------


async def test_a_released_one_is_sent_once_by_one_of_three(quarter: Quarter, desk: Desk) -> None:
    """Three api processes look at once, again and again: one request leaves, and the key has its final answer."""
    far = FarSide()
    pages = [quarter.page(far) for _ in range(3)]
    refund = await held(pages[0])
    before = (await quarter.movements())[refund["id"]]
    decided = await desk.decide(quarter, refund["id"])
    assert (decided.refund_id, decided.amount_minor) == (refund["id"], LIMIT + 1)
    for _ in range(2):
        await asyncio.gather(*(page.resender.turn() for page in pages for _ in range(3)))
    assert refunds_sent(pages[0]) == [refund["id"]]
    (sent,) = [movement for movement in far.sent if movement.movement_id == refund["id"]]
    assert (sent.sends, sent.epoch, sent.amount_minor, sent.reference) == (1, 1, LIMIT + 1, before["reference"])
    assert sent.not_after > before["not_after"]
    final = await ask(pages[1], LIMIT + 1, of=refund["charge"])
    assert (final.status, shown(final)) == (201, refund | {"status": "succeeded"})
    assert await ask(pages[2], LIMIT + 1, of=refund["charge"]) == final
    assert await told(quarter, refund["id"]) == [
        ("api", "refund.requested", "done"),
        ("admin", "refund.approved", "done"),
        ("api", "refund.released", "done"),
        ("api", "refund.done", "done"),
    ]


async def test_a_rejected_one_never_happens(quarter: Quarter, desk: Desk) -> None:
    """It ends with 502 that says why, nothing is sent, and its money can be refunded again."""
    page = quarter.page()
    refund = await held(page)
    await desk.decide(quarter, refund["id"], "rejected")
    assert await page.resender.turn() == 1
    assert await page.resender.turn() == 0
    final = await ask(page, LIMIT + 1, of=refund["charge"])
    problem = msgspec.json.decode(final.body)
    assert (final.status, problem["type"].rpartition("/")[2]) == (502, "refund-failed")
    assert problem["detail"].startswith("An approver rejected it; nothing was given back.")
    assert shown(final)["status"] == await status_of(page, refund["id"]) == "failed"
    assert await told(quarter, refund["id"]) == [
        ("api", "refund.requested", "done"),
        ("admin", "refund.disapproved", "done"),
        ("api", "refund.rejected", "refused"),
    ]
    assert refunds_sent(page) == []
    assert (await ask(page, CAPTURED, "other", of=refund["charge"], limit=None)).status == 201


async def test_fifty_decide_at_once(quarter: Quarter, desk: Desk) -> None:
    """Half approve and half reject: one verdict stands, with one audit row, and everybody else is told so."""
    page = quarter.page()
    refund = await held(page)
    verdicts: list[Verdict] = ["approved", "rejected"]
    ends = await asyncio.gather(
        *(desk.decide(quarter, refund["id"], verdicts[n % 2]) for n in range(50)), return_exceptions=True
    )
    assert Counter(type(end) for end in ends) == {WaitingRefund: 1, AlreadyDecided: 49}
    said = verdicts[next(n for n, end in enumerate(ends) if isinstance(end, WaitingRefund)) % 2]
    await page.resender.turn()
    assert await status_of(page, refund["id"]) == {"approved": "succeeded", "rejected": "failed"}[said]
    assert [process for process, _, _ in await told(quarter, refund["id"])].count("admin") == 1
    for verdict in verdicts:
        with pytest.raises(AlreadyDecided):
            await desk.decide(quarter, refund["id"], verdict)


async def test_an_erased_card_does_not_hinder_it(quarter: Quarter, desk: Desk) -> None:
    """A refund needs no card: the token may be erased while it waits, and the approver is shown none."""
    page = quarter.page()
    token = (await page.token(CARD))["id"]
    charge_id = (await page.charge("charge", token=token))["id"]
    refund = await held(page, of=charge_id)
    await page.erase(token)
    (waiting,) = await desk.approvals.waiting(staff(quarter.department))
    assert (waiting.brand, waiting.last4) == (None, None)
    await desk.decide(quarter, refund["id"])
    await page.resender.turn()
    assert await status_of(page, refund["id"]) == "succeeded"


# --- who dies in between ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("finds", "status"), [(Approved("pass"), "succeeded"), (Unseen(Offers(cancel=True)), "failed")]
)
async def test_who_dies_with_a_released_one_leaves_it_to_the_worker(
    quarter: Quarter, desk: Desk, finds: Any, status: str
) -> None:
    """After that it is a movement like any other: nobody sends it anew, and the processor's word decides."""

    async def die(point: Point) -> None:
        if point is Point.COMMITTED and dying:
            raise asyncio.CancelledError

    dying = False
    page = quarter.page(FarSide(finds=finds), die)
    refund = await held(page)
    await desk.decide(quarter, refund["id"])
    dying = True
    with pytest.raises(asyncio.CancelledError):
        await page.resender.turn()
    dying = False
    assert await status_of(page, refund["id"]) == "pending"
    assert await page.resender.turn() == 0
    await quarter.expire()
    assert await quarter.recovery(page.far).turn() == 1
    assert await status_of(page, refund["id"]) == status
    assert refunds_sent(page) == []


async def test_a_released_one_that_cannot_be_sent_has_failed(quarter: Quarter, desk: Desk) -> None:
    """No byte left: as with any refund that is sent for the first time it is certain that nothing happened."""
    page = quarter.page()
    refund = await held(page)
    await desk.decide(quarter, refund["id"])
    page.far.sends = NotSent()
    await page.resender.turn()
    final = await ask(page, LIMIT + 1, of=refund["charge"])
    assert (final.status, msgspec.json.decode(final.body)["detail"]) == (502, "Nothing was changed. Use a new key.")


class Forgetful(OwnLedger):
    """A store that has committed a refund, and learns so only after something else has happened."""

    meanwhile: Callable[[str], Any]

    def __init__(self, database: Database, department: str) -> None:
        super().__init__(database, department)
        self._batches = Losing(self, database)


class Losing(Batches):
    """Batches that lose the commit of whatever begins."""

    def __init__(self, store: Forgetful, database: Database) -> None:
        super().__init__(database, load_queries("gateway.store", "steps.sql"))
        self.store = store

    async def do(self, department: str, steps: Callable[[], Steps[T]], *names: str, asks_once: bool = False) -> T:
        done = await super().do(department, steps, *names, asks_once=asks_once)
        if isinstance(done, Begun):
            await self.store.meanwhile(done.movement.movement_id)
            raise CommitUnknown
        return done


@pytest.mark.parametrize("verdict", [None, "approved", "rejected"])
async def test_a_commit_that_was_lost_sends_nothing_twice(
    quarter: Quarter, desk: Desk, verdict: Verdict | None
) -> None:
    """Decided, and even sent by somebody else, before we know that it was committed: we tell, and do not send."""
    page = quarter.page()

    async def meanwhile(refund_id: str) -> None:
        if verdict is not None:
            await desk.decide(quarter, refund_id, verdict)
            await page.resender.turn()

    store = Forgetful(quarter.api, quarter.department)
    store.meanwhile = meanwhile
    page.movements._store = store
    answer = await ask(page, LIMIT + 1)
    assert answer.status == {None: 202, "approved": 201, "rejected": 502}[verdict]
    assert len(refunds_sent(page)) == (verdict == "approved")
    assert await ask(page, LIMIT + 1, of=shown(answer)["charge"]) == answer


@pytest.mark.parametrize(("cut", "written"), [(Cut.BEFORE_COMMIT, False), (Cut.BEFORE_ANSWER, True)])
async def test_a_verdict_whose_commit_was_lost(
    quarter: Quarter, desk: Desk, postgres: Postgres, wire: Wire, cut: Cut, written: bool
) -> None:
    """Nobody can tell: the approver is told to look, and the look tells. It was written whole or not at all."""
    page = quarter.page()
    refund = await held(page)
    arguments = postgres.arguments("admin", port=wire.port) | {"database": quarter.database}
    database = await Database.open(arguments, 1)
    wire.cut_at(cut)
    with pytest.raises(Unavailable, match="still waits"):
        await desk_on(database, quarter).decide(quarter, refund["id"])
    await database.close()
    assert (await desk.waiting(quarter.department) == []) is written
    assert ("admin", "refund.approved", "done") in await told(quarter, refund["id"]) or not written


# --- who may ----------------------------------------------------------------------------------------------------


async def test_an_approver_is_shown_the_own_departments(quarter: Quarter, town: City, desk: Desk) -> None:
    """Oldest first, with what it takes to decide; `*` shows all of them, and what was decided about is gone."""
    other = await quarter_of(town, "quarter_" + secrets.token_hex(4))
    page, there = quarter.page(), other.page()
    mine = [(await held(page, key=f"key-{n}"))["id"] for n in range(3)]
    theirs = (await held(there))["id"]
    assert await desk.waiting(quarter.department) == mine
    assert await desk.waiting(quarter.department, other.department) == [*mine, theirs]
    assert {*mine, theirs} <= set(await desk.waiting("*"))
    assert await desk.waiting() == []
    first = (await desk.store.waiting([quarter.department], 1))[0]
    assert (first.refund_id, first.department, first.reference) == (mine[0], quarter.department, "R-1")
    assert (first.amount_minor, first.currency, first.brand) == (LIMIT + 1, "USD", "visa")
    assert first.application == caller(quarter.department).application_id
    await desk.decide(quarter, mine[0], "rejected")
    assert await desk.waiting(quarter.department) == mine[1:]


async def test_another_departments_refund_is_none(quarter: Quarter, town: City, desk: Desk) -> None:
    """To decide about it, about nothing at all, and about an own movement that is no refund: the same refusal."""
    other = await quarter_of(town, "quarter_" + secrets.token_hex(4))
    theirs = (await held(other.page()))["id"]
    await ask(quarter.page(), LIMIT)
    (sale,) = [row["movement_id"] for row in (await quarter.movements()).values() if row["kind"] == "sale"]
    refusals = []
    for refund_id in (theirs, "re_" + "a" * 26, sale, "", "'; --"):
        with pytest.raises(NotFound) as caught:
            await desk.decide(quarter, refund_id)
        refusals.append(caught.value.detail)
    assert len(set(refusals)) == 1
    assert await desk.waiting(other.department) == [theirs]


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.APPROVER])
async def test_only_an_approver_decides(quarter: Quarter, desk: Desk, role: Role) -> None:
    """Finance and auditors may look; records may not even that. Nobody learns whether there is such a refund."""
    refund = await held(quarter.page())
    who = staff("*", role=role)
    for refund_id in (refund["id"], "re_none"):
        with pytest.raises(NotPermitted):
            await desk.approvals.decide(who, refund_id, "approved", "req_2")
    if role is Role.RECORDS:
        with pytest.raises(NotPermitted):
            await desk.approvals.waiting(who)
    else:
        assert refund["id"] in [each.refund_id for each in await desk.approvals.waiting(who)]


async def test_what_never_waited_cannot_be_decided(quarter: Quarter, desk: Desk) -> None:
    """A refund within the limit, done or lost on the way, takes no verdict."""
    page = quarter.page()
    done = shown(await ask(page, LIMIT))
    page.far.sends = CANNOT_TELL
    lost = shown(await ask(page, 1, "other", limit=None, of=done["charge"]))
    for refund in (done, lost):
        with pytest.raises(AlreadyDecided):
            await desk.decide(quarter, refund["id"])
        assert "admin" not in {process for process, _, _ in await told(quarter, refund["id"])}


@pytest.mark.parametrize("what", ["applications SET revoked_at", "departments SET disabled_at"])
async def test_who_is_revoked_gives_nothing_back(quarter: Quarter, desk: Desk, what: str) -> None:
    """A refund that an application asked for before it was stopped is shown as such, and can be rejected only."""
    refund = await held(quarter.page())
    await quarter.owner.execute(f"UPDATE gateway.{what} = now() WHERE department_id = $1", quarter.department)
    (waiting,) = await desk.approvals.waiting(staff(quarter.department))
    assert waiting.suspended
    with pytest.raises(NotPermitted, match="rejected only"):
        await desk.decide(quarter, refund["id"])
    await desk.decide(quarter, refund["id"], "rejected")


async def test_small_refunds_do_not_add_up_past_the_approver(quarter: Quarter, desk: Desk) -> None:
    """What was given back of a charge before counts, and what waits, too."""
    page = quarter.page()
    first = shown(await ask(page, LIMIT - 1))
    second = shown(await ask(page, 1, "second", of=first["charge"]))
    assert [refund["status"] for refund in (first, second)] == ["succeeded", "succeeded"]
    await held(page, 1, "third", of=first["charge"])


# --- walls in the database --------------------------------------------------------------------------------------

VERDICT = "INSERT INTO gateway.refund_approvals VALUES ($1, $2, 'approved', $3, now())"


async def test_the_admin_role_adds_verdicts_and_no_more(
    quarter: Quarter, town: City, desk: Desk, role: Callable[..., Any]
) -> None:
    """One for the department that it works for, not for another's, none twice; and it changes and removes nothing."""
    other = await quarter_of(town, "quarter_" + secrets.token_hex(4))
    theirs, mine = (await held(other.page()))["id"], (await held(quarter.page()))["id"]
    admin = await role("admin", quarter.department)
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
        await admin.execute(VERDICT, other.department, theirs, APPROVER)
    auditor, elsewhere, gone = (f"st_{secrets.token_hex(4)}" for _ in range(3))
    await employ(town.owner, auditor, role="auditor")
    await employ(town.owner, elsewhere, other.department)
    await employ(town.owner, gone)
    await town.owner.execute("UPDATE gateway.staff SET disabled_at = now() WHERE staff_id = $1", gone)
    for name in ("nobody", auditor, elsewhere, gone):
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            await admin.execute(VERDICT, quarter.department, mine, name)
    await admin.execute(VERDICT, quarter.department, mine, APPROVER)
    with pytest.raises(asyncpg.UniqueViolationError):
        await admin.execute(VERDICT, quarter.department, mine, APPROVER)
    for statement in (
        "UPDATE gateway.refund_approvals SET verdict = 'rejected'",
        "DELETE FROM gateway.refund_approvals",
        "UPDATE gateway.movements SET progress = 'sending'",
        "UPDATE gateway.charges SET refunding_minor = 0",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await admin.execute(statement)


async def test_no_other_role_writes_a_verdict(quarter: Quarter, role: Callable[..., Any]) -> None:
    """Least of all the api, which would obey it."""
    refund = await held(quarter.page())
    for process in ("api", "worker", "reseal", "keys"):
        connection = await role(process, quarter.department)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(VERDICT, quarter.department, refund["id"], APPROVER)


async def test_what_waits_moves_for_nobody_without_a_verdict(
    quarter: Quarter, desk: Desk, role: Callable[..., Any]
) -> None:
    """Whatever the code does: neither the api nor a worker can send it, end it or take it."""
    refund = await held(quarter.page())
    release = "UPDATE gateway.movements SET progress = 'failed' WHERE movement_id = $1"
    processes = [await role(process, quarter.department) for process in ("api", "worker")]
    assert [await connection.execute(release, refund["id"]) for connection in processes] == ["UPDATE 0"] * 2
    await desk.decide(quarter, refund["id"], "rejected")
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
        await processes[0].execute(release.replace("failed", "sending"), refund["id"])
    assert [await connection.execute(release, refund["id"]) for connection in processes[::-1]] == [
        "UPDATE 0",
        "UPDATE 1",
    ]


async def test_a_query_without_its_department_is_stopped(quarter: Quarter, town: City, desk: Desk) -> None:
    """With every predicate gone, row-level security shows a look of staff the departments that it named, no other."""
    other = await quarter_of(town, "quarter_" + secrets.token_hex(4))
    mine, theirs = (await held(quarter.page()))["id"], (await held(other.page()))["id"]
    look = "SELECT movement_id FROM gateway.movements WHERE movement_id = ANY($1) ORDER BY created_at"
    for named, seen in (([quarter.department], [mine]), ([quarter.department, other.department], [mine, theirs])):
        async with desk.database.reading_departments(named) as connection:
            assert [row[0] for row in await connection.fetch(look, [mine, theirs])] == seen
    async with desk.database.reading_departments([]) as connection:
        for table in ("movements", "charges", "tokens", "journal", "services", "refund_approvals"):
            assert await connection.fetchval(f"SELECT count(*) FROM gateway.{table}") == 0
    with pytest.raises(AssertionError, match="not a department"):
        async with desk.database.reading_departments(["parks", "a','b"]):
            pass
