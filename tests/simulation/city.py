"""One simulated world: what a seed decides, what everybody shares, and who saw what."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random

from gateway.rules.access import Application
from gateway.rules.lifecycle import UNDECIDED, Event, Progress
from gateway.services.points import Point
from gateway.services.ports import Begun, Finished, Inquiry, Movement, NotFound
from tests.simulation.book import Book, Order, Reply
from tests.simulation.founding import MAC_KEYS, START, brands, rings
from tests.simulation.history import History
from tests.simulation.loop import VirtualLoop
from tests.simulation.memory import Memory
from tests.simulation.replica import RESTART_S, SUBJECT, Replica
from tests.simulation.swarm import Fault, swarm_of
from tests.simulation.wire import Sent

DEPARTMENTS = ("parks", "utilities")
AMOUNT_MINOR_MAX = 1_000_000
LIMITED = 1 / 3
"""In how many cities large refunds wait for an approver."""
REFUND_MINOR_MAX = (1, 40_000)


@dataclass(frozen=True, slots=True)
class Opened:
    """A card that was opened. `rows` is how many audit rows said so beforehand, of all charges of its token."""

    token_id: str
    rows: int
    opens: int


class City:
    """What one seed makes, and what everybody in it shares."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)  # noqa: S311 - chance that a seed repeats
        self.swarm = swarm_of(self.rng)
        self.loop = VirtualLoop(self.rng)
        self.history = History()
        self.seen: Counter[str] = Counter()
        self.broken: list[str] = []
        self.stormy = False
        self.down: set[Fault] = set()
        self.dark: str | None = None
        """How the names of those processes begin that have no place to run now."""
        self.kills = 0
        self.under_way = 0
        """Requests that are still on their way to the processor."""
        self.departments = DEPARTMENTS[: self.swarm.departments]
        self.desk_rng = Random(seed ^ 0xDE5C)  # noqa: S311 - apart, so that a storm has the same faults without it
        limited = self.desk_rng.random() < LIMITED
        self.refund_minor_max = self.desk_rng.randint(*REFUND_MINOR_MAX) if limited else None
        self.callers = {
            name: Application(name, "app", AMOUNT_MINOR_MAX, None, refund_minor_max=self.refund_minor_max)
            for name in self.departments
        }
        self.memory = Memory(self.now, self.departments)
        self.book = Book(
            self.swarm.capability,
            self.swarm.window_s,
            self.swarm.forgets,
            self.swarm.lag_s,
            self.swarm.processor_skew_s,
        )
        self.brands = brands()
        self.mac_keys = MAC_KEYS
        self.ring = rings()[0]
        self.tokens: dict[str, tuple[Sequence[str], Sequence[str]]] = {}
        """Of each department: those for many charges, and those for one."""
        self.cards: dict[str, int] = {}
        """Which card each token is of."""
        self.over = False
        self.sent: list[Sent] = []
        self.opens: list[Opened] = []
        self.held: dict[str, str] = {}
        self.deaths: list[tuple[Point, Movement | None]] = []
        """Where processes died, and what they were at."""
        self.replicas: dict[str, Replica] = {}
        self._opened: Counter[str] = Counter()
        self._not_found: dict[str, float] = {}

    # -- time and chance

    def now(self) -> datetime:
        """By the database's clock, which is never wrong here."""
        return START + timedelta(seconds=self.loop.time())

    async def pause(self, least_s: float, most_s: float) -> None:
        """Let some time pass."""
        await asyncio.sleep(self.rng.uniform(least_s, most_s))

    def strikes(self, fault: Fault, weight: float = 1.0) -> bool:
        """Whether this fault happens here and now."""
        if not self.stormy:
            return False
        likely = self.swarm.intensity.get(fault)
        if likely is None or self.rng.random() >= likely * weight:
            return False
        self.seen[f"fault: {fault}"] += 1
        return True

    def later(self, delay_s: float, arrive: Callable[[], object]) -> None:
        """Something that is on its way, whoever lives or dies meanwhile."""
        self.under_way += 1

        def arrived() -> None:
            self.under_way -= 1
            arrive()

        self.loop.call_later(delay_s, arrived)

    def skew_s(self) -> float:
        """How wrong a new process' clock is."""
        return self.rng.uniform(-20.0, 20.0) if Fault.SKEW in self.swarm else 0.0

    @property
    def database_down(self) -> bool:
        """Whether nobody reaches it."""
        return Fault.DB_OUTAGE in self.down

    @property
    def processor_down(self) -> bool:
        """Whether nobody reaches it; what was on its way arrives."""
        return Fault.PROCESSOR_OUTAGE in self.down

    def heal(self) -> None:
        """The storm is over. The processor still offers what it offers, and clocks are off by what is usual."""
        self.stormy = False
        self.down.clear()
        self.dark = None
        for replica in self.replicas.values():
            replica.clock.offset_s = self.skew_s()

    # -- processes

    def start(self, name: str) -> None:
        """Start a process, as soon as there is a place for it."""
        if self.dark is not None and name.startswith(self.dark):
            self.loop.call_later(RESTART_S[1], self.start, name)
        else:
            self.replicas[name] = Replica(self, name)

    def start_all(self) -> None:
        """Start every process."""
        names = [f"api{n}" for n in range(self.swarm.apis)] + [f"worker{n}" for n in range(self.swarm.workers)]
        for name in names:
            self.start(name)

    def apis(self) -> Sequence[Replica]:
        """Those that answer now. A sleeping one takes calls, and answers late."""
        return [each for name, each in self.replicas.items() if name.startswith("api") and each.alive]

    def everybody_is_up(self) -> bool:
        """Whether no process is stopped or dead."""
        return all(each.alive and each.asleep_until_s <= self.loop.time() for each in self.replicas.values())

    def killed(self, replica: Replica) -> None:
        """A process died."""
        if self.stormy:
            self.loop.call_later(self.rng.uniform(*RESTART_S), self.start, replica.name)

    # -- what is seen

    def note(self, *what: object) -> None:
        """Put something down in the history."""
        self.history.note(self.loop.time(), *what)

    def something_waits(self) -> bool:
        """Whether a worker would find anything."""
        now = self.now()
        return any(row.open and row.lease_until <= now for row in self.memory.movements.values())

    def something_to_send(self) -> bool:
        """Whether an api process would find anything: marked, or decided about."""
        now = self.now()
        return any(
            (row.resend_until is not None and row.resend_until > now)
            or (row.movement.progress is Progress.AWAITING and row.id in self.memory.verdicts)
            for row in self.memory.movements.values()
        )

    def at_work_on(self, movement: Movement) -> None:
        """What the running task has in its hands, should it die."""
        SUBJECT.set(movement)

    def carry_out(self, order: Order, *, copy: bool = False) -> Reply:
        """A request arrives at the processor."""
        known = order.reference in self.book.deeds
        said = self.book.carry_out(order, self.now(), copy=copy)
        self.note("carried out", order.reference, order.kind, order.amount_minor, type(said).__name__, copy)
        self.seen[f"processor: {order.kind} {type(said).__name__}"] += 1
        if not known and order.reference in self.book.deeds and order.reference in self._not_found:
            self.seen["not found, and carried out later"] += 1
        return said

    def inquired(self, movement: Movement, found: Inquiry) -> None:
        """The processor was asked."""
        self.seen[f"inquiry: {type(found).__name__}"] += 1
        if isinstance(found, NotFound):
            self._not_found[movement.reference] = self.loop.time()
            if movement.reference in self.book.deeds:
                self.seen["not found, though carried out"] += 1

    def taken(self, replica: Replica, movement: Movement) -> None:
        """A lease begins."""
        self.at_work_on(movement)
        self.seen["taken"] += 1
        if self.held.get(movement.movement_id):
            self.seen["taken over"] += 1
        self.held[movement.movement_id] = replica.name

    def obeyed(self, replica: Replica, taken: Begun | Finished) -> None:
        """An api process did what an approver said."""
        movement = taken.movement
        self.note("obeyed", replica.name, movement.movement_id, str(movement.progress))
        if isinstance(taken, Begun):
            self.at_work_on(movement)
            self.held[movement.movement_id] = replica.name
        self.seen["refund: release" if isinstance(taken, Begun) else "refund: reject"] += 1

    def given_back(self, movement: Movement, *, marked: bool) -> None:
        """A lease ends."""
        if self._epoch(movement) != movement.epoch:
            self.seen["stale epoch refused"] += 1
            return
        self.held.pop(movement.movement_id, None)
        self.seen["marked to be sent again" if marked else "put off"] += 1

    def finished(self, replica: Replica, movement: Movement, event: Event, finished: Finished) -> None:
        """Somebody wrote an outcome down, or would have."""
        self.note("finish", replica.name, movement.movement_id, movement.epoch, event, finished.moved)
        if not finished.moved:
            self.seen["stale epoch refused" if self._epoch(movement) != movement.epoch else "late word refused"] += 1
            return
        self.held.pop(movement.movement_id, None)
        self.seen[f"{movement.kind}: {event}"] += 1
        if movement.progress is Progress.IN_REVIEW:
            self.seen["out of review"] += 1

    def opened(self, department: str, token_id: str) -> None:
        """A card is opened: its audit rows must be there by now."""
        charges = {
            c.charge_id for (of, _), c in self.memory.charges_.items() if (of, c.token_id) == (department, token_id)
        }
        rows = sum(row.event.event == "card.opened" and row.event.subject in charges for row in self.memory.audit)
        self._opened[token_id] += 1
        self.opens.append(Opened(token_id, rows, self._opened[token_id]))

    def settled(self) -> bool:
        """Whether everything that can be known is known, and nothing is on its way."""
        return not self.under_way and not any(
            self.could_be_known(row.movement) for row in self.memory.movements.values()
        )

    def could_be_known(self, movement: Movement) -> bool:
        """Whether a movement is not final and should not stay so."""
        if movement.progress is not Progress.IN_REVIEW:
            return movement.progress in UNDECIDED
        far = self.now() + timedelta(seconds=self.book.lag_s)
        return not isinstance(self.book.inquire(movement.reference, far), NotFound)

    def _epoch(self, movement: Movement) -> int:
        return self.memory.movements[movement.department, movement.movement_id].movement.epoch
