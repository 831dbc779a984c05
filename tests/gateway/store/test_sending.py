"""Sending, on a real database: what is there before the first byte leaves, and what each outcome becomes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import product
from typing import Any

import asyncpg
import msgspec
import pytest
from structlog.testing import capture_logs

from gateway.errors import RequestInProgress, Unavailable
from gateway.rules.lifecycle import Kind, Progress
from gateway.rules.recovery import Offers
from gateway.services.points import Point
from gateway.services.ports import (
    Absent,
    Answer,
    Approved,
    Declined,
    Movement,
    NotFound,
    NotSent,
    Outcome,
    Payment,
    Unknown,
)
from gateway.services.sending import HELD_S_MAX
from gateway.store import batch
from gateway.store.database import Database
from tests.cards import canary
from tests.gateway.store.city import Page, given
from tests.gateway.store.far import FarSide
from tests.gateway.store.postgres import Cut, Wire
from tests.gateway.store.quarter import Quarter

pytestmark = pytest.mark.server

CARD = 72_001
KEY = "key"
DEDUPES = NotFound(Offers(dedupe_window_s=86_400.0, cancel=True))
REFUSED = Declined("fail", "soft", "05")
FIRST = (Kind.SALE, Kind.AUTHORIZATION)


async def prepared(page: Page, kind: Kind) -> dict[str, Any]:
    """What a movement of this kind needs to be asked for: a token, or a charge."""
    if kind in FIRST:
        return {"token": (await page.token(CARD, usage="single"))["id"]}
    made = await page.charge(f"first-of-{kind}", card=CARD, capture=kind is Kind.REFUND)
    page.far.sent.clear()
    return {"charge": made["id"]}


async def ask(page: Page, kind: Kind, token: str = "", charge: str = "") -> Answer:
    """Ask for it, always under one key."""
    if kind in FIRST:
        return await page.ask(KEY, token=token, capture=kind is Kind.SALE)
    return await page.move(kind, charge, KEY)


async def the_movement(quarter: Quarter, kind: Kind) -> asyncpg.Record:
    """The one movement of this kind."""
    (row,) = (row for row in (await quarter.movements()).values() if row["kind"] == kind)
    return row


# --- what each outcome becomes ----------------------------------------------------------------------------------

ENDS: list[tuple[Outcome, Progress]] = [
    (Approved("pass"), Progress.DONE),
    (REFUSED, Progress.REFUSED),
    (Absent(), Progress.FAILED),
    (NotSent(), Progress.FAILED),
    (Unknown("timeout"), Progress.UNKNOWN),
]
HTTP = {
    Progress.DONE: {Kind.SALE: 201, Kind.AUTHORIZATION: 201, Kind.CAPTURE: 200, Kind.VOID: 200, Kind.REFUND: 201},
    Progress.REFUSED: dict.fromkeys(Kind, 402),
    Progress.FAILED: dict.fromkeys(Kind, 502),
    Progress.UNKNOWN: dict.fromkeys(Kind, 202),
}
PROBLEMS = {
    Progress.FAILED: dict.fromkeys(FIRST, "charge-failed"),
    Progress.REFUSED: dict.fromkeys(FIRST, "card-declined"),
}
"""Of a charge that came to nothing; other movements have names of their own."""


@pytest.mark.parametrize(("kind", "end"), list(product(Kind, ENDS)), ids=lambda part: str(part)[:12])
async def test_every_outcome_is_committed_before_it_is_told(
    quarter: Quarter, kind: Kind, end: tuple[Outcome, Progress]
) -> None:
    """Done, refused, failed or unknown; the answer is repeated byte for byte, on any replica; nothing is resent."""
    outcome, progress = end
    page = quarter.page(FarSide())
    needs = await prepared(page, kind)
    page.far.sends = outcome
    answer = await ask(page, kind, **needs)
    assert answer.status == HTTP[progress][kind]
    assert (await the_movement(quarter, kind))["progress"] == progress
    if progress in PROBLEMS:
        problem = PROBLEMS[progress].get(kind, f"{kind}-{progress}")
        assert msgspec.json.decode(answer.body)["type"].endswith(f"/{problem}")
    for other in (page, quarter.page(page.far)):
        assert await ask(other, kind, **needs) == answer
    assert [movement.kind for movement in page.far.sent] == [kind]


async def test_an_unclear_answer_gives_way_once(quarter: Quarter) -> None:
    """202 as often as it is asked for, then the final answer for ever, whatever happens to the charge after it."""
    page = quarter.page(FarSide())
    made = await page.charge("first", card=CARD)
    page.far.sends = Unknown("timeout")
    first = await page.move(Kind.REFUND, made["id"], KEY, 1_000)
    assert (first.status, msgspec.json.decode(first.body)["status"]) == (202, "pending")
    assert first.location == f"/v1/refunds/{msgspec.json.decode(first.body)['id']}"
    assert await page.move(Kind.REFUND, made["id"], KEY, 1_000) == first
    page.far.finds = Approved("unchecked")
    await quarter.expire()
    await quarter.recovery(page.far).turn()
    final = await page.move(Kind.REFUND, made["id"], KEY, 1_000)
    assert (final.status, final.location, msgspec.json.decode(final.body)["status"]) == (201, None, "succeeded")
    page.far.sends = Approved("unchecked")
    assert (await page.move(Kind.REFUND, made["id"], "another", 2_000)).status == 201
    assert (await page.move(Kind.REFUND, made["id"], "rest")).status == 201
    assert await page.move(Kind.REFUND, made["id"], KEY, 1_000) == final


async def test_a_running_movement_is_left_alone(quarter: Quarter) -> None:
    """409 while the first request is at work, on whichever replica it is asked for."""
    for kind in (Kind.CAPTURE, Kind.VOID, Kind.REFUND):
        page = quarter.page(FarSide())
        needs = {"charge": (await page.charge(f"first-{kind}", card=CARD, capture=kind is Kind.REFUND))["id"]}
        page.far.sent.clear()
        page.far.reached.clear()
        page.far.held = True
        running = asyncio.create_task(ask(page, kind, **needs))
        await page.far.reached.wait()
        for other in (page, quarter.page(page.far)):
            with pytest.raises(RequestInProgress):
                await ask(other, kind, **needs)
        page.far.release()
        answer = await running
        assert await ask(page, kind, **needs) == answer
        assert len(page.far.sent) == 1


# --- before the first byte leaves -------------------------------------------------------------------------------


class Witness(FarSide):
    """A processor that looks at our database while it is asked."""

    def __init__(self, quarter: Quarter) -> None:
        super().__init__()
        self.quarter = quarter
        self.seen: list[tuple[str, str, list[str]]] = []
        self.open_transactions: list[int] = []

    async def send(self, movement: Movement, payment: Payment | None) -> Outcome:
        owner = self.quarter.owner
        row = await owner.fetchrow("SELECT * FROM gateway.movements WHERE movement_id = $1", movement.movement_id)
        assert row is not None
        subjects = [movement.charge_id, movement.movement_id]
        told = await owner.fetch(
            "SELECT event FROM audit.events WHERE subject = ANY($1) ORDER BY occurred_at", subjects
        )
        self.seen.append((row["progress"], row["reference"], [each["event"] for each in told]))
        busy = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'gateway_api' AND state LIKE 'idle in tr%'"
        self.open_transactions.append(await owner.fetchval(busy))
        return await super().send(movement, payment)


async def test_intent_and_audit_row_come_before_the_first_byte(quarter: Quarter) -> None:
    """When the processor is asked, the movement is there, its opening is audited, and no transaction is open."""
    far = Witness(quarter)
    page = quarter.page(far)
    token = (await page.token(CARD))["id"]
    held = await page.charge("k1", token=token, capture=False)
    await page.charge("k2", card=CARD)
    await page.move(Kind.CAPTURE, held["id"], "k3")
    await page.move(Kind.REFUND, held["id"], "k4")
    assert [progress for progress, _, _ in far.seen] == ["sending"] * 4
    assert [reference for _, reference, _ in far.seen] == [movement.reference for movement in far.sent]
    assert [told[-1] for _, _, told in far.seen] == [
        "card.opened",
        "card.received",
        "capture.requested",
        "refund.requested",
    ]
    assert far.open_transactions == [0] * 4


async def test_what_is_sent_is_what_was_sealed(quarter: Quarter) -> None:
    """The card and name of a token, without any code; of a charge's own card with the code; of the rest nothing."""
    page = quarter.page(FarSide())
    token = (await page.token(CARD, cvc=True))["id"]
    held = await page.charge("k1", token=token, capture=False)
    await page.ask("k2", card=given(CARD + 1, cvc=True))
    await page.move(Kind.VOID, held["id"], "k3")
    opened, brought, nothing = page.far.payments
    assert opened is not None
    assert brought is not None
    assert nothing is None
    assert (opened.card.number.reveal(), opened.card.expiry, opened.name.reveal(), opened.cvc) == (
        canary(CARD),
        "2031-12",
        "Ramona Testholder",
        None,
    )
    assert brought.card.number.reveal() == canary(CARD + 1)
    assert brought.cvc is not None
    assert brought.cvc.reveal() == "737"


