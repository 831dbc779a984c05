"""Bugs planted in the product, and at which seed each is found: `python -m tests.simulation.mutants`.

They stand in `mutants.toml`. Each is hunted in a process of its own, whose imports are edited (`planting`), with the
seeds of the test suite and as many more, until a seed finds it. A bug that says why it cannot be found must indeed
not be found.
"""

import argparse
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.simulation.planting import Edit, plant

SEEDS = 4_000
"""Twice as many as the test suite runs."""
TABLE = Path(__file__).with_name("mutants.toml")


@dataclass(frozen=True, slots=True)
class Mutant:
    """A planted bug; `masked` explains one that no seed can find."""

    name: str
    edits: tuple[Edit, ...]
    masked: str = ""


@dataclass(frozen=True, slots=True)
class Hunt:
    """How a mutant was hunted: the first seed that found it, and by which invariants; None where none did."""

    mutant: Mutant
    seeds: int
    seed: int | None
    found: tuple[str, ...]

    @property
    def as_told(self) -> bool:
        """Whether it was found, or said why not."""
        return (self.seed is None) == bool(self.mutant.masked)

    def __str__(self) -> str:
        if self.seed is not None:
            return f"{self.seed:>6}  {' '.join(self.found):<20}  {self.mutant.name}"
        why = self.mutant.masked or "NOT EXPLAINED"
        return f"{'-':>6}  {'not found':<20}  {self.mutant.name}: {why}"


@cache
def mutants() -> Sequence[Mutant]:
    """All of them."""
    return [
        Mutant(row["name"], tuple(_edit(**edit) for edit in row["edit"]), row.get("masked", ""))
        for row in tomllib.loads(TABLE.read_text())["mutant"]
    ]


def hunt(mutant: Mutant, seeds: int) -> Hunt:
    """Run seeds against a planted bug until one finds it; raises `RuntimeError` where it could not be planted."""
    command = [sys.executable, "-m", "tests.simulation.mutants", "--one", mutant.name, "--seeds", str(seeds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=TABLE.parents[2])
    if done.returncode:
        raise RuntimeError(f"{mutant.name}: {done.stderr[-2000:]}")
    result = json.loads(done.stdout)
    return Hunt(mutant, seeds, result["seed"], tuple(result["found"]))


def hunt_all(hunted: Iterable[Mutant], seeds: int, masked_seeds: int, jobs: int) -> Iterator[Hunt]:
    """Hunt them, so many at a time; those that cannot be found with fewer seeds, if so wished."""
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda each: hunt(each, masked_seeds if each.masked else seeds), hunted)


def main() -> int:
    """Hunt all of them, or one here in this process; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutants", description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, metavar="N", help=f"until when to look ({SEEDS})")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="how many at a time (2)")
    parser.add_argument("--one", metavar="NAME", help="hunt this one only, in this process; the result as JSON")
    asked = parser.parse_args()
    if asked.one is not None:
        print(json.dumps(_search(next(each for each in mutants() if each.name == asked.one), asked.seeds)))
        return 0
    hunts = []
    for hunted in hunt_all(mutants(), asked.seeds, asked.seeds, asked.jobs):
        print(hunted, flush=True)
        hunts.append(hunted)
    masked = sum(bool(each.mutant.masked) for each in hunts)
    found = sum(each.seed is not None for each in hunts)
    print(f"{found} of {len(hunts) - masked} planted bugs found within {asked.seeds} seeds, {masked} are masked")
    return 0 if all(each.as_told for each in hunts) else 1


def _search(mutant: Mutant, seeds: int) -> dict[str, object]:
    plant(mutant.edits)
    from tests.simulation.storm import run  # only now: it imports what was edited

    for seed in range(seeds):
        try:
            violations = run(seed).violations
        except Exception as error:  # noqa: BLE001 - a bug that breaks the run is found, too
            violations = [f"{type(error).__name__}: "]
        if violations:
            return {"seed": seed, "found": sorted({each.partition(":")[0] for each in violations})}
    return {"seed": None, "found": []}


def _edit(module: str, was: str, becomes: str) -> Edit:
    # The last line break is the table's: an edit may end within a line.
    return Edit(module, was.removesuffix("\n"), becomes.removesuffix("\n"))


if __name__ == "__main__":
    sys.exit(main())
