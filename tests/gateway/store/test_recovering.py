"""The worker on a real database: what it does about each case, and that no case holds up another."""

import asyncio
import json
from collections import Counter
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from gateway.rules.lifecycle import Kind
from gateway.rules.recovery import CLOCK_SKEW_S, INQUIRY_LAG_S, PATIENCE_S, SENDS_MAX, Offers
from gateway.services.points import Point
from gateway.services.ports import (
    Absent,
    Approved,
    Cancellation,
    Declined,
    Inquiry,
    Movement,
    NotFound,
    Unknown,
)
from gateway.services.recovery import CASES_A_TURN, HOLD_S_MAX, POISON_LOOKS
from gateway.store import batch
from gateway.store.database import Disturbed
from tests.gateway.store.city import City, Page, caller, given
from tests.gateway.store.far import FarSide
from tests.gateway.store.quarter import Quarter, quarter_of

pytestmark = pytest.mark.server

CARD = 73_001
DAY_S = 86_400.0
A = NotFound(Offers(dedupe_window_s=DAY_S, cancel=True))
B = NotFound(Offers(cancel=True))
C = NotFound(Offers(expiry=True))
D = NotFound(Offers())
REFUSED = Declined("fail", "soft", "05")
LATE_S = CLOCK_SKEW_S + INQUIRY_LAG_S


async def lost(page: Page, kind: Kind = Kind.SALE, *, cvc: bool = False) -> str:
    """A movement whose answer never came; gives its id."""
    key = f"key-{len(page.far.sent)}"
    if kind in {Kind.SALE, Kind.AUTHORIZATION}:
        page.far.sends = Unknown("timeout")
        await page.ask(key, card=given(CARD, cvc=cvc), capture=kind is Kind.SALE)
    else:
        page.far.sends = Approved("pass")
        made = await page.charge(f"first-{key}", card=CARD, capture=kind is Kind.REFUND)
        page.far.sends = Unknown("timeout")
        await page.move(kind, made["id"], key)
    return page.far.sent[-1].movement_id


async def turn(quarter: Quarter, far: FarSide, *, older_s: float = 0.0) -> int:
    """One turn of a worker, when everybody's time is over."""
    await quarter.expire(older_s)
    return await quarter.recovery(far).turn()


async def row_of(quarter: Quarter, movement_id: str) -> asyncpg.Record:
    """A movement as it is stored."""
    return (await quarter.movements())[movement_id]


async def held_s(quarter: Quarter, movement_id: str) -> float:
    """For how long nobody takes it."""
    row = await row_of(quarter, movement_id)
    now = await quarter.owner.fetchval("SELECT now()")
    held: float = (row["lease_until"] - now).total_seconds()
    return held


async def reasons(quarter: Quarter, event: str) -> list[tuple[str, str]]:
    """Outcome and reason of the worker's audit rows of this event."""
    return [(row["outcome"], row["reason"]) for row in await quarter.events(event, "worker")]


# --- every branch -----------------------------------------------------------------------------------------------

FOUND: list[tuple[Inquiry, str, str, tuple[str, str]]] = [
    (Approved("pass"), "done", "charge.captured", ("done", "inquiry")),
    (REFUSED, "refused", "charge.declined", ("refused", "inquiry")),
    (Absent(), "failed", "charge.failed", ("failed", "cancelled")),
]


@pytest.mark.parametrize(("found", "progress", "event", "told"), FOUND)
async def test_what_the_processor_knows_is_written_down(
    quarter: Quarter, found: Inquiry, progress: str, event: str, told: tuple[str, str]
) -> None:
    """Done, refused or void: at once, with its audit row, and the case is closed."""
    page = quarter.page(FarSide(finds=found))
    movement_id = await lost(page)
    assert await turn(quarter, page.far) == 1
    row = await row_of(quarter, movement_id)
    assert (row["progress"], row["epoch"], row["looks"]) == (progress, 1, 1)
    assert await reasons(quarter, event) == [told]
    assert await turn(quarter, page.far) == 0
    assert page.far.cancelled == []


CANCELLED: list[tuple[Cancellation, str, tuple[str, str] | None]] = [
    (Absent(), "failed", ("failed", "cancelled")),
    (Approved("pass"), "done", ("done", "inquiry")),
    (REFUSED, "refused", ("refused", "inquiry")),
    (Unknown("not_offered"), "unknown", None),
]


