"""Charges and their movements on a real server: begun whole, ended once, bounded, whoever comes at the same time."""

import asyncio
import random
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product

import asyncpg
import pytest
from structlog.testing import capture_logs

from gateway.errors import (
    ChargeCaptured,
    ChargeNotCaptured,
    ChargeNotMade,
    ChargeUnresolved,
    ChargeVoided,
    GatewayError,
    NotFound,
    NothingLeftToRefund,
    RefundTooLarge,
    Unavailable,
)
from gateway.rules.journal import entries
from gateway.rules.lifecycle import ENDS, MEANINGS, SAID, Event, IllegalEvent, Kind, Progress, after
from gateway.services.ports import Begun, Charge, Claimed, CommitUnknown, Finished
from gateway.store.ledger import Ledger
from tests.gateway.store.charges import SAYS, authorized, begun, captured, followed, following, move, stored
from tests.gateway.store.postgres import (
    APPLICATION,
    PARKS,
    ROUTE,
    UTILITIES,
    Cut,
    Wire,
    asked,
    asking,
    audit,
    intent,
    slow_commits,
    told,
)

pytestmark = pytest.mark.server

AMOUNT = 4_321
FIRST = (Kind.SALE, Kind.AUTHORIZATION)
AT_ONCE = 50


async def ready(store: Ledger, kind: Kind) -> Begun:
    """A movement of this kind, begun."""
    if kind in FIRST:
        return await begun(store, kind=kind)
    charge = await (captured(store) if kind is Kind.REFUND else authorized(store))
    return await following(store, charge, kind)


async def rows(owner: asyncpg.Connection, table: str, movement_id: str) -> list[asyncpg.Record]:
    """What a table holds of a movement."""
    return await owner.fetch(f"SELECT * FROM gateway.{table} WHERE movement_id = $1", movement_id)


async def posted(owner: asyncpg.Connection, movement_id: str) -> list[tuple[str, str, int]]:
    """Its journal entries: debit, credit, amount."""
    found = await rows(owner, "journal", movement_id)
    return [(row["debit"], row["credit"], row["amount_minor"]) for row in found]


async def audited(owner: asyncpg.Connection, event_id: str) -> bool:
    """Whether an audit row is there."""
    return bool(await owner.fetchval("SELECT count(*) FROM audit.events WHERE event_id = $1", event_id))


# --- what begins ------------------------------------------------------------------------------------------------


async def test_a_charge_begins_whole(store: Ledger, owner: asyncpg.Connection) -> None:
    """Claim, charge, movement, audit row and the spent token are there together; times are the database's."""
    new = await stored(store, "single")
    wanted, row = intent(new.token.token_id), audit()
    before = await owner.fetchval("SELECT now()")
    started = await store.begin_charge(wanted, row)
    assert isinstance(started, Begun)
    assert started.charge == wanted.charge == await store.charge(PARKS, wanted.charge.charge_id)
    assert started.record == new.record
    (kept,) = await rows(owner, "movements", started.movement.movement_id)
    assert started.movement == replace(wanted.movement, not_after=kept["not_after"])
    assert await store.movement(PARKS, started.movement.movement_id) == (started.charge, started.movement)
    assert before <= kept["first_sent_at"] <= await owner.fetchval("SELECT now()")
    assert kept["not_after"] - kept["first_sent_at"] == timedelta(seconds=10)
    assert kept["lease_until"] - kept["first_sent_at"] == timedelta(seconds=15)
    assert await audited(owner, row.event_id)
    assert (await store.token(PARKS, new.token.token_id)).status == "spent"


@pytest.mark.parametrize("wrong_by", [timedelta(days=-1), timedelta(hours=1), timedelta(days=400)])
async def test_a_replica_s_clock_says_nothing(store: Ledger, owner: asyncpg.Connection, wrong_by: timedelta) -> None:
    """However wrong the clock of who began it, its hold, its age and its end count by the database's clock."""
    started = await begun(store, created_at=datetime.now(UTC) + wrong_by)
    (kept,) = await rows(owner, "movements", started.movement.movement_id)
    now = await owner.fetchval("SELECT now()")
    for written, ahead_s in ((kept["first_sent_at"], 0), (kept["not_after"], 10), (kept["lease_until"], 15)):
        assert abs((written - now).total_seconds() - ahead_s) < 2
    assert started.movement.running


