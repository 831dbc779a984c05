"""`python -m tests.waters --seeds N --from S`: as many seeds as there is time for, and what they showed."""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence

from tests.waters.coverage import below, table
from tests.waters.fleet import AT_ONCE, Tally, sail_all, sail_here
from tests.waters.voyage import Run

TAPE_LINES = 60


def main() -> int:
    """Run the seeds; 1 when anything was violated, or too little was seen."""
    asked = _arguments()
    if asked.show is not None:
        return _show(asked.show, asked.times)
    print(f"seeds {asked.start} to {asked.start + asked.seeds - 1}", file=sys.stderr)
    began_s = time.monotonic()
    tally = sail_all(range(asked.start, asked.start + asked.seeds), asked.jobs, at_once=asked.at_once)
    took_s = time.monotonic() - began_s
    for failure in tally.failures:
        print(described(failure), file=sys.stderr)
    short = below(tally.seen, tally.seeds) if tally.seeds >= asked.coverage_from else {}
    if asked.json:
        print(json.dumps(_result(tally, short, took_s)))
    else:
        print(*table(tally.seen, tally.seeds), sep="\n")
        print(summary(tally, took_s), f"{len(short)} counters below their floor", sep="\n")
    return 1 if tally.failures or short else 0


def described(failure: Run, lines: int = TAPE_LINES) -> str:
    """A failed seed: what it violated, what the weather was, and the end of its tape."""
    weather = " ".join(sorted(failure.swarm.intensity))
    tape = failure.tape[-lines:]
    found = failure.violations[:8]
    return "\n".join([f"\nseed {failure.seed} [{failure.swarm.capability}: {weather}]", *found, *tape])


def summary(tally: Tally, took_s: float) -> str:
    """What came out, in four lines."""
    return (
        f"{tally.seeds} seeds in {took_s:.0f} s ({tally.seeds / took_s:.1f} a second, {tally.cpu_s:.0f} s of CPU"
        f" beside PostgreSQL's)\n"
        f"{len(tally.failures)} with violations\n"
        f"after a storm everything was known within {tally.healed_in_s_max:.1f} s"
    )


def _show(seed: int, times: int) -> int:
    """One seed, several times: the schedule repeats, what meets it does not."""
    failed = 0
    for _ in range(times):
        tally = sail_here([seed], with_history=True)
        failed += len(tally.failures)
        shown: Sequence[Run] = tally.failures or tally.runs
        for run in shown:
            print(run.swarm, *run.history, described(run, len(run.tape)), sep="\n")
    print(f"violated in {failed} of {times} runs")
    return 1 if failed else 0


def _result(tally: Tally, short: dict[str, int], took_s: float) -> dict[str, object]:
    return {
        "seeds": tally.seeds,
        "seconds": round(took_s, 1),
        "cpu_seconds": round(tally.cpu_s, 1),
        "violations": {str(each.seed): list(each.violations) for each in tally.failures},
        "healed_in_s_max": round(tally.healed_in_s_max, 2),
        "below_floor": short,
        "seen": dict(tally.seen),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.waters", description=__doc__)
    parser.add_argument("--seeds", type=int, default=300, metavar="N", help="how many (300)")
    parser.add_argument("--from", type=int, default=0, metavar="S", dest="start", help="the first one (0)")
    jobs = min(2, os.cpu_count() or 1)
    parser.add_argument("--jobs", type=int, default=jobs, metavar="N", help=f"how many processes ({jobs})")
    parser.add_argument(
        "--at-once", type=int, default=AT_ONCE, metavar="N", help=f"seeds at a time in each process ({AT_ONCE})"
    )
    parser.add_argument("--json", action="store_true", help="the result as JSON on standard output")
    parser.add_argument("--show", type=int, metavar="SEED", help="run one seed, print its history and tape")
    parser.add_argument("--times", type=int, default=1, metavar="N", help="how often to run the one shown (1)")
    parser.add_argument(
        "--coverage-from",
        type=int,
        default=200,
        metavar="N",
        help="judge what was seen from so many seeds on (200)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