@pytest.mark.parametrize(("said", "progress", "told"), CANCELLED)
@pytest.mark.parametrize(("offers", "cvc"), [(B, False), (B, True), (A, True)])
async def test_what_cannot_be_sent_again_is_cancelled(
    quarter: Quarter, offers: NotFound, cvc: bool, said: Cancellation, progress: str, told: tuple[str, str] | None
) -> None:
    """Void from then on, or whatever was decided meanwhile; an unclear cancel changes nothing and is tried again."""
    page = quarter.page(FarSide(finds=offers, cancels=said))
    movement_id = await lost(page, cvc=cvc)
    await turn(quarter, page.far)
    assert [movement.movement_id for movement in page.far.cancelled] == [movement_id]
    assert (await row_of(quarter, movement_id))["progress"] == progress
    rows = [row for event in ("captured", "declined", "failed") for row in await reasons(quarter, f"charge.{event}")]
    assert rows == ([told] if told else [])
    await turn(quarter, page.far)
    assert len(page.far.cancelled) == (1 if told else 2)
    assert len(page.far.sent) == 1


@pytest.mark.parametrize("kind", Kind)
async def test_what_can_be_sent_again_is_marked(quarter: Quarter, kind: Kind) -> None:
    """The worker sends and cancels nothing; it marks, for less than half of the window, and gives it back."""
    page = quarter.page(FarSide(finds=A))
    movement_id = await lost(page, kind)
    sent = len(page.far.sent)
    await turn(quarter, page.far, older_s=100.0)
    row = await row_of(quarter, movement_id)
    now = await quarter.owner.fetchval("SELECT now()")
    assert DAY_S / 2 - 105 < (row["resend_until"] - now).total_seconds() <= DAY_S / 2 - 100
    assert (row["progress"], row["sends"]) == ("unknown", 1)
    assert 0 < await held_s(quarter, movement_id) <= 1
    assert (len(page.far.sent), page.far.cancelled) == (sent, [])


async def test_what_was_sent_often_enough_is_cancelled(quarter: Quarter) -> None:
    """After so many sendings that the processor does not know it is made void instead."""
    page = quarter.page(FarSide(finds=A))
    movement_id = await lost(page)
    for _ in range(SENDS_MAX - 1):
        await turn(quarter, page.far)
        assert await page.resender.turn() == 1
    assert (await row_of(quarter, movement_id))["sends"] == SENDS_MAX == len(page.far.sent)
    await turn(quarter, page.far)
    assert len(page.far.cancelled) == 1
    assert (await row_of(quarter, movement_id))["progress"] == "failed"


async def test_what_expires_is_waited_for(quarter: Quarter) -> None:
    """Until no clock can be before its `not_after`; then what the processor still does not know never happened."""
    page = quarter.page(FarSide(finds=C))
    movement_id = await lost(page)
    await turn(quarter, page.far, older_s=10 + LATE_S - 2)
    assert (await row_of(quarter, movement_id))["progress"] == "unknown"
    await turn(quarter, page.far, older_s=3.0)
    assert (await row_of(quarter, movement_id))["progress"] == "failed"
    assert await reasons(quarter, "charge.failed") == [("failed", "expired")]


@pytest.mark.parametrize(
    ("found", "older_s", "reason"), [(D, PATIENCE_S, "undecidable"), (A, DAY_S, "window_passed")]
)
async def test_what_nobody_can_decide_is_parked(
    quarter: Quarter, found: NotFound, older_s: float, reason: str
) -> None:
    """In review, with the reason, once; and still asked for, so that a late answer ends it after all."""
    page = quarter.page(FarSide(finds=found))
    movement_id = await lost(page)
    await turn(quarter, page.far, older_s=older_s)
    assert (await row_of(quarter, movement_id))["progress"] == "in_review"
    assert await reasons(quarter, "charge.in_review") == [("failed", reason)]
    charge_id = page.far.sent[0].charge_id
    assert (await page.charges.show(caller(quarter.department), charge_id)).status == "in_review"
    for pause_s in (2, 4):
        assert await turn(quarter, page.far) == 1
        assert await held_s(quarter, movement_id) == pytest.approx(pause_s, abs=0.9)
    assert len(await reasons(quarter, "charge.in_review")) == 1
    page.far.finds = Approved("pass")
    await turn(quarter, page.far)
    assert (await page.charges.show(caller(quarter.department), charge_id)).status == "succeeded"


