"""Many seeds over several processes, with one result: what was violated, and what was seen."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.simulation.storm import Run, run

BATCH = 50
TWICE_EVERY = 100
"""Of so many seeds one is run twice: the same must happen both times, to the last word and moment."""
REGRESSIONS = Path(__file__).with_name("regressions.txt")


@dataclass
class Tally:
    """What a number of seeds had to show."""

    seeds: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    failures: list[Run] = field(default_factory=list)
    healed_in_s_max: float = 0.0
    twice: int = 0

    def add(self, other: "Tally") -> None:
        """Count another tally in."""
        self.seeds += other.seeds
        self.seen.update(other.seen)
        self.failures += other.failures
        self.healed_in_s_max = max(self.healed_in_s_max, other.healed_in_s_max)
        self.twice += other.twice


def sail(seeds: Iterable[int]) -> Tally:
    """Run these seeds here, one after the other."""
    tally = Tally()
    for seed in seeds:
        came = run(seed)
        if seed % TWICE_EVERY == 0:
            tally.twice += 1
            again = run(seed)
            if again.digest != came.digest:
                came.violations.append(f"D: the seed gave {came.digest}, and {again.digest} the second time")
        tally.seeds += 1
        tally.seen.update(came.seen)
        tally.healed_in_s_max = max(tally.healed_in_s_max, came.healed_in_s)
        if came.violations:
            tally.failures.append(came)
    return tally


def sail_all(seeds: Sequence[int], jobs: int, tell: Callable[[Tally], None]) -> Tally:
    """Run these seeds in so many processes; `tell` hears of each batch."""
    total = Tally()
    for part in _parts(seeds, jobs):
        total.add(part)
        tell(part)
    return total


def _parts(seeds: Sequence[int], jobs: int) -> Iterator[Tally]:
    batches = [seeds[start : start + BATCH] for start in range(0, len(seeds), BATCH)]
    if jobs == 1:
        yield from map(sail, batches)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(sail, batches)


def regressions() -> list[int]:
    """Seeds that once found something, run first for ever. A line is a seed and what it found."""
    lines = REGRESSIONS.read_text().splitlines()
    return [int(line.split()[0]) for line in lines if line.strip() and not line.startswith("#")]


def remember(failures: Sequence[Run]) -> None:
    """Add the seeds that found something."""
    known = set(regressions())
    with REGRESSIONS.open("a") as file:
        for each in failures:
            if each.seed not in known:
                file.write(f"{each.seed} {each.violations[0]}\n")
