"""The walls in the database, and what is sealed: tried by walking through them with SQL."""

import hashlib
import hmac
import itertools
import os
import re
from pathlib import Path

import asyncpg
import pytest

from gateway.store.roles import PROCESSES
from keys.audit import AuditEvent, AuditPen, AuditRow, Outcome
from keys.errors import BrokenSeal
from keys.process_keys import read_process_keys
from tests.acceptance.test_main_job import charge_body, charged, new_key, token_body, tokenized
from tests.cards import TRIGGERS, canary
from tests.system import Client, System, connect_as

pytestmark = pytest.mark.server

DENIED = asyncpg.InsufficientPrivilegeError


async def refused(client: Client, token: str) -> None:
    """The token's record does not open: the charge fails for good, and nothing was sent."""
    reply = await client.call("POST", "/v1/charges", charge_body(token=token), key=new_key())
    assert (reply.status, reply.problem) == (502, "charge-failed")


async def test_swapped_records_do_not_open(system: System, parks: Client, sql: asyncpg.Connection) -> None:
    """A sealed record copied over another's refuses to open, the data key copied with it or not."""
    one, two = [await tokenized(parks, canary(n)) for n in (1, 2)]
    await sql.execute(
        "UPDATE gateway.tokens SET sealed = (SELECT sealed FROM gateway.tokens WHERE token_id = $1)"
        " WHERE token_id = $2",
        one,
        two,
    )
    await refused(parks, two)
    wraps = (
        "UPDATE gateway.deks SET wrapped = (SELECT wrapped FROM gateway.deks WHERE record_id = $1)"
        " WHERE record_id = $2"
    )
    await sql.execute(wraps, one, two)
    await refused(parks, two)
    failed = await sql.fetchval(
        "SELECT count(*) FROM audit.events WHERE event = 'decrypt.failed' AND outcome = 'failed'"
    )
    assert failed >= 2
    assert (await charged(parks, one))["status"] == "succeeded"
    await sql.execute("DELETE FROM gateway.deks WHERE record_id = $1", two)
    await sql.execute(
        "UPDATE gateway.tokens SET status = 'erased', sealed = NULL, brand = NULL, last4 = NULL,"
        " fingerprint_id = NULL WHERE token_id = $1",
        two,
    )


async def test_record_of_another_department_does_not_open(
    system: System, parks: Client, utilities: Client, sql: asyncpg.Connection
) -> None:
    """Record and data key carried into another department, ids and all, refuse to open there."""
    token = await tokenized(parks, canary(3))
    await sql.execute(
        "INSERT INTO gateway.tokens (department_id, token_id, application_id, kind, usage, status, brand, last4,"
        " fingerprint_id, cvc_check, created_at, expires_at, sealed)"
        " SELECT 'utilities', token_id, (SELECT application_id FROM gateway.applications"
        "   WHERE department_id = 'utilities' LIMIT 1), kind, usage, status, brand, last4, fingerprint_id, cvc_check,"
        "   created_at, expires_at, sealed FROM gateway.tokens WHERE token_id = $1",
        token,
    )
    await sql.execute(
        "INSERT INTO gateway.deks SELECT 'utilities', record_id, generation, wrapped, first_generation"
        " FROM gateway.deks WHERE record_id = $1",
        token,
    )
    await refused(utilities, token)
    report = system.command("keys", "verify", "--json", code=1)
    assert not report
    await sql.execute("DELETE FROM gateway.deks WHERE department_id = 'utilities' AND record_id = $1", token)
    await sql.execute(
        "UPDATE gateway.tokens SET status = 'erased', sealed = NULL, brand = NULL, last4 = NULL,"
        " fingerprint_id = NULL WHERE department_id = 'utilities' AND token_id = $1",
        token,
    )