@asynccontextmanager
async def trigger(owner: asyncpg.Connection, table: str, when: str) -> AsyncIterator[None]:
    """While inside, rows of this kind are refused by the database."""
    function = "CREATE FUNCTION gateway.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$"
    await owner.execute(function)
    await owner.execute(
        f"CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW WHEN ({when})"
        " EXECUTE FUNCTION gateway.refuse()"
    )
    try:
        yield
    finally:
        await owner.execute(f"DROP TRIGGER refuse ON {table}; DROP FUNCTION gateway.refuse")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is refused by a trigger is told so after half a second, not after five."""
    monkeypatch.setattr(batch, "ACQUIRE_TIMEOUT_S", 0.5)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.usefixtures("impatient")
async def test_no_audit_row_no_sending(quarter: Quarter, kind: Kind) -> None:
    """Where the audit row cannot be written nothing is opened, sent or kept, and the key is free."""
    page = quarter.page(FarSide())
    needs = await prepared(page, kind)
    before = await quarter.movements()
    async with trigger(quarter.owner, "audit.events", "true"):
        with capture_logs(), pytest.raises(Unavailable):
            await ask(page, kind, **needs)
    assert await quarter.movements() == before
    assert page.far.sent == []
    assert (await ask(page, kind, **needs)).status < 300


async def test_a_card_that_does_not_open_is_not_sent(quarter: Quarter) -> None:
    """502, nothing sent, an audit row that says why, and the single-use token is as it was."""
    page = quarter.page(FarSide())
    token = (await page.token(CARD, usage="single"))["id"]
    other = (await page.token(CARD))["id"]
    another = "SELECT sealed FROM gateway.tokens WHERE token_id = $1"
    await quarter.owner.execute(f"UPDATE gateway.tokens SET sealed = ({another}) WHERE token_id = $2", other, token)
    answer = await page.ask(KEY, token=token)
    assert answer.status == 502
    assert await page.ask(KEY, token=token) == answer
    assert page.far.sent == []
    told = await quarter.events("decrypt.failed", "api")
    assert [row["subject"] for row in told] == list(await quarter.rows("charges"))
    assert (await quarter.rows("tokens"))[token]["status"] == "active"


# --- an outcome that cannot be written --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.usefixtures("impatient")
async def test_an_outcome_that_the_database_refuses_is_unknown(quarter: Quarter, kind: Kind) -> None:
    """The processor has done it and we cannot write it down: 202, never failed; written later, and told then."""
    page = quarter.page(FarSide())
    needs = await prepared(page, kind)
    async with trigger(quarter.owner, "gateway.movements", "NEW.progress = 'done'"):
        with capture_logs() as logs:
            assert (await ask(page, kind, **needs)).status == 202
    assert "movement.outcome_not_stored" in {entry["event"] for entry in logs}
    assert (await the_movement(quarter, kind))["progress"] == "sending"
    page.far.finds = Approved("pass")
    await quarter.expire()
    await quarter.recovery(page.far).turn()
    assert (await ask(page, kind, **needs)).status == HTTP[Progress.DONE][kind]
    assert len(page.far.sent) == 1


@pytest.mark.parametrize("cut", [Cut.BEFORE_COMMIT, Cut.BEFORE_ANSWER])
async def test_an_outcome_whose_commit_was_lost_is_unknown(quarter: Quarter, wire: Wire, cut: Cut) -> None:
    """202 whether it was written or not; who repeats the request is told what is true."""
    arguments = quarter.postgres.arguments(port=wire.port) | {"database": quarter.database}
    frail = await Database.open(arguments, 2)
    far = FarSide()
    page = quarter.page(far, api=frail)
    token = (await page.token(CARD))["id"]

    def cutting(_movement: Movement) -> Outcome:
        wire.cut_at(cut)
        return Approved("pass")

    far.sends = cutting
    with capture_logs():
        assert (await page.ask(KEY, token=token)).status == 202
    assert wire.cut is None
    again = quarter.page(far)
    if cut is Cut.BEFORE_COMMIT:
        with pytest.raises(RequestInProgress):
            await again.ask(KEY, token=token)
        far.finds = Approved("pass")
        await quarter.expire()
        await quarter.recovery(far).turn()
    assert (await again.ask(KEY, token=token)).status == 201
    assert len(far.sent) == 1
    await frail.close()


# --- who has held it too long -----------------------------------------------------------------------------------


def pausing(quarter: Quarter, point: Point, seconds: float) -> Any:
    """Points at one of which so much time passes, once."""
    passed: list[Point] = []

    async def pause(reached: Point) -> None:
        if reached is point and not passed:
            passed.append(reached)
            quarter.clock.ahead_s += seconds

    return pause


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("point", [Point.COMMITTED, Point.OPENED])
async def test_who_has_held_it_too_long_sends_nothing(quarter: Quarter, kind: Kind, point: Point) -> None:
    """A pause before the send that is so long that a worker may have taken it ends it as never sent."""
    page = quarter.page(FarSide())
    needs = await prepared(page, kind)
    slow = quarter.page(page.far, pausing(quarter, point, HELD_S_MAX + 0.01))
    answer = await ask(slow, kind, **needs)
    assert answer.status == 502
    assert page.far.sent == []
    assert (await the_movement(quarter, kind))["progress"] == "failed"


async def test_who_pauses_for_less_sends(quarter: Quarter) -> None:
    """Up to the bound the send is well within the lease."""
    page = quarter.page(FarSide(), pausing(quarter, Point.OPENED, HELD_S_MAX - 1))
    assert (await page.ask(KEY, card=given(CARD))).status == 201


async def test_who_wakes_up_overtaken_tells_what_the_worker_found(quarter: Quarter) -> None:
    """After a pause in which a worker has ended it, nothing is sent, and the worker's answer is given."""
    far = FarSide(finds=NotFound(Offers(cancel=True)))

    async def overtaken(reached: Point) -> None:
        if reached is Point.OPENED:
            quarter.clock.ahead_s += 60
            await quarter.expire()
            assert await quarter.recovery(far).turn() == 1

    answer = await quarter.page(far, overtaken).ask(KEY, card=given(CARD))
    assert answer.status == 502
    assert far.sent == []
    assert len(far.cancelled) == 1
    assert await quarter.page(far).ask(KEY, card=given(CARD)) == answer


