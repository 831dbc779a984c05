"""Applications, departments, the access report: granted and taken away by command, at work within seconds."""

import asyncio
import hashlib
import json
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtensionOID
from typer.testing import CliRunner

from gateway.cli.access import _review
from gateway.cli.applications import Registration, Shown, _add, _read_certificate, _rotate
from gateway.cli.main import app
from gateway.config import ApiSection, Config, ProcessorSection
from gateway.errors import GrantRefused
from keys.audit import AuditEvent, AuditPen, AuditRow, Outcome
from keys.errors import SettingsRefused
from keys.process_keys import read_process_keys
from keys.settings import DatabaseSection, KeysSection, load
from keys.signing import open_note
from tests.acceptance.test_main_job import card, charge_body, new_key, token_body
from tests.authority import Authority, san
from tests.system import ROOT, Client, Reply, System, connect_as

WITHIN_S = 2.5
"""Two seconds, and a moment for the request that shows it."""
URN = "urn:gateway:test:application:"

Events = Callable[[], Awaitable[list[tuple[str, str, str]]]]


@dataclass(frozen=True)
class Office:
    """Commands of the running demo, run here: output in, or one line that refuses."""

    system: System

    async def __call__(self, *arguments: str) -> str:
        done = await asyncio.to_thread(self._invoke, arguments)
        assert done.exception is None, done.output
        return str(done.stdout)

    async def refusal(self, *arguments: str) -> str:
        done = await asyncio.to_thread(self._invoke, arguments)
        assert done.exception is not None, done.output
        return str(done.exception)

    async def add(self, department: str, *more: str) -> dict[str, str]:
        """A new application; the system's clients know it by its id."""
        added: dict[str, str] = json.loads(await self("app", "add", department, "Counter", *more))
        self.system.demo["apps"][added["application"]] = {"api_key": added["api_key"]}
        return added

    def _invoke(self, arguments: tuple[str, ...]) -> Any:
        return CliRunner().invoke(app, [*arguments, "--config", str(self.system.home / "gateway.toml")])


@pytest.fixture
def office(system: System) -> Iterator[Office]:
    """Afterwards nobody has heard of the applications that were added."""
    known = dict(system.demo["apps"])
    yield Office(system)
    system.demo["apps"] = known


@pytest.fixture
async def events(sql: asyncpg.Connection) -> Events:
    """What the owner's audit rows have told since the test began: event, department, reason."""
    began = await sql.fetchval("SELECT now()")
    told = (
        "SELECT event, department_id, reason FROM audit.events WHERE process = 'owner' AND occurred_at >= $1"
        " ORDER BY occurred_at"
    )

    async def since() -> list[tuple[str, str, str]]:
        return [tuple(row) for row in await sql.fetch(told, began)]

    return since


async def asks(client: Client, api_key: str | None = None) -> Reply:
    """The cheapest request that takes an identity."""
    return await client.call("GET", "/v1/charges", api_key=api_key)


async def becomes(client: Client, status: int, within_s: float = WITHIN_S) -> Reply:
    """The answer once it has this status; every request goes over the connection that is open."""
    deadline = time.monotonic() + within_s
    while (reply := await asks(client)).status != status:
        assert time.monotonic() < deadline, f"still {reply.status} after {within_s} s"
        await asyncio.sleep(0.05)
    return reply


@pytest.mark.server
async def test_rotation_leaves_two_keys_and_the_older_one_ends(
    system: System, office: Office, sql: asyncpg.Connection, events: Events
) -> None:
    """Both keys are good during the overlap, a third is refused, and at its end the older one is, too."""
    added = await office.add("opera")
    application = added["application"]
    async with Client(system, application) as older:
        await becomes(older, 200)
        rotated = json.loads(await office("app", "rotate", application, "--overlap-hours", "1"))
        system.demo["apps"]["newer"] = {"api_key": rotated["api_key"]}
        async with Client(system, "newer") as newer:
            await becomes(newer, 200)
            assert (await asks(older)).status == 200
            assert f"--key {added['key_id']}" in await office.refusal("app", "rotate", application)
            left = datetime.fromisoformat(rotated["older_ends"]) - datetime.now(UTC)
            assert timedelta(minutes=59) < left <= timedelta(hours=1)
            await sql.execute("UPDATE gateway.api_keys SET expires_at = now() WHERE key_id = $1", added["key_id"])
            await becomes(older, 401)
            assert (await asks(newer)).status == 200
    await office("app", "rotate", application)
    told = [event for event, _, _ in await events()]
    assert told == ["department.added", "application.added", "application.rotated", "application.rotated"]


