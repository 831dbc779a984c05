"""Refusals that an auditor wants to see: of identity, of permission, and of ids that are unknown or another's.

Who is refused over and over fills no disk: of each kind, actor and reason a minute has so many rows, and the next one
says how many were left out. The refusals themselves are answered all the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from gateway.rules.access import Application, Scope
from gateway.rules.staff import Permission, Staff
from gateway.services.ports import Clock
from keys.audit import CITY, AuditEvent, AuditPen, AuditRow, Outcome

ROWS_A_MINUTE = 60
MINUTE_S = 60.0
UNKNOWN = "unknown"


class AuditStore(Protocol):
    """Where audit rows go."""

    async def record(self, audit: AuditRow) -> None:
        """Write one row."""


@dataclass(slots=True)
class _Minute:
    """The rows of one kind since a moment."""

    began_s: float
    written: int = 0
    suppressed: int = 0


class RowsAMinute:
    """Of each kind, actor and reason a minute has `ROWS_A_MINUTE` rows: no flood of one hides another."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._minutes: dict[tuple[str, str, str, str], _Minute] = {}

    @contextmanager
    def room(self, event: AuditEvent) -> Iterator[AuditEvent | None]:
        """The event to write, whose subject says how many were left out before it; None when it is left out, too.

        An error inside says that it was not written: the next one tells what this one would have told.
        """
        now_s, kind = self._clock.monotonic(), (event.department, event.event, event.actor, event.reason)
        minute = self._minutes.setdefault(kind, _Minute(now_s))
        if now_s - minute.began_s >= MINUTE_S:
            minute.began_s, minute.written = now_s, 0
        if minute.written >= ROWS_A_MINUTE:
            minute.suppressed += 1
            yield None
            return
        minute.written += 1
        left_out, minute.suppressed = minute.suppressed, 0
        try:
            yield replace(event, subject=f"suppressed:{left_out}") if left_out else event
        except BaseException:
            minute.suppressed += left_out
            raise


class Refusals:
    """Writes down who was refused."""

    def __init__(self, store: AuditStore, pen: AuditPen, clock: Clock) -> None:
        self._store = store
        self._pen = pen
        self._clock = clock
        self._rows = RowsAMinute(clock)

    async def identity(self, reason: str, request_id: str) -> None:
        """Credentials that are nobody's, or a certificate that is another's or of no use."""
        await self._write(CITY, "identity.refused", UNKNOWN, reason, request_id)

    async def permission(self, caller: Application, scope: Scope, request_id: str) -> None:
        """A route for which the caller lacks the scope."""
        await self._write(caller.department, "permission.refused", caller.application_id, scope, request_id)

    async def unknown_id(self, caller: Application, request_id: str) -> None:
        """An id that the department does not have. Whether another one has it is not looked up."""
        await self._write(caller.department, "id.refused", caller.application_id, "", request_id)

    async def staff(
        self,
        what: Literal["identity", "permission", "id"],
        staff: Staff | None,
        request_id: str,
        permission: Permission | None = None,
    ) -> None:
        """Somebody at the admin site: a session that is none, a thing not granted, an id not within their reach."""
        actor = staff.staff_id if staff else UNKNOWN
        await self._write(CITY, f"{what}.refused", actor, permission or "", request_id)

    async def _write(self, department: str, event: str, actor: str, reason: str, request_id: str) -> None:
        refused = AuditEvent(department, event, Outcome.REFUSED, actor, "", reason, request_id)
        with self._rows.room(refused) as told:
            if told is not None:
                await self._store.record(self._pen.row(told, self._clock.now()))
