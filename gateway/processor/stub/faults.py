"""The fault schedule: what goes wrong, how often, and reproducibly when.

A seed fixes three streams of draws, one each for movements (sale, verify), inquiries and connections: how often
a client inquires or reconnects never shifts what strikes its sales. Each movement makes all draws, in the same
order, whatever the probabilities are: one fault's probability never shifts another's draws. Of several faults
drawn for one movement, the first in `DRAWN` strikes; `slow` comes on top of it.
Plans live in memory only: a restart heals.
"""

from random import Random
from typing import Annotated, Final, Literal

import msgspec

Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
Capability = Literal["A", "B", "C", "D"]
Fault = Literal["lost_request", "lost_reply", "error_before", "error_after", "truncated", "wrong_echo"]
Echo = Literal["amount", "reference", "currency"]

# In the order of their draws, which is part of what a seed means. `None` keeps the place of a fault that is
# not simulated yet.
DRAWN: Final[tuple[Fault | None, ...]] = (
    "lost_request",
    "lost_reply",
    None,  # late_effect
    None,  # duplicate
    "error_before",
    "error_after",
    "truncated",
    "wrong_echo",
)
ECHOES: Final[tuple[Echo, ...]] = ("amount", "reference", "currency")


class FaultPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `PUT /v1/faults`: what is left out is off.

    `capability` says what the processor offers to resolve an unclear sale: A dedupe and cancel by reference,
    B cancel only, C request expiry only, D none.
    """

    seed: int = 0
    lost_request: Probability = 0.0
    lost_reply: Probability = 0.0
    late_effect: Probability = 0.0
    duplicate: Probability = 0.0
    error_before: Probability = 0.0
    error_after: Probability = 0.0
    truncated: Probability = 0.0
    wrong_echo: Probability = 0.0
    slow: Probability = 0.0
    refused: Probability = 0.0
    capability: Capability = "A"
    dedupe_window_s: Seconds = 86_400.0
    inquiry_lag_s: Seconds = 0.0

    def unsupported(self) -> str | None:
        """Name the first field that asks for what this double cannot do yet."""
        if self.late_effect:
            return "late_effect"
        if self.duplicate:
            return "duplicate"
        return None if self.capability == "A" else "capability"


class Strike(msgspec.Struct, frozen=True):
    """What happens to one movement. `echo` is what a `wrong_echo` gets wrong."""

    fault: Fault | None
    slow: bool
    echo: Echo


class Faults:
    """The plan in force and its three streams. Setting a plan begins them anew."""

    def __init__(self) -> None:
        self.set(FaultPlan())

    def set(self, plan: FaultPlan) -> None:
        """Put a plan in force; `FaultPlan()` heals everything."""
        self.plan = plan
        self._movements = _stream(plan.seed, "movements")
        self._inquiries = _stream(plan.seed, "inquiries")
        self._connections = _stream(plan.seed, "connections")

    def strike_movement(self) -> Strike:
        """Draw for the next sale or verification."""
        draws = [self._movements.random() for _ in DRAWN]
        struck = [
            fault
            for fault, draw in zip(DRAWN, draws, strict=True)
            if fault is not None and draw < getattr(self.plan, fault)
        ]
        slow = self._movements.random() < self.plan.slow
        return Strike(struck[0] if struck else None, slow, self._movements.choice(ECHOES))

    def slow_inquiry(self) -> bool:
        """Draw whether the next inquiry's answer is held back."""
        return self._inquiries.random() < self.plan.slow

    def refuse_connection(self) -> bool:
        """Draw whether the next connection is reset."""
        return self._connections.random() < self.plan.refused


def _stream(seed: int, name: str) -> Random:
    return Random(f"{seed}/{name}")  # noqa: S311 - a schedule that must be reproducible, not a secret
