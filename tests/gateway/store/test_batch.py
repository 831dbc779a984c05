"""Group commit on a real database: many together, durable first, and nobody pays for others."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from gateway.errors import NotFound, TokenUnusable, Unavailable
from gateway.rules.ids import new_id
from gateway.services.ports import Begun, Claimed, CommitUnknown, KeysMoved, NewToken, Token
from gateway.store import batch as module
from gateway.store.batch import Batches, Steps, ask
from gateway.store.database import Database, StatementRefused
from gateway.store.ledger import Ledger
from tests.gateway.store.postgres import (
    PARKS,
    RETIRED,
    ROUTE,
    Cut,
    Postgres,
    Wire,
    audit,
    claim,
    intent,
    new_token,
    shown,
    slow_commits,
)

pytestmark = pytest.mark.server


@pytest.fixture
async def wired(postgres: Postgres, wire: Wire) -> AsyncIterator[Ledger]:
    """A store whose commits are counted."""
    database = await Database.open(postgres.arguments(port=wire.port), 4)
    yield Ledger(database)
    await database.close()


def minting(store: Ledger, new: NewToken | None = None, key: str | None = None) -> Any:
    """A token on its way, under a key or without one."""
    new = new or new_token()
    held = claim(new.token.token_id, key) if key else None
    return store.create_token(new, held, False, shown, audit(new.token.department))


def with_token(new: NewToken, **fields: object) -> NewToken:
    """The same with other fields of its token."""
    return replace(new, token=replace(new.token, **fields))  # type: ignore[arg-type] # fields of a token


def with_id(new: NewToken, token_id: str) -> NewToken:
    """The same under another id."""
    return replace(with_token(new, token_id=token_id), record=replace(new.record, record_id=token_id))


async def stored(owner: asyncpg.Connection, ids: list[str]) -> set[str]:
    """Which of these tokens are there."""
    rows = await owner.fetch("SELECT token_id FROM gateway.tokens WHERE token_id = ANY($1)", ids)
    return {row["token_id"] for row in rows}


async def test_many_share_a_commit(wired: Ledger, wire: Wire, owner: asyncpg.Connection) -> None:
    """A hundred at once take a few commits, and each caller is given its own token, which is there."""
    made = [new_token() for _ in range(100)]
    tokens = await asyncio.gather(*(minting(wired, new) for new in made))
    assert [token.token_id for token in tokens] == [new.token.token_id for new in made]
    assert len({token.fingerprint_id for token in tokens}) == 100
    assert await stored(owner, [token.token_id for token in tokens]) == {token.token_id for token in tokens}
    assert wire.commits <= 3


async def test_who_is_alone_waits_for_nobody(wired: Ledger, wire: Wire) -> None:
    """One request is one commit, begun before anything else of the loop has a second turn."""
    going = asyncio.create_task(minting(wired))
    for _ in range(2):
        await asyncio.sleep(0)
    assert len(wired._batches._working) == 1
    await going
    assert wire.commits == 1


async def test_a_poisoned_row_fails_alone(store: Ledger, owner: asyncpg.Connection) -> None:
    """Of five hundred in a batch one breaks a rule of the schema: the other 499 are stored and told so."""
    made = [new_token() for _ in range(500)]
    made[123] = with_token(made[123], last4="none")
    with capture_logs():
        ends = await asyncio.gather(*(minting(store, new, new_id("key")) for new in made), return_exceptions=True)
    assert [number for number, end in enumerate(ends) if isinstance(end, BaseException)] == [123]
    assert isinstance(ends[123], StatementRefused)
    ids = [new.token.token_id for new in made]
    assert await stored(owner, ids) == set(ids) - {ids[123]}
    for table, column in (("deks", "record_id"), ("idempotency", "subject_id")):
        count = f"SELECT count(*) FROM gateway.{table} WHERE {column} = ANY($1)"
        assert await owner.fetchval(count, ids) == 499
        assert await owner.fetchval(count, [ids[123]]) == 0


AUDITED = "SELECT count(*) FROM audit.events"


@pytest.mark.parametrize("keyed", [True, False])
async def test_who_sealed_with_a_key_that_moved_fails_alone(
    store: Ledger, owner: asyncpg.Connection, keyed: bool
) -> None:
    """Of a batch in which one's keys were rotated meanwhile the others are stored, each with its audit row."""
    made = [new_token() for _ in range(9)]
    made[4] = new_token(generation=RETIRED)
    keys = [new_id("key") if keyed else None for _ in made]
    before = await owner.fetchval(AUDITED)
    asked = [minting(store, new, key) for new, key in zip(made, keys, strict=True)]
    ends = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(end, KeysMoved) for end in ends] == [number == 4 for number in range(9)]
    ids = [new.token.token_id for new in made]
    assert await stored(owner, ids) == set(ids) - {ids[4]}
    assert await owner.fetchval(AUDITED) - before == 8


