"""`gateway access report`: everybody and everything that may act here, for the half-yearly review (PCI DSS 7.2.4).

An officer's signature under the report is the review: it is printed as a signed note (`keys.signing`), and the audit
log keeps who signed, when, and the digest of what. Whoever may write audit rows can write one that says so; a review
counts when the owner's pen wrote it.
"""

import asyncio
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import chain
from typing import Any

import msgspec
import typer

from gateway.cli.access_text import lines_of
from gateway.cli.actors import ACTORS
from gateway.cli.departments import list_departments
from gateway.cli.options import AsJson, ConfigFile, config_of
from gateway.cli.owner import Owner, as_owner
from gateway.clock import SystemClock
from gateway.config import Config
from gateway.rules.staff import DORMANT
from gateway.store.roles import PROCESSES
from keys.audit import AuditEvent, AuditRow, Outcome
from keys.cli.actors import ACTORS as KEYS_ACTORS
from keys.cli.bench import Bench
from keys.cli.signing_in import OfficerFile, PassphraseFile, sign_in
from keys.errors import BrokenSeal, KeysError
from keys.manifest import Manifest
from keys.process_keys import HOLDERS
from keys.queries import load_queries

REVIEW_EVERY = timedelta(days=180)
REVIEWED, ADDED = "access.reviewed", "application.added"

commands = typer.Typer(help="Who may do what, for review.", no_args_is_help=True)


@commands.callback()
def access() -> None:
    """Who may do what, for review."""


@commands.command("report")
def report(
    officer: OfficerFile = None,
    passphrase_file: PassphraseFile = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """List all who may act: applications, staff, key officers, processes, database roles; where, and by whose grant.

    With --officer this is the half-yearly review: the report is printed with the officer's signature, and noted.

    Example: gateway access report --officer ada.key > access-2026-11.txt
    """
    text, overdue = asyncio.run(_report(config_of(config), Bench.of(config), officer, passphrase_file, as_json))
    typer.echo(text, nl=False)
    if overdue:
        told = f"no review within {REVIEW_EVERY.days} days: read the report and sign it with --officer"
        typer.echo(f"gateway: {told}", err=True)


async def _report(
    config: Config, bench: Bench, key_file: str | None, passphrase_file: str | None, as_json: bool
) -> tuple[str, bool]:
    """The report, signed where an officer's key is named; and whether a review is overdue after it."""
    manifest, refused = await _manifest(bench)
    if key_file is not None and refused is not None:
        raise refused
    signer = sign_in(manifest, key_file, passphrase_file) if manifest is not None and key_file is not None else None
    async with as_owner(config, "repeatable_read") as owner:
        told = await _collect(owner, config.environment)
        told["officers"] = None if manifest is None else msgspec.to_builtins(manifest.officers)
        told["officers_unread"] = str(refused) if refused is not None else None
        text = _written(told, as_json)
        if signer is None:
            return text, told["review"]["overdue"]
        key, signing = signer
        digest = hashlib.sha256(text.encode()).hexdigest()
        await owner.note(REVIEWED, digest, actor=signing.name)
    return key.sign(signing.name, text), False


async def _manifest(bench: Bench) -> tuple[Manifest | None, KeysError | None]:
    """What names the officers; else why it cannot be read: whoever runs the report need not hold the root."""
    try:
        async with bench.reading() as (_, keys):
            return keys.manifest, None
    except KeysError as refused:
        return None, refused


async def _collect(owner: Owner, environment: str) -> dict[str, Any]:
    """Everything but the officers, as of one moment."""
    connected, now = owner.connection, SystemClock().now()
    applications, accounts, who = (
        load_queries("gateway.store", f"{name}.sql") for name in ("applications", "accounts", "access")
    )
    rows = [_audit_row(dict(row)) for row in await connected.fetch(who.owner_acts, [REVIEWED, ADDED])]
    acts = list(_genuine(owner, rows))
    added_by = {row.event.subject: row.event.actor for row in acts if row.event.event == ADDED}
    keys = [dict(row) for row in await connected.fetch(applications.list_keys)]
    return {
        "environment": environment,
        "made": now,
        "review": _review([row for row in acts if row.event.event == REVIEWED], now),
        "forged_audit_rows": len(rows) - len(acts),
        "departments": await list_departments(connected),
        "applications": [
            _application(
                dict(row), [key for key in keys if key["application_id"] == row["application_id"]], added_by, now
            )
            for row in await connected.fetch(applications.list_applications)
        ],
        "denied_certificates": [
            dict(row) | {"fingerprint": row["fingerprint"].hex()}
            for row in await connected.fetch(applications.list_denied_certificates)
        ],
        "staff": [dict(row) for row in await connected.fetch(accounts.list_accounts, DORMANT)],
        "processes": [_process(name) for name in PROCESSES],
        "database_roles": [dict(row) for row in await connected.fetch(who.database_roles)],
    }


def _genuine(owner: Owner, rows: Sequence[AuditRow]) -> Iterator[AuditRow]:
    for row in rows:
        try:
            owner.pen.verify(row)
        except BrokenSeal:
            continue
        yield row


def _audit_row(row: Mapping[str, Any]) -> AuditRow:
    event = AuditEvent(
        row["department_id"],
        row["event"],
        Outcome(row["outcome"]),
        row["actor"],
        row["subject"],
        row["reason"],
        row["request_id"],
    )
    return AuditRow(row["event_id"], row["occurred_at"], row["process"], event, row["mac_key"], row["mac"])


def _review(reviews: Sequence[AuditRow], now: datetime) -> dict[str, Any]:
    """The last one, and whether it is too long ago."""
    if not reviews:
        return {"last": None, "by": None, "digest": None, "overdue": True}
    last = reviews[-1]
    return {
        "last": last.occurred_at,
        "by": last.event.actor,
        "digest": last.event.subject,
        "overdue": now - last.occurred_at > REVIEW_EVERY,
    }


def _application(
    row: Mapping[str, Any], keys: Sequence[Mapping[str, Any]], added_by: Mapping[str, str], now: datetime
) -> dict[str, Any]:
    dates = ("created_at", "expires_at", "last_used_at", "revoked_at")
    return {
        **row,
        "state": "revoked" if row["revoked_at"] else "active",
        "added_by": added_by.get(row["application_id"]),
        "keys": [
            {"key_id": key["key_id"], "state": _key_state(key, now)} | {name: key[name] for name in dates}
            for key in keys
        ],
    }


def _key_state(key: Mapping[str, Any], now: datetime) -> str:
    if key["revoked_at"] is not None:
        return "revoked"
    return "ended" if key["expires_at"] is not None and key["expires_at"] <= now else "live"


def _process(name: str) -> dict[str, Any]:
    """A process, the keys of its own that it holds, and the commands that act on its behalf."""
    commands_of = chain(
        (f"gateway {command}" for command, actors in ACTORS.items() if name in actors),
        (f"keys {command}" for command, actors in KEYS_ACTORS.items() if name in actors),
    )
    return {
        "process": name,
        "role": f"gateway_{name}",
        "keys": [purpose for holder, purpose in HOLDERS if holder == name],
        "commands": sorted(commands_of),
    }


def _written(told: Mapping[str, Any], as_json: bool) -> str:
    if as_json:
        return msgspec.json.format(msgspec.json.encode(told), indent=1).decode() + "\n"
    return "".join(f"{line}\n" for line in lines_of(told))
