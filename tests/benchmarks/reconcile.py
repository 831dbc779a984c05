"""How fast a month is imported and matched, beside what PostgreSQL alone needs for the same rows. Ratios count.

    .venv/bin/python -m tests.benchmarks.reconcile [--charges 200000] [--days 30] [--rounds 3]

a   the product: native settlement files and BAI2 statements, a file a day, imported and then reconciled
b   PostgreSQL alone: COPY of the same lines, every column known beforehand, into the same tables with their keys and
    indexes, and the join of lines, movements and deposits, its result kept
c   the same into tables without any key or index, the result only counted: what no product could do without
"""

import argparse
import asyncio
import io
import os
import secrets
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import asyncpg

from gateway.clock import SystemClock
from gateway.processor.stub.deposits import Deposit, bai2
from gateway.processor.stub.settlement import Line, native
from gateway.rules.calendar import Calendar
from gateway.rules.ids import new_id
from gateway.rules.settlement import FeeSchedule
from gateway.rules.staff import Role, Staff
from gateway.services.imports import Imports
from gateway.services.reach import Reach
from gateway.services.reconciliations import Reconciliations
from gateway.store.approvals import ApprovalStore
from gateway.store.database import Database
from gateway.store.imports import ImportStore
from gateway.store.reconciliations import ReconciliationStore
from keys.audit import AuditPen
from keys.primitives import new_key
from tests.benchmarks.rewrap import server
from tests.gateway.store.postgres import APPLICATION, PARKS, UTILITIES, Postgres

CITY = ZoneInfo("America/Los_Angeles")
FEES = FeeSchedule(290, 30)
FIRST = date(2026, 10, 1)
DAY = timedelta(days=1)
DEPARTMENTS = (PARKS, UTILITIES)
WRITTEN = (
    *("imports", "settlement_lines", "deposit_lines", "postings", "chargebacks", "reconciliations"),
    *("reconciliation_items", "exceptions", "exception_acts"),
)
COLUMNS = (
    *("department_id", "import_id", "line", "kind", "subject", "reference", "gross_minor", "fee_minor", "net_minor"),
    *("currency", "created_at", "settled_on", "batch", "business_date"),
)
JOIN = """
SELECT s.department_id, s.import_id, s.line, m.movement_id, m.charge_id, m.amount_minor, s.gross_minor, s.fee_minor,
       s.net_minor, s.batch, s.business_date, d.amount_minor AS deposited_minor, j.recorded_at
FROM gateway.movements m JOIN gateway.journal j ON j.department_id = m.department_id
  AND j.movement_id = m.movement_id AND j.line = 1
FULL JOIN {lines} s ON s.department_id = m.department_id AND s.subject = m.charge_id
LEFT JOIN {deposits} d ON d.batch = s.batch
"""


@dataclass(frozen=True)
class Month:
    """Files of a month, and the same lines as rows for COPY."""

    folder: Path
    days: Sequence[date]
    lines: bytes
    deposits: bytes


async def found(owner: asyncpg.Connection) -> None:
    """What a charge needs to be."""
    for department in DEPARTMENTS:
        await owner.execute(
            "INSERT INTO gateway.applications (department_id, application_id, name, amount_minor_max, scopes,"
            " requests_per_s_max, created_at) VALUES ($1, $2, $2, 1000000, '{}', 100, now())",
            *(department, APPLICATION),
        )
        await owner.execute(
            "INSERT INTO gateway.tokens (department_id, token_id, application_id, kind, usage, status, brand, last4,"
            " fingerprint_id, cvc_check, created_at, expires_at, sealed)"
            " VALUES ($1, 'tok', $2, 'card', 'multi', 'active', 'visa', '4242', 'fp', 'pass', now(), now(), '\\x00')",
            *(department, APPLICATION),
        )