async def test_a_movement_begins_whole(store: Ledger, owner: asyncpg.Connection) -> None:
    """Claim, movement, audit row and the charge's new place are there together, under a reference of its own."""
    charge = await authorized(store)
    what, row = asked(charge, Kind.CAPTURE, 1_000), audit()
    started = await store.begin_movement(what, asking(what, "capture-1"), row)
    assert isinstance(started, Begun)
    assert (started.charge.kind, started.charge.progress) == (Kind.CAPTURE, Progress.SENDING)
    assert (started.movement.amount_minor, started.movement.reference) == (1_000, what.reference)
    assert started.movement.charge_reference == charge.processor_reference != what.reference
    assert started.record is None
    assert await store.movement(PARKS, what.movement_id) == (started.charge, started.movement)
    assert await audited(owner, row.event_id)
    held = await store.claimed(PARKS, started.movement.route, "capture-1")
    assert held is not None
    assert (held.subject_id, held.status) == (what.movement_id, None)


async def test_one_key_begins_one_movement(store: Ledger) -> None:
    """Of twenty refunds with one key one is begun, and the others find it."""
    charge = await captured(store)
    wanted = [asked(charge, Kind.REFUND, 100) for _ in range(20)]
    ends = await asyncio.gather(*(store.begin_movement(each, asking(each, "one-refund"), audit()) for each in wanted))
    assert Counter(type(end) for end in ends) == {Begun: 1, Claimed: 19}
    (winner,) = (end.movement.movement_id for end in ends if isinstance(end, Begun))
    assert {end.subject_id for end in ends if isinstance(end, Claimed)} == {winner}
    assert (await store.charge(PARKS, charge.charge_id)).refunding_minor == 100


@pytest.mark.parametrize("kinds", [(Kind.CAPTURE,) * 8, (Kind.VOID,) * 8, (Kind.CAPTURE, Kind.VOID) * 4])
async def test_one_movement_of_a_charge_at_a_time(
    store: Ledger, owner: asyncpg.Connection, kinds: tuple[Kind, ...]
) -> None:
    """Of many captures and voids at once one is begun; the others are refused, and leave not even their keys."""
    charge = await authorized(store)
    wanted = [asked(charge, kind) for kind in kinds]
    claims = [asking(each) for each in wanted]
    ends = await asyncio.gather(
        *(store.begin_movement(each, held, audit()) for each, held in zip(wanted, claims, strict=True)),
        return_exceptions=True,
    )
    assert Counter(type(end) for end in ends) == {Begun: 1, ChargeUnresolved: len(kinds) - 1}
    keys = [held.key for held in claims]
    kept = await owner.fetchval("SELECT count(*) FROM gateway.idempotency WHERE idempotency_key = ANY($1)", keys)
    assert kept == 1


STANDS: dict[str, tuple[Kind, Event]] = {
    "authorized": (Kind.AUTHORIZATION, Event.DO),
    "unclear": (Kind.SALE, Event.LOST),
    "in review": (Kind.SALE, Event.PARK),
    "captured": (Kind.SALE, Event.DO),
    "declined": (Kind.SALE, Event.REFUSE),
    "failed": (Kind.AUTHORIZATION, Event.FAIL),
    "voided": (Kind.VOID, Event.DO),
}
FORBIDDEN: list[tuple[str, Kind, type[GatewayError]]] = [
    ("authorized", Kind.REFUND, ChargeNotCaptured),
    ("captured", Kind.CAPTURE, ChargeCaptured),
    ("captured", Kind.VOID, ChargeCaptured),
    *((stands, kind, ChargeUnresolved) for stands in ("unclear", "in review") for kind in Kind if kind not in FIRST),
    *((stands, kind, ChargeNotMade) for stands in ("declined", "failed") for kind in Kind if kind not in FIRST),
    *(("voided", kind, ChargeVoided) for kind in Kind if kind not in FIRST),
]