@pytest.mark.server
async def test_a_key_holds_as_long_as_it_was_asked_for(office: Office, sql: asyncpg.Connection) -> None:
    """`--expires-days` ends a key by itself; an overlap never makes it hold longer."""
    added = await office.add("museum", "--expires-days", "1")
    ends = "SELECT expires_at - now() FROM gateway.api_keys WHERE key_id = $1"
    assert timedelta(hours=23) < await sql.fetchval(ends, added["key_id"]) <= timedelta(days=1)
    await office("app", "rotate", added["application"], "--overlap-hours", "72")
    assert await sql.fetchval(ends, added["key_id"]) <= timedelta(days=1)


@pytest.mark.server
@pytest.mark.parametrize("what", ["key", "application", "certificate"])
async def test_what_is_revoked_is_refused_on_open_connections(
    system: System,
    office: Office,
    events: Events,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A key, an application or a certificate: its next request within two seconds is refused, and that is audited."""
    uri = f"{URN}{what}"
    added = await office.add("museum", "--certificate-san", uri)
    application = added["application"]
    certificate = issued(system, f"museum-{what}", uri, monkeypatch)
    system.demo["apps"][application] |= certificate
    named = ("--certificate", certificate["cert"])
    ends = {"key": ("--key", added["key_id"]), "application": (), "certificate": named}[what]
    async with Client(system, application, certificate=application) as client:
        await becomes(client, 200)
        await office("app", "revoke", application, *ends, "--reason", "key-compromise")
        reply = await becomes(client, 403 if what == "certificate" else 401)
    assert reply.problem == ("certificate-refused" if what == "certificate" else "not-identified")
    told = {"key": "application.key_revoked", "application": "application.revoked"}.get(what, "certificate.denied")
    assert (await events())[-1] == (told, "museum", "key-compromise")
    again = await office.refusal("app", "revoke", application, *ends)
    assert ("no such key" if what == "key" else "already") in again


@pytest.mark.server
async def test_only_its_own_certificate_is_denied(
    system: System, office: Office, tmp_path: Any, sql: asyncpg.Connection
) -> None:
    """A certificate of another application, or a file that is none, is refused before anything is written."""
    application = (await office.add("museum", "--certificate-san", f"{URN}own"))["application"]
    (tmp_path / "none.pem").write_text("none")
    before = await sql.fetchval("SELECT count(*) FROM gateway.denied_certificates")
    for path in (system.demo["apps"]["parks"]["cert"], str(tmp_path / "none.pem")):
        assert "certificate" in await office.refusal("app", "revoke", application, "--certificate", path)
    assert await sql.fetchval("SELECT count(*) FROM gateway.denied_certificates") == before


@pytest.mark.server
async def test_a_certificate_that_cannot_be_read_is_refused_and_can_be_denied(
    system: System, office: Office, events: Events, sql: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is 403 with its audit row, like any other; and its fingerprint is denied on the operator's word."""
    uri = f"{URN}odd"
    application = (await office.add("museum", "--certificate-san", uri))["application"]
    certificate = issued(system, "museum-odd", uri, monkeypatch)
    fingerprint = spoil_names(system, Path(certificate["cert"]))
    system.demo["apps"][application] |= certificate
    counted = "SELECT count(*) FROM audit.events WHERE process = 'api' AND reason = 'CertificateRefused'"
    before = await sql.fetchval(counted)
    async with Client(system, application, certificate=application) as client:
        reply = await becomes(client, 403)
    assert reply.problem == "certificate-refused"
    assert await sql.fetchval(counted) > before

    named = ("app", "revoke", application, "--certificate", certificate["cert"])
    assert fingerprint.hex() in await office(*named)
    assert (await events())[-1] == ("certificate.denied", "museum", "unspecified")
    denied = "SELECT count(*) FROM gateway.denied_certificates WHERE fingerprint = $1"
    assert await sql.fetchval(denied, fingerprint) == 1
    assert "already" in await office.refusal(*named)


@pytest.mark.parametrize("version", [b"\x02\x01\x07", b"\x02\x01\x7f"])
def test_a_certificate_of_no_version_is_still_one(tmp_path: Path, version: bytes) -> None:
    """Its fingerprint is that of its bytes; what is no certificate at all is refused."""
    authority = Authority(tmp_path)
    der = ssl.PEM_cert_to_DER_cert(authority.issue("odd", san(b"urn:city:parks")).read_text())
    odd = der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03" + version, 1)
    (tmp_path / "odd.pem").write_text("said before\n" + ssl.DER_cert_to_PEM_cert(odd))
    assert _read_certificate(tmp_path / "odd.pem") == Shown(hashlib.sha256(odd).digest(), None)
    (tmp_path / "odd.pem").write_text(ssl.DER_cert_to_PEM_cert(der))
    assert _read_certificate(tmp_path / "odd.pem") == Shown(hashlib.sha256(der).digest(), ["urn:city:parks"])
    for none in (der[:-1], b"\x30", b""):
        (tmp_path / "odd.pem").write_text(ssl.DER_cert_to_PEM_cert(none))
        with pytest.raises(GrantRefused):
            _read_certificate(tmp_path / "odd.pem")


@pytest.mark.server
async def test_a_disabled_department_is_out_until_it_is_enabled(
    system: System, office: Office, events: Events
) -> None:
    """Its applications are refused within seconds on open connections, none is added, and all come back."""
    added = await office.add("garden")
    async with Client(system, added["application"]) as client:
        await becomes(client, 200)
        await office("department", "disable", "garden")
        await becomes(client, 401)
        assert "disabled" in await office.refusal("app", "add", "garden", "Another")
        assert "disabled already" in await office.refusal("department", "disable", "garden")
        await office("department", "enable", "garden")
        await becomes(client, 200)
    told = [event for event, _, _ in await events()]
    assert told == ["department.added", "application.added", "department.disabled", "department.enabled"]


async def test_a_service_is_registered_by_command(office: Office, events: Events, system: System) -> None:
    """Then charges may name it, and an application may be bound to it; it is registered once."""
    service = "rink" + secrets.token_hex(3)
    with pytest.raises(AssertionError):
        await office.add("parks", "--service", service)
    await office("department", "service", "parks", service, "Ice rink", "101-2400")
    added = await office.add("parks", "--service", service)
    assert "already" in await office.refusal("department", "service", "parks", service, "Ice rink", "101-2400")
    assert "code" in await office.refusal("department", "service", "parks", "Ice Rink", "Ice rink", "101-2400")
    async with Client(system, added["application"]) as client:
        await becomes(client, 200)
        body = charge_body(name="Ada Resident", card=card())
        assert (await client.call("POST", "/v1/charges", body, key=new_key())).problem == "service-unknown"
        reply = await client.call("POST", "/v1/charges", body | {"service": service}, key=new_key())
        assert (reply.status, reply.json["service"]) == (201, service)
    assert [event for event, _, _ in await events()] == ["department.service_added", "application.added"]


@pytest.mark.server
async def test_whoever_makes_a_department_is_told_what_it_lacks(system: System, office: Office) -> None:
    """Beside the answer, and only once; the answer stays one JSON document."""
    del office  # which forgets the applications afterwards
    asked = ("app", "add", "orchard", "Counter", "--config", str(system.home / "gateway.toml"))
    first, second = [await asyncio.to_thread(CliRunner().invoke, app, asked) for _ in range(2)]
    told = "gateway: department `orchard` is new: it may send no personal field yet, see `gateway department allow`\n"
    assert (first.exit_code, first.stderr, json.loads(first.stdout)["department"]) == (0, told, "orchard")
    assert (second.exit_code, second.stderr) == (0, "")


@pytest.mark.parametrize(
    ("option", "most"), [("--amount-max", 10**12), ("--refund-max", 10**12), ("--requests-per-second", 10**6)]
)
@pytest.mark.parametrize("value", ["0", "-1", "one more", "99999999999999999999", "1e3"])
def test_a_limit_out_of_range_is_wrong_usage(option: str, most: int, value: str) -> None:
    """Exit 2, before a file or a database is looked at; with the largest, only the file is missing."""
    asked = ["app", "add", "museum", "Counter", "--config", "/nowhere/gateway.toml", option]
    wrong = CliRunner().invoke(app, [*asked, str(most + 1) if value == "one more" else value])
    assert (wrong.exit_code, type(wrong.exception)) == (2, SystemExit)
    largest = CliRunner().invoke(app, [*asked, str(most)])
    assert isinstance(largest.exception, SettingsRefused)


@pytest.mark.parametrize(
    "arguments",
    [
        ("add", "museum\udcff", "Counter"),
        ("add", "museum", "Count\udcffer"),
        ("add", "museum", "Counter", "--service", "po\udcffol"),
        ("add", "museum", "Counter", "--certificate-san", "urn:\udcff"),
        ("rotate", "app_\udcff"),
        ("revoke", "app_\udcff"),
        ("revoke", "app_1", "--key", "\udcff"),
    ],
)
def test_an_argument_that_is_no_text_is_refused(arguments: tuple[str, ...]) -> None:
    """With one line that can be printed, before anything is asked of a database."""
    done = CliRunner().invoke(app, ["app", *arguments, "--config", "/nowhere/gateway.toml"])
    assert isinstance(done.exception, GrantRefused)
    assert str(done.exception) == "an argument is no text in UTF-8: type it anew"


async def test_production_registers_nobody_without_a_certificate() -> None:
    """Its key alone would never be served."""
    config = Config(
        environment="city",
        keys=KeysSection(root="file:/root.key", store="file:/keystore", secrets="/nowhere"),
        database=DatabaseSection(dsn="postgresql://db.city.test/gateway"),
        api=ApiSection(cert="/api.pem", key="/api.key"),
        processor=ProcessorSection(url="https://processor.test"),
    )
    asked = Registration("museum", "Counter", 1, None, [], [], 1, None, None)
    with pytest.raises(GrantRefused, match="--certificate-san"):
        await _add(config, asked)


@pytest.mark.server
async def test_one_name_in_a_certificate_is_one_application(system: System, office: Office) -> None:
    """Four that ask for it at the same moment: one gets it. It is free again when its application is revoked."""
    config = load(system.home / "gateway.toml", Config, {})
    asked = Registration("museum", "Twin", 1, None, [], [], 1, f"{URN}twin", None)
    twins = await asyncio.gather(*(_add(config, asked) for _ in range(4)), return_exceptions=True)
    (won,) = (twin for twin in twins if isinstance(twin, dict))
    assert [type(twin) for twin in twins if twin is not won] == [GrantRefused] * 3
    again = ("app", "add", "museum", "Twin", "--certificate-san", f"{URN}twin")
    assert "name of its own" in await office.refusal(*again)
    await office("app", "revoke", won["application"])
    await office(*again)


@pytest.mark.server
async def test_a_third_key_is_never_made(system: System, office: Office) -> None:
    """Four rotations at the same moment: one is done, so that two keys are live."""
    config, application = load(system.home / "gateway.toml", Config, {}), (await office.add("museum"))["application"]
    asked = (_rotate(config, application, timedelta(hours=1), None) for _ in range(4))
    rotated = await asyncio.gather(*asked, return_exceptions=True)
    assert sorted(type(one).__name__ for one in rotated) == ["GrantRefused"] * 3 + ["dict"]


@pytest.mark.server
@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("museum", "4242 4242 4242 4242"), "card number"),
        (("museum", "two\nlines"), "printable"),
        (("museum", "Counter", "--service", "pool"), "has not registered"),
        (("museum", "Counter", "--certificate-san", "a space"), "URI"),
        (("Museum", "Counter"), "lower-case"),
        (("city", "Counter"), "another name"),
    ],
)
async def test_what_cannot_be_registered_leaves_nothing(
    office: Office, sql: asyncpg.Connection, arguments: tuple[str, ...], why: str
) -> None:
    """One line says why, and neither application nor key nor audit row is there."""
    counted = (
        "SELECT (SELECT count(*) FROM gateway.applications) + (SELECT count(*) FROM gateway.api_keys)"
        " + (SELECT count(*) FROM audit.events WHERE process = 'owner')"
    )
    before = await sql.fetchval(counted)
    assert why in await office.refusal("app", "add", *arguments)
    assert await sql.fetchval(counted) == before


