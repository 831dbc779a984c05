"""Virtual time: it jumps, it never goes back, and what is ready together runs as the seed decides."""

import asyncio
import time
from random import Random

import pytest

from tests.simulation.loop import Stuck, VirtualLoop


def loop_of(seed: int) -> VirtualLoop:
    """A loop of its own."""
    return VirtualLoop(Random(seed))  # noqa: S311 - chance that a seed repeats


async def order() -> list[int]:
    """In which order twenty tasks come first that were started together."""
    ran: list[int] = []

    async def come(number: int) -> None:
        ran.append(number)

    await asyncio.gather(*(come(number) for number in range(20)))
    return ran


def test_a_day_passes_in_a_moment() -> None:
    """Sleeping takes virtual seconds, and next to no real ones."""
    loop, started_s = loop_of(1), time.monotonic()
    loop.run_until_complete(asyncio.sleep(86_400.0))
    assert loop.time() == pytest.approx(86_400.0)
    assert time.monotonic() - started_s < 5.0
    loop.close()


def test_timers_are_kept_in_order() -> None:
    """What sleeps shorter wakes up first, and a cancelled timer takes no time."""

    async def race() -> list[float]:
        woken: list[float] = []

        async def sleep(seconds: float) -> None:
            await asyncio.sleep(seconds)
            woken.append(seconds)

        late = asyncio.ensure_future(sleep(900.0))
        await asyncio.gather(*(sleep(seconds) for seconds in (3.0, 1.0, 2.0)))
        late.cancel()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5.0):
                await asyncio.sleep(60.0)
        return woken

    loop = loop_of(1)
    assert loop.run_until_complete(race()) == [1.0, 2.0, 3.0]
    assert loop.time() == pytest.approx(8.0)
    loop.close()


def test_the_seed_decides_the_order() -> None:
    """Tasks that are ready together run in another order with another seed, and in the same with the same."""
    orders = []
    for seed in (1, 2, 1):
        loop = loop_of(seed)
        orders.append(loop.run_until_complete(order()))
        loop.close()
    assert orders[0] == orders[2] != orders[1]
    assert orders[0] != sorted(orders[0])


def test_a_deadlock_is_noticed() -> None:
    """Where everybody waits and no timer is set, the loop says so in place of waiting for ever."""
    loop = loop_of(1)
    waiting = loop.create_future()
    with pytest.raises(Stuck):
        loop.run_until_complete(waiting)
    loop.close()
