"""`gateway app`: the applications of departments, what each may do, their API keys and certificates."""

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import typer
from cryptography import x509
from rich.console import Console
from rich.table import Table

from gateway.cli.options import OWNER, AsJson, ConfigFile, config_of
from gateway.cli.owner import Owner, as_owner, require_line
from gateway.config import Config
from gateway.errors import GrantRefused, NotFound, ServiceUnknown
from gateway.profile import in_production
from gateway.rules.access import NewApiKey, Scope, new_api_key
from gateway.rules.ids import new_id
from keys.audit import CITY
from keys.cli.bench import tell
from keys.database import connection, query_errors
from keys.errors import SettingsRefused
from keys.process_keys import read_process_keys
from keys.queries import load_queries
from keys.settings import Department

LIVE_KEYS_MAX = 2
OVERLAP_HOURS_MAX = 30 * 24
KEY_DAYS_MAX = 3650
AMOUNT_MINOR_MAX = 10**12
REQUESTS_PER_S_MAX = 10**6
URI = re.compile(r"[a-z][a-z0-9+.-]*:[!-~]{1,200}")
PEM_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)

commands = typer.Typer(help="Applications of departments, their API keys and certificates.", no_args_is_help=True)


class Why(StrEnum):
    """Why something is revoked: the words of RFC 5280 §5.3.1, so that the audit log holds a code and no prose."""

    UNSPECIFIED = "unspecified"
    KEY_COMPROMISE = "key-compromise"
    AFFILIATION_CHANGED = "affiliation-changed"
    SUPERSEDED = "superseded"
    CESSATION = "cessation-of-operation"


class Registration(NamedTuple):
    """A new application, as its administrator asks for it. Amounts are minor units."""

    department: str
    name: str
    amount_minor_max: int
    refund_minor_max: int | None
    scopes: Sequence[Scope]
    services: Sequence[str]
    requests_per_s_max: int
    certificate_san: str | None
    key_lasts: timedelta | None


class Shown(NamedTuple):
    """A certificate that somebody brings. `uris` None: it is one, and yet its names cannot be read."""

    fingerprint: bytes
    uris: Sequence[str] | None


ApplicationId = Annotated[str, typer.Argument(help="Its id, `app_…`.")]
ExpiresDays = Annotated[
    int | None,
    typer.Option(help="The key ends after so many days; without it, when it is rotated.", min=1, max=KEY_DAYS_MAX),
]


@commands.command("add")
def app_add(
    department: Annotated[str, typer.Argument(help="Its department: lower-case letters, digits, underscores.")],
    name: Annotated[str, typer.Argument(help="What people call it.")],
    amount_max: Annotated[
        int, typer.Option(help="The largest charge, in minor units.", min=1, max=AMOUNT_MINOR_MAX)
    ] = 1_000_000,
    refund_max: Annotated[
        int | None,
        typer.Option(
            help="Larger refunds wait for an approver, in minor units; without it none.", min=1, max=AMOUNT_MINOR_MAX
        ),
    ] = None,
    scope: Annotated[list[Scope] | None, typer.Option(help="What it may do; repeat it. Without it, all.")] = None,
    service: Annotated[
        list[str] | None, typer.Option(help="A service it may charge for; repeat it. Without it, all.")
    ] = None,
    requests_per_second: Annotated[
        int, typer.Option(help="Its quota, of each api process.", min=1, max=REQUESTS_PER_S_MAX)
    ] = 1000,
    certificate_san: Annotated[
        str | None, typer.Option(help="The URI in its client certificate; in production it must have one.")
    ] = None,
    expires_days: ExpiresDays = None,
    config: ConfigFile = None,
) -> None:
    """Register an application and print its API key, which is shown this once.

    Example: gateway app add parks "Pool reservations" --amount-max 50000 --scope tokens:write --scope charges:write
    """
    _require_text(department, name, certificate_san, *(service or []))
    registration = Registration(
        department,
        name,
        amount_max,
        refund_max,
        scope or list(Scope),
        service or [],
        requests_per_second,
        certificate_san,
        _days(expires_days),
    )
    typer.echo(json.dumps(asyncio.run(_add(config_of(config), registration))))


