"""Today at a glance: what came in, what does not agree yet and for how long, and what waits for whom.

Everything is read in one look of a few queries, each bounded by the 30 business dates that are shown or by what is
still open, so that it costs the same in the tenth year as in the first. What deposits are outstanding is what the
last reconciliation found, and says of when that is.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo

from gateway.rules.calendar import Calendar, Cutoffs
from gateway.rules.money import ENABLED
from gateway.rules.staff import Permission, Staff
from gateway.services.ports import Clock
from gateway.services.reach import Reach
from keys.audit import CITY

DAYS = 30
"""How many business dates are plotted, today's included."""
AGES = ("0 to 1 days", "2 to 5 days", "6 to 10 days", "over 10 days")
"""By which age open exceptions are counted; they begin at `AGE_FROM`."""
AGE_FROM = (2, 6, 11)
CURRENCY = next(iter(ENABLED))
AT_REST = timedelta(hours=1)
"""So long after its end nothing is recorded on a business date any more: no transaction lasts so long."""


@dataclass(frozen=True, slots=True)
class Span:
    """One business date of one department, and when it begins and ends."""

    department: str
    day: date
    since: datetime
    until: datetime


@dataclass(frozen=True, slots=True)
class Taken:
    """What was captured and refunded on a business date of a department."""

    department: str
    day: date
    taken_minor: int
    taken: int
    refunded_minor: int
    refunded: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """How much of what waits for somebody's decision."""

    refunds: int
    exceptions: int
    """Proposed to be settled so, above the limit."""
    closes: int
    """Proposed, or asked to be opened again."""
    in_review: int
    """Charges that the processor gives no clear answer about."""


@dataclass(frozen=True, slots=True)
class Unsettled:
    """Open exceptions of one age; `timing` are those that only wait for a file, and hinder no close."""

    age: int
    """The place in `AGES`."""
    timing: bool
    exceptions: int
    difference_minor: int
    """The sum of what differs, whichever way."""


@dataclass(frozen=True, slots=True)
class LastImport:
    """One of the last files."""

    import_id: str
    kind: str
    format: str
    lines: int
    net_minor: int
    currency: str
    imported_at: datetime


@dataclass(frozen=True, slots=True)
class LastRun:
    """The reconciliation of the latest dates, of those that the grant reaches whole."""

    reconciliation_id: str
    from_date: date
    to_date: date
    made_at: datetime
    awaiting_deposit_minor: int


@dataclass(frozen=True, slots=True)
class LastClose:
    """The last business dates that were closed."""

    close_id: str
    from_date: date
    to_date: date


@dataclass(frozen=True, slots=True)
class Seen:
    """What the store finds in one look."""

    taken: Sequence[Taken]
    declined: Mapping[tuple[str, date], int]
    waiting: Waiting
    unsettled: Sequence[Unsettled]
    imports: Sequence[LastImport]
    run: LastRun | None
    close: LastClose | None


@dataclass(frozen=True, slots=True)
class DaySum:
    """A business date, over all departments of a grant. Amounts in minor units of `CURRENCY`."""

    taken_minor: int = 0
    taken: int = 0
    refunded_minor: int = 0
    refunded: int = 0
    declined: int = 0


@dataclass(frozen=True, slots=True)
class Glance:
    """Today, as the page and the JSON show it. `days` are the dates of the plot, oldest first."""

    day: date
    today: DaySum
    yesterday: DaySum
    days: Sequence[date]
    departments: Sequence[str]
    """Those that took something, the largest first."""
    taken_minor: Mapping[tuple[str, date], int]
    seen: Seen

    @property
    def unmatched(self) -> int:
        """Open exceptions, but for those that only wait for a file."""
        return sum(one.exceptions for one in self.seen.unsettled if not one.timing)

    @property
    def in_transit(self) -> int:
        """Those that only wait for a file."""
        return sum(one.exceptions for one in self.seen.unsettled if one.timing)

    @property
    def ageing(self) -> Sequence[tuple[int, int]]:
        """By the places of `AGES`: how many are unmatched, and how much differs in them."""
        unmatched = [one for one in self.seen.unsettled if not one.timing]
        return [
            (
                sum(one.exceptions for one in unmatched if one.age == age),
                sum(one.difference_minor for one in unmatched if one.age == age),
            )
            for age in range(len(AGES))
        ]