@pytest.mark.server
async def test_limits_are_what_was_granted(office: Office, sql: asyncpg.Connection) -> None:
    """Scopes, services, limits and quota stand as asked for; without a word, all scopes and all services."""
    chosen = ("--scope", "charges:read", "--scope", "charges:write", "--service", "pool", "--refund-max", "7")
    narrow = await office.add("parks", *chosen, "--amount-max", "9", "--requests-per-second", "3")
    wide = await office.add("museum")
    row = "SELECT scopes, services, refund_minor_max, amount_minor_max, requests_per_s_max FROM gateway.applications"
    (told,) = await sql.fetch(f"{row} WHERE application_id = $1", narrow["application"])
    assert tuple(told) == (["charges:read", "charges:write"], ["pool"], 7, 9, 3)
    (told,) = await sql.fetch(f"{row} WHERE application_id = $1", wide["application"])
    assert (len(told["scopes"]), *tuple(told)[1:]) == (6, None, None, 1_000_000, 1000)
    await office("app", "revoke", narrow["application"])


@pytest.mark.server
async def test_a_personal_field_is_taken_for_a_reason(
    system: System, office: Office, sql: asyncpg.Connection, events: Events
) -> None:
    """Allowed with its reason, allowed anew with a better one, forbidden; each is audited, and no refusal is."""
    added = await office.add("museum")
    held = "SELECT field, reason FROM gateway.personal_fields WHERE department_id = 'museum'"
    for reason in ("tickets", "tickets are sent there"):
        await office("department", "allow", "museum", "contact.email", "--reason", reason)
        assert [tuple(row) for row in await sql.fetch(held)] == [("contact.email", reason)]
    listed = json.loads(await office("department", "list", "--json"))["departments"]
    (museum,) = (row for row in listed if row["department"] == "museum")
    assert museum["fields"] == {"contact.email": "tickets are sent there"}
    for field, reason in (("Email", "why"), ("email", "4242424242424242"), ("email", " ")):
        await office.refusal("department", "allow", "museum", field, "--reason", reason)
    assert "no such department" in await office.refusal("department", "allow", "nowhere", "email", "--reason", "why")
    async with Client(system, added["application"]) as client:
        body = token_body() | {"details": {"contact": {"email": "ada@example.org"}}}
        await becomes(client, 200)
        deadline = time.monotonic() + WITHIN_S  # it may have been known before its contract was
        while (reply := await client.call("POST", "/v1/tokens", body)).status != 201:
            assert time.monotonic() < deadline, reply.body
            await asyncio.sleep(0.05)
        await office("department", "forbid", "museum", "contact.email")
        assert await sql.fetch(held) == []
        deadline = time.monotonic() + WITHIN_S
        while (reply := await client.call("POST", "/v1/tokens", body)).status == 201:
            assert time.monotonic() < deadline, "still taken"
            await asyncio.sleep(0.05)
        assert (reply.status, reply.problem) == (422, "field-not-taken")
    assert "not allowed" in await office.refusal("department", "forbid", "museum", "contact.email")
    told = [event for event, _, _ in await events() if event.startswith("department.field")]
    assert told == ["department.field_allowed", "department.field_allowed", "department.field_forbidden"]


