"""How fast a filtered page of a large ledger is, beside the bare query. Ratios count, not times.

    .venv/bin/python -m tests.benchmarks.search [--charges 1000000] [--rounds 100]

Each question is asked by the product, with its grants, business dates, row-level security and codes, and by one
statement of the owner's, already prepared, that knows department and instants beforehand and joins the card.
"""

import argparse
import asyncio
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import asyncpg

from gateway.rules.calendar import Calendar
from gateway.rules.ids import new_id
from gateway.rules.staff import Role, Staff
from gateway.services.charge_search import ChargeSearch, Question
from gateway.services.reach import Reach
from gateway.store.approvals import ApprovalStore
from gateway.store.charge_search import ChargeStore
from gateway.store.database import Database
from tests.benchmarks.reconcile import CITY, DAY, DEPARTMENTS, FIRST, add, found
from tests.benchmarks.rewrap import server
from tests.gateway.store.postgres import PARKS, Postgres

DAYS = 150
LIMIT = 50
STAFF = Staff("st_bench", "a.chen", frozenset({Role.FINANCE}), frozenset({"*"}))
BARE = """
SELECT c.*, t.brand, t.last4 FROM gateway.charges c JOIN gateway.tokens t USING (department_id, token_id)
WHERE c.department_id = $1 AND c.created_at >= $2 AND c.created_at < $3 AND c.kind = 'sale' AND c.progress = 'done'
AND ($4::bigint IS NULL OR c.amount_minor = $4) ORDER BY c.created_at DESC, c.charge_id DESC LIMIT $5
"""
QUESTIONS: Mapping[str, Question] = {
    "a week's": Question(LIMIT, FIRST + 60 * DAY, FIRST + 66 * DAY, PARKS, status="succeeded"),
    "of one amount, in a month": Question(
        LIMIT, FIRST + 60 * DAY, FIRST + 89 * DAY, PARKS, status="succeeded", amount_minor=4_321
    ),
}


async def fill(owner: asyncpg.Connection, charges: int) -> None:
    """Charges of five months."""
    start = datetime(FIRST.year, FIRST.month, FIRST.day, 8, tzinfo=UTC)
    for first in range(0, charges, 20_000):
        await add(
            owner,
            [
                (
                    *(DEPARTMENTS[n % 2], new_id("ch"), new_id("pr"), new_id("mv"), 500 + n * 7919 % 50_000),
                    start + timedelta(DAYS) * n / charges,
                )
                for n in range(first, min(first + 20_000, charges))
            ],
        )
    await owner.execute("ANALYZE")


async def compare(postgres: Postgres, charges: int, rounds: int) -> None:
    """Rounds of both, one after the other."""
    owner = await postgres.connect("owner")
    await found(owner)
    await fill(owner, charges)
    database = await Database.open(postgres.arguments("admin"), 2)
    reach = Reach(ApprovalStore(database).departments)
    search = ChargeSearch(ChargeStore(database), reach, CITY)
    bare = await owner.prepare(BARE)
    for name, question in QUESTIONS.items():
        assert question.first is not None
        assert question.last is not None
        span = Calendar(CITY, {}).interval(PARKS, question.first, question.last)
        seconds: dict[str, list[float]] = defaultdict(list)
        for _ in range(rounds):
            begun = time.perf_counter()
            page = await search.search(STAFF, question)
            between = time.perf_counter()
            rows = await bare.fetch(PARKS, *span, question.amount_minor, LIMIT)
            seconds["product"].append(between - begun)
            seconds["bare"].append(time.perf_counter() - between)
            assert [one.charge.charge_id for one in page.found] == [row["charge_id"] for row in rows]
        product, alone = (statistics.median(values) * 1e3 for values in seconds.values())
        print(f"{name:<28}{len(rows):4} rows  {product:7.2f} ms  bare {alone:7.2f} ms   ratio {product / alone:5.2f}")
    await database.close()
    await owner.close()


async def run(arguments: argparse.Namespace) -> None:
    """A server of its own, and the comparison on it."""
    async with server() as postgres:
        await compare(postgres, arguments.charges, arguments.rounds)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--charges", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {arguments.charges:,} charges, {arguments.rounds} rounds")
    asyncio.run(run(arguments))


if __name__ == "__main__":
    main()
