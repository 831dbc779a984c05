"""One whole run of one seed: a storm, then good weather, then the question whether all of it came out right."""

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from random import Random
from typing import Any

import structlog

from gateway.rules import recovery as rules
from gateway.rules.lifecycle import OPEN
from tests.simulation.resident import Resident
from tests.simulation.swarm import LAG_S_MAX, SKEW_S_MAX, Fault, Swarm
from tests.waters import tempo
from tests.waters.city import City
from tests.waters.evidence import Judged, collect, verdict
from tests.waters.far import processor, storm_of
from tests.waters.harbour import Harbour

BOUND_S = 20.0
"""Within so many seconds of good weather everything that can be known is known, and every page has its answer."""
LOOK_EVERY_S = 0.1
TRIES = 5
DB_OUTAGE_S = (1.0, 8.0)
DARK_S = (3.0, 15.0)
"""In the simulation's measure, as all that `City.pause` takes."""
LOGS: ContextVar[list[dict[str, Any]]] = ContextVar("logs")
"""Where the running seed's log lines go."""
STILL_OPEN = "SELECT count(*) FROM gateway.movements WHERE department_id = ANY($1) AND progress = ANY($2)"
IN_REVIEW = "SELECT reference FROM gateway.movements WHERE department_id = ANY($1) AND progress = 'in_review'"


@dataclass
class Run:
    """What came of a seed."""

    seed: int
    swarm: Swarm
    violations: list[str]
    seen: Counter[str]
    healed_in_s: float
    took_s: float
    tape: list[str] = field(default_factory=list)
    history: list[str] = field(default_factory=list)
    """Both only where something is wrong, or where they were asked for."""


class Visitor(Resident):
    """A resident whose wishes nobody else's draws can shift."""

    def __init__(self, city: City, number: int) -> None:
        super().__init__(city, number)  # type: ignore[arg-type] # it is what a resident knows of a city
        self._rng = Random(f"{city.seed}/r{number}")  # noqa: S311 - chance that a seed repeats
        self._department = self._rng.choice(city.departments)


async def sail(harbour: Harbour, seed: int, *, with_history: bool = False) -> Run:
    """Run a seed, and judge it."""
    began_s = time.monotonic()
    name = f"s{seed}_{int(began_s * 1000) % 10**8}"
    city = City(harbour, seed, [f"{name}_{suffix}" for suffix in "ab"])
    LOGS.set(city.logs)
    terms, swarm = terms_of(city.swarm), city.swarm
    skew_s = swarm.processor_skew_s / SKEW_S_MAX * rules.CLOCK_SKEW_S
    late_s = tempo.LATE_S_MAX if swarm.capability == "C" else swarm.late_s_max * tempo.SCALE
    async with processor(harbour, harbour.folder / f"{name}.db", terms, skew_s, late_s) as city.far:
        await harbour.settle(city.departments)
        try:
            healed_in_s = await _live(city)
            judged = await collect(city, terms)
        finally:
            await city.end()
            harbour.afloat.difference_update(city.departments)
    violations = await verdict(judged)
    if healed_in_s >= BOUND_S:
        violations.append(f"I5: not everything was known after {BOUND_S:g} s of good weather")
    run = Run(seed, city.swarm, violations, sights(judged), healed_in_s, time.monotonic() - began_s)
    if violations or with_history:
        run.tape, run.history = city.chance.tape, city.history.lines()
    return run


def terms_of(swarm: Swarm) -> dict[str, Any]:
    """What the double offers."""
    short = swarm.window_s < 86_400
    return {
        "capability": swarm.capability,
        "dedupe_window_s": swarm.window_s * tempo.SCALE if short else swarm.window_s,
        "inquiry_lag_s": swarm.lag_s / LAG_S_MAX * rules.INQUIRY_LAG_S,
    }


def sights(judged: Judged) -> Counter[str]:
    """What one run has to show, beside what was counted on the way."""
    city = judged.city
    refusals = [call.end.name for call in city.history.calls if call.end is not None and call.end.kind == "refused"]
    return city.seen + Counter(
        [
            f"capability {city.swarm.capability}",
            *(f"parked: {line['reason']}" for line in city.logs if line["event"] == "recovery.parked"),
            *("expired" for row in judged.memory.audit if row.event.reason == "expired"),
            *("doubled by the processor" for deed in judged.book.deeds.values() if deed.copies),
            *(f"{row.movement.kind} {row.movement.progress}" for row in judged.memory.movements.values()),
            *(f"refused: {name}" for name in refusals),
        ]
    )


