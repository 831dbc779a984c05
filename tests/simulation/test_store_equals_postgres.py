"""The in-memory store of the simulation and PostgreSQL give the same answers, refusals included.

So what the simulation shows of the one holds for the other. That the comparison would notice is shown with bugs
planted in the SQL.
"""

from collections import Counter
from datetime import datetime
from random import Random

import pytest

from tests.gateway.store.postgres import FINGERPRINTS, GENERATION, PARKS, RETIRED, SERVICE, UTILITIES
from tests.simulation.conftest import Twin
from tests.simulation.memory import Memory
from tests.simulation.twins import TABLES, Twins, contents, later

pytestmark = pytest.mark.server

OPERATIONS = 10_000
SEED = 20_261_122

SQL_BUGS = (
    ("move", "AND m.epoch = g.epoch", ""),
    ("move", "AND m.progress = ANY(string_to_array(g.sources, ' '))", "AND m.progress <> 'done'"),
    ("move", "resend_until = NULL", "resend_until = m.resend_until"),
    ("take", "AND lease_until <= now()", ""),
    ("take", "'unknown', 'in_review'", "'unknown'"),
    ("take", "epoch = m.epoch + 1", "epoch = m.epoch"),
    ("take", "NOT m.with_cvc AND", ""),
    ("postpone", "AND m.epoch = g.epoch", ""),
    ("take_marked", "sends = m.sends + 1", "sends = m.sends"),
    ("take_marked", "resend_until > now()", "resend_until IS NOT NULL"),
    ("move_charge", "- g.refunding_minor", "- g.refunding_minor + g.refunded_minor"),
    ("begin_movement", "c.refunding_minor + g.refunding_minor", "c.refunding_minor + g.refunding_minor - 1"),
    ("lock_decided", "ORDER BY m.created_at", "ORDER BY m.created_at DESC"),
    ("release", "not_after = now() + $4", "not_after = not_after + $4 - $4"),
    ("release", "epoch = epoch + 1", "epoch = epoch"),
    ("movement", "m.epoch = 0 AND", ""),
    ("insert_movement", "now() + life, now() + lease", "now() + lease, now() + life"),
)
"""(query, what stands in it, what stands there instead)"""


class Comparison:
    """Both stores from the same beginning, with one clock."""

    def __init__(self, twin: Twin, now: datetime) -> None:
        self._twin = twin
        self._now = now
        self._rng = Random(SEED)  # noqa: S311 - chance that a seed repeats
        services = frozenset((department, SERVICE) for department in (PARKS, UTILITIES))
        generations = {GENERATION: "active", RETIRED: "retired"}
        self._memory = Memory(lambda: self._now, (PARKS, UTILITIES), services, generations, dict(FINGERPRINTS))
        self._twins = Twins(self._rng, self._memory, twin.api, twin.worker, twin.admin)
        self.ends: Counter[str] = Counter()

    async def differs(self) -> str | None:
        """One more operation; says what differs, if anything does."""
        self._now = later(self._now, self._rng)
        await self._twin.set_clock(self._now)
        name, mine, theirs = await self._twins.step()
        self.ends[f"{name} {mine[0]}"] += 1
        return None if mine == theirs else f"{name}: memory {mine}, PostgreSQL {theirs}"

    async def tables_that_differ(self) -> list[str]:
        """The tables that do not hold the same in the end."""
        return [
            table
            for table, rows in contents(self._memory).items()
            if sorted(map(tuple, await self._twin.owner.fetch(TABLES[table]))) != rows
        ]


async def test_both_stores_answer_the_same(twin: Twin) -> None:
    """Ten thousand operations drawn by chance have equal results on both, and leave equal tables behind."""
    comparison = Comparison(twin, await twin.clock())
    for number in range(OPERATIONS):
        differs = await comparison.differs()
        assert differs is None, f"operation {number}, {differs}"
    print(*(f"{count:>6} {end}" for end, count in sorted(comparison.ends.items())), sep="\n")
    assert await comparison.tables_that_differ() == []
    often = ("begin_charge", "begin_movement", "finish", "take_marked", "take_decided", "decide")
    assert min(comparison.ends[f"{name} gave"] for name in often) > 300
    assert len(comparison.ends) > 25


@pytest.mark.parametrize(("query", "was", "becomes"), SQL_BUGS)
async def test_a_bug_in_the_sql_is_noticed(twin: Twin, query: str, was: str, becomes: str) -> None:
    """With a bug in one statement the two stores soon differ."""
    for store in (twin.api, twin.worker):
        queries = store._steps if hasattr(store._steps, query) else store._ledger
        sql = getattr(queries, query)
        assert sql.count(was) == 1
        setattr(queries, query, sql.replace(was, becomes))
    comparison = Comparison(twin, await twin.clock())
    for _ in range(OPERATIONS):
        if await comparison.differs() is not None:
            break
    else:
        assert await comparison.tables_that_differ()
