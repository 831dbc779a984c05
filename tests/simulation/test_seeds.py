"""The simulation itself: two thousand storms, each survived; enough was seen; the same seed is the same storm.

The first part is small and needs no server, so that `./deploy/test --quick` runs it. A larger size is a command:
`python -m tests.simulation --seeds 100000 --jobs 2`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.coverage import SEEDS, below
from tests.simulation.fleet import Tally, regressions, sail
from tests.simulation.storm import BOUND_S, run

QUICK = 200
PARTS = 6
BOUNDS = [QUICK + part * (SEEDS - QUICK) // PARTS for part in range(PARTS + 1)]
DIGESTS = "from tests.simulation.storm import run; print(*(run(seed).digest for seed in range(30)))"


@pytest.fixture(scope="module")
def tally() -> Tally:
    """What all seeds of this file had to show."""
    return Tally()


def survived(tally: Tally, seeds: range | list[int]) -> None:
    """Run seeds, count them in, and fail with what was violated."""
    print(f"seeds {list(seeds)[:1]} and on")
    part = sail(seeds)
    tally.add(part)
    failures = [f"seed {each.seed}: {violation}" for each in part.failures for violation in each.violations]
    assert failures == [], "\n".join(failures[:20])


def test_what_was_found_before_stays_repaired(tally: Tally) -> None:
    """Seeds that once found something find nothing any more."""
    survived(Tally(), regressions())


def test_the_first_storms_are_survived(tally: Tally) -> None:
    """A small number of storms violates nothing."""
    survived(tally, range(QUICK))


@pytest.mark.server
@pytest.mark.parametrize("part", range(PARTS))
def test_storms_are_survived(part: int, tally: Tally) -> None:
    """A storm violates nothing: no double capture, none lost, no false answer, none changed, nothing stuck."""
    survived(tally, range(BOUNDS[part], BOUNDS[part + 1]))


@pytest.mark.server
def test_enough_was_seen(tally: Tally) -> None:
    """Every point was passed, and died at; every fault struck; every capability and every way out was met."""
    if tally.seeds < SEEDS:
        pytest.skip("only a part of the storms was asked for")
    assert below(tally.seen, tally.seeds) == {}
    assert tally.twice == SEEDS // 100
    assert tally.healed_in_s_max < BOUND_S


@pytest.mark.server
def test_a_seed_is_the_same_storm_everywhere() -> None:
    """Two processes that hash differently go through the same storms, to the last word and moment."""
    told = [
        subprocess.run(
            [sys.executable, "-c", DIGESTS],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for seed in ("1", "2")
    ]
    assert told[0] == told[1]
    assert len(set(told[0])) == 30


def test_another_seed_is_another_storm() -> None:
    """Seeds differ in their options and in what happens; one seed does not."""
    first, second, again = run(1), run(2), run(1)
    assert first.digest == again.digest != second.digest
    assert first.swarm == again.swarm != second.swarm
