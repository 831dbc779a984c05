"""The life of a key, as one table: which states there are, what each allows, and which may follow it.

    pending ──▶ active ──▶ retired ──▶ destroyed          no way leads back to active
       │           └──────▶ compromised ──▶ destroyed     (a retired key may turn out compromised, too)
       └──▶ destroyed

SP 800-57 part 1, section 7, calls these pre-activation, active, deactivated, destroyed and compromised.
Dates narrow a state further (`keys.ring.Key.require`); both are looked at when a key is used, not when it is loaded.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from keys.errors import KeyRefused


class State(StrEnum):
    """The life of a key."""

    PENDING = "pending"
    ACTIVE = "active"
    RETIRED = "retired"
    COMPROMISED = "compromised"
    DESTROYED = "destroyed"


class Use(StrEnum):
    """What is asked of a key: to protect something new, or to process what it protects already."""

    ORIGINATE = "originate"
    PROCESS = "process"


ALLOWED: Mapping[State, frozenset[Use]] = {
    State.PENDING: frozenset(),
    State.ACTIVE: frozenset({Use.ORIGINATE, Use.PROCESS}),
    State.RETIRED: frozenset({Use.PROCESS}),
    State.COMPROMISED: frozenset({Use.PROCESS}),
    State.DESTROYED: frozenset(),
}

FOLLOWS: Mapping[State, frozenset[State]] = {
    State.PENDING: frozenset({State.ACTIVE, State.COMPROMISED, State.DESTROYED}),
    State.ACTIVE: frozenset({State.RETIRED, State.COMPROMISED}),
    State.RETIRED: frozenset({State.COMPROMISED, State.DESTROYED}),
    State.COMPROMISED: frozenset({State.DESTROYED}),
    State.DESTROYED: frozenset(),
}


def leads_to(present: State, wanted: State) -> bool:
    """Whether ways of the table lead from one state to another."""
    return any(step is wanted or leads_to(step, wanted) for step in FOLLOWS[present])


def require_move(name: str, present: State, wanted: State) -> None:
    """Raises `KeyRefused` unless `wanted` may follow `present`; `name` is how the message calls the key."""
    if wanted not in FOLLOWS[present]:
        raise KeyRefused(f"{name} is {present}: it cannot become {wanted}")


class Seen(NamedTuple):
    """How far the database has followed the key store; neither number ever goes back."""

    version: int = 0
    signing_key: int = 0