@pytest.mark.server
async def test_the_report_lists_everybody(system: System, office: Office, sql: asyncpg.Connection) -> None:
    """Every application with its keys, every account, officer, process and role of the database stands in it."""
    added = await office.add("museum", "--refund-max", "1234567")
    told = json.loads(system.command("gateway", "access", "report", "--json"))
    applications = {row["application_id"]: row for row in told["applications"]}
    assert set(applications) == {row[0] for row in await sql.fetch("SELECT application_id FROM gateway.applications")}
    listed = {key["key_id"] for row in told["applications"] for key in row["keys"]}
    assert listed == {row[0] for row in await sql.fetch("SELECT key_id FROM gateway.api_keys")}
    mine = applications[added["application"]]
    assert mine["added_by"].startswith("os:")
    assert [(key["key_id"], key["state"]) for key in mine["keys"]] == [(added["key_id"], "live")]
    accounts = {row[0] for row in await sql.fetch("SELECT username FROM gateway.staff")}
    assert {row["username"] for row in told["staff"]} == accounts
    assert {row["name"] for row in told["officers"]} == set(system.demo["officers"])
    assert {row["process"] for row in told["processes"]} == {"owner", "api", "admin", "worker", "reseal", "keys"}
    assert {row["role"] for row in told["database_roles"]} >= {row["role"] for row in told["processes"]}
    words = await office("access", "report")
    for shown in (*applications, *listed, *accounts, *system.demo["officers"], "12,345.67", "gateway_reseal"):
        assert shown in words


