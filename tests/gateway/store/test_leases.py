"""Who holds an unresolved movement: one at a time, for a while, by the database's clock. Who lost it is fenced."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from itertools import product

import asyncpg
import pytest
from structlog.testing import capture_logs

from gateway.errors import TokenInUse, Unavailable
from gateway.rules.lifecycle import SAID, Event, Kind, Progress, sources
from gateway.services.ports import Begun, Case, CommitUnknown, Movement, Resend
from gateway.store.ledger import Ledger
from keys.audit import AuditRow
from tests.gateway.store.charges import SAYS, authorized, begun, captured, following, move
from tests.gateway.store.postgres import PARKS, Cut, Postgres, Wire, audit, shown, told

pytestmark = pytest.mark.server

MANY = 60
WORKERS = 12
FIRST = (Kind.SALE, Kind.AUTHORIZATION)
EVENTS = [event for event in Event if Progress.SENDING in sources(event)]
"""What can happen to a movement that was begun."""


async def expire(owner: asyncpg.Connection, *movement_ids: str, ago_s: float = 1.0) -> None:
    """Let the time pass for which these are held."""
    await owner.execute(
        "UPDATE gateway.movements SET lease_until = now() - make_interval(secs => $2) WHERE movement_id = ANY($1)",
        movement_ids,
        ago_s,
    )


async def row_of(owner: asyncpg.Connection, movement: Movement) -> asyncpg.Record:
    """A movement as it is stored."""
    row = await owner.fetchrow("SELECT * FROM gateway.movements WHERE movement_id = $1", movement.movement_id)
    assert row is not None
    return row


async def held_s(owner: asyncpg.Connection, movement: Movement) -> float:
    """For how long nobody may take it."""
    asked = "SELECT extract(epoch FROM lease_until - now())::float8 FROM gateway.movements WHERE movement_id = $1"
    held: float = await owner.fetchval(asked, movement.movement_id)
    return held


async def lost(store: Ledger, owner: asyncpg.Connection, borough: str, kind: Kind = Kind.SALE) -> Begun:
    """A movement of this kind that waits for a worker."""
    if kind in FIRST:
        started = await begun(store, kind=kind, department=borough)
    elif kind is Kind.REFUND:
        started = await following(store, await captured(store, department=borough), kind, 100)
    else:
        started = await following(store, await authorized(store, department=borough), kind)
    await expire(owner, started.movement.movement_id)
    return started


def row(movement: Movement) -> AuditRow:
    """The audit row of opening a card again."""
    return audit(movement.department, f"again.{movement.movement_id}"[:64])


async def only(cases: Sequence[Case]) -> Case:
    """The one case that there is."""
    (case,) = cases
    return case


# --- taking -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", Kind)
async def test_what_waits_is_taken(
    store: Ledger, worker: Ledger, owner: asyncpg.Connection, borough: str, kind: Kind
) -> None:
    """Not while its request may be at work; then under a new epoch, for a lease, with its age by the database."""
    started = await lost(store, owner, borough, kind)
    await owner.execute("UPDATE gateway.movements SET lease_until = now() + interval '1 s'")
    assert await worker.take(borough, 10) == []
    await expire(owner, started.movement.movement_id)
    await owner.execute(
        "UPDATE gateway.movements SET first_sent_at = now() - interval '40 s', not_after = now() - interval '30 s'"
        " WHERE movement_id = $1",
        started.movement.movement_id,
    )
    case = await only(await worker.take(borough, 10))
    assert case.movement.movement_id == started.movement.movement_id
    assert (case.movement.epoch, case.movement.sends, case.looks) == (1, 1, 1)
    assert (case.movement.progress, case.movement.running) == (Progress.SENDING, False)
    assert case.age_s == pytest.approx(40, abs=2)
    assert case.overdue_s == pytest.approx(30, abs=2)
    assert await held_s(owner, case.movement) == pytest.approx(15, abs=2)
    assert await worker.take(borough, 10) == []
    assert await worker.movement(borough, case.movement.movement_id) == (started.charge, case.movement)


@pytest.mark.parametrize("path", [(Event.LOST,), (Event.PARK,), (Event.LOST, Event.PARK)])
async def test_what_is_not_decided_is_asked_for_again(
    store: Ledger, worker: Ledger, owner: asyncpg.Connection, borough: str, path: tuple[Event, ...]
) -> None:
    """Unclear and parked movements wait half a second, and are taken then."""
    started = await begun(store, department=borough)
    for event in path:
        await move(store, started.movement, event)
        assert await held_s(owner, started.movement) == pytest.approx(0.5, abs=0.3)
    assert await worker.take(borough, 10) == []
    await asyncio.sleep(0.6)
    assert (await only(await worker.take(borough, 10))).movement.progress is not Progress.SENDING


@pytest.mark.parametrize("end", SAID)
async def test_what_is_decided_is_never_taken(
    store: Ledger, worker: Ledger, owner: asyncpg.Connection, borough: str, end: Event
) -> None:
    """However old it is, and whether it was marked or not."""
    started = await begun(store, department=borough)
    await move(store, started.movement, end)
    await owner.execute(
        "UPDATE gateway.movements SET resend_until = now() + interval '1 h' WHERE movement_id = $1",
        started.movement.movement_id,
    )
    await expire(owner, started.movement.movement_id)
    assert await worker.take(borough, 10) == []
    assert await store.take_marked(borough, row) is None


async def test_what_waits_longest_comes_first(
    store: Ledger, worker: Ledger, owner: asyncpg.Connection, borough: str
) -> None:
    """So many at a time, and none before one that waits longer."""
    waiting = [(await lost(store, owner, borough)).movement.movement_id for _ in range(6)]
    for age, movement_id in enumerate(waiting):
        await expire(owner, movement_id, ago_s=10 + age)
    taken = [{case.movement.movement_id for case in await worker.take(borough, limit)} for limit in (1, 2, 2, 2, 2)]
    assert taken == [{waiting[5]}, {waiting[4], waiting[3]}, {waiting[2], waiting[1]}, {waiting[0]}, set()]


async def test_many_workers_share_the_work(
    store: Ledger, worker: Ledger, owner: asyncpg.Connection, borough: str
) -> None:
    """Each movement is taken by one of them, once, and none is left."""
    charge = await captured(store, department=borough)
    waiting = [(await following(store, charge, Kind.REFUND, 1)).movement.movement_id for _ in range(MANY)]
    await expire(owner, *waiting)

    async def work() -> list[Case]:
        mine: list[Case] = []
        while taken := await worker.take(borough, 3):
            mine += taken
        return mine

    shares = await asyncio.gather(*(work() for _ in range(WORKERS)))
    taken = Counter(case.movement.movement_id for share in shares for case in share)
    assert taken == dict.fromkeys(waiting, 1)
    assert {case.movement.epoch for share in shares for case in share} == {1}
    assert sum(1 for share in shares if share) > 1


async def test_nobody_waits_for_what_another_holds(
    store: Ledger, worker: Ledger, owner: asyncpg.Connection, postgres: Postgres, borough: str
) -> None:
    """While one movement is locked by another transaction the others are taken at once."""
    locked, free = [await lost(store, owner, borough) for _ in range(2)]
    other = await postgres.connect("owner")
    try:
        transaction = other.transaction()
        await transaction.start()
        await other.execute(
            "SELECT FROM gateway.movements WHERE movement_id = $1 FOR UPDATE", locked.movement.movement_id
        )
        async with asyncio.timeout(1):
            case = await only(await worker.take(borough, 10))
        assert case.movement.movement_id == free.movement.movement_id
        await transaction.rollback()
    finally:
        await other.close()
    assert (await only(await worker.take(borough, 10))).movement.movement_id == locked.movement.movement_id


@pytest.mark.parametrize(
    ("usage", "with_cvc", "broken", "may"),
    [
        ("multi", False, False, True),
        ("single", False, False, True),
        ("multi", True, False, False),
        ("multi", False, True, False),
    ],
)
async def test_what_may_be_sent_again(
    store: Ledger,
    worker: Ledger,
    owner: asyncpg.Connection,
    borough: str,
    usage: str,
    with_cvc: bool,
    broken: bool,
    may: bool,
) -> None:
    """Neither what came with a code, nor what has no card any more."""
    started = await begun(store, usage, with_cvc=with_cvc, department=borough)
    if broken:
        await owner.execute(
            "UPDATE gateway.tokens SET status = 'erased', sealed = NULL, brand = NULL, last4 = NULL,"
            " fingerprint_id = NULL WHERE token_id = $1",
            started.charge.token_id,
        )
    await expire(owner, started.movement.movement_id)
    assert (await only(await worker.take(borough, 10))).may_resend is may


@pytest.mark.parametrize("kind", [Kind.CAPTURE, Kind.VOID, Kind.REFUND])
async def test_what_needs_no_card_may_be_sent_again(
    store: Ledger, worker: Ledger, owner: asyncpg.Connection, borough: str, kind: Kind
) -> None:
    """A capture, void or refund names a charge: whether a code came with that, or its card is gone, is all one."""
    first = await begun(
        store, kind=Kind.SALE if kind is Kind.REFUND else Kind.AUTHORIZATION, with_cvc=True, department=borough
    )
    charge = (await move(store, first.movement, Event.DO)).charge
    await store.erase_token(borough, charge.token_id, shown, audit(borough))
    started = await following(store, charge, kind)
    await expire(owner, started.movement.movement_id)
    assert (await only(await worker.take(borough, 10))).may_resend


# --- fencing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "event"), list(product(Kind, EVENTS)))
async def test_who_was_overtaken_writes_nothing(
    store: Ledger, worker: Ledger, owner: asyncpg.Connection, borough: str, kind: Kind, event: Event
) -> None:
    """With an epoch that is over nothing moves, no audit row is written, and what is true now is told."""
    started = await lost(store, owner, borough, kind)
    case = await only(await worker.take(borough, 10))
    before = await row_of(owner, case.movement)
    late = audit(borough)
    ended = await store.finish(started.movement, event, SAYS.get(event), told, late)
    assert (ended.moved, ended.movement.epoch, ended.movement.progress) == (False, 1, Progress.SENDING)
    assert ended.answer == told(ended.charge, ended.movement)
    await store.postpone(started.movement, 0.0, resend_within_s=100.0)
    assert await row_of(owner, case.movement) == before
    assert not await owner.fetchval("SELECT count(*) FROM audit.events WHERE event_id = $1", late.event_id)
    kept = await store.claimed(borough, started.movement.route, started.movement.idempotency_key)
    assert kept is not None
    assert kept.status is None


async def test_who_was_overtaken_gives_the_answer_that_was_given(
    store: Ledger, worker: Ledger, owner: asyncpg.Connection, borough: str
) -> None:
    """The worker found a refusal; the request that had held it believes in success, and tells the refusal."""
    for kind in Kind:
        started = await lost(store, owner, borough, kind)
        case = await only(await worker.take(borough, 10))
        first = await move(worker, case.movement, Event.REFUSE)
        assert first.moved
        late = await move(store, started.movement, Event.DO)
        assert (late.moved, late.answer, late.movement) == (False, first.answer, first.movement)
        kept = await store.claimed(borough, started.movement.route, started.movement.idempotency_key)
        assert kept is not None
        assert kept.body == first.answer.body


async def test_of_two_holders_the_later_one_counts(
    store: Ledger, worker: Ledger, owner: asyncpg.Connection, borough: str
) -> None:
    """Whoever took it, slept through the lease and wakes up, has lost it to who took it after."""
    started = await lost(store, owner, borough)
    sleeper = await only(await worker.take(borough, 10))
    await expire(owner, started.movement.movement_id)
    later = await only(await worker.take(borough, 10))
    assert (sleeper.movement.epoch, later.movement.epoch, later.looks) == (1, 2, 2)
    ends = await asyncio.gather(
        *(move(worker, case.movement, event) for case in (sleeper, later) for event in (Event.DO, Event.REFUSE))
    )
    assert [end.moved for end in ends[:2]] == [False, False]
    assert sorted(end.moved for end in ends[2:]) == [False, True]


async def test_a_lease_alone_fences_nobody(store: Ledger, owner: asyncpg.Connection, borough: str) -> None:
    """Who slept through its lease, and whom nobody overtook, still holds it: no outcome is thrown away."""
    started = await lost(store, owner, borough)
    assert (await move(store, started.movement, Event.DO)).moved


async def test_a_worker_and_the_request_at_once(
    store: Ledger, worker: Ledger, owner: asyncpg.Connection, borough: str
) -> None:
    """Both end it at the same moment: one does; the other tells the same, or that it is not known yet."""
    for _ in range(20):
        started = await lost(store, owner, borough)

        async def work() -> object:
            cases = await worker.take(borough, 10)
            return [await move(worker, case.movement, Event.REFUSE) for case in cases]

        request, _ = await asyncio.gather(move(store, started.movement, Event.DO), work())
        charge, movement = await store.movement(borough, started.movement.movement_id)
        assert movement.progress is (Progress.DONE if request.moved else Progress.REFUSED)
        assert (request.charge, request.movement.progress) == (charge, movement.progress) or (
            not request.moved and request.charge.status == "pending"
        )
        count = "SELECT count(*) FROM gateway.journal WHERE movement_id = $1"
        assert await owner.fetchval(count, movement.movement_id) == (movement.progress is Progress.DONE)


# --- given back, and marked -------------------------------------------------------------------------------------


async def test_what_was_given_back_waits(
    store: Ledger, worker: Ledger, owner: asyncpg.Connection, borough: str
) -> None:
    """Until then nobody takes it; it is not marked unless that is asked for."""
    await lost(store, owner, borough)
    case = await only(await worker.take(borough, 10))
    await worker.postpone(case.movement, 4.0)
    assert await held_s(owner, case.movement) == pytest.approx(4, abs=1)
    assert await worker.take(borough, 10) == []
    assert await store.take_marked(borough, row) is None
    await worker.postpone(case.movement, 0.0)
    assert (await only(await worker.take(borough, 10))).looks == 2


@pytest.mark.parametrize("kind", Kind)
async def test_what_is_marked_is_taken_to_be_sent(
    store: Ledger, worker: Ledger, owner: asyncpg.Connection, borough: str, kind: Kind
) -> None:
    """Once, under a new epoch, counted as sent, with the audit row of the opening, and the card if it needs one."""
    started = await lost(store, owner, borough, kind)
    case = await only(await worker.take(borough, 10))
    await worker.postpone(case.movement, 2.0, resend_within_s=100.0)
    resend = await store.take_marked(borough, row)
    assert isinstance(resend, Resend)
    movement = resend.begun.movement
    assert movement.movement_id == started.movement.movement_id
    assert (movement.epoch, movement.sends, movement.reference) == (2, 2, started.movement.reference)
    assert resend.left_s == pytest.approx(100, abs=2)
    assert await held_s(owner, movement) == pytest.approx(15, abs=2)
    record = resend.begun.record
    assert (record is not None) is (kind in FIRST)
    assert record is None or record.record_id == started.charge.token_id
    told_of = await owner.fetchval("SELECT count(*) FROM audit.events WHERE event = $1", row(movement).event.event)
    assert told_of == 1
    assert await store.take_marked(borough, row) is None
    assert not (await move(worker, case.movement, Event.FAIL)).moved
    assert (await move(store, movement, Event.DO)).moved


async def test_a_mark_ends_with_its_window(
    store: Ledger, worker: Ledger, owner: asyncpg.Connection, borough: str
) -> None:
    """Past its time nothing is sent, and a worker that takes it first takes the mark away."""
    await lost(store, owner, borough)
    case = await only(await worker.take(borough, 10))
    await worker.postpone(case.movement, 0.0, resend_within_s=0.05)
    await asyncio.sleep(0.1)
    assert await store.take_marked(borough, row) is None
    case = await only(await worker.take(borough, 10))
    await worker.postpone(case.movement, 0.0, resend_within_s=100.0)
    case = await only(await worker.take(borough, 10))
    assert (await row_of(owner, case.movement))["resend_until"] is None
    assert await store.take_marked(borough, row) is None


async def test_a_mark_is_gone_when_all_is_decided(
    store: Ledger, worker: Ledger, owner: asyncpg.Connection, borough: str
) -> None:
    """What the worker itself ends after marking it is not sent."""
    await lost(store, owner, borough)
    case = await only(await worker.take(borough, 10))
    await worker.postpone(case.movement, 0.0, resend_within_s=100.0)
    assert (await move(worker, case.movement, Event.DO)).moved
    assert await store.take_marked(borough, row) is None


async def test_each_mark_is_taken_once(
    store: Ledger, worker: Ledger, owner: asyncpg.Connection, borough: str
) -> None:
    """Many api processes at once: every marked movement is sent by one of them."""
    charge = await captured(store, department=borough)
    for _ in range(MANY):
        await following(store, charge, Kind.REFUND, 1)
    await owner.execute("UPDATE gateway.movements SET lease_until = now() WHERE department_id = $1", borough)
    for case in await worker.take(borough, MANY):
        await worker.postpone(case.movement, 5.0, resend_within_s=100.0)

    async def send() -> list[str]:
        mine: list[str] = []
        while (resend := await store.take_marked(borough, row)) is not None:
            mine.append(resend.begun.movement.movement_id)
        return mine

    shares = await asyncio.gather(*(send() for _ in range(WORKERS)))
    taken = Counter(movement_id for share in shares for movement_id in share)
    assert len(taken) == MANY
    assert set(taken.values()) == {1}


async def test_no_audit_row_no_second_sending(
    store: Ledger, worker: Ledger, owner: asyncpg.Connection, borough: str
) -> None:
    """Where the opening cannot be audited the mark stays, and nothing is counted as sent."""
    await lost(store, owner, borough)
    case = await only(await worker.take(borough, 10))
    await worker.postpone(case.movement, 5.0, resend_within_s=100.0)
    before = await row_of(owner, case.movement)
    await owner.execute("REVOKE INSERT ON audit.events FROM gateway_api")
    try:
        with capture_logs(), pytest.raises(Unavailable):
            await store.take_marked(borough, row)
    finally:
        await owner.execute("GRANT INSERT ON audit.events TO gateway_api")
    assert await row_of(owner, case.movement) == before


async def test_a_taking_whose_commit_was_lost(
    wire: Wire, frail: Ledger, store: Ledger, worker: Ledger, owner: asyncpg.Connection, borough: str
) -> None:
    """Whoever does not know whether it holds a marked movement sends nothing; counted or not, it is taken later."""
    for cut, sends in ((Cut.BEFORE_COMMIT, 1), (Cut.BEFORE_ANSWER, 2)):
        started = await lost(store, owner, borough)
        case = await only(await worker.take(borough, 10))
        await worker.postpone(case.movement, 5.0, resend_within_s=100.0)
        wire.cut_at(cut)
        with capture_logs(), pytest.raises(CommitUnknown):
            await frail.take_marked(borough, row)
        stands = await row_of(owner, started.movement)
        assert (stands["sends"], stands["resend_until"] is None) == (sends, sends == 2)
        await expire(owner, started.movement.movement_id)
        assert (await only(await worker.take(borough, 10))).movement.sends == sends


# --- a card that is still needed --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.SALE, Kind.AUTHORIZATION, Kind.CAPTURE, Kind.VOID])
@pytest.mark.parametrize("path", [(), (Event.LOST,), (Event.PARK,)])
async def test_a_card_stays_while_its_charge_is_unresolved(
    store: Ledger, owner: asyncpg.Connection, borough: str, kind: Kind, path: tuple[Event, ...]
) -> None:
    """Erasure is refused while a movement of the charge is open, and possible as soon as it is not."""
    started = await lost(store, owner, borough, kind)
    for event in path:
        await move(store, started.movement, event)
    token_id = started.charge.token_id
    with pytest.raises(TokenInUse):
        await store.erase_token(borough, token_id, shown, audit(borough))
    await move(store, started.movement, Event.REFUSE)
    assert (await store.erase_token(borough, token_id, shown, audit(borough))).status == "erased"


# --- the worker's role ------------------------------------------------------------------------------------------


async def test_a_worker_knows_all_departments(worker: Ledger, borough: str) -> None:
    """It looks everywhere for what waits."""
    assert {PARKS, borough} <= set(await worker.departments())


@pytest.mark.parametrize(("kind", "event"), list(product(Kind, EVENTS)))
async def test_a_worker_may_end_what_it_holds(
    store: Ledger, worker: Ledger, owner: asyncpg.Connection, borough: str, kind: Kind, event: Event
) -> None:
    """In every way, with journal, charge, token, answer and audit row, by its own role."""
    started = await lost(store, owner, borough, kind)
    case = await only(await worker.take(borough, 10))
    ended = await move(worker, case.movement, event)
    assert ended.moved
    assert await store.movement(borough, started.movement.movement_id) == (ended.charge, ended.movement)
    kept = await store.claimed(borough, started.movement.route, started.movement.idempotency_key)
    assert kept is not None
    assert (kept.body is not None) is (event in SAID)


async def test_a_worker_gives_a_single_use_token_back(
    store: Ledger, worker: Ledger, owner: asyncpg.Connection, borough: str
) -> None:
    """When it proves that a charge never happened its token is as good as new."""
    started = await begun(store, "single", department=borough)
    await expire(owner, started.movement.movement_id)
    case = await only(await worker.take(borough, 10))
    await move(worker, case.movement, Event.FAIL)
    assert (await store.token(borough, started.charge.token_id)).status == "active"


WORKER_MAY_NOT = [
    "SELECT sealed FROM gateway.tokens",
    "SELECT fingerprint_id FROM gateway.tokens",
    "SELECT last4 FROM gateway.tokens",
    "SELECT sealed FROM gateway.charges",
    "SELECT card_part FROM gateway.idempotency",
    "SELECT * FROM gateway.deks",
    "SELECT * FROM gateway.fingerprints",
    "SELECT * FROM gateway.api_keys",
    "SELECT * FROM gateway.key_manifest",
    "SELECT * FROM audit.events",
    "INSERT INTO gateway.charges (department_id) VALUES ('parks')",
    "INSERT INTO gateway.movements (department_id) VALUES ('parks')",
    "UPDATE gateway.movements SET amount_minor = 1",
    "UPDATE gateway.movements SET reference = 'pr_other'",
    "UPDATE gateway.movements SET sends = 1",
    "UPDATE gateway.movements SET first_sent_at = now()",
    "UPDATE gateway.movements SET not_after = now()",
    "UPDATE gateway.charges SET amount_minor = 1",
    "UPDATE gateway.charges SET processor_reference = 'pr_other'",
    "UPDATE gateway.tokens SET sealed = ''",
    "UPDATE gateway.idempotency SET subject_id = 'ch_other'",
    "DELETE FROM gateway.movements",
    "DELETE FROM gateway.charges",
    "DELETE FROM gateway.idempotency",
    "UPDATE gateway.journal SET amount_minor = 1",
    "DELETE FROM gateway.journal",
]


@pytest.mark.parametrize("statement", WORKER_MAY_NOT)
async def test_a_worker_may_do_no_more(postgres: Postgres, statement: str) -> None:
    """It sees no sealed byte, card part or key, begins nothing, and changes no amount, name or time."""
    connection = await postgres.connect("worker")
    try:
        await connection.execute(f"SET gateway.department = '{PARKS}'")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    finally:
        await connection.close()


@pytest.mark.parametrize("table", ["movements", "journal", "charges", "tokens", "idempotency"])
async def test_a_worker_sees_one_department_at_a_time(
    store: Ledger, postgres: Postgres, borough: str, table: str
) -> None:
    """Nothing without naming one, and nothing of another one."""
    await captured(store, department=borough)
    connection = await postgres.connect("worker")
    try:
        assert await connection.fetchval(f"SELECT count(department_id) FROM gateway.{table}") == 0
        await connection.execute(f"SET gateway.department = '{borough}'")
        seen = await connection.fetch(f"SELECT DISTINCT department_id FROM gateway.{table}")
        assert [record["department_id"] for record in seen] == [borough]
    finally:
        await connection.close()