async def test_an_outcome_that_comes_after_the_worker_s_changes_nothing(quarter: Quarter) -> None:
    """The call took so long that a worker has cancelled it: whatever the processor says now, that is the answer."""
    said: list[Outcome] = [Approved("pass"), REFUSED, Unknown("timeout")]
    for number, late in enumerate(said):
        far = FarSide(finds=NotFound(Offers(cancel=True)), held=True)
        page, card = quarter.page(far), given(CARD + number)
        running = asyncio.create_task(page.ask(f"late-{number}", card=card))
        await far.reached.wait()
        await quarter.expire()
        await quarter.recovery(far).turn()
        far.sends = late
        far.release()
        answer = await running
        assert answer.status == 502
        assert await page.ask(f"late-{number}", card=card) == answer


# --- sending again ----------------------------------------------------------------------------------------------


async def marked(quarter: Quarter, page: Page, kind: Kind) -> dict[str, Any]:
    """A movement that was lost, and that a worker wants sent again."""
    needs = await prepared(page, kind)
    page.far.sends, page.far.finds = Unknown("timeout"), DEDUPES
    assert (await ask(page, kind, **needs)).status == 202
    await quarter.expire()
    assert await quarter.recovery(page.far).turn() == 1
    assert (await the_movement(quarter, kind))["resend_until"] is not None
    return needs


