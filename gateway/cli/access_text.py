"""The access report in words: plain lines, so that an officer can read what a signature stands under."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

Row = Mapping[str, Any]


def lines_of(told: Row) -> Iterator[str]:
    """The report's lines, each without its end and with nothing in it that does not print."""
    for line in _lines(told):
        yield "".join(character if character.isprintable() else "?" for character in line)


def _lines(told: Row) -> Iterator[str]:
    yield f"Who may do what in {told['environment']}, {told['made']:%Y-%m-%d %H:%M} UTC"
    yield _review(told["review"])
    if told["forged_audit_rows"]:
        yield f"{told['forged_audit_rows']} audit rows say that the owner wrote them, and it did not. Look into this."
    yield from _section("Departments", told["departments"], _department)
    yield from _section("Applications", told["applications"], _application)
    yield from _section("Certificates that are denied", told["denied_certificates"], _denied)
    yield from _section("Staff", told["staff"], _staff)
    if told["officers"] is None:
        yield from ("", "Key officers", f"  not read: {told['officers_unread']}")
    else:
        yield from _section("Key officers", told["officers"], _officer)
    yield from _section("Processes", told["processes"], _process)
    yield from _section("Roles that may connect to the database", told["database_roles"], _role)


def _section(title: str, rows: Iterable[Row], words: Any) -> Iterator[str]:
    yield from ("", title)
    nothing = True
    for row in rows:
        first, *more = words(row)
        yield f"  {first}"
        yield from (f"      {line}" for line in more)
        nothing = False
    if nothing:
        yield "  none"


def _review(review: Row) -> str:
    if review["last"] is None:
        return "Never reviewed before."
    return f"Last review: {_day(review['last'])}, by {review['by']}, of {review['digest'][:16]}…"


def _department(row: Row) -> Iterator[str]:
    yield f"{row['department']}, {row['state']}: {row['name']}; live applications: {row['applications']}"
    yield from (f"may send {field}: {reason}" for field, reason in row["fields"].items())


def _application(row: Row) -> Iterator[str]:
    yield f"{row['department_id']} {row['application_id']}, {row['state']}: {row['name']}"
    yield f"may: {', '.join(row['scopes']) or 'nothing'}"
    yield f"services: {', '.join(row['services']) if row['services'] is not None else 'all of its department'}"
    refunds = (
        f"refunds wait above {_money(row['refund_minor_max'])}" if row["refund_minor_max"] else "no refund waits"
    )
    yield f"charges up to {_money(row['amount_minor_max'])}; {refunds}; {row['requests_per_s_max']} requests a second"
    yield f"certificate: {row['certificate_san'] or 'none'}"
    revoked = f"; revoked {_day(row['revoked_at'])}" if row["revoked_at"] else ""
    yield f"added {_day(row['created_at'])} by {row['added_by'] or 'somebody who is not recorded'}{revoked}"
    for key in row["keys"]:
        dates = f"created {_day(key['created_at'])}, ends {_day(key['expires_at'])}, used {_day(key['last_used_at'])}"
        yield f"key {key['key_id']}, {key['state']}: {dates}"


def _denied(row: Row) -> Iterator[str]:
    yield f"{row['fingerprint']} since {_day(row['denied_at'])}: {row['reason']}"


def _staff(row: Row) -> Iterator[str]:
    where = "all departments" if "*" in row["departments"] else ", ".join(sorted(row["departments"]))
    yield f"{row['username']}, {row['state']}: person {row['person']}"
    yield f"{', '.join(sorted(row['roles']))} in {where}"
    yield f"granted {_day(row['granted_at'])} by {row['granted_by']}, approved by {row['approved_by']}"
    yield f"last signed in: {_day(row['last_signed_in_at'])}"


def _officer(row: Row) -> Iterator[str]:
    until = f", removed {row['removed'][:10]}" if row.get("removed") else ""
    acknowledged = (row.get("acknowledged") or "never")[:10]
    yield f"{row['name']}: since {row['added'][:10]}{until}; duties acknowledged: {acknowledged}"


def _process(row: Row) -> Iterator[str]:
    yield f"{row['process']}, as {row['role']}"
    yield f"keys of its own: {', '.join(row['keys']) or 'none'}"
    yield f"commands: {', '.join(row['commands']) or 'none'}"


def _role(row: Row) -> Iterator[str]:
    powers = ("superuser", "bypasses_row_security", "creates_roles")
    held = [power.replace("_", " ") for power in powers if row[power]]
    yield f"{row['role']}: {', '.join(held) or 'no power over the server'}"


def _day(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d}" if moment is not None else "never"


def _money(minor: int) -> str:
    return f"{Decimal(minor).scaleb(-2):,.2f}"