async def test_keys_verify_adds_up_and_finds_swapped_wraps(
    system: System, parks: Client, sql: asyncpg.Connection
) -> None:
    """`keys verify` opens every data key in its place, counts what it saw, and names swapped wraps by failing."""
    import json

    one, two = [await tokenized(parks, canary(n)) for n in (4, 5)]
    report = json.loads(system.command("keys", "verify", "--json"))
    status = json.loads(system.command("keys", "status", "--json"))
    assert report["failed"] == 0
    assert report["opened"] == report["records"] == sum(row["records"] for row in status["generations"])
    assert status["active"] == 1

    swap = (
        "UPDATE gateway.deks SET wrapped = CASE record_id WHEN $1 THEN (SELECT wrapped FROM gateway.deks"
        " WHERE record_id = $2) ELSE (SELECT wrapped FROM gateway.deks WHERE record_id = $1) END"
        " WHERE record_id IN ($1, $2)"
    )
    await sql.execute(swap, one, two)
    system.command("keys", "verify", code=1)
    await sql.execute(swap, one, two)
    lost = await sql.fetchrow("DELETE FROM gateway.deks WHERE record_id = $1 RETURNING *", one)
    system.command("keys", "verify", code=1)
    assert lost is not None
    await sql.execute("INSERT INTO gateway.deks VALUES ($1, $2, $3, $4, $5)", *lost)
    system.command("keys", "verify")


@pytest.mark.parametrize("process", [name for name in PROCESSES if name != "owner"])
async def test_no_role_can_change_the_audit_log(system: System, process: str) -> None:
    """No process may update, delete or truncate audit rows; none is read by those that only write.

    `admin` shows staff those of the departments that it names, and none without a name.
    """
    connection = await connect_as(system, process)
    try:
        for statement in (
            "UPDATE audit.events SET outcome = 'done'",
            "DELETE FROM audit.events",
            "TRUNCATE audit.events",
            "ALTER TABLE audit.events DISABLE ROW LEVEL SECURITY",
        ):
            with pytest.raises(DENIED):
                await connection.execute(statement)
        if process == "admin":
            assert await connection.fetch("SELECT * FROM audit.events") == []
            return
        with pytest.raises(DENIED):
            await connection.execute("SELECT * FROM audit.events")
    finally:
        await connection.close()


@pytest.mark.parametrize("process", PROCESSES)
async def test_no_role_is_more_than_it_must_be(system: System, process: str) -> None:
    """No role that has a password is superuser, bypasses row security, makes roles, or reads the server's files."""
    connection = await connect_as(system, process)
    try:
        about = await connection.fetchrow(
            "SELECT rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication FROM pg_roles"
            " WHERE rolname = current_user"
        )
        assert about is not None
        assert not any(about)
        for path in (system.home / "root" / "root.key", system.home / "keystore" / "manifest", "/etc/passwd"):
            with pytest.raises(DENIED):
                await connection.fetchval("SELECT pg_read_file($1)", str(path))
        with pytest.raises(DENIED):
            await connection.execute("COPY gateway.departments FROM PROGRAM 'true'")
        with pytest.raises(DENIED):
            await connection.execute("SET ROLE postgres")
    finally:
        await connection.close()


async def test_departments_are_walled_off_without_any_predicate(system: System, parks: Client) -> None:
    """The api role sees the department that its transaction named, and nothing before it named one."""
    await charged(parks, await tokenized(parks))
    connection = await connect_as(system, "api")
    try:
        tables = ("tokens", "deks", "charges", "fingerprints", "idempotency", "services")
        for table in tables:
            assert await connection.fetchval(f"SELECT count(*) FROM gateway.{table}") == 0
        for mine, other in itertools.permutations(("parks", "utilities")):
            async with connection.transaction():
                await connection.execute(f"SET LOCAL gateway.department = '{mine}'")
                for table in tables:
                    departments = await connection.fetch(f"SELECT DISTINCT department_id FROM gateway.{table}")
                    assert {row["department_id"] for row in departments} <= {mine}
                with pytest.raises(DENIED):
                    await connection.execute("INSERT INTO gateway.deks SELECT $1, 'tok_x', 1, '\\x00', 1", other)
    finally:
        await connection.close()


