"""What must have happened in a run of many seeds for it to count as evidence. A run below a floor fails."""

from collections.abc import Iterator, Mapping

from gateway.rules.lifecycle import Kind
from gateway.services.points import Point
from tests.simulation.swarm import CAPABILITIES
from tests.waters.strait import MADE, NOT_MADE, Cut

SEEDS = 300
"""The size that the floors are for; a larger run has proportionally larger ones."""

FLOORS: Mapping[str, int] = {
    **{f"{point}: passed": 50 for point in Point},
    **{f"{point}: killed": 8 for point in Point},
    **{f"capability {capability}": SEEDS // 10 for capability in CAPABILITIES},
    **dict.fromkeys(Cut, 10),
    NOT_MADE: 50,
    MADE: 50,
    **{f"{kind} done": 10 for kind in Kind},
    "server process ended": 50,
    "stale epoch refused": 12,
    "taken over": 30,
    "marked to be sent again": 40,
    "sent again": 25,
    "send: NotSent": 20,
    "cancel: Absent": 25,
    "expired": 12,
    "parked: undecidable": 15,
    "parked: window_passed": 2,
    "doubled by the processor": 4,
    "same key at once": 100,
    "refused: RequestInProgress": 50,
    "refused: IdempotencyKeyReused": 20,
    "refused: ChargeUnresolved": 20,
    "refused: RefundTooLarge": 10,
}


def below(seen: Mapping[str, int], seeds: int) -> dict[str, int]:
    """The counters that are below their floor in a run of so many seeds, with that floor."""
    floors = {str(name): max(1, floor * seeds // SEEDS) for name, floor in FLOORS.items()}
    return {name: floor for name, floor in floors.items() if seen.get(name, 0) < floor}


def table(seen: Mapping[str, int], seeds: int) -> Iterator[str]:
    """The whole table, line by line."""
    short = below(seen, seeds)
    for name in sorted({*seen, *map(str, FLOORS)}):
        yield f"{seen.get(name, 0):>9}  {name}" + (f"  BELOW ITS FLOOR, {short[name]}" if name in short else "")