def to_each_its_own_logs() -> None:
    """Send every log line of the product to the seed that it belongs to."""
    structlog.configure(processors=[_keep], cache_logger_on_first_use=False)


def _keep(_logger: object, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    LOGS.get([]).append(dict(entry))
    raise structlog.DropEvent


async def _live(city: City) -> float:
    """From the first process to the last answer; gives how long everything took to be known after the storm."""
    await city.start_all()
    await city.found()
    await city.far.plan(**storm_of(city.swarm, city.seed))
    city.has_begun = city.stormy = True
    residents = [Visitor(city, number) for number in range(city.swarm.residents)]
    living = asyncio.gather(*(resident.live() for resident in residents))
    hazards = [asyncio.create_task(work) for work in _hazards(city)]
    await asyncio.sleep(city.swarm.storm_s * tempo.SCALE)
    for hazard in hazards:
        hazard.cancel()
    await asyncio.gather(*hazards, return_exceptions=True)
    city.heal()
    await city.far.plan()
    healed_s = city.loop.time()
    while not (living.done() and city.is_settled) and city.loop.time() < healed_s + BOUND_S:
        await asyncio.sleep(LOOK_EVERY_S)
        city.is_settled = await _settled(city)
    healed_in_s = city.loop.time() - healed_s
    city.over = True
    await living
    await _ask_again(residents[0], city)
    return healed_in_s


async def _settled(city: City) -> bool:
    """Whether everything that can be known is known, nothing is on its way, and nobody is still asleep."""
    if city.far.under_way or not city.everybody_is_up():
        return False
    owner, undecided = city.harbour.owner, [progress for progress in OPEN if progress != "in_review"]
    if await owner.fetchval(STILL_OPEN, city.departments, undecided):
        return False
    in_review = {row["reference"] for row in await owner.fetch(IN_REVIEW, city.departments)}
    return not in_review or in_review.isdisjoint(row["reference"] for row in await city.far.movements())


async def _ask_again(resident: Resident, city: City) -> None:
    """Once more under every key that was ever answered: what was said must still be true."""
    answered = {
        (call.department, call.act, call.key): call for call in city.history.calls if call.key and call.status
    }
    for call in list(answered.values()):
        for _ in range(TRIES):  # on a busy machine a connection may still break now and then
            again = await resident.call(call.act, call.key, call.body, call.charge_id, department=call.department)
            if again.status:
                break


def _hazards(city: City) -> Iterator[Coroutine[Any, Any, None]]:
    """What befalls the whole city during the storm."""
    if Fault.DB_OUTAGE in city.swarm:
        yield _database_outages(city)
    if Fault.PROCESSOR_OUTAGE in city.swarm:
        yield _processor_outages(city)
    if Fault.BLACKOUT in city.swarm:
        yield _blackouts(city)
    if Fault.DB_REFUSES in city.swarm:
        yield _hang_ups(city)


async def _database_outages(city: City) -> None:
    while True:
        await city.pause(0.0, city.swarm.storm_s / 2)
        city.seen["fault: db_outage"] += 1
        city.chance.note("the database goes")
        city.set_database_down(down=True)
        await city.pause(*DB_OUTAGE_S)
        city.set_database_down(down=False)


async def _processor_outages(city: City) -> None:
    """Nobody reaches the processor; some find it gone, some hear nothing."""
    while True:
        await city.pause(0.0, city.swarm.storm_s / 2)
        city.seen["fault: processor_outage"] += 1
        city.chance.note("the processor goes")
        await city.far.plan(seed=city.seed, lost_request=1.0, slow=1.0, refused=0.5)
        await city.pause(*city.swarm.outage_s)
        await city.far.plan(**storm_of(city.swarm, city.seed + 1))


async def _blackouts(city: City) -> None:
    """All processes die, or all of the api, and stay away for a while."""
    while True:
        await city.pause(0.0, city.swarm.storm_s / 2)
        city.seen["fault: blackout"] += 1
        city.dark = city.rng.choice(("api", ""))
        city.chance.note(f"all processes die: {city.dark}")
        for name, replica in list(city.replicas.items()):
            if name.startswith(city.dark) and replica.alive:
                replica.kill()
        await city.pause(*DARK_S)
        city.dark = None


async def _hang_ups(city: City) -> None:
    """An administrator ends server processes that are at work for us."""
    while True:
        await city.pause(1.0, 8.0)
        lines = [line for replica in city.replicas.values() for line in replica.strait.lines if line.far is not None]
        if not lines:
            continue
        far = city.rng.choice(sorted(lines, key=id)).far
        if far is not None and await city.harbour.hang_up(far.get_extra_info("sockname")[1]):
            city.seen["server process ended"] += 1
