"""One seed's city: what everybody in it shares, and who saw what.

It is to the simulation's residents what `tests.simulation.city.City` is, so that they are the same residents.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from random import Random
from typing import Any

from gateway.errors import Unavailable
from gateway.rules.access import Application
from gateway.rules.ids import new_id
from gateway.rules.lifecycle import Event, Progress
from gateway.services.points import Point
from gateway.services.ports import Answer, CommitUnknown, Finished, Movement, Token
from gateway.store.database import BROKEN
from keys.audit import AuditEvent, AuditPen, Outcome
from keys.errors import DatabaseRefused
from tests.simulation.city import Opened
from tests.simulation.founding import CARDS, MAC_KEYS, MULTI_TOKENS, SINGLE_TOKENS, given
from tests.simulation.history import History
from tests.simulation.replica import RESTART_S
from tests.simulation.swarm import Fault
from tests.simulation.wire import Sent
from tests.waters.chance import Chance
from tests.waters.far import Far
from tests.waters.harbour import APPLICATION, Harbour
from tests.waters.replica import Replica
from tests.waters.tempo import SCALE
from tests.waters.weather import fatal_point, weather_of

AMOUNT_MINOR_MAX = 1_000_000
KILLS_MAX = 4
"""Of one seed: who starts again signs in again, which is what a seed costs most."""
FATAL, ELSEWHERE = 25.0, 0.5
"""How much likelier death is at the seed's own place, and at others."""
OPENINGS = """
SELECT count(*) FROM audit.events e
JOIN gateway.charges c ON c.department_id = e.department_id AND c.charge_id = e.subject
WHERE e.department_id = $1 AND e.event = 'card.opened' AND c.token_id = $2
"""


