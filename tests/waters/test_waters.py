"""Three hundred seeds on a real PostgreSQL: nothing doubled, lost, answered wrongly or stuck, and enough was seen."""

import os
import time

import pytest

from tests.waters.__main__ import described, summary
from tests.waters.coverage import below, table
from tests.waters.fleet import sail_all

pytestmark = pytest.mark.server

START = int(os.environ.get("GATEWAY_TEST_SEEDS_FROM", "0"))
SEEDS = 300
JOBS = 2


@pytest.mark.timeout(600)
def test_no_seed_violates_anything() -> None:
    """Every invariant holds in every seed, and each fault, death and way out has been there often enough."""
    print(f"seeds {START} to {START + SEEDS - 1}")
    began_s = time.monotonic()
    tally = sail_all(range(START, START + SEEDS), JOBS)
    print(*table(tally.seen, tally.seeds), summary(tally, time.monotonic() - began_s), sep="\n")
    assert not tally.failures, "\n".join(described(failure) for failure in tally.failures[:3])
    assert not below(tally.seen, tally.seeds)