async def test_before_patience_is_over_nothing_is_parked(quarter: Quarter) -> None:
    """A young movement may still be on its way."""
    page = quarter.page(FarSide(finds=D))
    movement_id = await lost(page)
    await turn(quarter, page.far, older_s=PATIENCE_S - 3)
    assert (await row_of(quarter, movement_id))["progress"] == "unknown"


@pytest.mark.parametrize("kind", Kind)
async def test_a_worker_that_learns_nothing_comes_back_later_and_later(quarter: Quarter, kind: Kind) -> None:
    """Twice as long each time, up to a quarter of a minute, for as long as it takes; then it is what was found."""
    page = quarter.page(FarSide(finds=Unknown("timeout")))
    movement_id = await lost(page, kind)
    for looks, pause_s in enumerate((1, 2, 4, 8, 15, 15, 15), start=1):
        await turn(quarter, page.far)
        assert await held_s(quarter, movement_id) == pytest.approx(pause_s, abs=0.9)
        assert (await row_of(quarter, movement_id))["looks"] == looks
    assert (await row_of(quarter, movement_id))["progress"] == "unknown"
    page.far.finds = Approved("pass")
    await turn(quarter, page.far)
    assert (await row_of(quarter, movement_id))["progress"] == "done"


# --- who holds it too long --------------------------------------------------------------------------------------


def pausing(quarter: Quarter, seconds: float) -> Any:
    """Points at which that much time passes after the processor was asked."""

    async def pause(reached: Point) -> None:
        if reached is Point.INQUIRED:
            quarter.clock.ahead_s += seconds

    return pause


@pytest.mark.parametrize("found", [A, B, D, Approved("pass"), Absent(), Unknown("timeout")])
async def test_who_has_held_a_case_too_long_lets_it_go(quarter: Quarter, found: Inquiry) -> None:
    """A worker that slept does nothing more: no cancel, no mark, no outcome. Whoever takes it next does."""
    page = quarter.page(FarSide(finds=found))
    movement_id = await lost(page)
    await quarter.expire()
    assert await quarter.recovery(page.far, pausing(quarter, HOLD_S_MAX + 0.1)).turn() == 1
    row = await row_of(quarter, movement_id)
    assert (row["progress"], row["resend_until"], row["epoch"]) == ("unknown", None, 1)
    assert page.far.cancelled == []
    assert await held_s(quarter, movement_id) > 10


async def test_who_sleeps_for_less_goes_on(quarter: Quarter) -> None:
    """Up to the bound everything is well within the lease."""
    page = quarter.page(FarSide(finds=Approved("pass")))
    movement_id = await lost(page)
    await quarter.expire()
    await quarter.recovery(page.far, pausing(quarter, HOLD_S_MAX - 1)).turn()
    assert (await row_of(quarter, movement_id))["progress"] == "done"


async def test_a_sleeper_that_wakes_up_overtaken_writes_nothing(quarter: Quarter) -> None:
    """Between its cancel and its write another worker has ended the case: that stands."""
    far = FarSide(finds=B)
    page = quarter.page(far)
    movement_id = await lost(page)

    async def overtaken(reached: Point) -> None:
        if reached is Point.CANCELLED:
            await quarter.expire()
            other = FarSide(finds=REFUSED)
            assert await quarter.recovery(other).turn() == 1

    await quarter.expire()
    await quarter.recovery(far, overtaken).turn()
    row = await row_of(quarter, movement_id)
    assert (row["progress"], row["epoch"]) == ("refused", 2)
    assert await reasons(quarter, "charge.failed") == []


# --- one case, and the others -----------------------------------------------------------------------------------


class Poisoned(FarSide):
    """A processor whose answer about one movement breaks whoever reads it."""

    poison = ""

    async def inquire(self, movement: Movement) -> Inquiry:
        found = await super().inquire(movement)
        if movement.movement_id == self.poison:
            raise ZeroDivisionError
        return found


