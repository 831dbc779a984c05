"""A chargeback's life, as a table: the bank of the cardholder takes a payment back, and may have to return it.

    stage    a line that takes money    a line that returns money
    none     opened                     -
    opened   -                          won
    won      opened                     -

Opened, the payment counts as not made: its receipt is void, and what was owed is owed again (Gov. Code 6159). Won,
it counts again. Lost is an opened one that nothing follows. A line that fits no edge, the same one told twice among
them, changes nothing: an exception shows it to somebody who can ask the processor.
"""

from collections.abc import Mapping
from enum import StrEnum

from gateway.rules.settlement import SettlementLine


class Stage(StrEnum):
    """Where the chargeback of a charge stands; before the first line there is none."""

    OPENED = "opened"
    WON = "won"

    @property
    def voids_receipt(self) -> bool:
        """Whether the payment counts as not made."""
        return self is Stage.OPENED


EDGES: Mapping[Stage | None, Stage] = {None: Stage.OPENED, Stage.OPENED: Stage.WON, Stage.WON: Stage.OPENED}


def after(stage: Stage | None, line: SettlementLine) -> Stage | None:
    """Where a chargeback's line leads, or None where it does not fit. Which way it goes its sign says."""
    told = Stage.OPENED if line.gross_minor < 0 else Stage.WON
    return told if line.gross_minor and EDGES[stage] is told else None