async def standing(store: Ledger, stands: str) -> Charge:
    """A charge that stands there."""
    kind, event = STANDS[stands]
    if kind is Kind.VOID:
        return await followed(store, await authorized(store), kind, event)
    return (await move(store, (await begun(store, kind=kind)).movement, event)).charge


@pytest.mark.parametrize(("stands", "kind", "refusal"), FORBIDDEN)
async def test_what_is_forbidden_changes_nothing(
    store: Ledger, stands: str, kind: Kind, refusal: type[GatewayError]
) -> None:
    """A movement that may not begin is refused by name; the charge stands as before, and the key is free."""
    charge = await standing(store, stands)
    what = asked(charge, kind)
    held = asking(what)
    with pytest.raises(refusal):
        await store.begin_movement(what, held, audit())
    assert await store.charge(PARKS, charge.charge_id) == charge
    assert await store.claimed(PARKS, held.route, held.key) is None
    with pytest.raises(NotFound):
        await store.movement(PARKS, what.movement_id)


async def test_another_department_has_no_such_charge(store: Ledger) -> None:
    """A charge and a movement of another department are not there, to be shown or to be moved."""
    started = await begun(store, kind=Kind.AUTHORIZATION)
    what = replace(asked(started.charge, Kind.CAPTURE), department=UTILITIES)
    with pytest.raises(NotFound):
        await store.begin_movement(what, asking(what), audit(UTILITIES))
    with pytest.raises(NotFound):
        await store.charge(UTILITIES, started.charge.charge_id)
    with pytest.raises(NotFound):
        await store.movement(UTILITIES, started.movement.movement_id)
    theirs = replace(started.movement, department=UTILITIES)
    with pytest.raises(NotFound):
        await store.finish(theirs, Event.DO, SAYS[Event.DO], told, audit(UTILITIES))
    assert (await store.charge(PARKS, started.charge.charge_id)).progress is Progress.SENDING


# --- what ends --------------------------------------------------------------------------------------------------

LEGAL = [
    (kind, path)
    for kind, before, event in product(
        Kind, [(), (Event.LOST,), (Event.PARK,), (Event.LOST, Event.PARK)], [Event.DO, Event.REFUSE, Event.FAIL]
    )
    for path in [(*before, event)]
]


@pytest.mark.parametrize(("kind", "path"), LEGAL, ids=lambda part: part if isinstance(part, str) else "-".join(part))
async def test_every_way_through_life(
    store: Ledger, owner: asyncpg.Connection, kind: Kind, path: tuple[Event, ...]
) -> None:
    """After each event the movement stands where the table says, and charge, journal, answer and audit with it."""
    started = await ready(store, kind)
    stands, was = Progress.SENDING, started.charge
    for event in path:
        stands, row = after(stands, event), audit()
        ended = await store.finish(started.movement, event, SAYS.get(event), told, row)
        assert ended.moved
        assert ended.movement.progress is stands
        assert await audited(owner, row.event_id)
        require_charge(ended, was, MEANINGS[kind, stands].status)
        assert await store.movement(PARKS, started.movement.movement_id) == (ended.charge, ended.movement)
        kept = await store.claimed(PARKS, ended.movement.route, ended.movement.idempotency_key)
        assert kept is not None
        final = event in ENDS
        assert (kept.status, kept.body) == ((ended.answer.status, ended.answer.body) if final else (None, None))
    done = stands is Progress.DONE
    expected = entries(kind, started.movement.amount_minor, 0) if done else ()
    assert await posted(owner, started.movement.movement_id) == [tuple(vars_of(entry)) for entry in expected]