AGAIN: list[tuple[Outcome, Progress]] = [
    (Approved("pass"), Progress.DONE),
    (REFUSED, Progress.REFUSED),
    (Absent(), Progress.FAILED),
    # It may have been carried out the first time: that this one never left means nothing.
    (NotSent(), Progress.UNKNOWN),
    (Unknown("timeout"), Progress.UNKNOWN),
]


@pytest.mark.parametrize(("kind", "end"), list(product(Kind, AGAIN)), ids=lambda part: str(part)[:12])
async def test_what_is_sent_again(quarter: Quarter, kind: Kind, end: tuple[Outcome, Progress]) -> None:
    """The same reference, amount and card; its outcome counts, and what is not clear stays unknown."""
    outcome, progress = end
    page = quarter.page(FarSide())
    needs = await marked(quarter, page, kind)
    page.far.sends = outcome
    assert await page.resender.turn() == 1
    assert await page.resender.turn() == 0
    first, again = page.far.sent
    same = ("movement_id", "reference", "charge_reference", "amount_minor", "currency", "kind", "not_after")
    assert [getattr(first, name) for name in same] == [getattr(again, name) for name in same]
    assert repr(page.far.payments[-1]) == repr(page.far.payments[-2])
    row = await the_movement(quarter, kind)
    assert (row["progress"], row["sends"], row["resend_until"]) == (progress, 2, None)
    assert (await ask(page, kind, **needs)).status == HTTP[progress][kind]
    event = "card.opened" if kind in FIRST else f"{kind}.requested"
    assert [told["reason"] for told in await quarter.events(event, "api") if told["reason"]] == ["sent_again"]


