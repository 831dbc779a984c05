"""The convenience fee: what a resident pays for paying by card, and never more than that costs the city.

A city may ask for its cost of taking cards and no more (California Government Code 6159). What the cost is, somebody
documents by department and date; a fee is measured against the cost of its own amount on its own local date.
"""

from bisect import bisect_right
from dataclasses import dataclass
from datetime import date

from gateway.errors import AmountRefused
from gateway.rules.settlement import FeeSchedule

ABOVE_COST = "The convenience fee is above the documented cost of taking this amount by card."
NO_COST = "The department has no documented cost of taking cards yet: charge without a convenience fee."


@dataclass(frozen=True, slots=True)
class FeeCosts:
    """The documented costs of one department: from which local date on which one holds, ascending."""

    schedules: tuple[tuple[date, FeeSchedule], ...] = ()

    def on(self, day: date) -> FeeSchedule | None:
        """What holds on a local date; None before the first."""
        place = bisect_right(self.schedules, day, key=lambda since: since[0])
        return self.schedules[place - 1][1] if place else None

    def require_covers(self, fee_minor: int, amount_minor: int, day: date, *, documented_only: bool) -> None:
        """Raises `AmountRefused` for a fee above the cost; without a cost, for any if `documented_only`."""
        schedule = self.on(day)
        if schedule is None and documented_only and fee_minor:
            raise AmountRefused(NO_COST, ["/convenience_fee"])
        if schedule is not None and fee_minor > schedule.fee(amount_minor):
            raise AmountRefused(ABOVE_COST, ["/convenience_fee"])