async def test_keys_role_reads_no_sealed_byte(system: System, parks: Client) -> None:
    """The role of `keys` works on wraps and counts records; what they hold it cannot read."""
    await tokenized(parks)
    connection = await connect_as(system, "keys")
    try:
        assert await connection.fetchval("SELECT count(token_id) FROM gateway.tokens WHERE has_record") > 0
        for column in ("sealed", "last4", "fingerprint_id"):
            with pytest.raises(DENIED):
                await connection.fetch(f"SELECT {column} FROM gateway.tokens")
        for statement in (
            "SELECT sealed FROM gateway.charges",
            "SELECT * FROM gateway.idempotency",
            "SELECT * FROM gateway.api_keys",
            "DELETE FROM gateway.deks",
        ):
            with pytest.raises(DENIED):
                await connection.execute(statement)
    finally:
        await connection.close()


ADMIN_MAY_NOT = (
    "SELECT sealed FROM gateway.tokens",
    "SELECT fingerprint_id FROM gateway.tokens",
    "SELECT sealed FROM gateway.charges",
    "SELECT certificate_san FROM gateway.applications",
    "SELECT 1 FROM gateway.deks",
    "SELECT 1 FROM gateway.fingerprints",
    "SELECT 1 FROM gateway.idempotency",
    "SELECT 1 FROM gateway.api_keys",
    "UPDATE gateway.settlement_lines SET net_minor = 0",
    "DELETE FROM gateway.imports",
    "UPDATE gateway.exceptions SET difference_minor = 0",
    "DELETE FROM gateway.exception_acts",
    "DELETE FROM gateway.close_acts",
    "UPDATE gateway.postings SET amount_minor = 1",
    "UPDATE gateway.gl_codes SET gl_code = 'x'",
    "INSERT INTO gateway.fee_costs (department_id) VALUES ('parks')",
    "INSERT INTO gateway.staff (staff_id) VALUES ('staff_x')",
    "UPDATE gateway.staff SET roles = '{approver}'",
    "UPDATE gateway.staff SET departments = '{*}'",
    "UPDATE gateway.staff SET disabled_at = NULL",
    "UPDATE gateway.staff SET oidc_subject = 'x'",
    "DELETE FROM gateway.staff",
    "UPDATE gateway.staff_sessions SET staff_id = 'staff_x'",
    "UPDATE gateway.staff_sessions SET created_at = now()",
    "UPDATE gateway.sign_in_tries SET name_digest = NULL",
    "UPDATE gateway.refund_approvals SET verdict = 'approved'",
    "DELETE FROM gateway.refund_approvals",
    "INSERT INTO gateway.refund_approvals VALUES ('utilities', 're_x', 'approved', 'staff_x', now())",
    "INSERT INTO gateway.movements (department_id) VALUES ('parks')",
    "UPDATE gateway.movements SET progress = 'sending'",
    "UPDATE gateway.charges SET progress = 'done'",
    "INSERT INTO gateway.journal (department_id) VALUES ('parks')",
    "INSERT INTO gateway.personal_fields VALUES ('parks', '*', 'x', now())",
    "UPDATE gateway.applications SET refund_minor_max = NULL",
)


async def test_admin_role_reads_the_ledger_and_decides_and_nothing_else(
    system: System, parks: Client, utilities: Client
) -> None:
    """The role of `admin` sees no sealed byte and only departments that it names; grants are not its to give."""
    for client in (parks, utilities):
        await charged(client, await tokenized(client))
    connection = await connect_as(system, "admin")
    try:
        for table in ("movements", "charges", "journal", "tokens", "services"):
            seen = f"SELECT DISTINCT department_id FROM gateway.{table}"
            await connection.execute("SET gateway.departments = ''")
            assert await connection.fetch(seen) == []
            await connection.execute("SET gateway.departments = 'parks'")
            assert [row[0] for row in await connection.fetch(seen)] == ["parks"]
        await connection.execute("SET gateway.department = 'parks'")
        for statement in ADMIN_MAY_NOT:
            with pytest.raises(DENIED):
                await connection.execute(statement)
    finally:
        await connection.close()