def vars_of(entry: object) -> list[object]:
    """The fields of a journal entry, in order."""
    return [getattr(entry, name) for name in ("debit", "credit", "amount_minor")]


def require_charge(ended: Finished, was: Charge, status: str) -> None:
    """The charge stands where its movement does, refunds aside; money is where it belongs."""
    charge, movement = ended.charge, ended.movement
    done, open_ = movement.progress is Progress.DONE, not MEANINGS[movement.kind, movement.progress].final
    if movement.kind is Kind.REFUND:
        assert (charge.kind, charge.progress, charge.captured_minor) == (was.kind, was.progress, AMOUNT)
        assert charge.refunding_minor == (AMOUNT if open_ else 0)
        assert charge.refunded_minor == (AMOUNT if done else 0)
        return
    assert charge.status == status
    assert (charge.kind, charge.progress) == (movement.kind, movement.progress)
    assert charge.captured_minor == (AMOUNT if done and movement.kind in {Kind.SALE, Kind.CAPTURE} else 0)
    declined = movement.progress is Progress.REFUSED and movement.kind in FIRST
    assert (charge.decline_class, charge.decline_code) == (("soft", "05") if declined else (None, None))
    refused = movement.progress is Progress.REFUSED
    assert (movement.decline_class, movement.decline_code) == (("soft", "05") if refused else (None, None))


@pytest.mark.parametrize(("kind", "first"), list(product(Kind, SAID)))
async def test_the_first_outcome_stands(store: Ledger, owner: asyncpg.Connection, kind: Kind, first: Event) -> None:
    """After one end every event changes nothing, writes no audit row, and is given the first with its answer."""
    started = await ready(store, kind)
    ended = await move(store, started.movement, first)
    journal = await posted(owner, started.movement.movement_id)
    for late in Event:
        row = audit()
        again = await store.finish(started.movement, late, SAYS.get(late), told, row)
        assert again == replace(ended, moved=False)
        assert not await audited(owner, row.event_id)
    assert await posted(owner, started.movement.movement_id) == journal
    with pytest.raises(IllegalEvent):
        after(ended.movement.progress, first)


async def test_two_outcomes_at_once(store: Ledger) -> None:
    """Done and refused come together: one is true, and both callers are told that one."""
    for kind in Kind:
        for _ in range(5):
            started = await ready(store, kind)
            one, other = await asyncio.gather(
                move(store, started.movement, Event.DO), move(store, started.movement, Event.REFUSE)
            )
            assert {one.moved, other.moved} == {True, False}
            assert replace(one, moved=True) == replace(other, moved=True)


async def test_parking_is_no_way_back(store: Ledger) -> None:
    """What is in review is not made unclear again, and parking it twice is one parking."""
    started = await begun(store)
    parked = await move(store, started.movement, Event.PARK)
    for event in (Event.PARK, Event.LOST):
        again = await move(store, started.movement, event)
        assert (again.moved, again.charge, again.movement) == (False, parked.charge, parked.movement)
    assert parked.charge.status == "in_review"


@pytest.mark.parametrize("kind", FIRST)
async def test_what_never_happened_gives_the_token_back(store: Ledger, kind: Kind) -> None:
    """A single-use token is active again iff its charge never happened, however late that is known."""
    for path, status in (
        ((Event.FAIL,), "active"),
        ((Event.LOST, Event.PARK, Event.FAIL), "active"),
        ((Event.LOST,), "spent"),
        ((Event.PARK,), "spent"),
        ((Event.REFUSE,), "spent"),
        ((Event.DO,), "spent"),
    ):
        started = await begun(store, "single", kind=kind)
        for event in path:
            await move(store, started.movement, event)
        assert (await store.token(PARKS, started.charge.token_id)).status == status, path
        if status == "active":
            assert isinstance(await store.begin_charge(intent(started.charge.token_id), audit()), Begun)


