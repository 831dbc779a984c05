"""What a seed makes go wrong.

Each class of faults is off in about two thirds of the seeds: a world in which everything fails at once hides the
bugs that need most of it to work.

Groce et al., *Swarm Testing*, ISSTA 2012.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from random import Random

from gateway.store.ledger import REQUEST_LIFE

ON = 1 / 3
"""How likely a class of faults is there at all."""


class Fault(StrEnum):
    """A class of faults."""

    DB_REFUSES = "db_refuses"
    DB_LOSES_COMMIT = "db_loses_commit"
    DB_SLOW = "db_slow"
    DB_OUTAGE = "db_outage"
    REFUSED = "refused"
    LOST_REQUEST = "lost_request"
    LATE = "late"
    DUPLICATE = "duplicate"
    ERROR_BEFORE = "error_before"
    ERROR_AFTER = "error_after"
    LOST_REPLY = "lost_reply"
    WRONG_ECHO = "wrong_echo"
    SLOW = "slow"
    INQUIRY_ERROR = "inquiry_error"
    INQUIRY_LAG = "inquiry_lag"
    PROCESSOR_OUTAGE = "processor_outage"
    BLACKOUT = "blackout"
    KILL = "kill"
    PAUSE = "pause"
    SKEW = "skew"
    JUMP = "jump"
    DOUBLE_CLICK = "double_click"
    IMPATIENCE = "impatience"
    MUTATION = "mutation"
    ROTATION = "rotation"
    DAMAGE = "damage"


INTENSITY: Mapping[Fault, tuple[float, float]] = {
    Fault.DB_REFUSES: (0.005, 0.08),
    Fault.DB_LOSES_COMMIT: (0.01, 0.12),
    Fault.DB_SLOW: (0.01, 0.1),
    Fault.LOST_REQUEST: (0.05, 0.4),
    Fault.LATE: (0.05, 0.5),
    Fault.DUPLICATE: (0.05, 0.4),
    Fault.ERROR_BEFORE: (0.05, 0.3),
    Fault.ERROR_AFTER: (0.05, 0.3),
    Fault.LOST_REPLY: (0.05, 0.5),
    Fault.WRONG_ECHO: (0.05, 0.3),
    Fault.REFUSED: (0.05, 0.3),
    Fault.SLOW: (0.05, 0.3),
    Fault.INQUIRY_ERROR: (0.05, 0.4),
    Fault.KILL: (0.02, 0.1),
    Fault.PAUSE: (0.02, 0.08),
    Fault.DOUBLE_CLICK: (0.2, 0.8),
    Fault.IMPATIENCE: (0.1, 0.5),
    Fault.MUTATION: (0.1, 0.4),
}
"""Per occasion, from and to. What is not here is there or not, and has measures of its own below."""

CAPABILITIES = "ABCD"
EDGES = 0.25
"""How many worlds are of the kind of `_at_an_edge`."""
LAG_S_MAX = 30.0
SKEW_S_MAX = 20.0
"""What the product is built to bear (`rules.recovery`): the model is allowed this much, and no more."""
DAY_S = 86_400.0
SHORT_WINDOW_S = 120.0
"""A dedupe window that a run can outlive. A quarter of it is more than the delays of `swarm_of` together: where a
process or the network sleeps for longer than the processor remembers, no rule could help."""


SILENCE = {Fault.LOST_REPLY: 0.95, Fault.SLOW: 0.2}


@dataclass(frozen=True, slots=True)
class Swarm:
    """The options of one seed."""

    capability: str
    window_s: float
    forgets: bool
    """Whether the processor no longer knows a reference after its dedupe window."""
    lag_s: float
    processor_skew_s: float
    late_s_max: float
    pause_s: tuple[float, float]
    outage_s: tuple[float, float]
    """How long the processor, or every process of ours, is away at a time."""
    apis: int
    workers: int
    departments: int
    residents: int
    storm_s: float
    intensity: Mapping[Fault, float]

    def __contains__(self, fault: Fault) -> bool:
        return fault in self.intensity


def swarm_of(rng: Random) -> Swarm:
    """Draw the options of a seed; the first thing that is drawn from it."""
    intensity = {fault: rng.uniform(*INTENSITY.get(fault, (1.0, 1.0))) for fault in Fault if rng.random() < ON}
    capability = rng.choice(CAPABILITIES)
    short = capability == "A" and rng.random() < 0.4
    if short and rng.random() < 0.7:  # what the processor forgets is asked for only by those who could not ask before
        intensity[Fault.PROCESSOR_OUTAGE] = 1.0
    swarm = Swarm(
        capability=capability,
        window_s=SHORT_WINDOW_S if short else DAY_S,
        forgets=rng.random() < 0.7,
        lag_s=rng.uniform(1.0, LAG_S_MAX) if Fault.INQUIRY_LAG in intensity else 0.0,
        processor_skew_s=rng.uniform(-SKEW_S_MAX, SKEW_S_MAX) if Fault.SKEW in intensity else 0.0,
        late_s_max=8.0 if short else 25.0,
        pause_s=(2.0, 14.0) if short else (5.0, 45.0),
        outage_s=(80.0, 170.0) if short else (10.0, 120.0),
        apis=rng.randint(2, 3),
        workers=rng.randint(1, 3),
        departments=1 if rng.random() < 0.7 else 2,
        residents=rng.randint(3, 8),
        storm_s=rng.uniform(90.0, 180.0) if short else rng.uniform(15.0, 60.0),
        intensity=intensity,
    )
    return _at_an_edge(rng, swarm) if rng.random() < EDGES else swarm


def _at_an_edge(rng: Random, swarm: Swarm) -> Swarm:
    """A world in which much happens just where a rule of `rules.recovery` changes its mind."""
    forgetful = replace(
        swarm,
        capability="A",
        window_s=SHORT_WINDOW_S,
        forgets=True,
        late_s_max=8.0,
        pause_s=(2.0, 8.0),
        residents=20,
        storm_s=rng.uniform(150.0, 200.0),
    )
    late = replace(
        swarm,
        capability="C",
        lag_s=LAG_S_MAX,
        processor_skew_s=-SKEW_S_MAX,
        late_s_max=REQUEST_LIFE.total_seconds() + SKEW_S_MAX,
    )
    worlds = (
        # A processor that forgets, when nobody could ask it until then.
        replace(forgetful, lag_s=0.0, intensity=SILENCE | {Fault.INQUIRY_ERROR: 0.96, Fault.PAUSE: 0.3}),
        # The same, when those who would send again are away, and come back when it has forgotten.
        replace(forgetful, lag_s=LAG_S_MAX, intensity={Fault.SLOW: 0.9, Fault.LATE: 0.1, Fault.BLACKOUT: 1.0}),
        # Sleepers that never sent, and wake up when somebody else has.
        replace(
            swarm,
            capability="A",
            window_s=DAY_S,
            lag_s=LAG_S_MAX,
            pause_s=(16.0, 45.0),
            intensity={Fault.PAUSE: 0.2, Fault.REFUSED: 0.3, Fault.LOST_REPLY: 0.7},
        ),
        # A processor whose clock is late, that carries out late, and shows it late.
        replace(late, intensity=SILENCE | {Fault.LATE: 0.7, Fault.LOST_REPLY: 0.5}),
    )
    return rng.choice(worlds)
