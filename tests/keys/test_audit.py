"""Audit rows: what happened, told under a MAC that only the writing process can make."""

from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from keys.audit import CITY, AuditEvent, AuditPen, AuditRow, Outcome
from keys.errors import BrokenSeal
from keys.primitives import new_key

EVENT = AuditEvent("parks", "card.opened", Outcome.DONE, "app_1", "ch_1", "reason", "req_1")


@pytest.fixture
def pen() -> AuditPen:
    """What the api process writes with."""
    return AuditPen("api", {1: new_key()})


def test_a_row_verifies(pen: AuditPen, now: datetime) -> None:
    """A row carries event, moment and process, and its writer knows it again."""
    row = pen.row(EVENT, now)
    pen.verify(row)

    assert (row.event, row.occurred_at, row.process) == (EVENT, now, "api")
    assert len(row.mac) == 32
    assert row.event_id.startswith("ev_")


def test_each_row_is_another(pen: AuditPen, now: datetime) -> None:
    """The same event told twice is two rows, with ids and MACs of their own."""
    rows = [pen.row(EVENT, now) for _ in range(100)]

    assert len({row.event_id for row in rows}) == len({row.mac for row in rows}) == 100


def test_every_field_counts(pen: AuditPen, now: datetime) -> None:
    """A row with any field of it, or of its event, changed was not written so."""
    row = pen.row(EVENT, now)
    altered = [
        replace(row, event_id=row.event_id + "0"),
        replace(row, occurred_at=now + timedelta(microseconds=1)),
        replace(row, process="worker"),
        replace(row, mac=bytes(32)),
        replace(row, mac_key=2),
        replace(row, mac=row.mac[:-1]),
        replace(row, mac=b""),
    ]
    for field in fields(EVENT):
        other: Any = Outcome.FAILED if field.name == "outcome" else "other"
        altered.append(replace(row, event=replace(EVENT, **{field.name: other})))
    assert {field.name for field in fields(row)} == {
        *("event_id", "occurred_at", "process", "event", "mac_key", "mac")
    }

    for one in altered:
        with pytest.raises(BrokenSeal, match=f"^audit row {one.event_id} was not written by {one.process}$"):
            pen.verify(one)


def test_text_does_not_wander_between_fields(pen: AuditPen, now: datetime) -> None:
    """Two events whose fields join to the same text are told apart."""
    row = pen.row(replace(EVENT, subject="ch_1", reason="2"), now)

    with pytest.raises(BrokenSeal):
        pen.verify(replace(row, event=replace(EVENT, subject="ch_12", reason="")))


def test_another_process_cannot_write_it(pen: AuditPen, now: datetime) -> None:
    """A row in the name of another process, under any key but that one's, is found."""
    forged = replace(AuditPen("worker", {1: new_key()}).row(EVENT, now), process="api")

    with pytest.raises(BrokenSeal):
        pen.verify(forged)


def test_as_the_database_gives_it_back(pen: AuditPen, now: datetime) -> None:
    """Rebuilt from columns, the outcome a plain text and the moment in UTC, the row still verifies."""
    row = pen.row(EVENT, now)
    event = replace(EVENT, outcome=Outcome("done"))
    read = AuditRow(row.event_id, datetime.fromisoformat(now.isoformat()).astimezone(UTC), "api", event, 1, row.mac)
    pen.verify(read)

    assert read == row


def test_a_moment_without_microseconds(pen: AuditPen, now: datetime) -> None:
    """A full second is written with its six zeros: no second way to spell a moment."""
    row = pen.row(EVENT, now.replace(microsecond=0))

    pen.verify(row)
    with pytest.raises(BrokenSeal):
        pen.verify(replace(row, occurred_at=now))


def test_a_moment_in_another_time_zone(pen: AuditPen, now: datetime) -> None:
    """Rows are written and read in UTC: the same moment in another zone is not what was told."""
    elsewhere = now.astimezone(timezone(timedelta(hours=-8)))

    assert elsewhere == now
    with pytest.raises(BrokenSeal):
        pen.verify(replace(pen.row(EVENT, now), occurred_at=elsewhere))


def test_an_event_needs_only_what_happened(pen: AuditPen, now: datetime) -> None:
    """Subject, reason and request are empty unless told; the city is the department of events that have none."""
    event = AuditEvent(CITY, "keys.initialised", Outcome.REFUSED, "keys")
    pen.verify(pen.row(event, now))

    assert (event.department, event.subject, event.reason, event.request_id) == ("city", "", "", "")


def test_the_newest_key_writes_and_every_key_checks(now: datetime) -> None:
    """After a rotation rows are written with the new key and name it; those under the old one still verify."""
    old, new = new_key(), new_key()
    pen = AuditPen("api", {1: old})
    before = pen.row(EVENT, now)
    pen.renew({1: old, 2: new})
    after = pen.row(EVENT, now)

    assert (before.mac_key, after.mac_key) == (1, 2)
    for row in (before, after):
        pen.verify(row)
    with pytest.raises(BrokenSeal):
        AuditPen("api", {1: old}).verify(after)


def test_the_number_of_the_key_is_part_of_what_is_told(now: datetime) -> None:
    """A row that names another number does not verify, though the same key stands behind both."""
    key = new_key()
    row = AuditPen("api", {1: key}).row(EVENT, now)

    with pytest.raises(BrokenSeal):
        AuditPen("api", {1: key, 2: key}).verify(replace(row, mac_key=2))
