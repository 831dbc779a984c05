"""`gateway staff`: who has an account at the admin site, and what it may do there.

A grant takes two officers (design §4.11), so that nobody makes themselves an approver: one asks, another approves
with `keys approve`, and then it is carried out once. To take an account away takes one person, and no time.
"""

import asyncio
import base64
import binascii
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import typer
from rich.console import Console
from rich.table import Table

from gateway.cli.options import OWNER, AsJson, ConfigFile, config_of
from gateway.cli.owner import Owner, as_owner, require_line
from gateway.clock import SystemClock
from gateway.config import Config
from gateway.errors import GrantRefused, NotFound, PasswordRefused, SignInRefused
from gateway.rules import totp
from gateway.rules.grants import Grant
from gateway.rules.ids import new_id
from gateway.rules.passwords import hash_password, new_password, require_good_password, require_password
from gateway.rules.staff import DORMANT, EVERYWHERE, Role, Tries, tries_digest
from keys.acts import ActName
from keys.cli.bench import Bench, tell
from keys.cli.signing_in import (
    WITHOUT_REASON,
    OfficerFile,
    PassphraseFile,
    Reason,
    approved,
    ask_for,
    folder,
    sign_in,
)
from keys.database import connection, query_errors
from keys.errors import ActRefused
from keys.files import read_private_line
from keys.process_keys import read_process_keys
from keys.queries import load_queries
from keys.rotation import Rotation
from keys.secret import Secret

ACT: ActName = "grant-staff"
REASON_MAX = 200
SEED_BYTES_MIN, SEED_BYTES_MAX = 20, 64

T = TypeVar("T", bytes, str)

commands = typer.Typer(help="Staff: their accounts at the admin site, granted by two officers.", no_args_is_help=True)


class Why(StrEnum):
    """Why an account ends, as the audit log holds it: a code and no prose."""

    LEFT = "left"
    MOVED = "moved"
    SUSPECTED = "suspected"
    REVIEW = "review"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Factors:
    """What somebody signs in with. None: made here, and shown once."""

    password: Secret[str] | None = None
    seed: Secret[bytes] | None = None

    @classmethod
    def of(cls, password_file: str | None, totp_file: str | None) -> "Factors":
        """The person's own, from files that only they and this user can read."""
        password = None if password_file is None else read_private_line(Path(password_file))
        return cls(password, None if totp_file is None else _seed(Path(totp_file)))

    @property
    def are_given(self) -> bool:
        """Whether any of them is the person's own."""
        return self.password is not None or self.seed is not None


@dataclass(frozen=True, slots=True)
class Granted:
    """An account, with what was made for it and is known to nobody else."""

    username: str
    password: Secret[str] | None
    seed: Secret[bytes] | None
    must_change: bool = False

    def told(self) -> dict[str, str]:
        """What is handed to the person, in a form for programs."""
        told = {"username": self.username}
        if self.password is not None:
            told["password"] = self.password.reveal()
        if self.seed is not None:
            told |= {
                "totp_secret": totp.base32(self.seed).reveal(),
                "otpauth": totp.otpauth_uri(self.username, self.seed).reveal(),
            }
        return told


