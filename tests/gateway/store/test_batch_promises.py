"""What the statements of a batch promise, each by itself: an answer stands, a lease is set, an order is kept."""

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any

import asyncpg
import pytest

from gateway.rules.lifecycle import Event
from gateway.rules.recovery import FIRST_LOOK_S
from gateway.services.ports import Answer, Claim
from gateway.store import batch as module
from gateway.store.batch import Steps, ask
from gateway.store.ledger import Ledger
from gateway.store.postgres import conclude
from tests.gateway.store.charges import begun, move
from tests.gateway.store.postgres import PARKS, audit, claim

pytestmark = pytest.mark.server

HELD = (
    "SELECT resend_until, extract(epoch FROM lease_until)::float8 AS lease_s FROM gateway.movements"
    " WHERE movement_id = $1"
)


async def answering(store: Ledger, *claims: Claim, body: bytes) -> list[bytes | None]:
    """Conclude all of these at once with one answer; gives what stands under each then."""
    steps = [partial(conclude, audit(), each, Answer(201, body)) for each in claims]
    await asyncio.gather(*(store._batches.do(PARKS, each) for each in steps))
    found = [await store.claimed(PARKS, each.route, each.key) for each in claims]
    return [each.body if each else None for each in found]


async def test_an_answer_that_stands_is_never_replaced(store: Ledger) -> None:
    """Whoever concludes a key once more leaves its answer as it is; keys beside it are answered."""
    first, second, third = (claim("tok_x") for _ in range(3))
    for each in (first, second, third):
        assert await store.claim(PARKS, each, audit()) is None
    assert await answering(store, first, body=b"one") == [b"one"]
    assert await answering(store, second, first, third, body=b"two") == [b"two", b"one", b"two"]


async def lease_of(owner: asyncpg.Connection, movement_id: str) -> tuple[float, bool]:
    """When its lease ends (s), and whether it is marked to be sent again."""
    row = await owner.fetchrow(HELD, movement_id)
    assert row is not None
    return row["lease_s"], row["resend_until"] is not None


async def now_s(owner: asyncpg.Connection) -> float:
    """By the database's clock."""
    time_s: float = await owner.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")
    return time_s


async def test_what_moves_is_looked_at_soon(store: Ledger, owner: asyncpg.Connection) -> None:
    """However long it was held, the first look is due, and no mark is left; who may not move it changes neither."""
    started = [await begun(store) for _ in range(3)]
    mine, fenced, parked = (each.movement for each in started)
    await move(store, parked, Event.PARK)
    for each in (mine, fenced, parked):
        await store.postpone(each, 600, resend_within_s=3_600)
    before = {each.movement_id: await lease_of(owner, each.movement_id) for each in (fenced, parked)}
    since_s = await now_s(owner)
    ends = await asyncio.gather(
        move(store, mine, Event.LOST),
        move(store, replace(fenced, epoch=fenced.epoch + 1), Event.LOST),
        move(store, parked, Event.LOST),
    )
    until_s = await now_s(owner)

    assert [end.moved for end in ends] == [True, False, False]
    lease_s, marked = await lease_of(owner, mine.movement_id)
    assert since_s + FIRST_LOOK_S <= lease_s <= until_s + FIRST_LOOK_S
    assert not marked
    for each in (fenced, parked):
        assert await lease_of(owner, each.movement_id) == before[each.movement_id]


async def test_who_is_left_behind_keeps_its_place(store: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that name one thing have their turns in the order in which they came, however few a batch takes."""
    monkeypatch.setattr(module, "BATCH_MAX", 3)
    done: list[int] = []

    def marked(number: int) -> Any:
        def steps() -> Steps[None]:
            yield from ask("charge", "ch_none")
            done.append(number)

        return steps

    names = [("shared",) if number % 2 else () for number in range(16)]
    await asyncio.gather(*(store._batches.do(PARKS, marked(number), *each) for number, each in enumerate(names)))
    assert [number for number in done if number % 2] == list(range(1, 16, 2))
    assert sorted(done) == list(range(16))
