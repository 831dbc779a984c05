"""One whole run of one seed: a storm, then good weather, then the question whether all of it came out right."""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from structlog.testing import capture_logs

from tests.simulation.checker import judge
from tests.simulation.city import City
from tests.simulation.coverage import sights
from tests.simulation.desk import sit_at
from tests.simulation.founding import found, rings, seeded_ids
from tests.simulation.history import Body
from tests.simulation.resident import Resident
from tests.simulation.swarm import Fault, Swarm

BOUND_S = 150.0
"""Within so many seconds of good weather everything that can be known is known, and every page has its answer."""
DB_OUTAGE_S = (1.0, 20.0)
JUMP_S = 3600.0


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a seed."""

    seed: int
    swarm: Swarm
    digest: str
    violations: list[str]
    seen: Counter[str]
    healed_in_s: float
    history: Sequence[str]
    """Its lines, where something is wrong or they were asked for."""


def run(seed: int, *, with_history: bool = False) -> Run:
    """Run a seed, and judge it."""
    city, logs, healed_in_s = live_through(seed)
    violations = judge(city, logs)
    city.seen.update(sights(city, logs))
    if healed_in_s >= BOUND_S:
        violations.append(f"I5: not everything was known after {BOUND_S:g} s of good weather")
    history = city.history.lines() if violations or with_history else ()
    return Run(seed, city.swarm, city.history.digest, violations, city.seen, healed_in_s, history)


def live_through(seed: int) -> tuple[City, Sequence[Mapping[str, Any]], float]:
    """The city of a seed when all is over, its log lines, and how many seconds it took to know everything again."""
    city = City(seed)
    with seeded_ids(seed), capture_logs() as logs:
        try:
            healed_in_s = city.loop.run_until_complete(_live(city))
        finally:
            _end(city)
    for row in city.memory.movements.values():
        city.note("in the end", row.movement.movement_id, str(row.movement.progress), row.movement.epoch, row.looks)
    return city, logs, healed_in_s


async def _live(city: City) -> float:
    """From the first process to the last answer; gives how long everything took to be known after the storm."""
    city.start_all()
    await found(city)
    city.stormy = True
    residents = [Resident(city, number) for number in range(city.swarm.residents)]
    living = asyncio.gather(*(resident.live() for resident in residents))
    if city.refund_minor_max is not None:
        city.loop.create_task(sit_at(city))
    hazards = [city.loop.create_task(work) for work in _hazards(city)]
    await asyncio.sleep(city.swarm.storm_s)
    for hazard in hazards:
        hazard.cancel()
    city.heal()
    healed_s = city.loop.time()
    while not (living.done() and city.settled()) and city.loop.time() < healed_s + BOUND_S:
        await asyncio.sleep(1.0)
    healed_in_s = city.loop.time() - healed_s
    city.over = True
    await living
    while not (city.everybody_is_up() and city.settled()):  # who wakes up when all is over must change nothing
        await asyncio.sleep(1.0)
        if city.loop.time() > healed_s + 2 * BOUND_S:
            break
    await _ask_again(residents[0], city)
    return healed_in_s


async def _ask_again(resident: Resident, city: City) -> None:
    """Once more under every key that was ever answered: what was said must still be true."""
    answered = {
        (call.department, call.act, call.key): call for call in city.history.calls if call.key and call.status
    }
    for call in list(answered.values()):
        await resident.call(call.act, call.key, call.body, call.charge_id, department=call.department)
    for department, charge_id in list(city.memory.charges_):
        await resident.call("show", "", Body(None), charge_id, department=department)


def _hazards(city: City) -> Iterator[Coroutine[Any, Any, None]]:
    """What befalls the whole city during the storm."""
    for fault in (Fault.DB_OUTAGE, Fault.PROCESSOR_OUTAGE):
        if fault in city.swarm:
            yield _outages(city, fault, DB_OUTAGE_S if fault is Fault.DB_OUTAGE else city.swarm.outage_s)
    if Fault.BLACKOUT in city.swarm:
        yield _blackouts(city)
    if Fault.JUMP in city.swarm:
        yield _jumps(city)
    if Fault.ROTATION in city.swarm:
        yield _rotation(city)
    if Fault.DAMAGE in city.swarm:
        yield _damage(city)


async def _outages(city: City, fault: Fault, lasting_s: tuple[float, float]) -> None:
    while True:
        await city.pause(0.0, city.swarm.storm_s / 2)
        city.seen[f"fault: {fault}"] += 1
        city.down.add(fault)
        await city.pause(*lasting_s)
        city.down.discard(fault)


async def _blackouts(city: City) -> None:
    """All processes die, or all of the api, and stay away for a while."""
    while True:
        await city.pause(0.0, city.swarm.storm_s / 2)
        city.seen["fault: blackout"] += 1
        city.dark = city.rng.choice(("api", ""))
        for name, replica in city.replicas.items():
            if name.startswith(city.dark) and replica.alive:
                replica.kill()
        await city.pause(*city.swarm.outage_s)
        city.dark = None


async def _jumps(city: City) -> None:
    """Somebody sets a clock; of the database's there is one, and it is right."""
    while True:
        await city.pause(0.0, city.swarm.storm_s / 2)
        name = city.rng.choice(list(city.replicas))
        city.replicas[name].clock.offset_s += city.rng.choice((-JUMP_S, JUMP_S))
        city.seen["fault: jump"] += 1


async def _rotation(city: City) -> None:
    """Both keys are rotated: the key store moves first, the database a moment later."""
    await city.pause(0.0, city.swarm.storm_s)
    city.ring = rings()[1]
    city.seen["fault: rotation"] += 1
    try:
        await city.pause(0.0, 1.0)
    finally:  # a rotation that is broken off is finished, sooner or later
        city.memory.generations.update({1: "retired", 2: "active"})
        city.memory.fingerprint_versions.update({1: "retired", 2: "active"})


async def _damage(city: City) -> None:
    """A card that could be opened a moment ago cannot be opened any more; rather one that may be needed again."""
    memory = city.memory
    while True:
        await city.pause(0.0, city.swarm.storm_s / 3)
        waiting = {row.movement.charge_id for row in memory.movements.values() if row.open}
        needed = {each.token_id for each in memory.charges_.values() if each.charge_id in waiting}
        rows = [row for (_, token_id), row in memory.tokens.items() if not needed or token_id in needed]
        city.rng.choice(rows).sealed = bytes(64)
        city.seen["fault: damage"] += 1


def _end(city: City) -> None:
    """Nobody is left behind, and nothing is under way."""
    city.stormy = False
    for replica in city.replicas.values():
        replica.kill()
    for task in asyncio.all_tasks(city.loop):
        task.cancel()
    tasks = asyncio.all_tasks(city.loop)
    if tasks:
        city.loop.run_until_complete(asyncio.wait(tasks))
    city.loop.close()