API_MAY_NOT = (
    "SELECT 1 FROM gateway.staff",
    "SELECT 1 FROM gateway.staff_sessions",
    "SELECT 1 FROM gateway.sign_in_tries",
    "INSERT INTO gateway.refund_approvals VALUES ('parks', 're_x', 'approved', 'staff_x', now())",
    "INSERT INTO gateway.applications (department_id) VALUES ('parks')",
    "UPDATE gateway.applications SET amount_minor_max = 1",
    "UPDATE gateway.applications SET revoked_at = NULL",
    "INSERT INTO gateway.api_keys (department_id) VALUES ('parks')",
    "UPDATE gateway.api_keys SET expires_at = NULL",
    "UPDATE gateway.api_keys SET revoked_at = NULL",
    "UPDATE gateway.departments SET disabled_at = NULL",
    "INSERT INTO gateway.personal_fields VALUES ('parks', '*', 'x', now())",
    "DELETE FROM gateway.denied_certificates",
)


async def test_api_role_grants_nothing(system: System) -> None:
    """The role of `api` reads who may call and what, and changes none of it; of staff it knows nothing."""
    connection = await connect_as(system, "api")
    try:
        await connection.execute("SET gateway.department = 'parks'")
        for statement in API_MAY_NOT:
            with pytest.raises(DENIED):
                await connection.execute(statement)
    finally:
        await connection.close()


WORKER_MAY_NOT = (
    "SELECT sealed FROM gateway.tokens",
    "SELECT sealed FROM gateway.charges",
    "SELECT last4 FROM gateway.tokens",
    "SELECT card_part FROM gateway.idempotency",
    "SELECT 1 FROM gateway.deks",
    "SELECT 1 FROM gateway.fingerprints",
    "SELECT 1 FROM gateway.api_keys",
    "SELECT 1 FROM audit.events",
    "INSERT INTO gateway.movements (department_id) VALUES ('parks')",
    "INSERT INTO gateway.charges (department_id) VALUES ('parks')",
    "DELETE FROM gateway.movements",
    "UPDATE gateway.movements SET amount_minor = 1",
    "UPDATE gateway.movements SET reference = 'pr_x'",
    "UPDATE gateway.charges SET amount_minor = 1",
    "UPDATE gateway.journal SET amount_minor = 1",
    "DELETE FROM gateway.journal",
    "UPDATE gateway.idempotency SET request_digest = ''",
)


async def test_worker_role_moves_what_is_unresolved_and_nothing_else(system: System, parks: Client) -> None:
    """The worker's role sees no sealed byte, card or key, one department at a time, and nothing final moves."""
    await charged(parks, await tokenized(parks))
    connection = await connect_as(system, "worker")
    try:
        assert await connection.fetchval("SELECT count(*) FROM gateway.movements") == 0
        await connection.execute("SET gateway.department = 'parks'")
        assert await connection.fetchval("SELECT count(*) FROM gateway.movements WHERE progress = 'done'") > 0
        for statement in WORKER_MAY_NOT:
            with pytest.raises(DENIED):
                await connection.execute(statement)
        final = "UPDATE gateway.movements SET progress = 'sending', decline_code = NULL WHERE progress = 'done'"
        assert await connection.execute(final) == "UPDATE 0"
    finally:
        await connection.close()


async def test_the_journal_only_grows(system: System, parks: Client, sql: asyncpg.Connection) -> None:
    """No process may change or remove an entry, and an entry of an account to itself is none."""
    await charged(parks, await tokenized(parks))
    for process in ("api", "worker", "admin", "reseal", "keys"):
        connection = await connect_as(system, process)
        try:
            for statement in ("UPDATE gateway.journal SET amount_minor = 1", "DELETE FROM gateway.journal"):
                with pytest.raises(DENIED):
                    await connection.execute(statement)
        finally:
            await connection.close()
    with pytest.raises(asyncpg.CheckViolationError):
        await sql.execute("UPDATE gateway.journal SET credit = debit")


