"""The same key at the same moment on several replicas, thousands of times: one send each, and one answer.

`GATEWAY_TEST_RACES=10000` runs as many as the promise names.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from gateway.errors import RequestInProgress
from gateway.services.ports import Answer
from gateway.store.database import Database
from tests.gateway.store.city import Page
from tests.gateway.store.far import FarSide
from tests.gateway.store.quarter import Quarter

pytestmark = pytest.mark.server

RACES = int(os.environ.get("GATEWAY_TEST_RACES", "1000"))
REPLICAS = 3
AT_ONCE = 24
TOKENS = 48
CARD = 74_001


@pytest.fixture
async def replicas(quarter: Quarter) -> AsyncIterator[list[Page]]:
    """Api processes with pools and rings of their own before one processor."""
    far = FarSide()
    async with AsyncExitStack() as stack:
        pages = []
        for _ in range(REPLICAS):
            database = await Database.open(quarter.postgres.arguments() | {"database": quarter.database}, 10)
            stack.push_async_callback(database.close)
            pages.append(quarter.page(far, api=database))
        yield pages


async def test_same_keys_across_replicas(quarter: Quarter, replicas: list[Page]) -> None:
    """Each key makes one charge and is sent once; whoever asks beside it is told that it runs, or the same answer."""
    far = replicas[0].far
    tokens = [(await replicas[0].token(CARD + number))["id"] for number in range(TOKENS)]
    ends: Counter[str] = Counter()

    async def race(number: int) -> None:
        key, token = f"race-{number}", tokens[number % TOKENS]
        two = (replicas[number % REPLICAS], replicas[(number + 1) % REPLICAS])
        answers = await asyncio.gather(*(page.ask(key, token=token) for page in two), return_exceptions=True)
        kinds = sorted(type(answer).__name__ for answer in answers)
        ends["-".join(kinds)] += 1
        assert len({answer for answer in answers if isinstance(answer, Answer)}) == 1
        assert all(isinstance(answer, Answer | RequestInProgress) for answer in answers), answers

    numbers = iter(range(RACES))

    async def runner() -> None:
        for number in numbers:
            await race(number)

    began = time.monotonic()
    await asyncio.gather(*(runner() for _ in range(AT_ONCE)))
    print(f"{RACES} races in {time.monotonic() - began:.1f} s: {dict(ends)}")

    assert ends.total() == RACES
    assert ends["Answer-RequestInProgress"] > 0
    references = Counter(movement.reference for movement in far.sent)
    assert len(references) == RACES
    assert set(references.values()) == {1}
    stands = await quarter.owner.fetch(
        "SELECT progress, count(*) FROM gateway.movements WHERE department_id = $1 GROUP BY 1", quarter.department
    )
    assert [tuple(row) for row in stands] == [("done", RACES)]