class TodayStore(Protocol):
    """What is read of the ledger and of what finance made."""

    async def cutoffs(self, departments: Collection[str]) -> Cutoffs:
        """When the days of departments end."""

    async def look(
        self, departments: Collection[str], spans: Sequence[Span], recent: Sequence[Span], day: date
    ) -> Seen:
        """All of it at one moment; `recent` are the spans of which declines are counted, ages are until `day`."""


class TodayPage:
    """Puts together what a person of the finance staff sees first."""

    def __init__(self, store: TodayStore, reach: Reach, zone: ZoneInfo, clock: Clock) -> None:
        self._store = store
        self._reach = reach
        self._zone = zone
        self._clock = clock
        self._ended: dict[Span, Taken | None] = {}

    async def glance(self, staff: Staff) -> Glance:
        """For the departments of a grant. Raises `NotPermitted`, `Unavailable`."""
        staff.require(Permission.LEDGER_READ)
        reached = await self._reach.of(staff)
        departments = sorted(reached - {CITY})
        calendar = Calendar(self._zone, await self._store.cutoffs(departments))
        now = self._clock.now()
        current = {department: calendar.business_date(department, now) for department in departments}
        spans = [
            Span(department, day, *calendar.interval(department, day, day))
            for department, last in current.items()
            for day in _days_until(last)
        ]
        recent = [span for span in spans if span.day >= current[span.department] - timedelta(days=1)]
        day = max(current.values(), default=calendar.business_date(CITY, now))
        unknown = [span for span in spans if span not in self._ended]
        seen = await self._store.look(reached, unknown, recent, day)
        return _summed(replace(seen, taken=self._all_taken(seen.taken, spans, now)), current, day)

    def _all_taken(self, found: Sequence[Taken], spans: Sequence[Span], now: datetime) -> Sequence[Taken]:
        """What was found, and what is known of dates that ended long since: those are counted once."""
        known = {
            span: taken for span, taken in self._ended.items() if span.until > now - 2 * DAYS * timedelta(days=1)
        }
        by_date = {(one.department, one.day): one for one in found}
        self._ended = known | {
            span: by_date.get((span.department, span.day))
            for span in spans
            if span not in known and span.until < now - AT_REST
        }
        return [*found, *(taken for span in spans if (taken := known.get(span)))]


def _days_until(last: date) -> list[date]:
    return [last - timedelta(days=age) for age in reversed(range(DAYS))]


def _summed(seen: Seen, current: Mapping[str, date], day: date) -> Glance:
    """Today and yesterday are each department's own: after its cut-off a department is one date further."""
    yesterday = {department: last - timedelta(days=1) for department, last in current.items()}
    by_department: dict[str, int] = {}
    for one in seen.taken:
        by_department[one.department] = by_department.get(one.department, 0) + one.taken_minor
    return Glance(
        day,
        _sum_of(seen, current),
        _sum_of(seen, yesterday),
        _days_until(day),
        sorted(by_department, key=lambda department: (-by_department[department], department)),
        {(one.department, one.day): one.taken_minor for one in seen.taken},
        seen,
    )


def _sum_of(seen: Seen, days: Mapping[str, date]) -> DaySum:
    of_day = [one for one in seen.taken if days[one.department] == one.day]
    return DaySum(
        sum(one.taken_minor for one in of_day),
        sum(one.taken for one in of_day),
        sum(one.refunded_minor for one in of_day),
        sum(one.refunded for one in of_day),
        sum(count for (department, day), count in seen.declined.items() if days[department] == day),
    )