async def test_a_case_that_breaks_the_worker_is_parked(quarter: Quarter) -> None:
    """The others are ended in the same turn; it is tried a few times, then in review, and ended once it can be."""
    far = Poisoned(finds=Approved("pass"))
    page = quarter.page(far)
    far.poison = await lost(page)
    for looks in range(1, POISON_LOOKS + 1):
        other = await lost(page)
        with capture_logs() as logs:
            assert await turn(quarter, far) == 2
        assert "recovery.case_failed" in {entry["event"] for entry in logs}
        assert (await row_of(quarter, other))["progress"] == "done"
        stands = "in_review" if looks == POISON_LOOKS else "unknown"
        assert (await row_of(quarter, far.poison))["progress"] == stands
    assert await reasons(quarter, "charge.in_review") == [("failed", "worker_failed")]
    with capture_logs():
        await turn(quarter, far)
    assert len(await reasons(quarter, "charge.in_review")) == 1
    poison, far.poison = far.poison, ""
    await turn(quarter, far)
    assert (await row_of(quarter, poison))["progress"] == "done"


async def test_a_poisoned_log_line_names_no_case(quarter: Quarter) -> None:
    """What is logged of a broken case is the class of the error."""
    far = Poisoned(finds=Approved("pass"))
    far.poison = await lost(quarter.page(far))
    with capture_logs() as logs:
        await turn(quarter, far)
    (line,) = (entry for entry in logs if entry["event"] == "recovery.case_failed")
    assert line == {"event": "recovery.case_failed", "error": "ZeroDivisionError", "log_level": "error"}


async def test_more_cases_than_a_turn_takes(quarter: Quarter) -> None:
    """So many at a time, those that wait longest first, until none is left."""
    page = quarter.page(FarSide(finds=Approved("pass")))
    for _ in range(CASES_A_TURN + 4):
        await lost(page)
    worker = quarter.recovery(page.far)
    await quarter.expire()
    assert [await worker.turn() for _ in range(3)] == [CASES_A_TURN, 4, 0]
    assert {row["progress"] for row in (await quarter.movements()).values()} == {"done"}


async def test_workers_share_the_cases(quarter: Quarter) -> None:
    """Several at once: every case is asked for by one of them, once."""
    page = quarter.page(FarSide(finds=Approved("pass")))
    for _ in range(30):
        await lost(page)
    await quarter.expire()

    async def work() -> int:
        worker, cases = quarter.recovery(page.far), 0
        while taken := await worker.turn():
            cases += taken
        return cases

    assert sum(await asyncio.gather(*(work() for _ in range(4)))) == 30
    asked = Counter(movement.movement_id for movement in page.far.inquired)
    assert len(asked) == 30
    assert set(asked.values()) == {1}


