"""`python -m tests.chaos --home DIR`: one storm on a demo's home that `./deploy/run --check` has set up."""

import argparse
import asyncio
from pathlib import Path

from tests.chaos.fleet import Fleet
from tests.chaos.test_chaos import storm

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--home", type=Path, required=True)
parser.add_argument("--seed", type=int, default=20261122)
given = parser.parse_args()
asyncio.run(storm(Fleet(given.home.resolve(), given.seed)))
