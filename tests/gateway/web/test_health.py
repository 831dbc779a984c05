"""Readiness: what is needed, what is only wished for, and how often anybody is asked."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from gateway.errors import Unavailable
from gateway.web.health import FRESH_S, Health
from keys.errors import DatabaseRefused, ManifestRefused


@dataclass
class Clock:
    """Implements `ports.Clock`; stands still unless moved."""

    seconds: float = 0.0

    def now(self) -> datetime:
        return datetime(2026, 3, 14, tzinfo=UTC)

    def monotonic(self) -> float:
        return self.seconds


class Part:
    """Something that is asked how it is."""

    def __init__(self) -> None:
        self.fails: Exception | None = None
        self.asked = 0

    async def check(self) -> int:
        self.asked += 1
        await asyncio.sleep(0)
        if self.fails:
            raise self.fails
        return 0


@dataclass
class House:
    """A service of two needed parts and a wished one."""

    clock: Clock
    database: Part
    ring: Part
    processor: Part

    def __post_init__(self) -> None:
        needed: dict[str, Callable[[], Awaitable[object]]] = {
            "database": self.database.check,
            "ring": self.ring.check,
        }
        self.health = Health(needed, {"processor": self.processor.check}, self.clock)

    @property
    def asked(self) -> tuple[int, ...]:
        return self.database.asked, self.ring.asked, self.processor.asked


@pytest.fixture
def house() -> House:
    """All is well."""
    return House(Clock(), Part(), Part(), Part())


async def test_all_is_well(house: House) -> None:
    """Ready, without reasons, and every part was asked; a result that is false is no failure."""
    assert await house.health.report() == {"status": "ok", "reasons": []}
    assert house.asked == (1, 1, 1)


@pytest.mark.parametrize("error", [Unavailable(), DatabaseRefused("x"), ManifestRefused("x")])
async def test_what_is_needed_makes_it_unavailable(house: House, error: Exception) -> None:
    """Without a needed part the service is unavailable; every reason is named, in order, and no text of an error."""
    house.ring.fails = error
    assert await house.health.report() == {"status": "unavailable", "reasons": ["ring"]}
    house.clock.seconds += FRESH_S
    house.database.fails = house.processor.fails = error
    assert await house.health.report() == {"status": "unavailable", "reasons": ["database", "ring", "processor"]}


async def test_what_is_wished_degrades_it(house: House) -> None:
    """Without the processor the service still serves, and says that something is missing."""
    house.processor.fails = Unavailable()
    assert await house.health.report() == {"status": "degraded", "reasons": ["processor"]}


async def test_any_error_is_a_check_that_did_not_pass(house: House) -> None:
    """Readiness answers whatever breaks: an error that nobody foresaw is a reason too."""
    house.ring.fails = ZeroDivisionError()
    assert await house.health.report() == {"status": "unavailable", "reasons": ["ring"]}


async def test_nobody_is_asked_twice_a_second(house: House) -> None:
    """Within a second the report is repeated, good or bad; then it is new."""
    house.ring.fails = Unavailable()
    await house.health.report()
    house.ring.fails = None
    house.clock.seconds += FRESH_S - 0.001
    assert (await house.health.report())["status"] == "unavailable"
    assert house.asked == (1, 1, 1)
    house.clock.seconds += 0.001
    assert (await house.health.report())["status"] == "ok"
    assert house.asked == (2, 2, 2)


async def test_many_who_ask_at_once_share_one_answer(house: House) -> None:
    """A crowd at an old report makes one round of checks, however slow they are."""
    reports = await asyncio.gather(*(house.health.report() for _ in range(50)))
    assert reports == [{"status": "ok", "reasons": []}] * 50
    assert house.asked == (1, 1, 1)