RESEAL_MAY_NOT_READ = {
    "tokens": ("application_id", "status", "brand", "last4", "expires_at", "has_record"),
    "charges": ("amount_minor", "reference", "progress", "processor_reference", "captured_minor"),
    "idempotency": ("request_digest", "status", "body", "created_at"),
    "applications": ("name",),
    "api_keys": ("digest",),
    "services": ("name",),
}
RESEAL_MAY_NOT_DO = (
    "INSERT INTO gateway.tokens (department_id, token_id) VALUES ('parks', 'tok_x')",
    "INSERT INTO gateway.deks VALUES ('parks', 'tok_x', 1, '', 1)",
    "INSERT INTO gateway.charges (department_id, charge_id) VALUES ('parks', 'ch_x')",
    "INSERT INTO gateway.idempotency (department_id, route) VALUES ('parks', 'x')",
    "DELETE FROM gateway.tokens",
    "DELETE FROM gateway.charges",
    "DELETE FROM gateway.deks",
    "DELETE FROM gateway.idempotency",
    "UPDATE gateway.tokens SET status = 'active'",
    "UPDATE gateway.tokens SET fingerprint_id = 'fp_x'",
    "UPDATE gateway.charges SET progress = 'done'",
    "UPDATE gateway.charges SET amount_minor = 1",
    "UPDATE gateway.deks SET record_id = 'tok_x'",
    "UPDATE gateway.fingerprints SET fingerprint_id = 'fp_x'",
    "UPDATE gateway.idempotency SET body = ''",
    "UPDATE gateway.idempotency SET subject_id = 'tok_x'",
    "UPDATE gateway.key_generations SET state = 'active'",
    "UPDATE gateway.fingerprint_versions SET state = 'active'",
    "UPDATE gateway.key_manifest SET version = 1",
    "TRUNCATE gateway.deks",
)


async def test_reseal_role_does_its_work_and_nothing_else(system: System, parks: Client) -> None:
    """The role of `reseal` sees sealed bytes of one department at a time, and no amount, answer or application."""
    await charged(parks, await tokenized(parks))
    connection = await connect_as(system, "reseal")
    try:
        for table in ("tokens", "deks", "fingerprints"):
            assert await connection.fetchval(f"SELECT count(department_id) FROM gateway.{table}") == 0
        await connection.execute("SET gateway.department = 'parks'")
        assert await connection.fetchval("SELECT count(sealed) FROM gateway.tokens") > 0
        for table, columns in RESEAL_MAY_NOT_READ.items():
            for column in columns:
                with pytest.raises(DENIED):
                    await connection.fetch(f"SELECT {column} FROM gateway.{table}")
        for statement in RESEAL_MAY_NOT_DO:
            with pytest.raises(DENIED):
                await connection.execute(statement)
        for table in ("tokens", "deks", "fingerprints"):
            departments = await connection.fetch(f"SELECT DISTINCT department_id FROM gateway.{table}")
            assert {row["department_id"] for row in departments} == {"parks"}
        with pytest.raises(DENIED):
            await connection.execute(
                "INSERT INTO gateway.fingerprints VALUES ('utilities', 1, $1, 'fp', now())", bytes(32)
            )
    finally:
        await connection.close()


async def test_every_effect_has_its_audit_row(system: System, parks: Client, sql: asyncpg.Connection) -> None:
    """Token, charge, erasure and refusals each leave a row whose MAC is that of the process that wrote it."""
    token = await tokenized(parks)
    charge = await charged(parks, token)
    assert (await parks.call("POST", "/v1/tokens", token_body() | {"card": {}})).status == 400
    assert (await parks.call("GET", "/v1/charges", api_key="wrong")).status == 401
    assert (await parks.call("GET", "/v1/tokens/tok_none")).status == 404
    assert (await parks.call("DELETE", f"/v1/tokens/{token}")).status == 200
    rows = await sql.fetch("SELECT * FROM audit.events ORDER BY occurred_at")
    seen = {(row["event"], row["subject"]) for row in rows}
    for event, subject in (
        ("token.created", token),
        ("card.opened", charge["id"]),
        ("charge.captured", charge["id"]),
        ("token.erased", token),
        ("identity.refused", ""),
        ("id.refused", ""),
        ("keys.initialise", "manifest-1"),
    ):
        assert (event, subject) in seen

    pens = {
        process: AuditPen(process, read_process_keys(system.home / "secrets", process, "audit-mac"))
        for process in ("api", "admin", "keys", "owner", "worker")
    }
    for row in rows:
        told = AuditEvent(
            row["department_id"],
            row["event"],
            Outcome(row["outcome"]),
            row["actor"],
            row["subject"],
            row["reason"],
            row["request_id"],
        )
        written = AuditRow(row["event_id"], row["occurred_at"], row["process"], told, row["mac_key"], row["mac"])
        pens[row["process"]].verify(written)
        other = pens["keys" if row["process"] == "api" else "api"]
        with pytest.raises(BrokenSeal):
            other.verify(written)