async def fill(owner: asyncpg.Connection, charges: int, days: int, folder: Path) -> Month:
    """The ledger of a month, and its files."""
    calendar = Calendar(CITY, {})
    settled: dict[date, list[tuple[str, str, Line]]] = defaultdict(list)
    for start in range(0, charges, 10_000):
        rows = []
        for n in range(start, min(start + 10_000, charges)):
            moment = datetime(FIRST.year, FIRST.month, FIRST.day, 8, tzinfo=UTC) + days * DAY * n / charges
            amount = 500 + secrets.randbelow(50_000)
            rows.append((DEPARTMENTS[n % 2], new_id("ch"), new_id("pr"), new_id("mv"), amount, moment))
        await add(owner, rows)
        for department, charge, reference, _, amount, moment in rows:
            line = Line(reference, "charge", reference, amount, FEES.fee(amount), "USD", moment, moment.date())
            settled[moment.date()].append((department, charge, line))
    await owner.execute("ANALYZE")
    copied, deposits = [], []
    for day, known in settled.items():
        lines = [line for _, _, line in known]
        paid = sum(line.net for line in lines)
        (folder / f"{day}.csv").write_text(native(lines))
        (folder / f"{day}.bai").write_text(bai2([Deposit(paid, lines[0].batch, f"bank-{day}")], day))
        deposits.append(f"city,d{day},2,142,{paid},USD,{day},{lines[0].batch},bank-{day}\n")
        copied += [
            f"{department},s{day},{number},charge,{charge},{line.reference},{line.gross},{line.fee},{line.net},USD,"
            f"{line.created.isoformat()},{day},{line.batch},{calendar.business_date(department, line.created)}\n"
            for number, (department, charge, line) in enumerate(known, 2)
        ]
    return Month(folder, list(settled), "".join(copied).encode(), "".join(deposits).encode())


async def add(owner: asyncpg.Connection, rows: Sequence[tuple[str, str, str, str, int, datetime]]) -> None:
    """Charges, their sales and what these mean in money."""
    await owner.copy_records_to_table(
        "charges",
        schema_name="gateway",
        columns=[
            *("department_id", "charge_id", "application_id", "token_id", "amount_minor", "currency"),
            *("convenience_fee_minor", "reference", "processor_reference", "kind", "progress", "captured_minor"),
            *("cvc_check", "created_at"),
        ],
        records=[
            (d, ch, APPLICATION, "tok", amount, "USD", 0, f"R-{ch[-6:]}", pr, "sale", "done", amount, "pass", moment)
            for d, ch, pr, mv, amount, moment in rows
        ],
    )
    await owner.copy_records_to_table(
        "movements",
        schema_name="gateway",
        columns=[
            *("department_id", "movement_id", "charge_id", "kind", "amount_minor", "currency", "reference"),
            *("application_id", "route", "idempotency_key", "progress", "with_cvc", "created_at", "first_sent_at"),
            *("not_after", "lease_until"),
        ],
        records=[
            (d, mv, ch, "sale", amount, "USD", pr, APPLICATION, "r", ch, "done", False, *[moment] * 4)
            for d, ch, pr, mv, amount, moment in rows
        ],
    )
    await owner.copy_records_to_table(
        "journal",
        schema_name="gateway",
        records=[
            (d, mv, 1, "processor_due", "receivable", amount, "USD", moment) for d, ch, pr, mv, amount, moment in rows
        ],
    )


async def ours(database: Database, month: Month) -> tuple[float, float]:
    """Line a: seconds of all imports, and of the match."""
    staff = Staff("st_bench", "a.chen", frozenset({Role.FINANCE}), frozenset({"*"}))
    reach, pen, clock = Reach(ApprovalStore(database).departments), AuditPen("admin", {1: new_key()}), SystemClock()
    imports = Imports(ImportStore(database), reach, pen, clock, CITY)
    service = Reconciliations(
        *(ReconciliationStore(database), reach, pen, clock), zone=CITY, fees=FEES, deposit_days_max=5
    )
    begun = time.perf_counter()
    for day in month.days:
        for kind, name, suffix in (("settlement", "native", "csv"), ("deposit", "bai2", "bai")):
            with (month.folder / f"{day}.{suffix}").open("rb") as file:
                await imports.take(staff, kind, name, file, "r", lambda _lines: None)  # type: ignore[arg-type]
    imported = time.perf_counter()
    made = await service.make(staff, FIRST, month.days[-1] + DAY, None, "r")
    ended = time.perf_counter()
    assert made.counts["matched"] == month.lines.count(b"\n"), made.counts
    assert made.totals["awaiting_deposit"] == 0
    return imported - begun, ended - imported


