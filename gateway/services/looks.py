"""Looks that are themselves written down: what somebody of the staff read so much of that an auditor wants to know.

The row is there before the first byte leaves; without it nothing does.
"""

from collections.abc import Collection

from gateway.rules.staff import Staff
from gateway.services.ports import Clock
from gateway.services.refusals import AuditStore
from keys.audit import CITY, AuditEvent, AuditPen, Outcome


class Looks:
    """Writes down who looked."""

    def __init__(self, store: AuditStore, pen: AuditPen, clock: Clock) -> None:
        self._store = store
        self._pen = pen
        self._clock = clock

    async def note(
        self, staff: Staff, departments: Collection[str], event: str, reason: str, request_id: str, subject: str = ""
    ) -> None:
        """One row for each department that was looked at; who saw the whole city is told of in the city's.

        Raises `Unavailable`, and then nothing may be shown.
        """
        for department in [CITY] if CITY in departments else sorted(departments):
            told = AuditEvent(department, event, Outcome.DONE, staff.staff_id, subject, reason, request_id)
            await self._store.record(self._pen.row(told, self._clock.now()))
