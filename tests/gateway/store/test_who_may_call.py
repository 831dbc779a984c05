"""Applications over HTTP, as they stand in the database: what each may do, and what a refusal leaves behind: nothing.

Numbers are those of the security battery: authentication, authorization and enumeration, items 39, 40, 47, 48, 51.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from gateway.rules.access import NewApiKey, Scope, new_api_key
from gateway.rules.ids import new_id
from gateway.services.callers import FRESH_S, NOTE_EVERY_S, Callers
from gateway.web.api import ROUTES, Public
from keys.primitives import new_key
from tests.cards import CANARY, canary
from tests.gateway.store.door import Door, opened
from tests.gateway.store.quarter import Quarter
from tests.system import Reply

pytestmark = pytest.mark.server

DIGEST_KEYS = {1: new_key()}
CARD = {"number": canary(72_001), "exp_month": 12, "exp_year": 2031}
TOKEN = {"name": "Ramona Testholder", "card": CARD, "usage": "multi"}
CHARGE = {"amount": 4_321, "currency": "USD", "reference": "R-1", "name": "Ramona Testholder", "card": CARD}
TABLES = ("tokens", "charges", "movements", "journal", "idempotency", "deks", "fingerprints")
GUARDED = [route for route in ROUTES if isinstance(route.permission, Scope)]
NOBODY = f"gwk_{'a' * 26}_{'A' * 43}"


@dataclass
class Desk:
    """A department, its API, and applications as a test wants them."""

    city: Quarter
    door: Door
    callers: Callers

    async def application(self, *, expires_in_s: float | None = None, **columns: Any) -> NewApiKey:
        """A new application with a key; columns that are not named grant everything."""
        own, key, application_id = self.city.department, new_api_key(DIGEST_KEYS), new_id("app")
        row = {"name": "x", "amount_minor_max": 1_000_000, "scopes": list(Scope), "requests_per_s_max": 10_000}
        row |= {"department_id": own, "application_id": application_id} | columns
        places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
        told = f"INSERT INTO gateway.applications ({', '.join(row)}, created_at) VALUES ({places}, now())"
        await self.city.owner.execute(told, *row.values())
        await self.city.owner.execute(
            "INSERT INTO gateway.api_keys (department_id, key_id, application_id, digest_key, digest, created_at,"
            " expires_at) VALUES ($1, $2, $3, $4, $5, now(), now() + $6)",
            *(own, key.key_id, application_id, key.digest_key, key.digest),
            None if expires_in_s is None else timedelta(seconds=expires_in_s),
        )
        self.later(FRESH_S)
        return key

    def later(self, seconds: float) -> None:
        """Let time pass for the process."""
        self.city.clock.ahead_s += seconds

    async def call(
        self, caller: NewApiKey | str, method: str, path: str, body: Any = None, key: str | None = None
    ) -> Reply:
        """One request."""
        bearer = caller if isinstance(caller, str) else caller.secret.reveal()
        return await self.door.call(method, path, body, key, department=bearer)

    async def rows(self) -> dict[str, list[str]]:
        """Everything of the department that is stored."""
        return {
            table: [
                row["row"]
                for row in await self.city.owner.fetch(
                    f"SELECT t::text AS row FROM gateway.{table} t WHERE department_id = $1 ORDER BY 1",
                    self.city.department,
                )
            ]
            for table in TABLES
        }


@pytest.fixture
async def desk(quarter: Quarter) -> AsyncIterator[Desk]:
    """A department that may send an e-mail address and a postal code, and has two services."""
    own, owner = quarter.department, quarter.owner
    for field, reason in (("email", "receipts are sent there"), ("address.zip", "the issuer compares it")):
        await owner.execute("INSERT INTO gateway.personal_fields VALUES ($1, $2, $3, now())", own, field, reason)
    for service in ("pool", "camp"):
        await owner.execute("INSERT INTO gateway.services VALUES ($1, $2, $2, '1', now())", own, service)
    page = quarter.page()
    await page.keyring.look()
    callers = Callers(quarter.store(quarter.api), DIGEST_KEYS, quarter.clock)
    async with opened(quarter, page, callers.identify) as door:
        yield Desk(quarter, door, callers)


def _filled(path: str) -> str:
    return path.replace("{id}", "ch_" + "a" * 26)


async def test_what_is_granted_is_read_from_the_database(desk: Desk) -> None:
    """Scopes, services, limits, the end of the key and the department's contract, each in its place."""
    key = await desk.application(
        scopes=["tokens:read", "charges:refund"],
        services=["pool"],
        refund_minor_max=5_000,
        requests_per_s_max=7,
        amount_minor_max=9_999,
        certificate_san="urn:city:x",
        expires_in_s=3_600,
    )
    plain = await desk.application()
    found = await desk.city.store(desk.city.api).credentials()
    application = found[key.key_id].application

    assert application.department == desk.city.department
    assert application.scopes == {Scope.TOKENS_READ, Scope.CHARGES_REFUND}
    assert application.services == frozenset({"pool"})
    assert (application.refund_minor_max, application.requests_per_s_max) == (5_000, 7)
    assert (application.amount_minor_max, application.certificate_san) == (9_999, "urn:city:x")
    assert application.personal_fields == {
        "email": "receipts are sent there",
        "address.zip": "the issuer compares it",
    }
    assert found[key.key_id].expires_at is not None
    other = found[plain.key_id]
    assert (other.expires_at, other.application.services, other.application.refund_minor_max) == (None, None, None)