async def test_with_and_without_a_key_in_one_batch(store: Ledger) -> None:
    """Those with a key ask more than once: they and their neighbours share one transaction, which nothing refuses."""
    with capture_logs() as logs:
        ends = await asyncio.gather(*(minting(store, key=key) for key in (None, new_id("key"), None, new_id("key"))))
    assert [type(end) for end in ends] == [Token] * 4
    assert logs == []


async def test_a_lone_statement_leaves_no_department_behind(postgres: Postgres) -> None:
    """On the same connection the next transaction of nobody's sees nothing of whose token was stored."""
    database = await Database.open(postgres.arguments(), 1)
    try:
        token = await minting(Ledger(database))
        async with database._lent() as connection:
            assert await connection.fetchval("SELECT current_setting('gateway.department', true)") in {None, ""}
            assert await connection.fetchval("SELECT count(*) FROM gateway.tokens") == 0
        async with database.reading(PARKS) as connection:
            found = "SELECT count(*) FROM gateway.tokens WHERE token_id = $1"
            assert await connection.fetchval(found, token.token_id) == 1
    finally:
        await database.close()


async def test_who_meets_a_lock_holds_up_nobody(store: Ledger, owner: asyncpg.Connection) -> None:
    """Somebody holds the row of one card of a batch: the others are stored meanwhile, and it is when that is over."""
    first = new_token()
    await minting(store, first)
    again = replace(new_token(), card_indexes=first.card_indexes)
    held = "SELECT FROM gateway.fingerprints WHERE fingerprint_id = $1 FOR UPDATE"
    async with owner.transaction():
        await owner.execute(held, first.token.fingerprint_id)
        with capture_logs():
            waiting = asyncio.create_task(minting(store, again))
            others = await asyncio.gather(*(minting(store) for _ in range(8)))
        assert len(others) == 8
        assert not waiting.done()
    assert (await waiting).fingerprint_id == first.token.fingerprint_id


async def test_a_value_that_never_reaches_the_server_fails_alone(store: Ledger) -> None:
    """What the driver cannot encode is its sender's error, too."""
    made = [new_token() for _ in range(9)]
    made[4] = with_token(made[4], usage=7)
    with capture_logs():
        ends = await asyncio.gather(*(minting(store, new) for new in made), return_exceptions=True)
    assert [type(end) for end in ends] == [StatementRefused if number == 4 else Token for number in range(9)]


async def test_what_raises_leaves_nothing(store: Ledger, owner: asyncpg.Connection) -> None:
    """Charges of tokens that are unknown or spent, keys that moved: each is told why; their keys are free again."""
    good, spent = new_token(usage="single"), new_token(usage="single")
    for new in (good, spent):
        await minting(store, new)
    await store.begin_charge(intent(spent.token.token_id), audit())
    moved = new_token(generation=RETIRED)
    asks = [intent(each) for each in (good.token.token_id, spent.token.token_id, "tok_none")]
    asks.append(intent(moved.token.token_id, new=moved))
    ends = await asyncio.gather(*(store.begin_charge(each, audit()) for each in asks), return_exceptions=True)
    assert list(map(type, ends)) == [Begun, TokenUnusable, NotFound, KeysMoved]
    for each, end in zip(asks, ends, strict=True):
        there = await store.claimed(PARKS, each.claim.route, each.claim.key)
        assert (there is not None) == isinstance(end, Begun)
        query = "SELECT count(*) FROM gateway.movements WHERE charge_id = $1"
        assert await owner.fetchval(query, each.charge.charge_id) == isinstance(end, Begun)


async def test_the_same_name_is_in_a_batch_once(store: Ledger) -> None:
    """Ten under one key at once: one makes the token, and the others find its answer, not its beginning."""
    key = new_id("key")
    ends = await asyncio.gather(*(minting(store, key=key) for _ in range(10)))
    tokens = [end for end in ends if isinstance(end, Token)]
    found = [end for end in ends if isinstance(end, Claimed)]
    assert (len(tokens), len(found)) == (1, 9)
    assert {(end.subject_id, end.status) for end in found} == {(tokens[0].token_id, 201)}


async def test_the_same_card_many_times_in_a_batch(store: Ledger) -> None:
    """Fifty tokens of one card at once have one fingerprint."""
    first = new_token()
    made = [replace(new_token(), card_indexes=first.card_indexes) for _ in range(50)]
    tokens = await asyncio.gather(*(minting(store, new) for new in made))
    assert len({token.fingerprint_id for token in tokens}) == 1