class City:
    """What one seed makes."""

    def __init__(self, harbour: Harbour, seed: int, names: Sequence[str]) -> None:
        self.harbour = harbour
        self.seed = seed
        self.swarm = weather_of(seed)
        self.rng = Random(f"{seed}/city")  # noqa: S311 - chance that a seed repeats
        self.chance = Chance(seed)
        self.loop = asyncio.get_running_loop()
        self.history = History()
        self.seen: Counter[str] = Counter()
        self.broken: list[str] = []
        self.logs: list[dict[str, Any]] = []
        self.has_begun = False
        self.stormy = False
        self.over = False
        self.is_settled = False
        self.database_down = False
        self.dark: str | None = None
        """How the names begin of those who stay dead at present."""
        self.refund_minor_max: int | None = None  # nothing waits for an approver here
        self.kills = 0
        self.fatal_point = fatal_point(seed)
        self.departments = tuple(names[: self.swarm.departments])
        self.callers = {name: Application(name, APPLICATION, AMOUNT_MINOR_MAX, None) for name in self.departments}
        self.tokens: dict[str, tuple[Sequence[str], Sequence[str]]] = {}
        self.cards: dict[str, int] = {}
        self.sent: list[Sent] = []
        self.opens: list[Opened] = []
        self.replicas: dict[str, Replica] = {}
        self.far: Far
        self._opened: Counter[str] = Counter()
        self._held: dict[str, str] = {}
        self._epochs: dict[str, int] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    # -- time and chance

    def now(self) -> datetime:
        """The machine's clock, which is PostgreSQL's."""
        return datetime.now(UTC)

    async def pause(self, least_s: float, most_s: float) -> None:
        """Let some time pass, in the simulation's measure."""
        await asyncio.sleep(self.rng.uniform(least_s, most_s) * SCALE)

    def strikes(self, fault: Fault, weight: float = 1.0, place: str = "large") -> bool:
        """Whether this fault happens here and now."""
        likely = self.swarm.intensity.get(fault)
        if not self.stormy or likely is None or not self.chance.strikes(fault, place, likely * weight):
            return False
        self.seen[f"fault: {fault}"] += 1
        return True

    def is_fatal(self, point: Point, place: str) -> bool:
        """Whether a process dies here and now: at the seed's own place in good weather, too, but not for ever."""
        if self.kills >= KILLS_MAX or self.over:
            return False
        if point is not self.fatal_point:
            return self.strikes(Fault.KILL, ELSEWHERE, place)
        likely = self.swarm.intensity.get(Fault.KILL, 0.0) * FATAL
        return self.has_begun and self.chance.strikes(Fault.KILL, place, likely)

    def strikes_at(self, fault: Fault, place: str) -> bool:
        """The same, for a strait."""
        return self.strikes(fault, 1.0, place)

    def saw(self, what: str) -> None:
        """Something happened that is counted."""
        self.seen[what] += 1

    def skew_s(self) -> float:
        """How wrong a new process' clock is."""
        return self.rng.uniform(-20.0, 20.0) if Fault.SKEW in self.swarm else 0.0

    # -- processes

    async def start_all(self) -> None:
        """Start every process."""
        names = [f"api{n}" for n in range(2)] + [f"worker{n}" for n in range(self.swarm.workers)]
        await asyncio.gather(*(self.start(name) for name in names))

    async def start(self, name: str) -> None:
        """Start a process, again and again until it gets through to the database."""
        while not self.over:
            if self.dark is None or not name.startswith(self.dark):
                with suppress(*BROKEN, DatabaseRefused):
                    self.replicas[name] = await Replica.start(self, name)
                    return
            await asyncio.sleep(0.05)

    def apis(self) -> Sequence[Replica]:
        """Those that answer now."""
        return [each for name, each in self.replicas.items() if name.startswith("api") and each.alive]

    def everybody_is_up(self) -> bool:
        """Whether no process is stopped or dead."""
        return all(each.alive and each.awake_at_s <= self.loop.time() for each in self.replicas.values())

    def killed(self, replica: Replica) -> None:
        """A process died."""
        self.kills += 1
        self._do(replica.bury())
        if not self.over:
            self._do(self._start_again(replica.name))

    def set_database_down(self, *, down: bool) -> None:
        """Nobody reaches it any more, or everybody does."""
        self.database_down = down
        for replica in self.replicas.values():
            replica.strait.closed = down
            if down:
                replica.strait.reset()

    def heal(self) -> None:
        """The storm is over."""
        self.stormy = False
        self.dark = None
        self.set_database_down(down=False)

    async def end(self) -> None:
        """Nobody is left behind."""
        self.over = True
        for replica in self.replicas.values():
            if replica.alive:
                replica.kill()
        while self._leaving:
            await asyncio.wait(self._leaving)

    # -- what is seen

    def note(self, *what: object) -> None:
        """Put something down in the history."""
        self.history.note(self.loop.time(), *what)

    def something_waits(self) -> bool:
        """Whether a worker would find anything."""
        return not self.harbour.waiting.isdisjoint(self.departments)

    def something_marked(self) -> bool:
        """Whether an api process would find anything."""
        return not self.harbour.marked.isdisjoint(self.departments)

    def settled(self) -> bool:
        """Whether everything that can be known is known, as of the last look."""
        return self.is_settled

    def taken(self, name: str, movement: Movement) -> None:
        """A lease begins."""
        self.seen["taken"] += 1
        if movement.epoch > 1 and self._held.get(movement.movement_id, name) != name:
            self.seen["taken over"] += 1
        self._held[movement.movement_id] = name
        self._epochs[movement.movement_id] = max(movement.epoch, self._epochs.get(movement.movement_id, 0))

    def put_off(self, movement: Movement, *, marked: bool) -> None:
        """A lease ends, if it is still the last one."""
        if self._epochs.get(movement.movement_id, 0) > movement.epoch:
            self.seen["stale epoch refused"] += 1
            return
        self._held.pop(movement.movement_id, None)
        self.seen["marked to be sent again" if marked else "put off"] += 1

    def finished(self, movement: Movement, event: Event, finished: Finished) -> None:
        """Somebody wrote an outcome down, or would have."""
        self.note("finish", movement.movement_id, movement.epoch, event, finished.moved)
        if not finished.moved:
            stale = finished.movement.epoch != movement.epoch
            self.seen["stale epoch refused" if stale else "late word refused"] += 1
            return
        self._held.pop(movement.movement_id, None)
        self.seen[f"{movement.kind}: {event}"] += 1
        if movement.progress is Progress.IN_REVIEW:
            self.seen["out of review"] += 1

    async def opened(self, department: str, token_id: str) -> None:
        """A card is opened: its audit rows must be there by now."""
        self._opened[token_id] += 1
        opens = self._opened[token_id]
        rows = await self.harbour.owner.fetchval(OPENINGS, department, token_id)
        self.opens.append(Opened(token_id, rows, opens))

    # -- what there is at first

    async def found(self) -> None:
        """Tokens for every department, in good weather: some for many charges, and some for one."""
        for department in self.departments:
            multi = [await self._mint(department, card, "multi") for card in range(MULTI_TOKENS)]
            single = [await self._mint(department, card % CARDS, "single") for card in range(SINGLE_TOKENS)]
            self.tokens[department] = multi, single

    async def _mint(self, department: str, card: int, usage: str) -> str:
        api, caller = self.apis()[0], self.callers[department]
        event = AuditEvent(department, "token.created", Outcome.DONE, APPLICATION)
        while True:
            # Another seed's storm holds the row where seals are counted, or the machine is busy: nobody knows of
            # a token whose commit got no answer, so a new one takes its place.
            with suppress(Unavailable, CommitUnknown):
                minting = await api.mint.token(caller, given(card), new_id("tok"), usage, cvc_check="unchecked")
                row = AuditPen("api", MAC_KEYS).row(event, self.now())
                token = await api.store.create_token(minting.new, None, held=False, render=_nothing, audit=row)
                break
        assert isinstance(token, Token), "a request without a key meets no other"
        self.cards[token.token_id] = card
        return token.token_id

    async def _start_again(self, name: str) -> None:
        await self.pause(*RESTART_S)
        if not self.over:
            await self.start(name)

    def _do(self, work: Any) -> None:
        task = self.loop.create_task(work)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)


def _nothing(_token: Token) -> Answer:
    return Answer(201, b"")
