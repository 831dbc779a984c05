"""Named places in the flow of money: where a process can die, and what it leaves must still be true.

In service nothing happens there (`pass_by`). Tests put something else in its place, and count which of them were hit.
"""

from collections.abc import Awaitable, Callable
from enum import StrEnum


class Point(StrEnum):
    """A place between two steps that outlive the process."""

    RECEIVED = "received"
    """Checked, nothing committed."""
    COMMITTED = "committed"
    """The intent is committed, nothing is opened or sent."""
    OPENED = "opened"
    """The card is in memory, nothing is sent. Movements without a card pass here, too."""
    SENT = "sent"
    """The processor has answered, or has not; nothing is written down."""
    STORED = "stored"
    """The outcome is committed, nobody is told."""
    TAKEN = "taken"
    """A worker holds an unresolved movement."""
    INQUIRED = "inquired"
    """It has asked the processor."""
    CANCELLED = "cancelled"
    """It has made the processor give up the reference, or has learned what was decided."""
    GIVEN_BACK = "given_back"
    """It has settled the movement, or put it back for later, perhaps marked to be sent again."""
    TAKEN_AGAIN = "taken_again"
    """An api process holds a marked movement, with its audit row; nothing is opened or sent."""


Points = Callable[[Point], Awaitable[None]]
"""What happens at each of them."""


async def pass_by(_point: Point) -> None:
    """What happens there in service."""
