"""Our movements beside the processor's own list of them: whatever differs is named, nothing is explained away.

No gateway can keep a processor from carrying one request out twice. It can notice: here.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from gateway.rules.lifecycle import OPEN, Progress

What = Literal["duplicate", "missing_here", "missing_there", "amount_differs", "not_decided_here", "not_done_here"]


@dataclass(frozen=True, slots=True)
class Ours:
    """A movement as we have it."""

    reference: str
    amount_minor: int
    progress: Progress


@dataclass(frozen=True, slots=True)
class Theirs:
    """A movement as the processor has it; `effects` is how often it was carried out."""

    reference: str
    amount_minor: int
    effects: int


@dataclass(frozen=True, slots=True)
class Difference:
    """What is not the same about one reference."""

    reference: str
    what: What


def compare(ours: Iterable[Ours], theirs: Iterable[Theirs]) -> list[Difference]:
    """Every difference, by reference. What neither side carried out is none."""
    here = {movement.reference: movement for movement in ours}
    there = {movement.reference: movement for movement in theirs}
    return [
        Difference(reference, what)
        for reference in sorted(here.keys() | there.keys())
        for what in _differences(here.get(reference), there.get(reference))
    ]


def _differences(here: Ours | None, there: Theirs | None) -> Iterable[What]:
    effects = there.effects if there else 0
    if effects > 1:
        yield "duplicate"
    if here is None:
        if effects:
            yield "missing_here"
    elif effects == 0:
        if here.progress is Progress.DONE:
            yield "missing_there"
    elif here.progress in OPEN:
        yield "not_decided_here"
    elif here.progress is not Progress.DONE:
        yield "not_done_here"
    elif there is not None and there.amount_minor != here.amount_minor:
        yield "amount_differs"
