"""The audit log as an auditor reads it: who did what, when, and how it ended, in the departments of a grant.

What belongs to no department is seen with a grant for all of them. To look is itself an act that is written down:
once for a question, and not again for its further pages.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Protocol
from zoneinfo import ZoneInfo

from gateway.errors import NotFound
from gateway.rules.calendar import FIRST, LAST, Calendar
from gateway.rules.card import Brands
from gateway.rules.staff import EVERYWHERE, Permission, Staff
from gateway.services.looks import Looks
from gateway.services.reach import Reach
from keys.audit import CITY


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is looked for; what is None is not asked. Dates are the city's, midnight to midnight, both included."""

    limit: int
    first: date | None = None
    last: date | None = None
    department: str | None = None
    event: str | None = None
    actor: str | None = None
    """An id, or the name of somebody of the staff."""
    subject: str | None = None
    starting_after: str | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """A row of the log. `name` is the actor's, where it is somebody of the staff."""

    department: str
    event_id: str
    occurred_at: datetime
    process: str
    event: str
    outcome: str
    actor: str
    name: str | None
    subject: str
    reason: str
    request_id: str


class AuditStore(Protocol):
    """The log, to read."""

    async def search(
        self, departments: Collection[str], wanted: Wanted, starts: datetime, ends: datetime, limit: int
    ) -> Sequence[Told]:
        """Newest first; raises `NotFound` when `starting_after` is no row of these departments."""


class AuditTrail:
    """Shows staff the log."""

    def __init__(self, store: AuditStore, reach: Reach, looks: Looks, zone: ZoneInfo) -> None:
        self._store = store
        self._reach = reach
        self._looks = looks
        self._calendar = Calendar(zone, {})
        self._brands = Brands.load()

    async def search(self, staff: Staff, wanted: Wanted, request_id: str) -> tuple[Sequence[Told], bool]:
        """A page, newest first, and whether there is more.

        Raises:
            NotPermitted: this is nothing for the roles of the account.
            CardNumberInText: a card number stands in the question.
            NotFound: a department that the grant does not reach, or no such row to go on from.
            Unavailable: also where the look could not be written down.
        """
        staff.require(Permission.AUDIT_READ)
        asked = wanted.department, wanted.event, wanted.actor, wanted.subject, wanted.starting_after
        self._brands.require_none("/query", *(text for text in asked if text is not None))
        departments = await self._reached(staff, wanted.department)
        starts, ends = self._calendar.interval(CITY, wanted.first or FIRST, wanted.last or LAST)
        rows = await self._store.search(departments, wanted, starts, ends, wanted.limit + 1)
        if wanted.starting_after is None:
            await self._looks.note(staff, departments, "audit.read", "", request_id)
        return rows[: wanted.limit], len(rows) > wanted.limit

    async def _reached(self, staff: Staff, department: str | None) -> Collection[str]:
        """The departments to look at; raises `NotFound`. What is the city's own can be asked for by its name, too."""
        if department != CITY:
            return await self._reach.of(staff, department)
        if EVERYWHERE not in staff.departments:
            raise NotFound
        return {CITY}