async def test_a_failed_capture_gives_no_token_back(store: Ledger) -> None:
    """The authorization stands, and so its token stays spent."""
    started = await begun(store, "single", kind=Kind.AUTHORIZATION)
    charge = (await move(store, started.movement, Event.DO)).charge
    for kind in (Kind.CAPTURE, Kind.VOID):
        assert (await followed(store, charge, kind, Event.FAIL)).status == "authorized"
        assert (await store.token(PARKS, charge.token_id)).status == "spent"


async def test_after_a_capture_that_came_to_nothing(store: Ledger) -> None:
    """The charge is authorized again: it can be captured, once, or voided."""
    charge = await authorized(store)
    for event in (Event.REFUSE, Event.FAIL):
        assert (await followed(store, charge, Kind.CAPTURE, event)).status == "authorized"
        assert (await followed(store, charge, Kind.VOID, event)).status == "authorized"
    charge = await followed(store, charge, Kind.CAPTURE, Event.DO, 1_000)
    assert (charge.status, charge.amount_minor, charge.captured_minor) == ("succeeded", AMOUNT, 1_000)
    with pytest.raises(RefundTooLarge):
        await following(store, charge, Kind.REFUND, 1_001)


@pytest.mark.parametrize(("amount", "fee"), [(4_321, 0), (4_321, 99), (4_321, 4_321)])
async def test_a_sale_s_fee_is_posted_apart(store: Ledger, owner: asyncpg.Connection, amount: int, fee: int) -> None:
    """Debits equal credits, in the charge's amount, the fee in an account of its own."""
    charge = await captured(store, amount_minor=amount, convenience_fee_minor=fee)
    movement_id = "mv_" + charge.charge_id.removeprefix("ch_")
    parts = [("receivable", amount - fee), ("convenience_fees", fee)]
    expected = [("processor_due", credit, part) for credit, part in parts if part]
    assert await posted(owner, movement_id) == expected


# --- refunds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amount", [None, AMOUNT])
async def test_fifty_full_refunds_of_one_charge(store: Ledger, owner: asyncpg.Connection, amount: int | None) -> None:
    """Exactly one begins; the others find nothing left, and leave no row. The money goes back once."""
    charge = await captured(store)
    ends = await asyncio.gather(
        *(following(store, charge, Kind.REFUND, amount) for _ in range(AT_ONCE)), return_exceptions=True
    )
    assert Counter(type(end) for end in ends) == {Begun: 1, NothingLeftToRefund: AT_ONCE - 1}
    (started,) = (end for end in ends if isinstance(end, Begun))
    ended = await move(store, started.movement, Event.DO)
    assert (ended.charge.refunded_minor, ended.charge.refunding_minor, ended.charge.left_minor) == (AMOUNT, 0, 0)
    kept = await owner.fetchval(
        "SELECT count(*) FROM gateway.movements WHERE charge_id = $1 AND kind = 'refund'", charge.charge_id
    )
    assert kept == 1


async def test_partial_refunds_never_exceed(store: Ledger, owner: asyncpg.Connection) -> None:
    """Refunds of any size, begun and ended at once in every way, never give back more than was captured."""
    dice = random.Random(seed := 20_261_122)  # noqa: S311 - a schedule that its seed repeats
    print(f"seed {seed}")
    charge = await captured(store)

    async def refund(amount: int, path: list[Event]) -> int:
        await asyncio.sleep(dice.random() / 10)
        try:
            started = await following(store, charge, Kind.REFUND, amount)
        except (RefundTooLarge, NothingLeftToRefund):
            return 0
        for event in path:
            ended = await move(store, started.movement, event)
            assert ended.charge.refunded_minor + ended.charge.refunding_minor <= AMOUNT
        return amount if path[-1] is Event.DO else 0

    ways = [[Event.DO], [Event.LOST, Event.DO], [Event.REFUSE], [Event.LOST, Event.FAIL], [Event.PARK, Event.DO]]
    amounts = [dice.randint(1, 900) for _ in range(80)]
    given_back = await asyncio.gather(*(refund(amount, dice.choice(ways)) for amount in amounts))
    now = await store.charge(PARKS, charge.charge_id)
    assert now.refunded_minor == sum(given_back) <= AMOUNT < sum(amounts)
    assert now.refunding_minor == 0
    posted_minor = await owner.fetchval(
        "SELECT sum(amount_minor) FROM gateway.journal WHERE debit = 'refunds' AND movement_id IN"
        " (SELECT movement_id FROM gateway.movements WHERE charge_id = $1)",
        charge.charge_id,
    )
    assert posted_minor == now.refunded_minor