@pytest.mark.parametrize("kind", [Kind.SALE, Kind.REFUND])
async def test_what_stays_unclear_is_given_back(quarter: Quarter, kind: Kind) -> None:
    """A second sending that is not clear either puts it back for the next look, soon."""
    page = quarter.page(FarSide())
    await marked(quarter, page, kind)
    await page.resender.turn()
    held = (await the_movement(quarter, kind))["lease_until"] - await quarter.owner.fetchval("SELECT now()")
    assert held.total_seconds() < 1
    page.far.finds = Approved("pass")
    await asyncio.sleep(0.6)
    assert await quarter.recovery(page.far).turn() == 1
    assert (await the_movement(quarter, kind))["progress"] == "done"


@pytest.mark.parametrize("point", [Point.TAKEN_AGAIN, Point.COMMITTED, Point.OPENED])
async def test_who_has_held_a_second_sending_too_long(quarter: Quarter, point: Point) -> None:
    """Nothing is sent a second time by who may have been overtaken; it stays unknown."""
    page = quarter.page(FarSide())
    await marked(quarter, page, Kind.SALE)
    slow = quarter.page(page.far, pausing(quarter, point, HELD_S_MAX + 0.01))
    assert await slow.resender.turn() == 1
    assert len(page.far.sent) == 1
    assert (await the_movement(quarter, Kind.SALE))["progress"] == "unknown"


async def test_a_window_that_ends_first_counts(quarter: Quarter) -> None:
    """Where half of the processor's window is nearly over, a pause that ends beyond it keeps the send back."""
    page = quarter.page(FarSide())
    await marked(quarter, page, Kind.SALE)
    await quarter.owner.execute(
        "UPDATE gateway.movements SET resend_until = now() + interval '2 s' WHERE department_id = $1",
        quarter.department,
    )
    slow = quarter.page(page.far, pausing(quarter, Point.TAKEN_AGAIN, 2.5))
    assert await slow.resender.turn() == 1
    assert len(page.far.sent) == 1


async def test_a_card_that_does_not_open_again_is_not_sent(quarter: Quarter) -> None:
    """The first sending may have been carried out, so it is not failed; the auditor is told."""
    page = quarter.page(FarSide())
    await marked(quarter, page, Kind.SALE)
    await quarter.owner.execute("DELETE FROM gateway.deks WHERE department_id = $1", quarter.department)
    assert await page.resender.turn() == 1
    assert len(page.far.sent) == 1
    assert (await the_movement(quarter, Kind.SALE))["progress"] == "unknown"
    assert len(await quarter.events("decrypt.failed", "api")) == 1


async def test_many_who_send_again(quarter: Quarter) -> None:
    """Several api processes: every marked movement is sent by one of them, once."""
    page = quarter.page(FarSide())
    made = await page.charge("first", card=CARD)
    page.far.sends, page.far.finds = Unknown("timeout"), DEDUPES
    for number in range(20):
        await page.move(Kind.REFUND, made["id"], f"key-{number}", 10)
    await quarter.expire()
    worker = quarter.recovery(page.far)
    while await worker.turn():
        pass
    page.far.sent.clear()
    page.far.sends = Approved("unchecked")
    turns = await asyncio.gather(*(quarter.page(page.far).resender.turn() for _ in range(4)))
    assert sum(turns) == 20
    assert len({movement.reference for movement in page.far.sent}) == len(page.far.sent) == 20
    charge = (await quarter.rows("charges"))[made["id"]]
    assert (charge["refunded_minor"], charge["refunding_minor"]) == (200, 0)