@commands.command("add")
def staff_add(
    username: Annotated[str | None, typer.Argument(help="Named after the person: `a.chen`.")] = None,
    person: Annotated[str, typer.Option(help="Their personnel number: one person has one account.")] = "",
    role: Annotated[list[Role] | None, typer.Option(help="What they may do; repeat it.")] = None,
    department: Annotated[list[str] | None, typer.Option(help="Where they may do it; repeat it.")] = None,
    all_departments: Annotated[
        bool, typer.Option("--all-departments", help="Everywhere, also in departments to come.")
    ] = False,
    oidc_subject: Annotated[
        str | None, typer.Option(help="Who they are at the city's provider: they sign in there, not by password.")
    ] = None,
    request: Annotated[str | None, typer.Option("--request", help="The approved request; now do it.")] = None,
    password_file: Annotated[
        str | None, typer.Option(help="With --request: their own for the first sign-in; else one is printed.")
    ] = None,
    totp_file: Annotated[
        str | None, typer.Option(help="With --request: their own TOTP secret in base32; else one is printed.")
    ] = None,
    reason: Reason = WITHOUT_REASON,
    officer: OfficerFile = None,
    passphrase_file: PassphraseFile = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Ask for an account, or for another grant to one; once another officer has approved it, carry it out.

    A grant replaces the one before it: new factors, a disabled account is enabled, open sessions end.

    Example: gateway staff add a.chen --person 4711 --role approver --department parks --officer ada.key &&
    keys approve act_… --officer ben.key && gateway staff add --request act_…
    """
    settings, bench = config_of(config), Bench.of(config)
    if request is not None:
        signed = (username, person, role, department, all_departments, oidc_subject)
        if any(signed) or reason != WITHOUT_REASON or officer is not None or passphrase_file is not None:
            raise typer.BadParameter(
                "--request does what was signed: only --password-file and --totp-file go with it"
            )
        _tell_once(asyncio.run(_carry_out(settings, bench, request, Factors.of(password_file, totp_file))), as_json)
        return
    if password_file is not None or totp_file is not None:
        raise typer.BadParameter("--password-file and --totp-file go with --request: nothing of them is signed")
    if username is None:
        raise GrantRefused("name the account to ask for, or the approved request with --request")
    departments = _departments(department or [], everywhere=all_departments)
    grant = Grant.of(username, person, role or [], departments, oidc_subject)
    act_id = asyncio.run(_ask(settings, bench, grant, reason, (officer, passphrase_file)))
    tell(
        as_json,
        {"act": act_id},
        f"Asked for. Another officer runs: keys approve {act_id} --officer THEIR.key",
        f"Then, within 15 minutes from now: gateway staff add --request {act_id}",
    )


@commands.command("list")
def staff_list(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """List the accounts: what each may do and where, who granted it, when it was last used.

    Example: gateway staff list --json
    """
    rows = asyncio.run(_list(config_of(config)))
    if as_json:
        tell(True, {"staff": rows})
        return
    table = Table("username", "roles", "departments", "state", "last sign-in", "granted by", "approved by")
    for row in rows:
        told = (", ".join(row["roles"]), ", ".join(row["departments"]), row["state"])
        last = (row["last_signed_in_at"] or "never")[:10]
        table.add_row(row["username"], *told, last, row["granted_by"], row["approved_by"])
    Console().print(table)


@commands.command("disable")
def staff_disable(
    username: Annotated[str, typer.Argument(help="Whose account.")],
    reason: Annotated[Why, typer.Option(help="Why; the audit log holds it.")],
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Disable an account at once: its sessions end, and nobody signs in to it before two officers grant it anew.

    Example: gateway staff disable a.chen --reason left
    """
    asyncio.run(_disable(config_of(config), username, reason))
    tell(as_json, {"username": username, "state": "disabled"}, f"{username} is disabled; all sessions are ended.")


async def carry_out(
    bench: Bench, rotation: Rotation, owner: Owner, config: Config, act_id: str, factors: Factors
) -> Granted:
    """Write the account that two officers agreed on, with its audit row, and mark the act as done.

    The mark comes before the commit. Who breaks off in between has spent the act and granted nothing; the other way
    round, an act could be done twice.
    """
    asked, approval = approved(bench, rotation, act_id, ACT)
    grant = Grant.of_payload(asked.payload)
    await _require_free(owner, grant)
    sql, now = load_queries("gateway.store", "accounts.sql"), SystemClock().now()
    known = await owner.connection.fetchrow(sql.hold_account, grant.username)
    # Marks lie in a folder; that an act is done once does not hang on them alone.
    if known is not None and asked.requested <= max(known["granted_at"], known["disabled_at"] or known["granted_at"]):
        raise ActRefused(f"{grant.username} was granted or disabled since {act_id} was asked for: ask anew")
    staff_id = new_id("st") if known is None else known["staff_id"]
    if known is not None and factors.password is not None:
        _require_unused(factors.password, [known["password_hash"], *known["earlier_hashes"]])
    keys = read_process_keys(Path(config.keys.secrets), "admin", "staff-sealing")
    granted, kept = _prepared(grant, staff_id, factors, config, keys)
    by, _, second = approval.actor.partition("+")
    what = (sorted(grant.roles), sorted(grant.departments), *kept, grant.oidc_subject)
    await owner.connection.execute(
        sql.put_account, staff_id, grant.username, grant.person, *what, act_id, by, second, now
    )
    await owner.connection.execute(sql.end_sessions, staff_id)
    tried = [tries_digest(keys, tries, grant.username) for tries in get_args(Tries)]
    await owner.connection.execute(sql.clear_tries, tried)
    await owner.note("staff.granted", staff_id, reason=_told(grant), actor=approval.actor, request_id=act_id)
    folder(bench).mark_done(act_id, now)
    return granted


def _told(grant: Grant) -> str:
    """What the audit log says was granted: `approver@parks+utilities`."""
    return f"{'+'.join(sorted(grant.roles))}@{'+'.join(sorted(grant.departments))}"[:REASON_MAX]


def _require_unused(password: Secret[str], before: list[str | None]) -> None:
    """Raises `PasswordRefused` for one of the last four (PCI DSS 8.3.7)."""
    for kept in before:
        with suppress(SignInRefused):
            if kept is not None:
                require_password(kept, password)
                raise PasswordRefused("This password was used lately: take another.")


def _prepared(
    grant: Grant, staff_id: str, factors: Factors, config: Config, keys: Mapping[int, Secret[bytes]]
) -> tuple[Granted, tuple[str | None, bool, bytes | None]]:
    """What the person gets, and what is kept of it: hash, whether it must be changed, sealed seed.

    A file with a password was in other hands, too: only a demo takes it for the person's own (PCI DSS 8.3.5).
    """
    if grant.oidc_subject is not None and not factors.are_given:
        return Granted(grant.username, None, None), (None, False, None)
    made = Granted(
        grant.username,
        new_password() if factors.password is None else None,
        totp.new_seed() if factors.seed is None else None,
        must_change=factors.password is None or config.profile != "demo",
    )
    if factors.password is not None:
        listed = None if config.admin is None else config.admin.breached_passwords
        require_good_password(factors.password, grant.username, None if listed is None else Path(listed))
    sealed = totp.seal_seed(keys, staff_id, _the(made.seed, factors.seed))
    return made, (hash_password(_the(made.password, factors.password)), made.must_change, sealed)


async def _require_free(owner: Owner, grant: Grant) -> None:
    """One person, one account; one account, one person, for ever; and departments that there are."""
    require_line("person", grant.person)
    sql, asked = load_queries("gateway.store", "accounts.sql"), owner.connection
    known = await asked.fetchrow(sql.hold_account, grant.username)
    if known is not None and known["person"] != grant.person:
        raise GrantRefused(f"{grant.username} is or was another person's account: choose another name")
    other = await asked.fetchval(sql.account_of_person, grant.person, grant.username)
    if other is not None:
        raise GrantRefused(f"this person has the account {other}: disable it first, or grant to that one")
    other = grant.oidc_subject and await asked.fetchval(sql.account_of_subject, grant.oidc_subject, grant.username)
    if other:
        raise GrantRefused(f"this subject of the provider is {other}'s")
    unknown = [row["asked"] for row in await asked.fetch(sql.unknown_departments, list(grant.departments))]
    if unknown:
        raise GrantRefused(f"no department is called {', '.join(unknown)}: `gateway department list`")


async def _ask(
    config: Config, bench: Bench, grant: Grant, reason: str, officer: tuple[str | None, str | None]
) -> str:
    async with as_owner(config) as owner:  # before anybody types a passphrase
        await _require_free(owner, grant)
    async with bench.changing() as rotation:
        return ask_for(bench, rotation, ACT, grant.payload(), reason, sign_in(rotation.manifest, *officer))


async def _carry_out(config: Config, bench: Bench, act_id: str, factors: Factors) -> Granted:
    async with bench.changing() as rotation, as_owner(config) as owner:
        return await carry_out(bench, rotation, owner, config, act_id, factors)


async def _list(config: Config) -> list[dict[str, Any]]:
    sql = load_queries("gateway.store", "accounts.sql")
    async with connection(config.database, OWNER, Path(config.keys.secrets)) as connected, query_errors():
        rows = await connected.fetch(sql.list_accounts, DORMANT)
    dated = ("granted_at", "last_signed_in_at")
    return [dict(row) | {name: row[name] and row[name].isoformat() for name in dated} for row in rows]


async def _disable(config: Config, username: str, reason: Why) -> None:
    sql = load_queries("gateway.store", "accounts.sql")
    async with as_owner(config) as owner:
        known = await owner.connection.fetchrow(sql.hold_account, username)
        if known is None:
            raise NotFound("no account has this name: `gateway staff list`")
        if known["disabled_at"] is None:
            await owner.connection.execute(sql.disable_account, known["staff_id"], SystemClock().now())
        await owner.connection.execute(sql.end_sessions, known["staff_id"])
        await owner.note("staff.disabled", known["staff_id"], reason=reason)


def _the(made: Secret[T] | None, own: Secret[T] | None) -> Secret[T]:
    chosen = own if made is None else made
    assert chosen is not None, "internal error: what is not given is made"
    return chosen


def _departments(named: list[str], *, everywhere: bool) -> frozenset[str]:
    if EVERYWHERE in named or (everywhere and named):
        raise GrantRefused("all departments is a grant of its own: `--all-departments`, and no name beside it")
    return frozenset([EVERYWHERE] if everywhere else named)


def _seed(path: Path) -> Secret[bytes]:
    text = read_private_line(path).reveal().strip().upper()
    try:
        seed = base64.b32decode(text + "=" * (-len(text) % 8))
    except binascii.Error:
        seed = b""
    if not SEED_BYTES_MIN <= len(seed) <= SEED_BYTES_MAX:
        raise GrantRefused(f"{path} holds no TOTP secret: {SEED_BYTES_MIN} bytes or more, in base32")
    return Secret(seed)


def _tell_once(granted: Granted, as_json: bool) -> None:
    told = granted.told()
    lines = [f"{granted.username} has this grant now; sessions of an earlier one are ended."]
    if granted.password is not None:
        lines.append(f"password for the first sign-in, which is then changed: {told['password']}")
    elif granted.must_change:
        lines.append("The password that you gave has been in other hands, too: at the first sign-in it is changed.")
    if granted.seed is not None:
        lines += [
            f"TOTP secret, to type into the app: {told['totp_secret']}",
            f"or to scan, as a QR code made on this machine, never on a web site: {told['otpauth']}",
        ]
    if len(told) > 1:
        lines.append("This is shown once. Hand it to the person, and to nobody else.")
    tell(as_json, told, *lines)
