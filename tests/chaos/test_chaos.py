"""Charges under real deaths: `kill -9` at named points and at any moment, SIGSTOP past the lease, power cuts."""

import asyncio
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import pytest

from gateway.services.points import Point
from tests.chaos.fleet import Fleet
from tests.chaos.pages import Pages
from tests.chaos.verdict import faults
from tests.system import LAUNCHER, Client, Stub, System

pytestmark = pytest.mark.server

SEED = 20261122
KILLS_MIN = 50
CRASHES = 20
KILLS_A_CUT = 3
PAGES = 12
STORM_S = 60.0
PROCESSOR = {"lost_request": 0.1, "lost_reply": 0.1, "late_effect": 0.05, "error_before": 0.05, "error_after": 0.05}


async def test_charges_outlive_every_death() -> None:
    """Whatever dies whenever: nobody is charged twice, nothing is lost, no answer was false, nothing is stuck."""
    print(f"seed {SEED}")
    home = Path(tempfile.mkdtemp(prefix="gateway-chaos-"))
    home.chmod(0o711)
    try:
        subprocess.run([sys.executable, str(LAUNCHER), "--check"], env=System(home / "home").environment, check=True)
        await storm(Fleet(home / "home", SEED))
    finally:
        shutil.rmtree(home, ignore_errors=True)


async def storm(fleet: Fleet) -> None:
    """Load and deaths, then healing, then the verdict."""
    drawn = random.Random(SEED)  # noqa: S311 - a schedule that must be reproducible
    await fleet.start(kill=0.02, stop=0.001)
    try:
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(Client(fleet.system(number), "parks")) for number in (0, 1)]
            stub, pages, done = Stub(fleet.system(0)), Pages(clients), asyncio.Event()
            await stub.faults(seed=SEED, **PROCESSOR)
            visiting = [asyncio.create_task(pages.page(number, SEED, done)) for number in range(PAGES)]
            await _die(fleet, pages, drawn)
            await stub.faults()
            await fleet.heal()
            done.set()
            print(f"healed after {len(pages.told)} answers", flush=True)
            await asyncio.gather(*visiting)
            await pages.repeat_all()
            await _judge(fleet, pages, stub)
    finally:
        await fleet.stop()


async def _die(fleet: Fleet, pages: Pages, drawn: random.Random) -> None:
    """Power cuts of PostgreSQL and `kill -9` of everybody at any moment; the members' own schedules go on beside."""
    while fleet.crashes < CRASHES:
        await asyncio.sleep(drawn.uniform(0, 1) * STORM_S / CRASHES)
        fleet.crash_postgres()
        print(f"{fleet.crashes} power cuts, {len(pages.told)} answers", flush=True)
        for _ in range(KILLS_A_CUT):
            fleet.kill_one()
            await asyncio.sleep(drawn.uniform(0, 0.5) * STORM_S / CRASHES)


async def _judge(fleet: Fleet, pages: Pages, stub: Stub) -> None:
    owner = await asyncpg.connect(_here(fleet))
    try:
        assert await faults(pages, owner, await stub.charges()) == []
    finally:
        await owner.close()
    hits = fleet.counted()
    killed = Counter({point: hits["kill", point] for point in Point})
    print(f"{len(pages.told)} answers, {fleet.crashes} power cuts, {fleet.kills} kills, at points {dict(killed)}")
    assert fleet.kills + sum(killed.values()) >= KILLS_MIN
    assert fleet.crashes >= CRASHES
    assert len(pages.told) > PAGES


def _here(fleet: Fleet) -> str:
    """The owner's way to the database as it runs now."""
    port = (fleet.home / "postgres" / "port").read_text().strip()
    before, _, rest = str(fleet.demo["database"]).rpartition(":")
    return f"{before}:{port}/{rest.partition('/')[2]}"
