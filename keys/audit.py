"""One row of the audit log: typed fields from an allow-list, and a MAC over all of them.

A row is written in the transaction of the effect it tells of, or the effect does not happen. Its MAC key
belongs to the writing process alone, so that a row inserted by anyone else is found when the log is sealed.
No field holds text of a request: ids that we made, codes from closed lists, names of our own processes.
"""

import secrets
from dataclasses import astuple, dataclass
from datetime import datetime
from enum import StrEnum

from keys.errors import BrokenSeal
from keys.primitives import context, mac, require_equal
from keys.secret import Secret

CITY = "city"
"""The department of events that belong to none."""


class Outcome(StrEnum):
    """How an audited act ended."""

    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """What happened. `event` and `reason` are codes from closed lists; the rest are ids that we made."""

    department: str
    event: str
    outcome: Outcome
    actor: str
    subject: str = ""
    reason: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class AuditRow:
    """An event as it is stored."""

    event_id: str
    occurred_at: datetime
    process: str
    event: AuditEvent
    mac: bytes


@dataclass(frozen=True, slots=True)
class AuditPen:
    """What one process writes its audit rows with."""

    process: str
    key: Secret[bytes]

    def row(self, event: AuditEvent, now: datetime) -> AuditRow:
        """The row of an event that happens now."""
        event_id = "ev_" + secrets.token_hex(16)
        return AuditRow(event_id, now, self.process, event, mac(self.key, _bytes(event_id, now, self.process, event)))

    def verify(self, row: AuditRow) -> None:
        """Raises `BrokenSeal` when this process did not write the row just so."""
        expected = mac(self.key, _bytes(row.event_id, row.occurred_at, row.process, row.event))
        require_equal(expected, row.mac, BrokenSeal(f"audit row {row.event_id} was not written by {row.process}"))


def _bytes(event_id: str, occurred_at: datetime, process: str, event: AuditEvent) -> bytes:
    return context("audit/v1", event_id, occurred_at.isoformat(timespec="microseconds"), process, *astuple(event))
