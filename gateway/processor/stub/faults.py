"""The fault schedule: what goes wrong, how often, and reproducibly when.

A seed fixes a stream of draws for each of movements (verifications included), cancels, inquiries and connections:
how often a client inquires, cancels or reconnects never shifts what strikes its movements. Each request makes all
draws of its stream, in the same order, whatever the probabilities are: one fault's probability never shifts another's
draws. Of several faults drawn at once, the first in `DRAWN` strikes; `slow` comes on top of it.

    lost_request   the connection is cut, nothing is done
    lost_reply     it is done, and the connection is cut
    late_effect    the connection is cut, and it is done seconds later, as if it had arrived then
    duplicate      it is done and answered, and soon arrives a second time
    error_before   an error, nothing is done
    error_after    it is done, and answered by an error
    truncated      it is done, and half of the answer is given
    wrong_echo     it is done, and the answer is about something else
    slow           the answer is held back
    refused        the connection is reset before its TLS handshake

Plans live in memory only: a restart heals, and forgets what was to come late. Another plan does not call it back.
"""

from random import Random
from typing import Annotated, Final, Literal

import msgspec

from gateway.processor.stub.protocol import Offers

Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
Capability = Literal["A", "B", "C", "D"]
Fault = Literal[
    "lost_request", "lost_reply", "late_effect", "duplicate", "error_before", "error_after", "truncated", "wrong_echo"
]
Echo = Literal["amount", "reference", "currency"]

# In the order of their draws, which is part of what a seed means.
DRAWN: Final[tuple[Fault, ...]] = (
    "lost_request",
    "lost_reply",
    "late_effect",
    "duplicate",
    "error_before",
    "error_after",
    "truncated",
    "wrong_echo",
)
ECHOES: Final[tuple[Echo, ...]] = ("amount", "reference", "currency")


class FaultPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `PUT /v1/faults`: what is left out is off.

    `capability` says what the processor offers to make sure of a reference: A dedupe and cancel by reference,
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

    @property
    def dedupes(self) -> bool:
        """Whether a reference moves money once within the window."""
        return self.capability == "A"

    @property
    def cancels(self) -> bool:
        """Whether a reference can be made void."""
        return self.capability in {"A", "B"}

    @property
    def expires(self) -> bool:
        """Whether `not_after` is heeded."""
        return self.capability == "C"

    def offers(self) -> Offers:
        """The same, as inquiries tell it."""
        return Offers(self.dedupe_window_s if self.dedupes else None, self.cancels, self.expires)


class Strike(msgspec.Struct, frozen=True):
    """What happens to one request.

    `echo` is what a `wrong_echo` gets wrong; `delay`, from 0 to below 1, how far into its time span the second or the
    late delivery falls.
    """

    fault: Fault | None
    slow: bool
    echo: Echo
    delay: float


class Faults:
    """The plan in force and its streams. Setting a plan begins them anew."""

    def __init__(self) -> None:
        self.set(FaultPlan())

    def set(self, plan: FaultPlan) -> None:
        """Put a plan in force; `FaultPlan()` heals everything."""
        self.plan = plan
        self._movements = Strikes(plan, "movements")
        self._cancels = Strikes(plan, "cancels")
        self._inquiries = _stream(plan.seed, "inquiries")
        self._connections = _stream(plan.seed, "connections")

    def strike_movement(self) -> Strike:
        """Draw for the next movement or verification."""
        return self._movements.draw()

    def strike_cancel(self) -> Strike:
        """Draw for the next cancel."""
        return self._cancels.draw()

    def slow_inquiry(self) -> bool:
        """Draw whether the next inquiry's answer is held back."""
        return self._inquiries.random() < self.plan.slow

    def refuse_connection(self) -> bool:
        """Draw whether the next connection is reset."""
        return self._connections.random() < self.plan.refused


class Strikes:
    """What one kind of request meets. Delays have a stream of their own, which shifts nothing else."""

    def __init__(self, plan: FaultPlan, name: str) -> None:
        self._plan = plan
        self._draws = _stream(plan.seed, name)
        self._delays = _stream(plan.seed, f"{name}/delays")

    def draw(self) -> Strike:
        """Draw for the next of them."""
        draws = [self._draws.random() for _ in DRAWN]
        struck = [fault for fault, draw in zip(DRAWN, draws, strict=True) if draw < getattr(self._plan, fault)]
        slow = self._draws.random() < self._plan.slow
        echo = self._draws.choice(ECHOES)
        return Strike(struck[0] if struck else None, slow, echo, self._delays.random())


def _stream(seed: int, name: str) -> Random:
    return Random(f"{seed}/{name}")  # noqa: S311 - a schedule that must be reproducible, not a secret
