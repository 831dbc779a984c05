"""Run seeds: `python -m tests.simulation --seeds 20000 --jobs 2`.

The first seed is printed before anything runs, and each seed that finds something as soon as it has, with its
options. `--show` prints one seed's whole history. Exit code 1 when anything was found, or not enough was seen.
"""

import argparse
import json
import sys
import time

from tests.simulation.coverage import below, table
from tests.simulation.fleet import Tally, regressions, remember, sail_all
from tests.simulation.storm import Run, run


def main() -> int:
    """Run what the command line asks for; gives the exit code."""
    asked = _arguments()
    if asked.show is not None:
        return _show(run(asked.show, with_history=True))
    seeds = [*regressions(), *range(asked.start, asked.start + asked.seeds)]
    print(
        f"seeds {asked.start} to {asked.start + asked.seeds - 1}, {len(seeds) - asked.seeds} known ones first",
        file=sys.stderr,
    )
    started_s, done = time.monotonic(), 0

    def tell(part: Tally) -> None:
        nonlocal done
        done += part.seeds
        for failure in part.failures:
            print(_line(failure), file=sys.stderr, flush=True)
        if sys.stderr.isatty():
            print(f"\r{done} of {len(seeds)}", end="", file=sys.stderr, flush=True)

    tally = sail_all(seeds, asked.jobs, tell)
    remember(tally.failures)
    took_s = time.monotonic() - started_s
    short = below(tally.seen, tally.seeds) if asked.seeds >= asked.coverage_from else {}
    if asked.json:
        print(json.dumps(_result(tally, short, took_s), indent=1, sort_keys=True))
    else:
        print(*table(tally.seen, tally.seeds), sep="\n")
        print(_summary(tally, short, took_s))
    return 1 if tally.failures or short else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2_000, metavar="N", help="how many (2000)")
    parser.add_argument("--from", type=int, default=0, metavar="S", dest="start", help="the first one (0)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="how many processes (1)")
    parser.add_argument("--json", action="store_true", help="the result as JSON on standard output")
    parser.add_argument("--show", type=int, metavar="SEED", help="run one seed and print its history")
    parser.add_argument(
        "--coverage-from",
        type=int,
        default=1_000,
        metavar="N",
        help="judge what was seen from so many seeds on (1000)",
    )
    return parser.parse_args()


def _show(shown: Run) -> int:
    print(shown.swarm)
    print(*shown.history, sep="\n")
    print(*shown.violations or ["nothing was violated"], sep="\n")
    return 1 if shown.violations else 0


def _line(failure: Run) -> str:
    options = " ".join(sorted(failure.swarm.intensity))
    return f"\nseed {failure.seed} [{failure.swarm.capability}: {options}]\n  " + "\n  ".join(failure.violations[:5])


def _summary(tally: Tally, short: dict[str, int], took_s: float) -> str:
    lines = [
        f"{tally.seeds} seeds in {took_s:.0f} s ({tally.seeds / took_s:.0f} a second), {tally.twice} of them twice",
        f"{len(tally.failures)} with violations",
        f"after a storm everything was known within {tally.healed_in_s_max:.0f} s",
        f"{len(short)} counters below their floor",
    ]
    if not tally.failures:  # the rule of three
        lines[1] += f": with 95 % confidence fewer than one seed in {tally.seeds // 3} has any"
    return "\n".join(lines)


def _result(tally: Tally, short: dict[str, int], took_s: float) -> dict[str, object]:
    return {
        "seeds": tally.seeds,
        "twice": tally.twice,
        "seconds": round(took_s, 1),
        "violations": {str(each.seed): list(each.violations) for each in tally.failures},
        "healed_in_s_max": tally.healed_in_s_max,
        "below_floor": short,
        "seen": dict(tally.seen),
    }


if __name__ == "__main__":
    sys.exit(main())
