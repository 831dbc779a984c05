"""Many seeds: several at a time on one harbour, and a harbour for each process that runs them."""

import asyncio
import logging
import resource
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from tests.waters.harbour import Harbour, opened
from tests.waters.tempo import faster
from tests.waters.voyage import Run, sail, to_each_its_own_logs
from tests.waters.weather import weather_of

AT_ONCE = 8
"""Seeds on one harbour at a time. Each has about seven connections, of the hundred that the server takes."""


@dataclass
class Tally:
    """What a number of seeds had to show."""

    seeds: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    failures: list[Run] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    """Those whose history was asked for."""
    healed_in_s_max: float = 0.0
    cpu_s: float = 0.0
    """Of the processes that ran the seeds, without PostgreSQL's."""

    def add(self, run: Run) -> None:
        """Count a run in."""
        self.seeds += 1
        self.seen.update(run.seen)
        self.healed_in_s_max = max(self.healed_in_s_max, run.healed_in_s)
        if run.violations:
            self.failures.append(run)
        elif run.history:
            self.runs.append(run)

    def merge(self, other: "Tally") -> None:
        """Count another tally in."""
        self.seeds += other.seeds
        self.seen.update(other.seen)
        self.failures += other.failures
        self.healed_in_s_max = max(self.healed_in_s_max, other.healed_in_s_max)
        self.cpu_s += other.cpu_s


def sail_all(
    seeds: Sequence[int], jobs: int, tell: Callable[[Tally], None] = lambda _tally: None, at_once: int = AT_ONCE
) -> Tally:
    """Run these seeds in so many processes; `tell` hears of each process' share."""
    total = Tally()
    with ProcessPoolExecutor(jobs) as pool:
        for share in pool.map(sail_here, [seeds[job::jobs] for job in range(jobs)], [at_once] * jobs):
            total.merge(share)
            tell(share)
    return total


def sail_here(seeds: Iterable[int], at_once: int = AT_ONCE, *, with_history: bool = False) -> Tally:
    """Run these seeds in this process, on a harbour of their own."""
    to_each_its_own_logs()
    logging.getLogger("asyncpg").setLevel(logging.CRITICAL)  # that a pool cannot reach the server is no news here
    with faster():
        tally = asyncio.run(_sail_on_one(list(seeds), at_once, with_history=with_history))
    used = resource.getrusage(resource.RUSAGE_SELF)
    tally.cpu_s = used.ru_utime + used.ru_stime
    return tally


async def _sail_on_one(seeds: Sequence[int], at_once: int, *, with_history: bool) -> Tally:
    tally, places = Tally(), asyncio.Semaphore(at_once)
    async with opened() as harbour:

        async def one(seed: int) -> None:
            async with places:
                tally.add(await _survived(harbour, seed, with_history=with_history))

        await asyncio.gather(*(one(seed) for seed in seeds))
    return tally


async def _survived(harbour: Harbour, seed: int, *, with_history: bool) -> Run:
    """A seed's run. What breaks in it breaks that seed only, and is told as a violation."""
    try:
        return await asyncio.create_task(sail(harbour, seed, with_history=with_history))
    except Exception:  # noqa: BLE001 - whatever it is, the other seeds go on
        return Run(seed, weather_of(seed), [f"H: {traceback.format_exc()}"], Counter(), 0.0, 0.0)
