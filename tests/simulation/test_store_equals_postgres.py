"""The in-memory store of the simulation and PostgreSQL give the same answers, refusals included."""

from collections import Counter
from random import Random

import pytest

from tests.gateway.store.postgres import FINGERPRINTS, GENERATION, PARKS, RETIRED, SERVICE, UTILITIES
from tests.simulation.conftest import Twin
from tests.simulation.memory import Memory
from tests.simulation.twins import TABLES, Twins, contents, later

pytestmark = pytest.mark.server

OPERATIONS = 10_000
SEED = 20_261_122


async def test_both_stores_answer_the_same(twin: Twin) -> None:
    """Ten thousand operations drawn by chance have equal results on both, and leave equal tables behind."""
    rng = Random(SEED)  # noqa: S311 - chance that a seed repeats
    now = await twin.clock()
    services = frozenset((department, SERVICE) for department in (PARKS, UTILITIES))
    memory = Memory(lambda: now, (PARKS, UTILITIES), services, {GENERATION: "active", RETIRED: "retired"})
    memory.fingerprint_versions.update(FINGERPRINTS)
    twins, ends = Twins(rng, memory, twin.api, twin.worker), Counter[str]()
    for number in range(OPERATIONS):
        now = later(now, rng)
        await twin.set_clock(now)
        name, mine, theirs = await twins.step()
        assert mine == theirs, f"operation {number}, {name}"
        ends[f"{name} {mine[0]}"] += 1
    print(*(f"{count:>6} {end}" for end, count in sorted(ends.items())), sep="\n")
    for table, rows in contents(memory).items():
        assert sorted(map(tuple, await twin.owner.fetch(TABLES[table]))) == rows, table
    assert min(ends[f"{name} gave"] for name in ("begin_charge", "begin_movement", "finish", "take_marked")) > 300
    assert len(ends) > 25