@pytest.mark.parametrize("event", [Event.REFUSE, Event.FAIL])
async def test_what_a_refund_did_not_give_back_is_left(store: Ledger, event: Event) -> None:
    """While a refund is undecided its amount is not there for another; once it came to nothing it is."""
    charge = await captured(store)
    started = await following(store, charge, Kind.REFUND, 4_000)
    await move(store, started.movement, Event.LOST)
    with pytest.raises(RefundTooLarge):
        await following(store, charge, Kind.REFUND, 322)
    await move(store, started.movement, event)
    assert (await followed(store, charge, Kind.REFUND, Event.DO)).refunded_minor == AMOUNT


async def test_an_answer_is_that_of_its_time(store: Ledger) -> None:
    """What was answered to a refund is stored, and stays so byte for byte after further refunds."""
    charge = await captured(store)
    started = await following(store, charge, Kind.REFUND, 1_000, "first-refund")
    first = await move(store, started.movement, Event.DO)
    await followed(store, charge, Kind.REFUND, Event.DO, 2_000)
    again = await move(store, started.movement, Event.DO)
    assert again.answer == first.answer
    assert again.charge.refunded_minor == 3_000
    kept = await store.claimed(PARKS, started.movement.route, "first-refund")
    assert kept is not None
    assert kept.body == first.answer.body == b"refund done succeeded 4321 1000 0"


# --- a lost commit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", Cut)
async def test_a_charge_whose_commit_was_lost(
    wire: Wire, frail: Ledger, store: Ledger, owner: asyncpg.Connection, cut: Cut
) -> None:
    """It goes on iff its intent is stored, even by a COMMIT that outlives its connection; else nothing was done."""
    new = await stored(store, "single")
    wanted = intent(new.token.token_id)
    is_stored = cut is not Cut.BEFORE_COMMIT
    async with slow_commits(owner):
        wire.cut_at(cut)
        with capture_logs():
            try:
                started = await frail.begin_charge(wanted, audit())
            except Unavailable:
                assert not is_stored
            else:
                assert is_stored
                assert isinstance(started, Begun)
                movement = replace(wanted.movement, not_after=started.movement.not_after)
                assert started == Begun(wanted.charge, movement, new.record)
    assert wire.cut is None
    assert (await store.token(PARKS, new.token.token_id)).status == ("spent" if is_stored else "active")
    assert (await store.claimed(PARKS, ROUTE, wanted.claim.key) is not None) is is_stored


@pytest.mark.parametrize("cut", Cut)
async def test_a_movement_whose_commit_was_lost(
    wire: Wire, frail: Ledger, store: Ledger, owner: asyncpg.Connection, cut: Cut
) -> None:
    """A refund goes on iff its intent is stored; else its key is free and the money is there to be refunded."""
    charge = await captured(store)
    what = asked(charge, Kind.REFUND, 4_000)
    held = asking(what)
    is_stored = cut is not Cut.BEFORE_COMMIT
    async with slow_commits(owner):
        wire.cut_at(cut)
        with capture_logs():
            try:
                started = await frail.begin_movement(what, held, audit())
            except Unavailable:
                assert not is_stored
            else:
                assert is_stored
                assert isinstance(started, Begun)
                now, movement = await store.movement(PARKS, what.movement_id)
                assert (started.charge, started.movement) == (now, movement)
    assert wire.cut is None
    assert (await store.claimed(PARKS, held.route, held.key) is not None) is is_stored
    assert (await store.charge(PARKS, charge.charge_id)).refunding_minor == (4_000 if is_stored else 0)