async def bare(owner: asyncpg.Connection, month: Month, *, keyed: bool) -> float:
    """Lines b and c: seconds."""
    names = ("settlement_lines", "deposit_lines") if keyed else ("heap_lines", "heap_deposits")
    query = JOIN.format(lines=f"gateway.{names[0]}", deposits=f"gateway.{names[1]}")
    begun = time.perf_counter()
    for table, content in zip(names, (month.lines, month.deposits), strict=True):
        await owner.copy_to_table(table, schema_name="gateway", source=io.BytesIO(content), format="csv")
    if keyed:
        await owner.execute(f"CREATE TABLE gateway.result AS {query}")
    else:
        await owner.fetchval(f"SELECT count(*), sum(gross_minor), sum(deposited_minor) FROM ({query}) q")
    seconds = time.perf_counter() - begun
    await owner.execute("DROP TABLE IF EXISTS gateway.result; TRUNCATE gateway.heap_lines, gateway.heap_deposits")
    return seconds


async def emptied(owner: asyncpg.Connection, month: Month, *, with_imports: bool = False) -> None:
    """As before the month; with the rows that the bare lines refer to."""
    await owner.execute(f"TRUNCATE {', '.join(f'gateway.{name}' for name in WRITTEN)} CASCADE")
    if with_imports:
        await owner.execute(
            "INSERT INTO gateway.imports SELECT kind || day, CASE kind WHEN 's' THEN 'settlement' ELSE 'deposit' END,"
            " 'x', sha256((kind || day)::bytea), 0, 0, 0, 0, 'USD', ARRAY[day], 'st', now()"
            " FROM unnest($1::date[]) day, unnest(ARRAY['s', 'd']) kind",
            list(month.days),
        )


async def compare(postgres: Postgres, charges: int, days: int, rounds: int, folder: Path) -> None:
    """Rounds of all three, one after the other."""
    owner, superuser = await postgres.connect("owner"), await postgres.server.connect_superuser()
    await found(owner)
    month = await fill(owner, charges, days, folder)
    for table, like in (("heap_lines", "settlement_lines"), ("heap_deposits", "deposit_lines")):
        await owner.execute(f"CREATE TABLE gateway.{table} AS SELECT * FROM gateway.{like}")
    database = await Database.open(postgres.arguments("admin"), 4)
    seconds: dict[str, list[float]] = defaultdict(list)
    grown = 0
    for _ in range(rounds):
        await emptied(owner, month)
        await superuser.execute("CHECKPOINT")
        Path("/proc/self/clear_refs").write_text("5", "ascii")
        before = _resident("VmHWM")
        imported, matched = await ours(database, month)
        grown = max(grown, _resident("VmHWM") - before)
        for name, value in (("import", imported), ("match", matched), ("a", imported + matched)):
            seconds[name].append(value)
        await emptied(owner, month, with_imports=True)
        await superuser.execute("CHECKPOINT")
        seconds["b"].append(await bare(owner, month, keyed=True))
        seconds["c"].append(await bare(owner, month, keyed=False))
    for opened in (database, owner, superuser):
        await opened.close()
    for name, values in seconds.items():
        print(f"{name:<8}{statistics.median(values):8.2f} s   ({min(values):.2f} to {max(values):.2f})")
    mine = statistics.median(seconds["a"])
    for name in ("b", "c"):
        print(f"a ÷ {name}   {mine / statistics.median(seconds[name]):6.2f}")
    print(f"memory grew by at most {grown / 1024:,.0f} MiB while importing and matching")


def _resident(name: str) -> int:
    """KiB, of this process."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


async def run(arguments: argparse.Namespace) -> None:
    """A server of its own, and the comparison on it."""
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder:
        async with server() as postgres:
            await compare(postgres, arguments.charges, arguments.days, arguments.rounds, Path(folder))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--charges", type=int, default=200_000)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {arguments.charges:,} charges, {arguments.rounds} rounds")
    asyncio.run(run(arguments))


if __name__ == "__main__":
    main()
