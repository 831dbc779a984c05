"""Bugs planted where the simulation has models, and whether any seed finds them: `python -m tests.waters.mutants`.

They stand in `mutants.toml`. Each is hunted in a process of its own, whose imports are edited. Here no bug needs one
certain seed: how many of the seeds found it is told, and one of a hundred is plenty in a run of three hundred.
"""

import argparse
import json
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

from tests.simulation.planting import Edit, plant

SEEDS = 100
TABLE = Path(__file__).with_name("mutants.toml")


def main() -> int:
    """Hunt all of them, or one here in this process; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.waters.mutants", description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, metavar="N", help=f"how many ({SEEDS})")
    parser.add_argument("--one", metavar="NAME", help="hunt this one only, in this process; the result as JSON")
    asked = parser.parse_args()
    mutants: list[dict[str, Any]] = tomllib.loads(TABLE.read_text())["mutant"]
    if asked.one is not None:
        print(json.dumps(hunt(next(each for each in mutants if each["name"] == asked.one), asked.seeds)))
        return 0
    as_told = True
    for mutant in mutants:
        found = _elsewhere(mutant["name"], asked.seeds)
        as_told &= bool(found["seeds"]) is not bool(mutant.get("masked"))
        by = ", ".join(f"{name} {count}" for name, count in found["by"].items()) or mutant.get("masked", "NOT FOUND")
        print(f"{found['seeds']:>4} of {asked.seeds}  {mutant['name']}: {by}", flush=True)
    return 0 if as_told else 1


def hunt(mutant: dict[str, Any], seeds: int) -> dict[str, Any]:
    """How many seeds find a planted bug, and by which invariants."""
    # The last line break is the table's: an edit may end within a line.
    edits = [Edit(**{name: text.removesuffix("\n") for name, text in edit.items()}) for edit in mutant["edit"]]
    plant(edits)
    from tests.waters.fleet import sail_here  # only now: it imports what was edited

    failures = sail_here(range(seeds)).failures
    by = Counter(name for run in failures for name in {each.partition(":")[0] for each in run.violations})
    return {"seeds": len(failures), "by": dict(sorted(by.items()))}


def _elsewhere(name: str, seeds: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.waters.mutants", "--one", name, "--seeds", str(seeds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=TABLE.parents[2])
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    sys.exit(main())