@commands.command("list")
def app_list(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """List applications. `gateway access report` says more of each.

    Example: gateway app list --json
    """
    rows = asyncio.run(_list(config_of(config)))
    if as_json:
        typer.echo(json.dumps(rows, default=str))
        return
    table = Table("department", "application", "name", "largest charge", "live keys", "revoked")
    for row in rows:
        limit = f"{Decimal(row['amount_minor_max']).scaleb(-2):,.2f}"
        revoked = (row["revoked_at"] or "")[:10]
        table.add_row(row["department_id"], row["application_id"], row["name"], limit, str(row["live_keys"]), revoked)
    Console().print(table)


@commands.command("rotate")
def app_rotate(
    application: ApplicationId,
    overlap_hours: Annotated[
        int, typer.Option(help="So long the older key still holds.", min=0, max=OVERLAP_HOURS_MAX)
    ] = 24,
    expires_days: ExpiresDays = None,
    config: ConfigFile = None,
) -> None:
    """Give an application a new API key, printed this once; the older one ends after the overlap.

    Example: gateway app rotate app_k5tq… --overlap-hours 48
    """
    _require_text(application)
    overlap = timedelta(hours=overlap_hours)
    typer.echo(json.dumps(asyncio.run(_rotate(config_of(config), application, overlap, _days(expires_days)))))


@commands.command("revoke")
def app_revoke(
    application: ApplicationId,
    key: Annotated[
        str | None, typer.Option(help="Only this key: what stands between `gwk_` and the next `_`.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="Only this client certificate, a PEM file.", exists=True, dir_okay=False)
    ] = None,
    reason: Annotated[Why, typer.Option(help="Why.")] = Why.UNSPECIFIED,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """End an application for good, or one of its keys, or one of its certificates: within two seconds, everywhere.

    Example: gateway app revoke app_k5tq… --certificate leaked.pem --reason key-compromise
    """
    _require_text(application, key)
    if key is not None and certificate is not None:
        raise typer.BadParameter("name a key or a certificate; without both, the whole application ends")
    denied = _read_certificate(certificate) if certificate else None
    revoked = asyncio.run(_revoke(config_of(config), application, key, denied, reason))
    tell(as_json, {"application": application, "revoked": revoked}, f"Revoked: {revoked}.")


# --- what they do ---


async def _add(config: Config, asked: Registration) -> dict[str, str]:
    _require_department_name(asked.department)
    require_line("name", asked.name)
    if asked.certificate_san is not None and not URI.fullmatch(asked.certificate_san):
        raise GrantRefused("the name in a client certificate is a URI: try urn:city:application:parks")
    if asked.certificate_san is None and in_production(config):
        raise GrantRefused("in production nobody is served without a certificate: say --certificate-san")
    key, application_id, sql = _new_key(config), new_id("app"), _sql()
    async with as_owner(config) as owner:
        new = await _open_department(owner, asked.department)
        await _require_services(owner, asked)
        await _require_free_name(owner, asked.certificate_san)
        await owner.connection.execute(
            sql.add_application,
            *(asked.department, application_id, asked.name, asked.certificate_san, asked.amount_minor_max),
            *(asked.scopes, asked.services or None, asked.refund_minor_max, asked.requests_per_s_max),
        )
        await _add_key(owner, asked.department, application_id, key, asked.key_lasts)
        await owner.note("application.added", application_id, department=asked.department)
    if new:
        told = "is new: it may send no personal field yet, see `gateway department allow`"
        typer.echo(f"gateway: department `{asked.department}` {told}", err=True)
    return {
        "department": asked.department,
        "application": application_id,
        "key_id": key.key_id,
        "api_key": key.secret.reveal(),
    }


def _require_department_name(department: str) -> None:
    try:
        msgspec.convert(department, Department)
    except msgspec.ValidationError:
        raise SettingsRefused("a department is lower-case letters, digits and underscores, at most 31") from None
    if department == CITY:
        raise SettingsRefused(f"`{CITY}` stands for what belongs to no department: choose another name")


async def _open_department(owner: Owner, department: str) -> bool:
    """Whether it had to be made, where there was none; raises `GrantRefused` for one that is disabled."""
    sql = _sql()
    new = await owner.connection.fetchval(sql.add_department, department, department.title()) is not None
    if new:
        await owner.note("department.added", department=department)
    if await owner.connection.fetchval(sql.hold_department, department) is not None:
        raise GrantRefused("this department is disabled: `gateway department enable` it first")
    return new


async def _require_services(owner: Owner, asked: Registration) -> None:
    if await owner.connection.fetch(_sql().unknown_services, asked.department, asked.services):
        raise ServiceUnknown


async def _require_free_name(owner: Owner, certificate_san: str | None) -> None:
    """Raises `GrantRefused` when a live application is known by this name: one name at two identifies neither."""
    if certificate_san is None:
        return
    sql = _sql()
    await owner.connection.execute(sql.hold_applications)
    if await owner.connection.fetchval(sql.has_certificate_name, certificate_san):
        raise GrantRefused("a live application has this name in its certificate: give each a name of its own")


async def _list(config: Config) -> list[dict[str, Any]]:
    secrets = Path(config.keys.secrets)
    async with connection(config.database, OWNER, secrets) as connected, query_errors():
        rows = await connected.fetch(_sql().list_applications)
    return [_with_iso_times(dict(row)) for row in rows]


async def _rotate(
    config: Config, application_id: str, overlap: timedelta, lasts: timedelta | None
) -> dict[str, str | None]:
    key, sql = _new_key(config), _sql()
    async with as_owner(config) as owner:
        department, _ = await _hold(owner, application_id)
        live = await owner.connection.fetch(sql.live_keys, department, application_id)
        if len(live) >= LIVE_KEYS_MAX:
            raise GrantRefused(_too_many(live))
        ended = await owner.connection.fetchval(sql.end_live_keys, department, application_id, overlap)
        await _add_key(owner, department, application_id, key, lasts)
        await owner.note("application.rotated", f"{application_id}/{key.key_id}", department=department)
    return {
        "application": application_id,
        "key_id": key.key_id,
        "api_key": key.secret.reveal(),
        "older_ends": ended.isoformat() if ended else None,
    }


def _too_many(live: Sequence[Any]) -> str:
    ends = min((row["expires_at"] for row in live if row["expires_at"]), default=None)
    wait = f"wait until one ends, {ends:%Y-%m-%d %H:%M} UTC, or " if ends else ""
    older = live[0]["key_id"]
    return f"two keys are live already: {wait}end the older now, `gateway app revoke … --key {older}`"


async def _revoke(
    config: Config, application_id: str, key_id: str | None, certificate: Shown | None, why: Why
) -> str:
    async with as_owner(config) as owner:
        department, san = await _hold(owner, application_id, revoked_too=certificate is not None)
        if certificate is not None:
            return await _deny(owner, department, application_id, san, certificate, why)
        sql = _sql()
        if key_id is not None:
            if await owner.connection.fetchval(sql.revoke_key, department, application_id, key_id) is None:
                raise NotFound("this application has no such key, or it is revoked: see `gateway access report`")
            subject = f"{application_id}/{key_id}"
            await owner.note("application.key_revoked", subject, department=department, reason=why)
            return f"key {key_id}"
        await owner.connection.execute(sql.revoke_application, department, application_id)
        await owner.connection.execute(sql.revoke_keys, department, application_id)
        await owner.note("application.revoked", application_id, department=department, reason=why)
        return f"{application_id} with all its keys"


async def _deny(
    owner: Owner, department: str, application_id: str, san: str | None, certificate: Shown, why: Why
) -> str:
    """Refuse this certificate from now on; whose it is, the operator's word says where its names cannot be read."""
    if certificate.uris is not None and san not in certificate.uris:
        raise GrantRefused("this certificate does not name this application: see which one it belongs to")
    if await owner.connection.fetchval(_sql().deny_certificate, certificate.fingerprint, why) is None:
        raise GrantRefused("this certificate is on the deny list already")
    subject = f"{application_id}/{certificate.fingerprint.hex()}"
    await owner.note("certificate.denied", subject, department=department, reason=why)
    return f"the certificate {certificate.fingerprint.hex()}"


async def _hold(owner: Owner, application_id: str, *, revoked_too: bool = False) -> tuple[str, str | None]:
    """Its department and the name in its certificate, held until the end; raises `NotFound`."""
    row = await owner.connection.fetchrow(_sql().hold_application, application_id)
    if row is None:
        raise NotFound("there is no such application: `gateway app list` shows which there are")
    if row["revoked_at"] is not None and not revoked_too:
        raise NotFound("this application is revoked already: add another one with `gateway app add`")
    return row["department_id"], row["certificate_san"]


async def _add_key(
    owner: Owner, department: str, application_id: str, key: NewApiKey, lasts: timedelta | None
) -> None:
    values = (department, key.key_id, application_id, key.digest_key, key.digest, lasts)
    await owner.connection.execute(_sql().add_key, *values)


def _new_key(config: Config) -> NewApiKey:
    """Its digest is made with the api process's key, which will check it."""
    return new_api_key(read_process_keys(Path(config.keys.secrets), "api", "api-digest"))


def _read_certificate(path: Path) -> Shown:
    """The first certificate in a PEM file; raises `GrantRefused`."""
    try:
        block = PEM_CERTIFICATE.search(path.read_bytes())
        der = base64.b64decode(block[1]) if block else b""
        return Shown(hashlib.sha256(der).digest(), _uris(der))
    except (OSError, ValueError):
        raise GrantRefused("this file is no certificate in PEM form") from None


def _uris(der: bytes) -> Sequence[str] | None:
    """The URIs that a certificate names, None when that cannot be read; raises ValueError for what is none at all."""
    try:
        certificate = x509.load_der_x509_certificate(der)
    except x509.InvalidVersion:
        return None
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        return ()
    except Exception:  # noqa: BLE001 - whatever it says, it can be denied
        return None


def _require_text(*given: str | None) -> None:
    """Raises `GrantRefused` for an argument that is no UTF-8: Python stands surrogates for its bytes (PEP 383)."""
    if any("\ud800" <= character <= "\udfff" for text in given if text for character in text):
        raise GrantRefused("an argument is no text in UTF-8: type it anew")


def _days(days: int | None) -> timedelta | None:
    return None if days is None else timedelta(days=days)


def _with_iso_times(row: dict[str, Any]) -> dict[str, Any]:
    return row | {name: row[name] and row[name].isoformat() for name in ("created_at", "revoked_at")}


@cache
def _sql() -> Any:
    return load_queries("gateway.store", "applications.sql")
