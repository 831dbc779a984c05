"""What a seed makes go wrong here: the simulation's swarm, with more of what only a real database can do.

Measures of time are the simulation's, and are taken times `tempo.SCALE`.
"""

from collections.abc import Mapping
from dataclasses import replace
from random import Random

from gateway.services.points import Point
from tests.simulation.swarm import Fault, Swarm, swarm_of

STORM_S_MAX = 60.0
RESIDENTS_MAX = 6
NOT_HERE = frozenset({Fault.JUMP, Fault.ROTATION, Fault.DAMAGE})
"""What the simulation alone deals in; keys are rotated under load elsewhere."""

MORE: Mapping[Fault, tuple[float, float, float]] = {
    Fault.DB_LOSES_COMMIT: (0.65, 0.1, 0.4),
    Fault.DB_REFUSES: (0.33, 0.02, 0.12),
    Fault.DB_SLOW: (0.33, 0.05, 0.25),
    Fault.KILL: (0.6, 0.03, 0.12),
    Fault.PAUSE: (0.33, 0.03, 0.12),
    Fault.LOST_REQUEST: (0.4, 0.1, 0.5),
    Fault.LOST_REPLY: (0.4, 0.1, 0.5),
    Fault.LATE: (0.4, 0.1, 0.5),
    Fault.DUPLICATE: (0.4, 0.1, 0.6),
}
"""How likely a class of faults is there at all, and then, at each occasion, from and to."""

PLACES = (*Point, *(Point.INQUIRED, Point.TAKEN, Point.GIVEN_BACK), *(Point.CANCELLED, Point.TAKEN_AGAIN) * 3)
"""Where death waits: the more often, the less often anybody comes by."""
NEEDED = {Point.CANCELLED: "B", Point.TAKEN_AGAIN: "A"}
"""What the processor must offer for anybody to come by at all."""


def fatal_point(seed: int) -> Point:
    """The place of a seed at which death is fifty times as likely as elsewhere."""
    place: Point = Random(f"{seed}/place").choice(PLACES)  # noqa: S311 - chance that a seed repeats
    return place


def weather_of(seed: int) -> Swarm:
    """Draw the options of a seed."""
    swarm = swarm_of(Random(seed))  # noqa: S311 - chance that a seed repeats
    rng = Random(f"{seed}/weather")  # noqa: S311 - the same
    intensity = {fault: likely for fault, likely in swarm.intensity.items() if fault not in NOT_HERE}
    for fault, (on, least, most) in MORE.items():
        intensity.pop(fault, None)
        if rng.random() < on:
            intensity[fault] = rng.uniform(least, most)
    place = fatal_point(seed)
    if place in NEEDED and Fault.KILL in intensity:
        swarm = replace(swarm, capability=NEEDED[place])
        intensity[Fault.LATE] = rng.uniform(0.3, 0.7)
    return replace(
        swarm,
        storm_s=min(swarm.storm_s, STORM_S_MAX),
        residents=min(swarm.residents, RESIDENTS_MAX),
        intensity=intensity,
    )