async def test_a_commit_that_nobody_can_ask_about(wire: Wire, frail: Ledger, store: Ledger) -> None:
    """When the commit was lost and the server is silent, nobody knows; whoever repeats it finds out."""
    new = await stored(store, "single")
    wanted = intent(new.token.token_id)
    wire.cut_at(Cut.BEFORE_ANSWER)
    with capture_logs():
        beginning = asyncio.create_task(frail.begin_charge(wanted, audit()))
        while wire.cut is not None:
            await asyncio.sleep(0.001)
        wire.silent = True
        with pytest.raises(CommitUnknown):
            await beginning
    wire.silent = False
    again = await store.begin_charge(wanted, audit())
    assert isinstance(again, Claimed)
    assert again.subject_id == wanted.charge.charge_id


async def test_a_lost_commit_under_another_s_key(store: Ledger) -> None:
    """Whoever lost the commit and then finds another charge under the key is given that one."""
    started = await begun(store)
    late = intent(started.charge.token_id, started.movement.idempotency_key)
    found = await store._begun_after_all(late.claim, late.movement, with_card=True)
    assert isinstance(found, Claimed)
    assert found.subject_id == started.charge.charge_id


@pytest.mark.parametrize("kind", Kind)
async def test_an_outcome_whose_commit_was_lost(wire: Wire, frail: Ledger, store: Ledger, kind: Kind) -> None:
    """An outcome of which nobody knows whether it was written is told as unavailable, and can be written again."""
    for cut, progress in ((Cut.BEFORE_COMMIT, Progress.SENDING), (Cut.BEFORE_ANSWER, Progress.DONE)):
        started = await ready(store, kind)
        wire.cut_at(cut)
        with capture_logs(), pytest.raises(Unavailable):
            await move(frail, started.movement, Event.DO)
        _, now = await store.movement(PARKS, started.movement.movement_id)
        assert now.progress is progress
        ended = await move(frail, started.movement, Event.DO)
        assert ended.movement.progress is Progress.DONE
        assert ended.moved is (progress is Progress.SENDING)


# --- what there is ----------------------------------------------------------------------------------------------


async def test_unresolved_movements_are_counted(store: Ledger, borough: str) -> None:
    """By where they stand, refunds and captures included, those that wait apart; what is final is not counted."""
    before = await store.unresolved()
    assert set(before) == {"awaiting_approval", "sending", "unknown", "in_review"}
    await captured(store, department=borough)
    charge = await captured(store, department=borough)
    await following(store, charge, Kind.REFUND, 1)
    lost = await following(store, charge, Kind.REFUND, 2)
    await move(store, lost.movement, Event.LOST)
    await following(store, charge, Kind.REFUND, 3, approval_above_minor=2)
    parked = await following(store, await authorized(store, department=borough), Kind.CAPTURE)
    await move(store, parked.movement, Event.PARK)
    assert await store.unresolved() == {place: count + 1 for place, count in before.items()}


async def test_a_page_of_charges_is_newest_first(store: Ledger, borough: str) -> None:
    """By time and then by id; from a place on, and of one reference only, when that is asked."""
    now = datetime.now(UTC)
    made = [
        (await begun(store, department=borough, created_at=now + timedelta(seconds=s // 2), reference=f"R-{s % 2}"))
        for s in range(6)
    ]
    newest = sorted((each.charge for each in made), key=lambda charge: (charge.created_at, charge.charge_id))[::-1]
    assert await store.charges(borough, None, 10, None) == newest
    assert await store.charges(borough, None, 2, newest[1].charge_id) == newest[2:4]
    assert await store.charges(borough, "R-1", 10, None) == [each for each in newest if each.reference == "R-1"]
    with pytest.raises(NotFound):
        await store.charges(PARKS, None, 2, newest[1].charge_id)
    assert all(charge.application_id == APPLICATION for charge in newest)