async def test_no_audit_row_no_effect(system: System, parks: Client, sql: asyncpg.Connection) -> None:
    """While audit rows cannot be written, no token is made, no card opened, no charge sent; and nothing is left."""
    token = await tokenized(parks)
    counted = "SELECT (SELECT count(*) FROM gateway.tokens) + (SELECT count(*) FROM gateway.charges)"
    before = await sql.fetchval(counted)
    await sql.execute("REVOKE INSERT ON audit.events FROM gateway_api")
    try:
        made = await parks.call("POST", "/v1/tokens", token_body())
        charge = await parks.call("POST", "/v1/charges", charge_body(token=token), key=new_key())
        erased = await parks.call("DELETE", f"/v1/tokens/{token}")
    finally:
        await sql.execute("GRANT INSERT ON audit.events TO gateway_api")
    assert [reply.status for reply in (made, charge, erased)] == [503, 503, 503]
    assert await sql.fetchval(counted) == before
    assert (await charged(parks, token))["status"] == "succeeded"


async def test_outcome_that_cannot_be_stored_is_pending(
    system: System, parks: Client, sql: asyncpg.Connection
) -> None:
    """When the processor has captured and the outcome cannot be written, the answer is 202, and later the truth."""
    token, key = await tokenized(parks), new_key()
    await sql.execute("REVOKE UPDATE ON gateway.charges FROM gateway_api")
    try:
        unclear = await parks.call("POST", "/v1/charges", charge_body(token=token), key=key)
    finally:
        await sql.execute(
            "GRANT UPDATE (kind, progress, captured_minor, refunded_minor, refunding_minor, cvc_check, decline_class,"
            " decline_code) ON gateway.charges TO gateway_api"
        )
    assert (unclear.status, unclear.json["status"]) == (202, "pending")
    assert (await parks.finally_("/v1/charges", charge_body(token=token), key)).status == 201


async def test_expired_token_is_unusable(system: System, parks: Client, sql: asyncpg.Connection) -> None:
    """A token past its date is not charged."""
    token = await tokenized(parks)
    await sql.execute("UPDATE gateway.tokens SET expires_at = now() WHERE token_id = $1", token)
    reply = await parks.call("POST", "/v1/charges", charge_body(token=token), key=new_key())
    assert (reply.status, reply.problem) == (422, "token-unusable")


async def test_charge_details_are_sealed_and_erasure_reaches_card_parts(
    system: System, parks: Client, sql: asyncpg.Connection
) -> None:
    """A charge's details lie sealed under their own key; erasing its token clears what was derived of the card."""
    body = charge_body(name="Ada Resident", card={"number": canary(88), "exp_month": 1, "exp_year": 2032})
    charge = (await parks.call("POST", "/v1/charges", body | {"details": {"gate": "north"}}, key=new_key())).json
    held = (
        "SELECT (SELECT has_record FROM gateway.charges WHERE charge_id = $1)"
        " AND EXISTS (SELECT FROM gateway.deks WHERE record_id = $1)"
    )
    assert await sql.fetchval(held, charge["id"]) is True
    part = "SELECT card_part FROM gateway.idempotency WHERE subject_id = $1"
    assert await sql.fetchval(part, charge["id"]) is not None
    assert (await parks.call("DELETE", f"/v1/tokens/{charge['token']}")).status == 200
    assert await sql.fetchval(part, charge["id"]) is None


async def test_verification_is_audited_first(system: System, parks: Client, sql: asyncpg.Connection) -> None:
    """That a card came with its code is written down before the processor is asked, and so is the refusal."""
    card = {"number": TRIGGERS[2], "exp_month": 1, "exp_year": 2032, "cvc": "123"}
    counted = "SELECT count(*) FROM audit.events WHERE event = $1"
    before = [await sql.fetchval(counted, event) for event in ("card.received", "verification.declined")]
    assert (await parks.call("POST", "/v1/tokens", token_body() | {"card": card})).status == 402
    after = [await sql.fetchval(counted, event) for event in ("card.received", "verification.declined")]
    assert after == [count + 1 for count in before]


