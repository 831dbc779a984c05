"""Refusals that an auditor wants to see: of identity, and of ids that are unknown or another department's."""

from typing import Protocol

from gateway.rules.access import Application
from gateway.services.ports import Clock
from keys.audit import CITY, AuditEvent, AuditPen, AuditRow, Outcome


class AuditStore(Protocol):
    """Where audit rows go."""

    async def record(self, audit: AuditRow) -> None:
        """Write one row."""


class Refusals:
    """Writes down who was refused."""

    def __init__(self, store: AuditStore, pen: AuditPen, clock: Clock) -> None:
        self._store = store
        self._pen = pen
        self._clock = clock

    async def identity(self, reason: str, request_id: str) -> None:
        """Credentials that are nobody's, or a certificate that is another's."""
        await self._write(AuditEvent(CITY, "identity.refused", Outcome.REFUSED, "unknown", "", reason, request_id))

    async def unknown_id(self, caller: Application, request_id: str) -> None:
        """An id that the department does not have. Whether another one has it is not looked up."""
        event = AuditEvent(
            caller.department, "id.refused", Outcome.REFUSED, caller.application_id, "", "", request_id
        )
        await self._write(event)

    async def _write(self, event: AuditEvent) -> None:
        await self._store.record(self._pen.row(event, self._clock.now()))
