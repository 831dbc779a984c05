"""The busy month: its rows are a ledger that a real database takes, its files add up, its truth is as asked."""

import csv
import io
import secrets
import time
from collections import Counter
from datetime import date, timedelta
from pathlib import Path
from typing import Literal

import asyncpg
import pytest
from month import DEPARTMENTS, Month, busy_month, insert
from month_demo import PLANTED, write_files
from month_far import FLAWS, TRUTH

from gateway.formats import open_format
from gateway.rules.settlement import SettlementLine

pytestmark = pytest.mark.server

FIRST = date(2026, 10, 12)
SUMS = """
SELECT
  (SELECT sum(CASE WHEN m.kind = 'refund' THEN -m.amount_minor ELSE m.amount_minor END) FROM gateway.movements m
   WHERE m.progress = 'done' AND m.kind IN ('sale', 'capture', 'refund') AND m.department_id = ANY ($1)) AS moved,
  (SELECT sum(captured_minor - refunded_minor) FROM gateway.charges WHERE department_id = ANY ($1)) AS kept,
  (SELECT sum(CASE 'processor_due' WHEN debit THEN amount_minor WHEN credit THEN -amount_minor ELSE 0 END)
   FROM gateway.journal WHERE department_id = ANY ($1)) AS due
"""


@pytest.fixture(scope="module")
def drawn() -> Month:
    """A month of departments of its own, with the end of a calendar month and of daylight-saving time in it."""
    mark = secrets.token_hex(3)
    departments = {f"{name}_{mark}": services for name, services in DEPARTMENTS.items()}
    return busy_month(7, 2_000, FIRST, departments=departments)


def drawn_again(seed: int) -> Month:
    """A small month."""
    return busy_month(seed, 300, FIRST)


def test_the_same_seed_gives_the_same_bytes() -> None:
    """Rows, files and truth are drawn from the seed alone, and another seed gives others."""
    one, same, other = drawn_again(1), drawn_again(1), drawn_again(2)

    assert one == same
    assert one.files != other.files


async def test_a_database_takes_the_rows_once(owner: asyncpg.Connection, drawn: Month) -> None:
    """Every constraint holds; what moved is what charges keep and what the journal says the processor owes."""
    assert await insert(owner, drawn)
    assert not await insert(owner, drawn)
    sums = await owner.fetchrow(SUMS, list(drawn.departments))

    assert sums is not None
    assert sums["moved"] == sums["kept"] == sums["due"] == sum(one.line.gross for one in drawn.done)
    counted = "SELECT count(*) FROM gateway.charges WHERE department_id = ANY ($1)"
    assert await owner.fetchval(counted, list(drawn.departments)) == len(drawn.charges) > 2_000
    records = "SELECT count(*) FROM gateway.tokens WHERE has_record AND department_id = ANY ($1)"
    assert await owner.fetchval(records, list(drawn.departments)) == 0


async def test_charges_are_made_of_the_tokens_that_are_given() -> None:
    """With ids of tokens no row of a token is made, and each department's charges name its own."""
    given = {name: [f"tok_{name}"] for name in DEPARTMENTS}
    month = busy_month(1, 100, FIRST, tokens=given)

    assert month.tokens == []
    assert {(row[0], row[3]) for row in month.charges} == {(name, f"tok_{name}") for name in DEPARTMENTS}


def test_the_files_are_read_and_add_up(drawn: Month) -> None:
    """Each is taken by the reader of its format, control totals and all; what is not planted is what was done."""
    settled: Counter[str] = Counter()
    paid = banked = 0
    for file in drawn.files:
        kind: Literal["settlement", "deposit"] = "settlement" if file.kind == "settlements" else "deposit"
        for line in open_format(kind, file.format).read(io.BytesIO(file.content)):
            if file.name.startswith("again-"):
                continue
            if isinstance(line, SettlementLine):
                settled[line.reference] += 1
                paid += line.net_minor if _in_bank(line.settled_on, drawn.last_day) else 0
            else:
                banked += line.amount_minor
    strange = {flaw.reference for flaw in drawn.flaws if flaw.truth} | {flaw.reference for flaw in drawn.last_evening}
    plain = {one.line.reference for one in drawn.done if not {one.reference, one.line.reference} & strange}
    assert {settled[reference] for reference in plain} == {1}
    assert len(plain) > 1_900
    stray = banked - paid + 700 * FLAWS["deposit_off"]
    assert 10_000 <= stray < 90_000


def _in_bank(settled_on: date, last_day: date) -> bool:
    credited = settled_on + timedelta(days={4: 3, 5: 2}.get(settled_on.weekday(), 1))
    return credited <= last_day


def test_every_kind_of_flaw_is_planted_as_often_as_asked(drawn: Month) -> None:
    """Each kind is there; those with an expectation as often as asked, and each in a place of its own."""
    found = Counter(flaw.kind for flaw in [*drawn.flaws, *drawn.last_evening])
    asked = {kind: FLAWS[kind] for kind, truth in TRUTH.items() if truth and kind != "last_evening"}

    assert set(found) == set(TRUTH)
    assert {kind: found[kind] for kind in asked} == asked
    assert found["last_evening"] > 0
    assert found["clock_change"] == 4
    assert len({flaw.charge_id for flaw in drawn.flaws if flaw.charge_id}) == sum(
        bool(f.charge_id) for f in drawn.flaws
    )
    assert set(drawn.flagged.values()) == {1}


def test_the_demo_lays_its_files_out(tmp_path: Path) -> None:
    """Each file as it was drawn, and beside them the list of what is wrong in them, row by row."""
    month = drawn_again(4)
    write_files(month, tmp_path)

    assert {path.name: path.read_bytes() for path in tmp_path.glob("*/*")} == {
        file.name: file.content for file in month.files
    }
    with (tmp_path / PLANTED).open(newline="") as listed:
        rows = [row for row in csv.DictReader(listed) if row["state"]]
    assert len(rows) == month.flagged.total() > 0


def test_a_large_month_is_drawn_fast() -> None:
    """Twenty thousand charges in seconds, so that two hundred thousand are no burden."""
    started = time.monotonic()
    busy_month(3, 20_000, FIRST)

    assert time.monotonic() - started < 8
