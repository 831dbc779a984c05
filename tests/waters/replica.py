"""An api process or a worker: the product's own parts on a pool and a session of its own, and how it dies.

Death is sudden: its tasks end where they are, its connections break. It cannot be as sudden as `kill -9`, which
`tests.chaos` deals in; but it comes at a named point. A sleeping one (SIGSTOP, a frozen virtual machine) goes no
further than the next point, and wakes up when its leases are over.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import aiohttp

from gateway.clock import SystemClock
from gateway.errors import GatewayError, Unavailable
from gateway.rules.card import Card
from gateway.rules.lifecycle import Event
from gateway.services.charges import Charges
from gateway.services.keyring import Keyring
from gateway.services.mint import Mint
from gateway.services.movements import Movements
from gateway.services.points import Point
from gateway.services.ports import (
    Answer,
    Case,
    CommitUnknown,
    Finished,
    Movement,
    Render,
    Resend,
    Said,
    SealedRecord,
)
from gateway.services.recovery import Recovery, Resender
from gateway.services.sending import Sender
from gateway.services.vault import Vault
from gateway.store.database import Database
from gateway.store.ledger import Ledger
from keys.audit import AuditPen, AuditRow
from keys.secret import Secret
from tests.gateway.store.city import CITY_TIME
from tests.simulation.founding import MAC_KEYS
from tests.simulation.history import LOST, End
from tests.simulation.swarm import Fault
from tests.waters.far import Client, session_of
from tests.waters.strait import Strait
from tests.waters.tempo import SCALE, STATEMENT_S, TURN_S

if TYPE_CHECKING:
    from tests.waters.city import City

POOL_MAX = {"api": 3, "worker": 2}


class ReplicaClock(SystemClock):
    """A wall clock that is off; the stopwatch is right."""

    def __init__(self, offset_s: float) -> None:
        self.offset_s = offset_s

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=self.offset_s)


class WatchedLedger(Ledger):
    """The store of a process to which its seed's departments are all that there are."""

    def __init__(self, database: Database, city: "City", name: str) -> None:
        super().__init__(database)
        self._city = city
        self._name = name

    async def departments(self) -> Sequence[str]:
        return self._city.departments

    async def finish(self, movement: Movement, event: Event, said: Said, render: Render, audit: AuditRow) -> Finished:
        finished = await super().finish(movement, event, said, render, audit)
        self._city.finished(movement, event, finished)
        return finished

    async def take(self, department: str, limit: int) -> Sequence[Case]:
        cases = await super().take(department, limit)
        for case in cases:
            self._city.taken(self._name, case.movement)
        return cases

    async def take_marked(self, department: str, audit: Callable[[Movement], AuditRow]) -> Resend | None:
        resend = await super().take_marked(department, audit)
        if resend is not None:
            self._city.taken(self._name, resend.begun.movement)
        return resend

    async def postpone(self, movement: Movement, delay_s: float, *, resend_within_s: float | None = None) -> None:
        await super().postpone(movement, delay_s, resend_within_s=resend_within_s)
        self._city.put_off(movement, marked=resend_within_s is not None)


class WatchedVault(Vault):
    """A vault that notes what it opens."""

    city: "City"

    async def open_card(self, department: str, record: SealedRecord) -> tuple[Card, Secret[str]]:
        await self.city.opened(department, record.record_id)
        return await super().open_card(department, record)