async def test_a_write_that_fails_is_made_later(quarter: Quarter, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one movement's outcome cannot be written the others are, and it is as soon as it can."""
    monkeypatch.setattr(batch, "ACQUIRE_TIMEOUT_S", 0.5)
    page = quarter.page(FarSide(finds=Approved("pass")))
    refused, other = await lost(page), await lost(page)
    await quarter.owner.execute(
        "CREATE FUNCTION gateway.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;"
        "CREATE TRIGGER refuse BEFORE UPDATE ON gateway.movements FOR EACH ROW WHEN"
        f" (NEW.movement_id = '{refused}' AND NEW.progress = 'done') EXECUTE FUNCTION gateway.refuse()"
    )
    try:
        with capture_logs():
            assert await turn(quarter, page.far) == 2
    finally:
        await quarter.owner.execute("DROP TRIGGER refuse ON gateway.movements; DROP FUNCTION gateway.refuse")
    stands = await quarter.movements()
    assert (stands[refused]["progress"], stands[other]["progress"]) == ("unknown", "done")
    await turn(quarter, page.far)
    assert (await row_of(quarter, refused))["progress"] == "done"


async def test_a_worker_looks_into_every_department(town: City) -> None:
    """What waits in one is not held up by what waits, or breaks, in another."""
    far = Poisoned(finds=Approved("pass"))
    quarters = [await quarter_of(town, f"district_{letter}") for letter in "abc"]
    movement_ids = [await lost(quarter.page(far)) for quarter in quarters]
    far.poison = movement_ids[0]
    await town.expire()
    with capture_logs():
        await town.recovery(far).turn()
    for quarter, movement_id, progress in zip(quarters, movement_ids, ("unknown", "done", "done"), strict=True):
        assert (await row_of(quarter, movement_id))["progress"] == progress


async def test_it_runs_for_ever(quarter: Quarter) -> None:
    """Turn after turn; an error of a whole turn is logged, and the next turn goes on."""
    page = quarter.page(FarSide(finds=Approved("pass")))
    movement_id = await lost(page)
    await quarter.expire()
    await quarter.owner.execute("REVOKE SELECT ON gateway.movements FROM gateway_worker")
    with capture_logs() as logs:
        running = asyncio.create_task(quarter.recovery(page.far).run())
        try:
            async with asyncio.timeout(5):
                while not any(entry["event"] == "recovery.turn_failed" for entry in logs):
                    await asyncio.sleep(0.01)
                await quarter.owner.execute("GRANT SELECT ON gateway.movements TO gateway_worker")
                while (await row_of(quarter, movement_id))["progress"] != "done":
                    await asyncio.sleep(0.05)
        finally:
            await quarter.owner.execute("GRANT SELECT ON gateway.movements TO gateway_worker")
            running.cancel()
            await asyncio.wait([running])
    assert {entry["error"] for entry in logs if entry["event"] == "recovery.turn_failed"} == {Disturbed.__name__}


async def test_a_lost_answer_is_found_within_the_contract_s_time(quarter: Quarter) -> None:
    """An unclear charge is asked for at most two seconds after it was answered 202, by a worker that just runs."""
    page = quarter.page(FarSide(finds=Approved("pass")))
    running = asyncio.create_task(quarter.recovery(page.far).run())
    try:
        movement_id = await lost(page)
        async with asyncio.timeout(2):
            while (await row_of(quarter, movement_id))["progress"] != "done":
                await asyncio.sleep(0.02)
    finally:
        running.cancel()
        await asyncio.wait([running])


class Slow(FarSide):
    """A processor that takes its time over one movement."""

    slow = ""

    async def inquire(self, movement: Movement) -> Inquiry:
        if movement.movement_id == self.slow:
            await asyncio.sleep(3.0)
            return Unknown("timeout")
        return await super().inquire(movement)


async def test_a_slow_case_holds_up_no_other(quarter: Quarter) -> None:
    """Within the same two seconds also while the processor is silent about another movement, again and again."""
    far = Slow(finds=Approved("pass"))
    page = quarter.page(far)
    far.slow = await lost(page)
    await quarter.expire()
    running = asyncio.create_task(quarter.recovery(far).run())
    try:
        for _ in range(3):
            await asyncio.sleep(0.3)
            fresh = await lost(page)
            async with asyncio.timeout(2):
                while (await row_of(quarter, fresh))["progress"] != "done":
                    await asyncio.sleep(0.02)
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_what_was_recovered_is_true_to_the_journal(quarter: Quarter) -> None:
    """What the worker found done is posted once, in the amount of the movement."""
    page = quarter.page(FarSide(finds=Approved("pass")))
    movement_ids = [await lost(page, kind) for kind in Kind]
    await turn(quarter, page.far)
    posted = await quarter.owner.fetch(
        "SELECT movement_id, debit, credit, amount_minor FROM gateway.journal WHERE movement_id = ANY($1)",
        movement_ids,
    )
    kinds = dict(zip(movement_ids, Kind, strict=True))
    assert sorted(
        (kinds[row["movement_id"]], row["debit"], row["credit"], row["amount_minor"]) for row in posted
    ) == [
        (Kind.CAPTURE, "processor_due", "receivable", 4_321),
        (Kind.REFUND, "refunds", "processor_due", 4_321),
        (Kind.SALE, "processor_due", "receivable", 4_321),
    ]
    answers = await quarter.owner.fetch(
        "SELECT i.body FROM gateway.idempotency i JOIN gateway.movements m ON m.department_id = i.department_id"
        " AND m.route = i.route AND m.idempotency_key = i.idempotency_key WHERE m.movement_id = ANY($1)",
        movement_ids,
    )
    statuses = Counter(json.loads(row["body"])["status"] for row in answers)
    assert statuses == {"succeeded": 3, "authorized": 1, "voided": 1}
