"""Throughput of payment pages and failed requests, with and without a rewrap beside them. Ratios count, not times.

    .venv/bin/python -m tests.benchmarks.rewrap [--rows 100000] [--rounds 3] [--seconds 15]

How fast rewrapping itself is, is measured by `gateway bench --only rewrap`.
"""

import argparse
import asyncio
import os
import shutil
import statistics
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.embedded import EmbeddedPostgres
from gateway.store.migrate import migrate
from tests.gateway.store.postgres import Postgres, with_roles
from tests.rotation_drill import Load, make_tokens, pages_at_work, prepared
from tests.system import BIN, Client, System

DEPARTMENTS = ("parks", "utilities")


@asynccontextmanager
async def server() -> AsyncIterator[Postgres]:
    """A PostgreSQL with the schema."""
    home = Path(tempfile.mkdtemp(prefix="gateway-bench-"))
    home.chmod(0o711)
    embedded = EmbeddedPostgres(home)
    try:
        postgres = await with_roles(embedded, await embedded.start())
        owner = await postgres.connect("owner")
        await migrate(owner)
        for department in DEPARTMENTS:
            await owner.execute("INSERT INTO gateway.departments VALUES ($1, $1, now())", department)
        await owner.close()
        yield postgres
    finally:
        await embedded.stop()
        shutil.rmtree(home)


async def beside_load(rows: int, rounds: int, seconds: float) -> None:
    """Throughput of pages with and without a rewrap beside them."""
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder:
        Path(folder).chmod(0o711)
        with prepared(Path(folder), Path(folder) / "home") as (system, _roots):
            async with Client(system, "parks") as client:
                await make_tokens(client, rows)
                rates: dict[bool, list[float]] = {False: [], True: []}
                failed: list[str] = []
                for _ in range(rounds):
                    for with_rewrap in (False, True):
                        rate, wrong = await one_window(system, client, seconds, with_rewrap=with_rewrap)
                        rates[with_rewrap].append(rate)
                        failed += wrong
    without, beside = statistics.median(rates[False]), statistics.median(rates[True])
    print(f"pages without a rewrap   {without:8.1f} requests/s   {spread(rates[False])}")
    print(f"pages beside a rewrap    {beside:8.1f} requests/s   {spread(rates[True])}")
    print(f"ratio                    {beside / without:8.2f}               failed requests: {len(failed)}")


async def one_window(system: System, client: Client, seconds: float, *, with_rewrap: bool) -> tuple[float, list[str]]:
    """Requests per second while a rewrap runs again and again, or none."""
    load, done = Load(), asyncio.Event()

    async def rewraps() -> None:
        while not done.is_set():
            for command in ("rotate", "rewrap"):
                run = await asyncio.create_subprocess_exec(
                    str(BIN / "keys"), command, env=system.plain, stdout=asyncio.subprocess.DEVNULL
                )
                assert await run.wait() == 0

    beside = asyncio.create_task(rewraps()) if with_rewrap else None
    async with pages_at_work(client, load):
        await asyncio.sleep(seconds)
    done.set()
    if beside is not None:
        await beside
    return 2 * load.charged / seconds, load.failed


def spread(values: list[float]) -> str:
    """Lowest and highest."""
    return f"({min(values):,.0f} to {max(values):,.0f})"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {arguments.rows:,} rows, {arguments.rounds} rounds")
    asyncio.run(beside_load(arguments.rows, arguments.rounds, arguments.seconds))


if __name__ == "__main__":
    main()
