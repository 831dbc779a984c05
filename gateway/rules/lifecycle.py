"""The life of a charge, as one table. Nothing else may name a next state.

Two rules. A state that is final has no edge out of it. A charge whose outcome is not known is *unknown*, which
is not final and not failed: only what the processor says, or proof that it never heard of it, ends it.

    (intent) -> sending -> captured | declined | rejected
                   `-----> unknown -> captured | declined

`sending` is durable before the first byte leaves. After a crash it means what `unknown` means.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """Where a charge stands."""

    SENDING = "sending"
    UNKNOWN = "unknown"
    CAPTURED = "captured"
    DECLINED = "declined"
    REJECTED = "rejected"


class Event(StrEnum):
    """What can happen to a charge; the value is the audit event of the edge."""

    LOST = "charge.unclear"
    CAPTURE = "charge.captured"
    DECLINE = "charge.declined"
    REJECT = "charge.failed"


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a state means outside: public status, HTTP status of the answer, and whether it ever changes."""

    status: str
    http: int
    final: bool


MEANINGS: Mapping[State, Meaning] = {
    State.SENDING: Meaning("pending", 202, final=False),
    State.UNKNOWN: Meaning("pending", 202, final=False),
    State.CAPTURED: Meaning("succeeded", 201, final=True),
    State.DECLINED: Meaning("declined", 402, final=True),
    State.REJECTED: Meaning("failed", 502, final=True),
}

EDGES: Mapping[tuple[State, Event], State] = {
    (State.SENDING, Event.LOST): State.UNKNOWN,
    (State.SENDING, Event.CAPTURE): State.CAPTURED,
    (State.SENDING, Event.DECLINE): State.DECLINED,
    (State.SENDING, Event.REJECT): State.REJECTED,
    (State.UNKNOWN, Event.CAPTURE): State.CAPTURED,
    (State.UNKNOWN, Event.DECLINE): State.DECLINED,
}


class IllegalEvent(Exception):
    """This cannot happen to a charge in this state; nothing was changed."""


def after(state: State, event: Event) -> State:
    """The state that an event leads to; raises `IllegalEvent`."""
    try:
        return EDGES[state, event]
    except KeyError:
        raise IllegalEvent(f"{event} cannot happen to a charge that is {state}") from None


def sources(event: Event) -> list[State]:
    """The states in which an event may happen: the WHERE of a compare-and-set."""
    return [state for state, possible in EDGES if possible is event]
