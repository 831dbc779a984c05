"""How fast rewrapping is, beside yardsticks: rows per second.

*rewrap* is the product's: two streams, compare-and-set, locks passed by, wraps counted, departments one by one.
*loop* is what cannot be left out: it pages, unwraps, wraps and updates the same table.

Each run moves every row from the generation that the run before moved it to.
"""

import secrets
import time
from collections.abc import Awaitable, Callable

import asyncpg
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.bench.rows import ids
from gateway.bench.system import ENVIRONMENT, BenchFailed, System
from gateway.clock import SystemClock
from gateway.store.migrate import migrate
from keys.deks import PAGE_ROWS, DekTable
from keys.envelope import VERSION, Place, wrap_dek
from keys.primitives import KEY_BYTES, NONCE_BYTES, context
from keys.queries import load_queries
from keys.rewrap import Rewrap
from keys.ring import Key, Ring
from keys.secret import Secret
from keys.states import State

DATABASE = "rewrap"
DEPARTMENTS = ("parks", "utilities")
STREAMS = 2


class Wraps:
    """A table of data keys, and the keys that have wrapped them."""

    def __init__(self, system: System, owner: asyncpg.Connection, rows: int) -> None:
        self._system = system
        self._owner = owner
        self._rows = rows
        self._keys: list[bytes] = []

    @classmethod
    async def of(cls, system: System, rows: int) -> "Wraps":
        """As many wraps, of as many records, half in each department, in a database of their own."""
        await system.new_database(DATABASE)
        owner = await system.connect("owner", DATABASE)
        await migrate(owner)
        wraps = cls(system, owner, rows)
        add = load_queries("gateway.store", "applications.sql").add_department
        number = await wraps._new_generation()
        kek = Secret(wraps._keys[0])
        for department in DEPARTMENTS:
            await owner.execute(add, department, department.title())
            records = ids("tok", rows // len(DEPARTMENTS))
            wrapped = [
                wrap_dek(kek, Place(ENVIRONMENT, department, record), number, Secret(secrets.token_bytes(KEY_BYTES)))
                for record in records
            ]
            await owner.execute(system.sql.insert_wraps, department, number, records, wrapped)
        return wraps

    async def close(self) -> None:
        """End the connection."""
        await self._owner.close()

    async def rewrap(self) -> float:
        """Rows per second of the product's own."""
        return await self._timed(self._ours)

    async def loop(self) -> float:
        """Rows per second of the bare loop."""
        return await self._timed(self._bare)

    async def _timed(self, run: Callable[[int], Awaitable[int]]) -> float:
        number = await self._new_generation()
        await self._owner.execute(self._system.sql.vacuum_deks)
        started = time.perf_counter()
        moved = await run(number)
        seconds = time.perf_counter() - started
        if moved != self._rows:
            raise BenchFailed(f"{moved:,} of {self._rows:,} data keys were moved")
        return moved / seconds

    async def _new_generation(self) -> int:
        self._keys.append(secrets.token_bytes(KEY_BYTES))
        number = len(self._keys)
        await self._owner.execute(self._system.sql.add_generation, number)
        await self._owner.execute(self._system.sql.retire_generations, number)
        return number

    async def _ours(self, number: int) -> int:
        async def moved(_rows: int) -> None:
            return

        clock = SystemClock()
        ring = self._ring(number)
        connections = [await self._system.connect("keys", DATABASE) for _ in range(STREAMS)]
        try:
            work = Rewrap(lambda: ring, clock.now, moved, PAGE_ROWS)
            return (await work.run([DekTable(connection) for connection in connections])).rows
        finally:
            for connection in connections:
                await connection.close()

    def _ring(self, active: int) -> Ring:
        """Every generation below the active one is retired."""
        now = SystemClock().now()
        far = now.replace(year=now.year + 1, day=1)
        keys = {
            number: Key(number, State.ACTIVE if number == active else State.RETIRED, far, far, Secret(raw))
            for number, raw in enumerate(self._keys, 1)
        }
        return Ring(ENVIRONMENT, active, now, keys, {})

    async def _bare(self, to: int) -> int:
        old, sql = to - 1, self._system.sql
        opens, seals = AESGCM(self._keys[old - 1]), AESGCM(self._keys[to - 1])
        last, rows = ("", ""), 0
        while page := await self._owner.fetch(sql.page_of_wraps, *last, PAGE_ROWS, old):
            wraps = []
            for department, record, wrapped in page:
                bound = ("envelope/dek", VERSION, ENVIRONMENT, department, record)
                dek = opens.decrypt(wrapped[1 : 1 + NONCE_BYTES], wrapped[1 + NONCE_BYTES :], context(*bound, old))
                nonce = secrets.token_bytes(NONCE_BYTES)
                wraps.append(VERSION + nonce + seals.encrypt(nonce, dek, context(*bound, to)))
            departments, records = [row[0] for row in page], [row[1] for row in page]
            await self._owner.execute(sql.move_wraps, to, departments, records, wraps)
            last, rows = (page[-1][0], page[-1][1]), rows + len(page)
        return rows
