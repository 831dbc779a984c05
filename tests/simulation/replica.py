"""One process: the services it is made of, its clock, and how it dies, sleeps and comes back.

Death is sudden. Whatever its coroutines would still do on the way out reaches nobody: every port of a dead process
leads nowhere. A sleeping one (SIGSTOP, a frozen virtual machine) goes on where it was, with clocks that went on.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from gateway.errors import GatewayError, Unavailable
from gateway.services.charges import Charges
from gateway.services.keyring import Keyring
from gateway.services.mint import Mint
from gateway.services.movements import Movements
from gateway.services.points import Point
from gateway.services.ports import Answer, CommitUnknown, Movement, SealedRecord
from gateway.services.recovery import TURN_EVERY_S, Recovery, Resender
from gateway.services.sending import Sender
from gateway.services.vault import Vault
from keys.audit import AuditPen
from keys.ring import Ring
from tests.simulation.frail import Frail
from tests.simulation.history import LOST, End
from tests.simulation.swarm import Fault
from tests.simulation.wire import Wire

if TYPE_CHECKING:
    from gateway.rules.card import Card
    from keys.secret import Secret
    from tests.simulation.city import City

CITY_TIME = ZoneInfo("America/Los_Angeles")
RESTART_S = (0.3, 5.0)
IDLE_S = (0.8, 1.6)
"""How often a process looks whether there is anything to do. In service it asks the database twice a second."""
KILLS_MAX = 10
RARE = {Point.CANCELLED: 3.0, Point.TAKEN_AGAIN: 5.0}
"""Places that are passed so seldom that what strikes there strikes more often."""
SUBJECT: ContextVar[Movement | None] = ContextVar("subject", default=None)
"""What the running task is at."""


class ReplicaClock:
    """Implements `ports.Clock`: the wall is off by what the seed says, the stopwatch never goes back."""

    def __init__(self, city: "City", offset_s: float) -> None:
        self._city = city
        self._started_s = city.rng.uniform(0.0, 1e5)
        self.offset_s = offset_s

    def now(self) -> datetime:
        """Wall time."""
        return self._city.now() + timedelta(seconds=self.offset_s)

    def monotonic(self) -> float:
        """Seconds since some moment."""
        return self._city.loop.time() + self._started_s


class Rings(Keyring):
    """The ring in force, without a key store on disk: followed at once when asked, late otherwise."""

    def __init__(self, city: "City") -> None:
        self._city = city
        self._ring = city.ring

    async def ring(self) -> Ring:
        """The ring as of this process' last look."""
        return self._ring

    async def look(self) -> Ring:
        """Look now."""
        self._ring = self._city.ring
        return self._ring


class WatchedVault(Vault):
    """The vault, with a witness of every card that is opened."""

    def __init__(self, replica: "Replica", store: Frail) -> None:
        super().__init__(Rings(replica.city), store, replica.clock, replica.city.brands)
        self._replica = replica

    async def open_card(self, department: str, record: SealedRecord) -> "tuple[Card, Secret[str]]":
        """See `Vault`."""
        self._replica.city.opened(department, record.record_id)
        return await super().open_card(department, record)


class Replica:
    """A running process."""

    def __init__(self, city: "City", name: str) -> None:
        self.city = city
        self.name = name
        self.alive = True
        self.asleep_until_s = 0.0
        self.clock = ReplicaClock(city, city.skew_s())
        self._tasks: dict[asyncio.Task[Any], None] = {}
        store, wire = Frail(self), Wire(self)
        pen = AuditPen(name.rstrip("0123456789"), city.mac_keys)
        if name.startswith("worker"):
            recovery = Recovery(store, wire, pen, self.clock, self.at)
            self.spawn(self._turns(recovery.turn, city.something_waits))
            return
        vault = WatchedVault(self, store)
        sender = Sender(store, vault, wire, pen, self.clock, self.at)
        self.mint = Mint(vault, self.clock)
        self.charges = Charges(store, vault, self.mint, sender, pen, self.clock, CITY_TIME, self.at)
        self.movements = Movements(store, sender, pen, self.clock, self.at)
        resender = Resender(store, sender, pen, self.clock, self.at)
        self.spawn(self._turns(resender.turn, city.something_to_send))

    async def gate(self) -> None:
        """Where every port begins and ends: no way through while the process sleeps, and none out of a dead one."""
        while self.alive and (left_s := self.asleep_until_s - self.city.loop.time()) > 0:
            await asyncio.sleep(left_s)
        if not self.alive:
            raise asyncio.CancelledError

    async def at(self, point: Point) -> None:
        """Implements `ports.Points`."""
        await self.gate()
        city = self.city
        if city.kills < KILLS_MAX and city.strikes(Fault.KILL, RARE.get(point, 1.0)):
            city.seen[f"{point}: killed"] += 1
            city.kills += 1
            city.note("killed", self.name, str(point))
            city.deaths.append((point, SUBJECT.get()))
            self.kill()
            raise asyncio.CancelledError
        if city.strikes(Fault.PAUSE, RARE.get(point, 1.0)):
            city.seen[f"{point}: paused"] += 1
            city.note("paused", self.name, str(point))
            self.asleep_until_s = city.loop.time() + city.rng.uniform(*city.swarm.pause_s)
            await self.gate()
        city.seen[f"{point}: passed"] += 1

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something in this process."""
        task = self.city.loop.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._gone)
        return task

    def kill(self) -> None:
        """`kill -9`; somebody starts it again a little later."""
        self.alive = False
        self.city.killed(self)
        for task in list(self._tasks):
            task.cancel()

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
            self.city.broken.append(f"{type(error).__name__}: {error}")
            return LOST

    async def _turns(self, turn: Callable[[], Awaitable[int]], needed: Callable[[], bool]) -> None:
        city = self.city
        while True:
            await city.pause(*IDLE_S)
            while needed():
                try:
                    await turn()
                except (Unavailable, CommitUnknown):
                    pass
                except Exception as error:  # noqa: BLE001 - whatever it is, it is a bug
                    city.broken.append(f"{type(error).__name__}: {error}")
                await asyncio.sleep(TURN_EVERY_S)

    def _gone(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
