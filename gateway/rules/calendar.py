"""On which business date a moment falls: the city's local date, and the next one from the department's cut-off on.

A business date ends at one instant, its cut-off, and the next one begins there. So every instant is of exactly one
date, though a clock that is set back shows an hour twice and one that is set forward skips one (in Los Angeles
2026-11-01 has 25 hours and 2026-03-08 has 23):

    shown twice     the first time counts: the second is the next date already
    skipped         it comes when it would have come, had the clock not been touched
    none, or 00:00  the date ends at midnight
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from gateway.errors import PeriodRefused

DAY = timedelta(days=1)
MIDNIGHT = time()
FIRST, LAST = date(2000, 1, 1), date(2099, 12, 31)
"""Nothing is older, and nothing newer."""
PERIOD_DAYS_MAX = 400
"""How many days one answer may be about: a year, and a month to compare it with."""

Cutoffs = Mapping[str, Sequence[tuple[date, time]]]
"""By department: the cut-off, and from which local date on it holds."""


def require_period(first: date, last: date) -> None:
    """Raises `PeriodRefused` unless these are the first and the last of at most `PERIOD_DAYS_MAX` dates."""
    if first > last:
        raise PeriodRefused("The first date comes after the last one.", ["/from", "/to"])
    if (last - first).days >= PERIOD_DAYS_MAX:
        raise PeriodRefused(f"At most {PERIOD_DAYS_MAX} days at once: ask for fewer.", ["/from", "/to"])
    if first < FIRST or last > LAST:
        raise PeriodRefused(f"Dates are of the years {FIRST.year} to {LAST.year}.", ["/from", "/to"])


class Calendar:
    """The business dates of all departments; what is no department's, `city` among it, ends its dates at midnight."""

    def __init__(self, zone: ZoneInfo, cutoffs: Cutoffs) -> None:
        self._zone = zone
        self._cutoffs = {department: sorted(changes) for department, changes in cutoffs.items()}
        self._ends: dict[tuple[str, date], datetime] = {}

    def business_date(self, department: str, moment: datetime) -> date:
        """On which a moment falls; `moment` knows its time zone."""
        day = moment.astimezone(self._zone).date()
        while moment >= self.end(department, day):
            day += DAY
        while moment < self.end(department, day - DAY):
            day -= DAY
        return day

    def interval(self, department: str, first: date, last: date) -> tuple[datetime, datetime]:
        """From when until when, in UTC, the business dates from `first` to `last` are; the end is the next one's."""
        return self.end(department, first - DAY), self.end(department, last)

    def end(self, department: str, day: date) -> datetime:
        """When a business date ends, in UTC: the first instant of the next one."""
        known = self._ends.get((department, day))
        if known is None:
            cutoff = self._cutoff(department, day)
            local = datetime.combine(day if cutoff else day + DAY, cutoff or MIDNIGHT, self._zone)
            known = self._ends[department, day] = local.astimezone(UTC)
        return known

    def _cutoff(self, department: str, day: date) -> time | None:
        """Of a local date; None for midnight."""
        changes = self._cutoffs.get(department, ())
        place = bisect_right(changes, day, key=lambda change: change[0])
        cutoff = changes[place - 1][1] if place else MIDNIGHT
        return None if cutoff == MIDNIGHT else cutoff