async def test_a_lost_commit_is_everybodys(frail: Ledger, wire: Wire, owner: asyncpg.Connection) -> None:
    """The connection breaks during the COMMIT: nobody is told that it happened, whether it did or not."""
    for cut, there in ((Cut.BEFORE_COMMIT, False), (Cut.BEFORE_ANSWER, True)):
        made = [new_token() for _ in range(5)]
        wire.cut_at(cut)
        with capture_logs():
            ends = await asyncio.gather(*(minting(frail, new) for new in made), return_exceptions=True)
        assert [type(end) for end in ends] == [CommitUnknown] * 5
        assert len({id(end) for end in ends}) == 5
        ids = [new.token.token_id for new in made]
        assert await stored(owner, ids) == (set(ids) if there else set())


HOLD = (
    "INSERT INTO gateway.idempotency (department_id, route, idempotency_key, request_digest, subject_id,"
    " created_at, lease_until) VALUES ($1, $2, $3, $4, 'tok_x', now(), now())"
)


async def test_nobody_waits_for_others_locks(store: Ledger, owner: asyncpg.Connection) -> None:
    """While somebody holds keys, who wants them waits alone: neighbours and those who come later are answered."""
    keys = [new_id("key") for _ in range(8)]
    async with owner.transaction():
        await owner.executemany(HOLD, [(PARKS, ROUTE, key, bytes(32)) for key in keys])
        with capture_logs():
            waiting = [asyncio.create_task(minting(store, key=key)) for key in keys]
            neighbours = await asyncio.gather(*(minting(store, key=new_id("key")) for _ in range(24)))
            again = asyncio.create_task(minting(store, key=keys[0]))
            later = [await minting(store) for _ in range(50)]
        assert all(isinstance(each, Token) for each in (*neighbours, *later))
        await asyncio.sleep(0.6)  # longer than any batch waits
        assert not any(each.done() for each in (*waiting, again))
    ends = await asyncio.gather(*waiting, again)
    assert [end.subject_id for end in ends if isinstance(end, Claimed)] == ["tok_x"] * 9
    assert (store._batches._aside, store._batches._queues[PARKS].named) == (set(), set())
    await owner.execute("DELETE FROM gateway.idempotency WHERE idempotency_key = ANY($1)", keys)