async def test_money_and_states_are_constrained(system: System, parks: Client, sql: asyncpg.Connection) -> None:
    """Not even the schema's owner can store a negative amount, an unknown state or more captured than charged."""
    charge = await charged(parks, await tokenized(parks))
    for change in (
        "amount_minor = -1",
        "progress = 'paid'",
        "captured_minor = amount_minor + 1",
        "refunded_minor = 999999",
    ):
        with pytest.raises(asyncpg.CheckViolationError):
            await sql.execute(f"UPDATE gateway.charges SET {change} WHERE charge_id = $1", charge["id"])


async def test_processes_show_no_secret(system: System) -> None:
    """No secret stands in a process's arguments or environment; the api process is closed to others of its user."""
    parts = system.parts()
    held = [path.read_bytes() for path in (system.home / "secrets").rglob("*") if path.is_file()]
    held += [(system.home / "root" / "passphrase").read_bytes(), system.demo["processor_key"].encode()]
    for name, pid in parts.items():
        shown = Path(f"/proc/{pid}/cmdline").read_bytes()
        if name == "api" and os.geteuid() != 0:
            with pytest.raises(PermissionError):
                Path(f"/proc/{pid}/environ").read_bytes()
        else:
            shown += Path(f"/proc/{pid}/environ").read_bytes()
        assert not [secret for secret in held if secret in shown or secret.hex().encode() in shown]
    limits = Path(f"/proc/{parts['api']}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)


async def test_secrets_are_open_to_their_owner_alone(system: System) -> None:
    """Every file of the demo but those that PostgreSQL must reach is closed to others; the key store is whole."""
    for path in system.home.rglob("*"):
        mode = path.lstat().st_mode & 0o777
        if path.is_file() and not path.is_relative_to(system.home / "postgres"):
            assert mode & 0o077 == 0, path
    for name in ("keystore", "secrets", "root", "tls", "log", "stub"):
        assert (system.home / name).stat().st_mode & 0o077 == 0


async def test_database_alone_gives_no_card(system: System, parks: Client, sql: asyncpg.Connection) -> None:
    """With every row and every password of the database, a card whose first six and last four are known is not found.

    Whoever has them tries each of the numbers that fit, hashed in every usual way, with every value of the
    database for a key: nothing that is stored matches, while the true number is among those tried.
    """
    number = canary(777)
    key = new_key()
    body = charge_body(name="Ada Resident", card={"number": number, "exp_month": 12, "exp_year": 2031})
    assert (await parks.call("POST", "/v1/charges", body, key=key)).status == 201
    stored = {row[0] for row in await sql.fetch("SELECT card_index FROM gateway.fingerprints")}
    stored |= {
        row[0] for row in await sql.fetch("SELECT card_part FROM gateway.idempotency WHERE card_part IS NOT NULL")
    }
    stored |= {row[0] for row in await sql.fetch("SELECT request_digest FROM gateway.idempotency")}
    assert len(stored) > 2
    keys = {row[0] for row in await sql.fetch("SELECT wrapped FROM gateway.deks LIMIT 20")}
    keys |= {row[0] for row in await sql.fetch("SELECT digest FROM gateway.api_keys")} | {b"", b"parks", b"demo"}
    keys |= {(system.home / "secrets" / name / "database.password").read_bytes() for name in PROCESSES}

    middle = int(number[6:12])
    candidates = [f"{number[:6]}{guess % 10**6:06d}{number[12:]}" for guess in range(middle - 200, middle + 200)]
    assert number in candidates
    guessed = {
        hashlib.new(algorithm, text.encode()).digest()[:32]
        for text in candidates
        for algorithm in ("sha256", "sha512", "sha3_256", "blake2s")
    }
    guessed |= {hmac.digest(guess, text.encode(), "sha256") for text in candidates for guess in keys}
    assert not stored & guessed

    # The same search finds a number that was stored as a careless program would.
    careless = hmac.digest(b"parks", number.encode(), "sha256")
    assert {careless} & guessed