async def test_without_a_contract_nothing_personal_is_taken(desk: Desk) -> None:
    """A department whose contract nobody wrote sends name and card, and no details."""
    await desk.city.owner.execute(
        "DELETE FROM gateway.personal_fields WHERE department_id = $1", desk.city.department
    )
    caller = await desk.application()
    refused = await desk.call(caller, "POST", "/v1/tokens", TOKEN | {"details": {"email": "a@example.com"}})

    assert (refused.status, refused.problem) == (422, "field-not-taken")
    assert (await desk.call(caller, "POST", "/v1/tokens", TOKEN)).status == 201


@pytest.mark.parametrize("how", ["expired", "key revoked", "application revoked", "department disabled"])
async def test_who_ended_is_nobody(desk: Desk, how: str) -> None:
    """39, 51: within two seconds; the answer has the bytes that an unknown key gets. Two keys live side by side."""
    ended, other = await desk.application(expires_in_s=3_600), await desk.application()
    assert (await desk.call(ended, "GET", "/v1/charges")).status == 200
    statement = {
        "expired": "UPDATE gateway.api_keys SET expires_at = now() WHERE key_id = $1",
        "key revoked": "UPDATE gateway.api_keys SET revoked_at = now() WHERE key_id = $1",
        "application revoked": "UPDATE gateway.applications a SET revoked_at = now() FROM gateway.api_keys k"
        " WHERE k.key_id = $1 AND k.application_id = a.application_id",
        "department disabled": "UPDATE gateway.departments d SET disabled_at = now() FROM gateway.api_keys k"
        " WHERE k.key_id = $1 AND k.department_id = d.department_id",
    }[how]
    await desk.city.owner.execute(statement, ended.key_id)
    desk.later(FRESH_S)
    refused, unknown = [await desk.call(caller, "GET", "/v1/charges") for caller in (ended, NOBODY)]

    assert (refused.status, refused.problem) == (401, "not-identified")
    assert refused.body == unknown.body
    served = await desk.call(other, "GET", "/v1/charges")
    assert served.status == (401 if how == "department disabled" else 200)


@pytest.mark.parametrize("granted", Scope)
async def test_a_scope_opens_its_routes_and_no_others(desk: Desk, granted: Scope) -> None:
    """47: every guarded route with every single scope: 403 unless it is the route's own, audited, nothing changed."""
    caller, before = await desk.application(scopes=[granted]), await desk.rows()
    denied = []
    for route in GUARDED:
        reply = await desk.call(caller, route.method, _filled(route.path), b"{}" if route.body else None, "k")
        if route.permission is granted:
            assert reply.status in {200, 400, 404}, route.path
        else:
            assert (reply.status, reply.problem) == (403, "not-permitted"), route.path
            denied.append(str(route.permission))
    rows = await desk.city.events("permission.refused", "api")

    assert await desk.rows() == before
    assert sorted(row["reason"] for row in rows) == sorted(denied)
    assert {(row["outcome"], row["subject"]) for row in rows} == {("refused", "")}


