"""One row of the audit log: typed fields from an allow-list, and a MAC over all of them.

A row is written in the transaction of the effect it tells of, or the effect does not happen. Its MAC key
belongs to the writing process alone, so that a row inserted by anyone else is found when the log is sealed.
No field holds text of a request: ids that we made, codes from closed lists, names of our own processes.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
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
    """An event as it is stored. `mac_key` is the number of the writer's key."""

    event_id: str
    occurred_at: datetime
    process: str
    event: AuditEvent
    mac_key: int
    mac: bytes


class AuditPen:
    """What one process writes its audit rows with: the newest of its MAC keys."""

    def __init__(self, process: str, keys: Mapping[int, Secret[bytes]]) -> None:
        self._process = process
        self._keys = keys

    def renew(self, keys: Mapping[int, Secret[bytes]]) -> None:
        """Go on with these keys: they were rotated."""
        self._keys = keys

    def row(self, event: AuditEvent, now: datetime) -> AuditRow:
        """The row of an event that happens now."""
        event_id, keys = "ev_" + secrets.token_hex(16), self._keys
        number = max(keys)
        code = mac(keys[number], _bytes(event_id, now, self._process, event, number))
        return AuditRow(event_id, now, self._process, event, number, code)

    def verify(self, row: AuditRow) -> None:
        """Raises `BrokenSeal` when this process did not write the row just so, with a key that it has."""
        refused = BrokenSeal(f"audit row {row.event_id} was not written by {row.process}")
        if row.mac_key not in self._keys or row.process != self._process:
            raise refused
        expected = _bytes(row.event_id, row.occurred_at, row.process, row.event, row.mac_key)
        require_equal(mac(self._keys[row.mac_key], expected), row.mac, refused)


def audit_values(row: AuditRow) -> tuple[object, ...]:
    """A row's values in the order of `insert_audit`."""
    department, *told = _told(row.event)
    return (department, row.event_id, row.occurred_at, row.process, *told, row.mac_key, row.mac)


def _told(event: AuditEvent) -> tuple[str, ...]:
    """All of it, in the order of the MAC."""
    return (
        event.department,
        event.event,
        event.outcome,
        event.actor,
        event.subject,
        event.reason,
        event.request_id,
    )


def _bytes(event_id: str, occurred_at: datetime, process: str, event: AuditEvent, mac_key: int) -> bytes:
    told = occurred_at.isoformat(timespec="microseconds")
    return context("audit/v2", mac_key, event_id, told, process, *_told(event))