@pytest.mark.server
async def test_whoever_holds_no_root_still_gets_the_report(system: System) -> None:
    """It says that the officers were not read, and why; it cannot be signed so."""
    elsewhere = System(system.home, GATEWAY_KEYS_ROOT="file:/nowhere/root.key?passphrase_file=/nowhere/passphrase")
    told = json.loads(elsewhere.command("gateway", "access", "report", "--json"))
    assert told["officers"] is None
    assert "/nowhere" in told["officers_unread"]
    assert told["applications"]
    elsewhere.demo = system.demo
    elsewhere.command("gateway", "access", "report", *elsewhere.officer("security"), code=1)


@pytest.mark.server
async def test_a_review_is_signed_and_only_a_true_one_counts(
    system: System, office: Office, sql: asyncpg.Connection
) -> None:
    """The officer's signature holds; the audit log has it; one that the api role wrote counts nothing."""
    note = await office("access", "report", "--json", *system.officer("security"))
    officers = json.loads(system.command("keys", "officer", "list", "--json"))["officers"]
    (verify,) = (row["verify"] for row in officers if row["name"] == "security")
    text = open_note(bytes.fromhex(verify), "security", note)
    assert json.loads(text)["applications"]
    connection = await connect_as(system, "api")
    later = datetime.now(UTC) + timedelta(days=1)
    forged = ("ev_forged", later, "owner", "access.reviewed", "done", "mallory", "", "", "", 1, bytes(32))
    try:
        await connection.execute(
            "INSERT INTO audit.events (department_id, event_id, occurred_at, process, event, outcome, actor, subject,"
            " reason, request_id, mac_key, mac) VALUES ('city', $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
            *forged,
        )
        told = json.loads(await office("access", "report", "--json"))
        assert (told["review"]["by"], told["review"]["overdue"]) == ("security", False)
        assert told["review"]["digest"] == hashlib.sha256(text.encode()).hexdigest()
        assert told["forged_audit_rows"] == 1
        assert "Look into this" in await office("access", "report")
    finally:
        await connection.close()
        await sql.execute("DELETE FROM audit.events WHERE event_id = 'ev_forged'")