async def test_an_application_without_any_scope_may_do_nothing(desk: Desk) -> None:
    """47: it is known, and that is all."""
    caller = await desk.application(scopes=[])
    replies = [await desk.call(caller, route.method, _filled(route.path)) for route in GUARDED]

    assert {(reply.status, reply.problem) for reply in replies} == {(403, "not-permitted")}


async def test_a_query_that_a_route_does_not_know_is_refused(desk: Desk) -> None:
    """40: an API key in a query string is 400 on every guarded route, with a good key in its place or without any."""
    caller = await desk.application()
    secret = caller.secret.reveal()
    for route in GUARDED:
        for query in (f"?api_key={secret}", f"?{secret}", f"?reference=x&access_token={secret}"):
            for bearer in (caller, NOBODY):
                reply = await desk.call(bearer, route.method, _filled(route.path) + query)
                assert (reply.status, reply.problem) == (400, "invalid-request"), route.path
                assert secret.encode() not in reply.body
    for route in ROUTES:
        if isinstance(route.permission, Public):
            assert (await desk.call(NOBODY, route.method, route.path + "?probe=1")).status == 200
    assert (await desk.call(caller, "GET", "/v1/charges?limit=1&reference=x")).status == 200


@pytest.mark.parametrize("field", ["department_id", "department", "application_id", "scopes", "requests_per_s_max"])
async def test_nobody_says_who_they_are_in_a_body(desk: Desk, field: str) -> None:
    """48: a field of an application in a request is an unknown field."""
    caller = await desk.application()
    for path, body in (("/v1/tokens", TOKEN), ("/v1/charges", CHARGE)):
        reply = await desk.call(caller, "POST", path, body | {field: "utilities"}, "k")
        assert (reply.status, reply.problem) == (400, "invalid-request")


@pytest.mark.parametrize(("path", "body"), [("/v1/tokens", TOKEN), ("/v1/charges", CHARGE)])
async def test_a_field_outside_the_contract_is_stored_nowhere(desk: Desk, path: str, body: dict[str, Any]) -> None:
    """The refusal says which and why; nothing stands under the key, which serves for the corrected request."""
    caller, before, key = await desk.application(), await desk.rows(), new_id("key")
    details = {"email": "a@example.com", "phone": "555 0100", "address": {"zip": "94110", "street": "12 Main St"}}
    refused = await desk.call(caller, "POST", path, body | {"details": details}, key)

    assert (refused.status, refused.problem) == (422, "field-not-taken")
    assert refused.json["detail"] == (
        f"{desk.city.department} takes address.zip (the issuer compares it), email (receipts are sent there),"
        " and nothing else of a person beside name and card."
    )
    assert refused.json["errors"] == [{"pointer": "#/details/phone"}, {"pointer": "#/details/address/street"}]
    assert b"555 0100" not in refused.body
    assert b"Main St" not in refused.body
    assert await desk.rows() == before
    taken = {"email": "a@example.com", "address": [{"zip": "94110"}]}
    assert (await desk.call(caller, "POST", path, body | {"details": taken}, key)).status == 201


async def test_a_card_number_is_found_before_a_field_is_refused(desk: Desk) -> None:
    """In a field that is not taken, or as its name: 422 for the number, which is not repeated."""
    caller = await desk.application()
    for details in ({"phone": CANARY}, {CANARY: "x"}, {"phone": {CANARY: "x"}}):
        for path, body in (("/v1/tokens", TOKEN), ("/v1/charges", CHARGE)):
            reply = await desk.call(caller, "POST", path, body | {"details": details}, new_id("key"))
            assert (reply.status, reply.problem) == (422, "card-number-in-text")
            assert CANARY.encode() not in reply.body


async def test_a_narrowed_contract_does_not_unsay_what_was_done(desk: Desk) -> None:
    """Under a key that was used before, the answer of then, whatever the contract says now."""
    caller, key = await desk.application(), new_id("key")
    body = CHARGE | {"details": {"email": "a@example.com"}, "service": "pool"}
    first = await desk.call(caller, "POST", "/v1/charges", body, key)
    own, owner = desk.city.department, desk.city.owner
    await owner.execute("DELETE FROM gateway.personal_fields WHERE department_id = $1 AND field = 'email'", own)
    await owner.execute("UPDATE gateway.applications SET services = '{}' WHERE department_id = $1", own)
    desk.later(FRESH_S)
    again = await desk.call(caller, "POST", "/v1/charges", body, key)

    assert (first.status, again.status, again.body) == (201, 201, first.body)
    assert (await desk.call(caller, "POST", "/v1/charges", body, new_id("key"))).problem == "field-not-taken"


