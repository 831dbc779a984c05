"""What must have happened in a run of many seeds for it to count as evidence: seeds alone prove nothing.

Each counter has a floor for the size that the test suite runs, and a run below it fails: a fault that never struck,
or a death that never came, was not survived.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gateway.rules.lifecycle import Kind, Progress
from gateway.services.points import Point
from gateway.services.ports import Movement
from tests.simulation.swarm import CAPABILITIES, Fault

if TYPE_CHECKING:
    from tests.simulation.city import City

SEEDS = 2_000
"""The size that the floors are for; a larger run has proportionally larger ones."""

DONE, REFUSED, FAILED, IN_REVIEW = "done", "refused", "failed", "in_review"
ENDS_AFTER_DEATH: Mapping[Point, Sequence[str]] = {
    Point.COMMITTED: (DONE, FAILED, IN_REVIEW),
    Point.OPENED: (DONE, FAILED, IN_REVIEW),
    Point.SENT: (DONE, REFUSED, FAILED, IN_REVIEW),
    Point.STORED: (DONE, REFUSED, FAILED, IN_REVIEW),
    Point.TAKEN: (DONE, REFUSED, FAILED, IN_REVIEW),
    Point.INQUIRED: (DONE, FAILED, IN_REVIEW),
    Point.CANCELLED: (DONE, FAILED),
    Point.GIVEN_BACK: (DONE, FAILED, IN_REVIEW),
    Point.TAKEN_AGAIN: (DONE, FAILED),
}
"""In what a movement can end whose process died at a point, in whatever way it got there."""

FLOORS: Mapping[str, int] = {
    **{f"{point}: passed": 500 for point in Point},
    **{f"{point}: killed": 20 for point in Point},
    **{f"{point}: paused": 10 for point in Point},
    **{f"killed {point}, in the end {end}": 1 for point, ends in ENDS_AFTER_DEATH.items() for end in ends},
    **{f"capability {capability}": SEEDS // 10 for capability in CAPABILITIES},
    **{f"fault: {fault}": 100 for fault in Fault if fault not in {Fault.INQUIRY_LAG, Fault.SKEW}},
    **{f"{kind}: {event}": 20 for kind in Kind for event in ("do", "fail", "lost")},
    "approved": 100,
    "rejected": 50,
    "refund: release": 100,
    "refund: reject": 50,
    "commit made and lost": 50,
    "commit lost before it was made": 50,
    "begun after all": 20,
    "not found, and carried out later": 20,
    "not found, though carried out": 20,
    "stale epoch refused": 20,
    "taken over": 100,
    "marked to be sent again": 100,
    "sent again": 100,
    "not sent": 100,
    "cancel: Absent": 50,
    "cancel: Approved": 50,
    "expired": 20,
    "parked: undecidable": 20,
    "parked: window_passed": 5,
    "out of review": 20,
    "could not be opened": 20,
    "doubled by the processor": 50,
    "same key at once": 500,
    "refused: IdempotencyKeyReused": 100,
    "refused: RequestInProgress": 100,
    "refused: ChargeUnresolved": 20,
    "refused: RefundTooLarge": 20,
    "refused: NothingLeftToRefund": 20,
}


def sights(city: "City", logs: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """What one run has to show, beside what was counted on the way."""
    refusals = [call.end.name for call in city.history.calls if call.end is not None and call.end.kind == "refused"]
    audit = [row.event for row in city.memory.audit]
    return Counter(
        [
            f"capability {city.swarm.capability}",
            *(f"killed {point}, in the end {_end(city, movement)}" for point, movement in city.deaths if movement),
            *(f"parked: {line['reason']}" for line in logs if line["event"] == "recovery.parked"),
            *("expired" for event in audit if event.reason == "expired"),
            *("could not be opened" for event in audit if event.event == "decrypt.failed"),
            *("doubled by the processor" for deed in city.book.deeds.values() if deed.copies and deed.effects > 1),
            *(f"refused: {name}" for name in refusals),
        ]
    )


def below(seen: Mapping[str, int], seeds: int) -> dict[str, int]:
    """The counters that are below their floor in a run of so many seeds, with that floor."""
    floors = {name: max(1, floor * seeds // SEEDS) for name, floor in FLOORS.items()}
    return {name: floor for name, floor in floors.items() if seen.get(name, 0) < floor}


def table(seen: Mapping[str, int], seeds: int) -> Iterator[str]:
    """The whole table, line by line."""
    short = below(seen, seeds)
    for name in sorted({*seen, *FLOORS}):
        yield f"{seen.get(name, 0):>9}  {name}" + (f"  BELOW ITS FLOOR, {short[name]}" if name in short else "")


def _end(city: "City", movement: Movement) -> Progress:
    return city.memory.movements[movement.department, movement.movement_id].movement.progress