async def test_nobody_in_work_waits_for_ever(
    store: Ledger, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that lasts is told of in time, however many want it; nothing of them is written."""
    monkeypatch.setattr(module, "ACQUIRE_TIMEOUT_S", 0.5)
    keys = [new_id("key") for _ in range(40)]
    async with owner.transaction():
        await owner.executemany(HOLD, [(PARKS, ROUTE, key, bytes(32)) for key in keys])
        with capture_logs():
            async with asyncio.timeout(10):
                ends = await asyncio.gather(*(minting(store, key=key) for key in keys), return_exceptions=True)
        assert all(isinstance(end, Unavailable) for end in ends)
    assert store._batches._queues[PARKS].named == set()
    await owner.execute("DELETE FROM gateway.idempotency WHERE idempotency_key = ANY($1)", keys)


async def test_two_processes_conclude_a_held_key_once(store: Ledger, postgres: Postgres) -> None:
    """Of two that hold one key, because the first was thought dead, one makes its token and the other finds it."""
    database = await Database.open(postgres.arguments(), 2)
    try:
        other = Ledger(database)
        for _ in range(20):
            first, second = new_token(), new_token()
            held = claim(first.token.token_id)
            assert await store.claim(PARKS, held, audit()) is None
            ends = await asyncio.gather(
                store.create_token(first, held, True, shown, audit()),
                other.create_token(second, held, True, shown, audit()),
            )
            assert sorted(type(end).__name__ for end in ends) == ["Claimed", "Token"]
    finally:
        await database.close()


async def test_who_is_cancelled_in_the_middle_of_its_batch_is_not_told_that_nothing_happened(
    store: Ledger, owner: asyncpg.Connection
) -> None:
    """The process ends while a batch is being committed: nobody can say whether it was."""
    async with slow_commits(owner):
        going = asyncio.create_task(minting(store, key=new_id("key")))
        while not store._batches._working:
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        (turn,) = store._batches._working
        turn.cancel()
        with pytest.raises(CommitUnknown):
            await going


async def test_only_so_many_wait(store: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than may wait is refused at once, and the others are served."""
    monkeypatch.setattr(module, "WAITING_MAX", 20)
    ends = await asyncio.gather(*(minting(store) for _ in range(25)), return_exceptions=True)
    assert [isinstance(end, Unavailable) for end in ends] == [number >= 20 for number in range(25)]


async def test_nobody_waits_for_ever(
    frail: Ledger, wire: Wire, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a batch that hangs a request is refused in time, and never written."""
    monkeypatch.setattr(module, "ACQUIRE_TIMEOUT_S", 0.3)
    await minting(frail)
    wire.silent = True
    hanging = asyncio.create_task(minting(frail))
    await asyncio.sleep(0.05)
    late = new_token()
    with capture_logs():
        with pytest.raises(Unavailable):
            await minting(frail, late)
        assert not hanging.done()
        with pytest.raises((Unavailable, CommitUnknown)):
            await hanging
    wire.silent = False
    assert await stored(owner, [late.token.token_id]) == set()
    await minting(frail)


async def test_who_goes_away_takes_nobody_along(store: Ledger, owner: asyncpg.Connection) -> None:
    """A caller that is cancelled while it waits is left out; in a batch, it is written like the others."""
    made = [new_token() for _ in range(6)]
    first = asyncio.create_task(minting(store, made[0]))
    for _ in range(3):
        await asyncio.sleep(0)
    waiting = [asyncio.create_task(minting(store, new)) for new in made[1:]]
    await asyncio.sleep(0)
    first.cancel()
    waiting[2].cancel()
    await asyncio.wait([first, *waiting])
    ids = [new.token.token_id for new in made]
    assert await stored(owner, ids) == set(ids) - {ids[3]}
    queue = store._batches._queues[PARKS]
    assert (list(queue.waiting), queue.named, store._batches._working) == ([], set(), set())


async def test_departments_take_turns(
    store: Ledger, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one batch at a time and a flood of one department, another one's comes after one batch."""
    for bound, value in (("AT_ONCE_MAX", 1), ("BESIDE_MAX", 1), ("BATCH_MAX", 5)):
        monkeypatch.setattr(module, bound, value)
    done: list[str] = []

    def marked(department: str) -> Any:
        def steps() -> Steps[None]:
            yield from ask("charge", "ch_none")
            done.append(department)

        return steps

    flood = [store._batches.do(PARKS, marked(PARKS)) for _ in range(50)]
    await asyncio.gather(*flood, store._batches.do("utilities", marked("utilities")))
    assert done.index("utilities") == 5


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many each turn took."""
    taken: list[int] = []
    take = Batches._take

    def counted(self: Batches, queue: Any) -> Any:
        batch = take(self, queue)
        taken.append(len(batch))
        return batch

    monkeypatch.setattr(Batches, "_take", counted)
    return taken


async def test_many_who_name_the_same_do_not_spin(store: Ledger, turns: list[int]) -> None:
    """While one of fifty that name one thing is in work the others wait; they do not ask for turns all the time."""
    key = new_id("key")
    await asyncio.gather(*(minting(store, key=key) for _ in range(50)))
    assert len(turns) <= 2 * 50 + 2


async def test_who_waits_for_what_is_aside_does_not_spin(
    store: Ledger, owner: asyncpg.Connection, turns: list[int]
) -> None:
    """While somebody's lock lasts, who names the same as the one that waits for it asks for no turn after turn."""
    key = new_id("key")
    async with owner.transaction():
        await owner.execute(HOLD, PARKS, ROUTE, key, bytes(32))
        with capture_logs():
            waiting = [asyncio.create_task(minting(store, key=key)) for _ in range(5)]
            await asyncio.sleep(1)
    assert all(isinstance(end, Claimed) for end in await asyncio.gather(*waiting))
    assert len(turns) <= 2 * 5 + 2
    await owner.execute("DELETE FROM gateway.idempotency WHERE idempotency_key = $1", key)


async def test_a_bug_in_the_steps_is_told_as_it_is(store: Ledger) -> None:
    """What nobody foresaw is raised where it was asked for, and the next batch goes on."""

    def steps() -> Steps[None]:
        yield from ask("charge", "ch_none")
        raise ZeroDivisionError

    ends = await asyncio.gather(store._batches.do(PARKS, steps), minting(store), return_exceptions=True)
    assert isinstance(ends[0], ZeroDivisionError)
    assert isinstance(ends[1], Token)


async def test_who_waits_in_a_ring_is_done_again(store: Ledger, owner: asyncpg.Connection) -> None:
    """A batch has one row and waits for the next, whose holder waits for the first: in the end both have both."""
    ids = sorted(new.token.token_id for new in [new_token(), new_token()])
    await asyncio.gather(*(minting(store, with_id(new_token(), each)) for each in ids))

    def steps(token_id: str) -> Any:
        def locking() -> Steps[bool]:
            return (yield from ask("lock_token", token_id)) is not None

        return locking

    lock = "SELECT FROM gateway.tokens WHERE token_id = $1 FOR UPDATE"
    with capture_logs():
        async with owner.transaction():
            await owner.execute(lock, ids[1])
            both = [asyncio.create_task(store._batches.do(PARKS, steps(each))) for each in ids]
            while not await owner.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.01)
            await owner.execute(lock, ids[0])
        assert await asyncio.gather(*both) == [True, True]