class Replica:
    """A running process."""

    def __init__(self, city: "City", name: str, strait: Strait, database: Database) -> None:
        self.city = city
        self.name = name
        self.alive = True
        self.awake_at_s = 0.0
        self.strait = strait
        self.clock = ReplicaClock(city.skew_s())
        self._database = database
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._session: aiohttp.ClientSession = session_of(city.harbour.cert)
        self.store = WatchedLedger(database, city, name)
        self._build(AuditPen(role_of(name), MAC_KEYS), Client(city, name, self._session))

    @classmethod
    async def start(cls, city: "City", name: str) -> "Replica":
        """Start a process; raises whatever the driver does when the database is away."""
        strait = Strait(name, city.harbour.postgres.address.port, city.chance, city.strikes_at, city.saw)
        port, role = await strait.open(), role_of(name)
        arguments = city.harbour.postgres.arguments(role, port) | {
            "database": city.harbour.keys.database,
            "timeout": STATEMENT_S,
        }
        strait.closed = city.database_down
        try:
            database = await Database.open(
                arguments, POOL_MAX[role], acquire_timeout_s=STATEMENT_S, statement_timeout_s=STATEMENT_S
            )
        except BaseException:
            await strait.close()
            raise
        return cls(city, name, strait, database)

    def _build(self, pen: AuditPen, client: Client) -> None:
        city, store, clock = self.city, self.store, self.clock
        if role_of(self.name) == "worker":
            recovery = Recovery(store, client, pen, clock, self.at)
            self.spawn(self._turns(recovery.turn, city.something_waits))
            return
        keys = city.harbour.keys
        keyring = Keyring(keys.keystore, keys.root, store, clock, pen, "api")
        vault = WatchedVault(keyring, store, clock, keys.brands)
        vault.city = city
        sender = Sender(store, vault, client, pen, clock, self.at)
        self.mint = Mint(vault, clock)
        self.charges = Charges(store, vault, self.mint, sender, pen, clock, CITY_TIME, self.at)
        self.movements = Movements(store, sender, pen, clock, self.at)
        resender = Resender(store, sender, pen, clock, self.at)
        self.spawn(self._turns(resender.turn, city.something_marked))

    async def at(self, point: Point) -> None:
        """Implements `ports.Points`."""
        city = self.city
        await self._gate()
        if city.is_fatal(point, f"{point} of {self.name}"):
            city.seen[f"{point}: killed"] += 1
            self.kill()
            raise asyncio.CancelledError
        if city.strikes(Fault.PAUSE, 1.0, f"{point} of {self.name}"):
            city.seen[f"{point}: paused"] += 1
            pause_s = city.chance.stream("pauses").uniform(*city.swarm.pause_s) * SCALE
            self.awake_at_s = asyncio.get_running_loop().time() + pause_s
            await self._gate()
        city.seen[f"{point}: passed"] += 1

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something in this process."""
        task = asyncio.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return task

    def kill(self) -> None:
        """End it, as if by `kill -9`; somebody starts it again a little later."""
        self.alive = False
        self._database._pool.terminate()
        for task in list(self._tasks):
            task.cancel()
        self.city.killed(self)

    async def bury(self) -> None:
        """Let go of what a dead process held."""
        await self._session.close()
        await self.strait.close()
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    async def serve(self, work: Callable[[], Awaitable[Answer]]) -> End:
        """What the web layer would: an answer, or a refusal."""
        try:
            return End("answer", answer=await work())
        except GatewayError as refusal:
            return End("refused", type(refusal).__name__)
        except CommitUnknown:
            return LOST
        except asyncio.CancelledError:
            if self.alive:
                raise
            return LOST
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a bug
            self._broken(error)
            return LOST

    async def _gate(self) -> None:
        loop = asyncio.get_running_loop()
        while self.alive and (left_s := self.awake_at_s - loop.time()) > 0:
            await asyncio.sleep(left_s)
        if not self.alive:
            raise asyncio.CancelledError

    async def _turns(self, turn: Callable[[], Awaitable[int]], needed: Callable[[], bool]) -> None:
        pace = self.city.chance.stream(f"turns of {self.name}")
        while True:
            await asyncio.sleep(pace.uniform(*TURN_S))
            if not needed():
                continue
            try:
                await turn()
            except (Unavailable, CommitUnknown):
                pass
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a bug
                self._broken(error)

    def _broken(self, error: Exception) -> None:
        if self.alive:
            self.city.broken.append(f"{type(error).__name__}: {error}")


def role_of(name: str) -> str:
    """`api` or `worker`."""
    return name.rstrip("0123456789")