@pytest.mark.parametrize(("days", "overdue"), [(180, False), (181, True)])
def test_a_review_is_due_every_half_year(days: int, overdue: bool) -> None:
    """180 days after the last one it is not overdue yet, on the next day it is, and where there was none."""
    now = datetime(2026, 11, 23, tzinfo=UTC)
    row = AuditRow("ev_1", now - timedelta(days=days), "owner", reviewed(), 1, b"")
    assert _review([row], now)["overdue"] is overdue
    assert _review([], now)["overdue"] is True


@pytest.mark.server
async def test_the_owner_signs_what_it_tells(system: System, office: Office, sql: asyncpg.Connection) -> None:
    """Every row of the owner has the owner's MAC, and names the user of the operating system or officers."""
    await office.add("museum")
    pen = AuditPen("owner", read_process_keys(system.home / "secrets", "owner", "audit-mac"))
    rows = await sql.fetch("SELECT * FROM audit.events WHERE process = 'owner'")
    assert rows
    for row in rows:
        names = ("department_id", "event", "outcome", "actor", "subject", "reason", "request_id")
        told = AuditEvent(*(Outcome(row[name]) if name == "outcome" else row[name] for name in names))
        pen.verify(AuditRow(row["event_id"], row["occurred_at"], "owner", told, row["mac_key"], row["mac"]))
    assert {row["actor"] for row in rows if row["event"] == "application.added"} == {user()}


def reviewed() -> AuditEvent:
    return AuditEvent("city", "access.reviewed", Outcome.DONE, "security")


def user() -> str:
    from gateway.cli.owner import system_user

    return system_user()


def issued(system: System, name: str, uri: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A client certificate of the demo's authority."""
    monkeypatch.syspath_prepend(ROOT / "deploy")
    from certificates import Authority

    folder = system.home / "tls"
    Authority.open(folder).application(name, uri)
    return {"cert": str(folder / f"{name}.pem"), "key": str(folder / f"{name}.key")}


def spoil_names(system: System, path: Path) -> bytes:
    """The certificate again, signed by the demo's authority, with an ediPartyName beside its URI; its fingerprint."""
    key: Any = load_pem_private_key((system.home / "tls" / "ca.key").read_bytes(), None)
    read = x509.load_pem_x509_certificate(path.read_bytes())
    builder = x509.CertificateBuilder(
        read.issuer, read.subject, read.public_key(), 7, read.not_valid_before_utc, read.not_valid_after_utc
    )
    for found in read.extensions:
        value: x509.ExtensionType = found.value
        if isinstance(value, x509.SubjectAlternativeName):
            names = value.public_bytes()[2:] + bytes.fromhex("a508a1060c046f646421")
            value = x509.UnrecognizedExtension(
                ExtensionOID.SUBJECT_ALTERNATIVE_NAME, bytes([0x30, len(names)]) + names
            )
        builder = builder.add_extension(value, found.critical)
    odd = builder.sign(key, SHA256())
    path.write_bytes(odd.public_bytes(Encoding.PEM))
    return odd.fingerprint(SHA256())
