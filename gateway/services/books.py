"""How departments keep their books: when their days end, and which general-ledger codes their services have, and had.

What somebody asks for by dates and codes is found by *spans*: of one department, or of one of its services, from one
moment until another.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from typing import Protocol
from zoneinfo import ZoneInfo

from gateway.rules.calendar import DAY, FIRST, LAST, Calendar, Cutoffs
from gateway.rules.gl import NO_SERVICE, Chart, Mapped


@dataclass(frozen=True, slots=True)
class Kept:
    """What the owner has set."""

    cutoffs: Cutoffs
    mapped: list[Mapped]
    registered: dict[tuple[str, str], str]


@dataclass(frozen=True, slots=True)
class Span:
    """Of a department, from when until when, in UTC. `service` None: of all its services; empty: of none."""

    department: str
    service: str | None
    starts: datetime
    ends: datetime


class BookStore(Protocol):
    """Where the owner has set it."""

    async def kept(self, departments: Collection[str]) -> Kept:
        """Of these departments."""


class Books:
    """The books of some departments, ready to be asked."""

    def __init__(self, kept: Kept, zone: ZoneInfo) -> None:
        self.calendar = Calendar(zone, kept.cutoffs)
        self.chart = Chart(kept.mapped, kept.registered)
        self._kept = kept

    def codes(self, department: str, service: str | None, day: date) -> list[str]:
        """The general-ledger codes of a service on a business date, in order."""
        return sorted(share.gl_code for share in self.chart.shares(department, service, day))

    def spans(
        self,
        departments: Iterable[str],
        first: date | None,
        last: date | None,
        service: str | None,
        gl_code: str | None,
    ) -> list[Span]:
        """Where to look for what is of these business dates, both included, and of this service and code, if any."""
        found = []
        for department in sorted(departments):
            if gl_code is None:
                found.append(self._span(department, service, first or FIRST, last or LAST))
                continue
            for of, since, until in self._coded(department, service, gl_code):
                begins, ends = max(since, first or FIRST), min(until, last or LAST)
                if begins <= ends:
                    found.append(self._span(department, of, begins, ends))
        return found

    def _span(self, department: str, service: str | None, first: date, last: date) -> Span:
        return Span(department, service, *self.calendar.interval(department, first, last))

    def _coded(self, department: str, service: str | None, gl_code: str) -> Iterator[tuple[str, date, date]]:
        """Which services had a code, from which date until which."""
        changes: dict[str, set[date]] = {NO_SERVICE: set()}
        for owner, of in self._kept.registered:
            if owner == department:
                changes.setdefault(of, set())
        for row in self._kept.mapped:
            if row.department == department:
                changes.setdefault(row.service, set()).add(row.valid_from)
        for of in changes if service is None else changes.keys() & {service}:
            days = sorted({FIRST, *changes[of]})
            for since, following in zip(days, [*days[1:], LAST + DAY], strict=True):
                if gl_code in self.codes(department, of, since):
                    yield of, since, following - DAY


async def books_of(store: BookStore, departments: Collection[str], zone: ZoneInfo) -> Books:
    """The books of these departments, as they are set now."""
    return Books(await store.kept(departments), zone)