async def test_an_application_charges_for_its_own_services(desk: Desk) -> None:
    """Another service of the department, or none, is 422 like one that is not registered; the key stays free."""
    caller, before, key = await desk.application(services=["pool"]), await desk.rows(), new_id("key")
    for service in ({"service": "camp"}, {"service": "nowhere"}, {}):
        refused = await desk.call(caller, "POST", "/v1/charges", CHARGE | service, key)
        assert (refused.status, refused.problem) == (422, "service-unknown")
        assert refused.json["errors"] == [{"pointer": "#/service"}]
    assert await desk.rows() == before
    assert (await desk.call(caller, "POST", "/v1/charges", CHARGE | {"service": "pool"}, key)).status == 201


async def test_over_the_quota_is_429(desk: Desk) -> None:
    """With a time to wait; another application is served all the while, and so is this one after it."""
    caller, other = await desk.application(requests_per_s_max=2), await desk.application()
    replies = [await desk.call(caller, "GET", "/v1/charges") for _ in range(8)]
    refused = [reply for reply in replies if reply.status == 429]

    assert replies[0].status == 200
    assert refused
    assert {reply.problem for reply in refused} == {"too-many-requests"}
    assert {reply.headers["Retry-After"] for reply in refused} == {"1"}
    assert (await desk.call(other, "GET", "/v1/charges")).status == 200
    desk.later(1)
    assert (await desk.call(caller, "GET", "/v1/charges")).status == 200


async def test_use_is_written_at_most_once_an_hour(desk: Desk) -> None:
    """The review of accounts sees which keys are used; a key's row is not written at every request."""
    used, idle = await desk.application(), await desk.application()

    async def noted() -> dict[str, Any]:
        desk.later(NOTE_EVERY_S)
        await desk.call(used, "GET", "/v1/charges")
        await desk.callers.note_use()
        rows = await desk.city.owner.fetch("SELECT key_id, last_used_at FROM gateway.api_keys")
        return {row["key_id"]: row["last_used_at"] for row in rows}

    first, second = await noted(), await noted()
    assert first[used.key_id] is not None
    assert first[idle.key_id] is None
    assert first[used.key_id] == second[used.key_id]
    hour_ago = "UPDATE gateway.api_keys SET last_used_at = last_used_at - interval '61 minutes' WHERE key_id = $1"
    await desk.city.owner.execute(hour_ago, used.key_id)
    assert (await noted())[used.key_id] >= first[used.key_id]


async def test_denied_certificates_are_read_from_the_database(desk: Desk) -> None:
    """By their fingerprints, as they are now."""
    fingerprint = bytes(range(32))
    await desk.city.owner.execute("INSERT INTO gateway.denied_certificates VALUES ($1, 'lost', now())", fingerprint)
    assert fingerprint in await desk.city.store(desk.city.api).denied_certificates()
    await desk.city.owner.execute("DELETE FROM gateway.denied_certificates WHERE fingerprint = $1", fingerprint)
    assert fingerprint not in await desk.city.store(desk.city.api).denied_certificates()


async def test_the_api_process_writes_of_a_key_its_last_use_alone(desk: Desk) -> None:
    """The role may neither prolong a key nor bring a revoked one back, nor grant a scope."""
    arguments = desk.city.postgres.arguments() | {"database": desk.city.database}
    api = await asyncpg.connect(**arguments)
    try:
        for column in ("expires_at = NULL", "revoked_at = NULL", "digest = digest"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await api.execute(f"UPDATE gateway.api_keys SET {column}")
        for statement in (
            "UPDATE gateway.applications SET scopes = '{}'",
            "DELETE FROM gateway.denied_certificates",
            "INSERT INTO gateway.personal_fields VALUES ('parks', '*', 'x', now())",
            "UPDATE gateway.departments SET disabled_at = NULL",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await api.execute(statement)
    finally:
        await api.close()
