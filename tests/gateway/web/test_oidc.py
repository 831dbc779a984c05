"""Signing in at an OpenID provider, over the wire: one that is real, and one that lies in every way that we know.

The browser is this file's own, so that it shows what each cookie says. The database is real.
"""

import json
import re
import shutil
import socket
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import asyncpg
import pytest
import structlog
from yarl import URL

from gateway.clock import SystemClock
from gateway.config import OidcSection
from gateway.embedded import EmbeddedPostgres
from gateway.errors import InvalidRequest
from gateway.rules.passwords import Cost
from gateway.rules.problems import of_status
from gateway.services.refusals import Refusals
from gateway.services.staff import StaffSessions
from gateway.services.visits import RETURNED_MAX, Visits
from gateway.store.database import Database
from gateway.store.migrate import migrate
from gateway.store.staff import StaffStore
from gateway.web import problems
from gateway.web.gate import Gate
from gateway.web.oidc import OidcPages
from gateway.web.oidc_client import CACHED_S, CALLS_S, OidcClient, open_session
from gateway.web.server import Limits, SafeServer
from keys.audit import AuditPen
from keys.errors import SettingsRefused
from keys.primitives import new_key
from keys.secret import Secret
from tests.gateway.store.postgres import Postgres, with_roles
from tests.gateway.web.provider import (
    CLIENT,
    EC,
    ED,
    FORGED,
    MISBEHAVED,
    OTHER_RSA,
    PATIENCE_S,
    REDIRECT,
    RSA,
    SECRET,
    SUBJECT,
    Provider,
    signed,
    told,
)

pytestmark = pytest.mark.server

KEYS = {1: new_key()}


class Watch(SystemClock):
    """A clock whose time a test can let pass at once."""

    ahead_s = 0.0

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=self.ahead_s)

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s


# --- the gateway ---


@dataclass
class Reply:
    """What the browser was told."""

    status: int
    headers: Any
    body: str

    @property
    def cookies(self) -> dict[str, str]:
        """Name to `value; attributes`."""
        return dict(cookie.split("=", 1) for cookie in self.headers.getall("Set-Cookie", []))

    def cookie(self, name: str) -> str:
        return self.cookies[name].partition(";")[0]


@dataclass
class Site:
    """The admin site with one provider, and a browser."""

    url: str
    sessions: StaffSessions
    clock: Watch
    browser: aiohttp.ClientSession
    client: OidcClient
    logged: list[Any] = field(default_factory=list)

    async def get(self, path: str, cookies: str = "", **query: str) -> Reply:
        headers = {"Cookie": cookies} if cookies else {}
        asked = self.browser.get(self.url + path, params=query, headers=headers, allow_redirects=False)
        async with asked as response:
            return Reply(response.status, response.headers, await response.text())

    async def begin(self, provider: Provider | None = None) -> tuple[dict[str, str], str]:
        """What the provider is asked by way of the browser, and the browser's cookie."""
        reply = await self.get("/oidc/start")
        assert reply.status == 303, reply.body
        asked = {name: values[0] for name, values in parse_qs(urlsplit(reply.headers["Location"]).query).items()}
        if provider is not None:
            provider.nonce, provider.challenge = asked["nonce"], asked["code_challenge"]
            provider.now_s = self.clock.now().timestamp()
        return asked, f"__Host-oidc={reply.cookie('__Host-oidc')}"

    async def sign_in(self, provider: Provider, **changed: str) -> Reply:
        """A whole visit, whose return is changed so."""
        asked, cookie = await self.begin(provider)
        return await self.get("/oidc/return", cookie, **{"code": provider.code, "state": asked["state"]} | changed)

    @property
    def reasons(self) -> list[str]:
        return [entry["reason"] for entry in self.logged]


@pytest.fixture(scope="module")
async def postgres() -> AsyncIterator[Postgres]:
    """A server with one account, which one subject of the provider signs in to."""
    home = Path(tempfile.mkdtemp(prefix="gateway-oidc-"))
    home.chmod(0o711)
    server = EmbeddedPostgres(home)
    try:
        postgres = await with_roles(server, await server.start())
        owner = await postgres.connect("owner")
        await migrate(owner)
        await owner.execute(
            "INSERT INTO gateway.staff (staff_id, username, person, roles, departments, password_must_change,"
            " oidc_subject, grant_act, granted_by, approved_by, created_at, granted_at)"
            " VALUES ('st_ada', 'a.lovelace', '18', '{approver}', '{parks}', false, $1, 'a', 'b', 'c', now(), now())",
            SUBJECT,
        )
        await owner.close()
        yield postgres
    finally:
        await server.stop()
        shutil.rmtree(home)


@pytest.fixture(scope="module")
async def database(postgres: Postgres) -> AsyncIterator[Database]:
    """The admin process' pool."""
    database = await Database.open(postgres.arguments("admin"), 2)
    yield database
    await database.close()


@pytest.fixture(scope="module")
def sessions(database: Database) -> StaffSessions:
    """Who is signed in."""
    pen = AuditPen("admin", {1: new_key()})
    return StaffSessions(StaffStore(database), KEYS, pen, SystemClock(), cost=Cost(1, 8))


@pytest.fixture
async def owner(postgres: Postgres) -> AsyncIterator[asyncpg.Connection]:
    """Who sees every row."""
    connection = await postgres.connect("owner")
    yield connection
    await connection.close()


@asynccontextmanager
async def serving(
    issuer: str, database: Database, sessions: StaffSessions, client_id: str = CLIENT
) -> AsyncIterator[Site]:
    """The routes on a listener of their own."""
    clock = Watch()
    section = OidcSection(issuer=issuer, client_id=client_id, redirect=REDIRECT)
    refusals = Refusals(StaffStore(database), AuditPen("admin", {1: new_key()}), clock)
    sock = socket.create_server(("127.0.0.1", 0))
    async with open_session(None) as calls, aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as browser:
        client = OidcClient(calls, section, Secret(SECRET), clock, plain_loopback=True)
        gate = Gate(sessions, refusals, lambda _, error: problems.response(error))
        server = SafeServer(
            gate.application(OidcPages(client, Visits(KEYS, clock), sessions, refusals)),
            sock,
            tls=None,
            limits=Limits(shutdown_s=0.2, linger_s=0.1),
            refusal=of_status,
            observe=lambda *_: None,
            log=structlog.get_logger(),
        )
        await server.start()
        try:
            yield Site(f"http://127.0.0.1:{server.port}", sessions, clock, browser, client)
        finally:
            await browser.close()
            await server.stop()


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    """The one of this file."""
    provider = Provider()
    runner = await provider.start()
    yield provider
    await runner.cleanup()


@pytest.fixture
async def site(provider: Provider, database: Database, sessions: StaffSessions) -> AsyncIterator[Site]:
    """The admin site with it, and what it logs."""
    async with serving(provider.url, database, sessions) as site:
        with structlog.testing.capture_logs() as site.logged:
            yield site


# --- a provider that is real ---


@pytest.fixture(scope="module")
def real_provider() -> Iterator[str]:
    """Another people's provider, in a thread: its address."""
    with warnings.catch_warnings(record=True):  # it is built on a module whose authors deprecate it, loudly
        from oidc_provider_mock import User, run_server_in_thread  # type: ignore[import-untyped]

    users = [User(sub=SUBJECT, claims={"amr": ["pwd", "mfa"]}), User(sub="grace|city", claims={"amr": ["pwd"]})]
    with run_server_in_thread(user_claims=users) as server:
        yield f"http://localhost:{server.server_port}"


async def known_there(site: Site, subject: str) -> tuple[dict[str, str], str]:
    """What the real provider sends the browser back with, once somebody has said who they are; and the cookie."""
    reply = await site.get("/oidc/start")
    async with site.browser.post(reply.headers["Location"], data={"sub": subject}, allow_redirects=False) as response:
        assert response.status == 302
        address, _, query = response.headers["Location"].partition("?")
    assert address == REDIRECT
    return {name: values[0] for name, values in parse_qs(query).items()}, f"__Host-oidc={reply.cookie('__Host-oidc')}"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # its own, of what it is built on
async def test_a_real_provider_signs_staff_in(
    real_provider: str, database: Database, sessions: StaffSessions
) -> None:
    """Who has an account and a second factor gets a session; who lacks one of them gets none."""
    async with serving(real_provider, database, sessions, "gateway") as site:
        query, cookie = await known_there(site, SUBJECT)
        reply = await site.get("/oidc/return", cookie, **query)
        assert reply.status == 200, reply.body
        staff = await sessions.identify(reply.cookie("__Host-session"))
        assert (staff.staff_id, staff.departments) == ("st_ada", frozenset({"parks"}))

        for subject in ("grace|city", "nobody"):
            query, cookie = await known_there(site, subject)
            refused = await site.get("/oidc/return", cookie, **query)
            assert (refused.status, "__Host-session" in refused.cookies) == (401, False)


# --- the way there and back ---


async def test_the_way_there_says_what_it_must(site: Site, provider: Provider) -> None:
    """The authorization request has PKCE, state, nonce and a limit of age, and keeps the endpoint's own query."""
    location, second = [(await site.get("/oidc/start")).headers["Location"] for _ in range(2)]
    asked = {name: values[0] for name, values in parse_qs(urlsplit(location).query).items()}

    assert location.startswith(f"{provider.url}/authorize?tenant=city&response_type=code&")
    assert asked.items() >= {
        ("client_id", CLIENT),
        ("redirect_uri", REDIRECT),
        ("scope", "openid"),
        ("code_challenge_method", "S256"),
        ("max_age", "900"),
    }
    for name in ("state", "nonce", "code_challenge"):
        assert re.fullmatch(r"[A-Za-z0-9_-]{43}", asked[name])
        assert f"{name}={asked[name]}" not in second


async def test_the_cookies_are_for_this_host_and_purpose(site: Site, provider: Provider) -> None:
    """The visit's comes along from elsewhere and ends after ten minutes; the session's never comes from elsewhere."""
    began = await site.get("/oidc/start")
    ended = await site.sign_in(provider)

    _, attributes = began.cookies["__Host-oidc"].split("; ", 1)
    assert attributes == "Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=600"
    _, attributes = ended.cookies["__Host-session"].split("; ", 1)
    assert attributes == "Path=/; Secure; HttpOnly; SameSite=Strict"
    assert ended.cookies["__Host-oidc"] == "; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=0"
    assert '<meta http-equiv="refresh" content="0; url=/">' in ended.body
    assert "script" not in ended.body


@pytest.mark.parametrize(
    ("header", "key"), [("RS256", RSA), ("PS256", RSA), ("ES256", EC), ("EdDSA", ED), ("Ed25519", ED)]
)
async def test_signatures_of_every_listed_kind_are_taken(
    site: Site, provider: Provider, header: str, key: Any
) -> None:
    """Providers sign with RSA in both ways, on P-256, or on Ed25519 under its old name and its new one."""
    provider.token = lambda provider: signed(provider, key, {"alg": header})

    reply = await site.sign_in(provider)

    assert reply.status == 200, site.reasons
    assert (await site.sessions.identify(reply.cookie("__Host-session"))).username == "a.lovelace"


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": [CLIENT]},
        {"aud": [CLIENT, "another"], "azp": CLIENT},
        {"amr": ["mfa"], "acr": "whatever"},
        {"nbf": 0},
    ],
)
async def test_honest_tokens_may_differ(site: Site, provider: Provider, claims: dict[str, Any]) -> None:
    """What the standard leaves open is left open."""
    provider.token = lambda provider: signed(provider, **claims)

    assert (await site.sign_in(provider)).status == 200, site.reasons


# --- tokens that prove nothing ---


async def refused_plainly(site: Site, provider: Provider, caplog: pytest.LogCaptureFixture) -> None:
    """Refused as ever, without a session, and without a word of the provider's anywhere; the next one gets in."""
    reply = await site.sign_in(provider)

    assert reply.status == 401
    assert '"type":"https://gateway.example/problems/sign-in-refused"' in reply.body
    assert "Set-Cookie" not in reply.headers
    secret = [provider.code, provider.nonce, *(part for token in provider.given for part in token.split("."))]
    for part in filter(None, secret):
        assert len(part) < 8 or part not in f"{reply.body}{reply.headers}{site.logged}{caplog.text}"


@pytest.mark.parametrize("name", FORGED)
async def test_forged_tokens_are_refused(
    site: Site, provider: Provider, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """One answer to all of them; the log has our own word for what was wrong."""
    caplog.set_level("DEBUG")
    provider.token, reason = FORGED[name]

    await refused_plainly(site, provider, caplog)

    assert site.reasons == [reason]
    provider.token = signed
    assert (await site.sign_in(provider)).status == 200


@pytest.mark.parametrize("name", MISBEHAVED)
async def test_a_token_endpoint_that_misbehaves_is_refused(
    site: Site, provider: Provider, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Too large, too slow, elsewhere, broken: as a wrong password."""
    caplog.set_level("DEBUG")
    provider.answers["/token"], reason = MISBEHAVED[name]
    if name == "slow":
        await site.begin()  # to know the provider before
        site.client._calls_s = PATIENCE_S

    await refused_plainly(site, provider, caplog)

    assert site.reasons == [reason]
    assert provider.asked.count("/token") == 1


async def test_all_refusals_look_the_same(site: Site, provider: Provider) -> None:
    """A stranger, a forged token and a provider that fails: but for the request's id, byte by byte."""
    replies = []
    for token in (lambda provider: signed(provider, sub="stranger"), FORGED["altered"][0], FORGED["alg-none"][0]):
        provider.token = token
        replies.append(await site.sign_in(provider))
    provider.answers["/token"] = told("{}", 500)
    replies.append(await site.sign_in(provider))
    replies.append(await site.sign_in(provider, iss="https://evil.example"))

    assert {reply.status for reply in replies} == {401}
    assert len({reply.body for reply in replies}) == 1
    assert len({tuple(sorted(set(reply.headers) - {"Date"})) for reply in replies}) == 1


async def test_refusals_are_audited(site: Site, provider: Provider, owner: asyncpg.Connection) -> None:
    """A row says which demand was not met, and one says that a stranger came with good proof."""
    await owner.execute("TRUNCATE audit.events")
    provider.token, _ = FORGED["one-factor"]
    await site.sign_in(provider)
    provider.token = lambda provider: signed(provider, sub="stranger")
    await site.sign_in(provider)
    provider.token = signed
    await site.sign_in(provider)

    rows = await owner.fetch("SELECT event, actor, reason FROM audit.events ORDER BY occurred_at")
    assert [tuple(row) for row in rows] == [
        ("identity.refused", "unknown", "oidc_one_factor"),
        ("staff.sign_in_refused", "unknown", "provider"),
        ("staff.signed_in", "st_ada", "provider"),
    ]


# --- keys ---


async def test_a_new_key_of_the_provider_is_fetched_once(site: Site, provider: Provider) -> None:
    """Keys are kept; a name that is not among them is looked up again, once a token, and then either known or not."""
    assert (await site.sign_in(provider)).status == 200
    assert (await site.sign_in(provider)).status == 200
    assert provider.asked.count("/jwks") == 1

    provider.keys = [OTHER_RSA]
    provider.token = lambda provider: signed(provider, OTHER_RSA)
    assert (await site.sign_in(provider)).status == 200
    assert provider.asked.count("/jwks") == 2

    provider.token = signed
    assert (await site.sign_in(provider)).status == 401
    assert provider.asked.count("/jwks") == 3


async def test_a_withdrawn_key_is_soon_of_no_use(site: Site, provider: Provider) -> None:
    """What the provider no longer publishes is believed for ten minutes at most."""
    assert (await site.sign_in(provider)).status == 200
    provider.keys = [OTHER_RSA]

    site.clock.ahead_s = CACHED_S

    assert (await site.sign_in(provider)).status == 401
    assert site.reasons == ["unknown_key"]


async def test_keys_that_nobody_understands_do_no_harm(site: Site, provider: Provider) -> None:
    """A key of a new kind, a broken one and a shared secret stand beside the good one (RFC 7517 section 5)."""
    strange = [{"kty": "AKP", "kid": "first"}, {"kty": "RSA", "n": 7}, {"kid": "x"}, {"kty": "oct", "k": "AA"}]
    published = {"keys": [*strange, RSA.as_dict(private=False)]}
    provider.answers["/jwks"] = told(json.dumps(published))

    assert (await site.sign_in(provider)).status == 200, site.reasons


async def test_a_key_for_encryption_signs_nothing(site: Site, provider: Provider) -> None:
    """`use` is heeded."""
    provider.answers["/jwks"] = told(json.dumps({"keys": [RSA.as_dict(private=False) | {"use": "enc"}]}))

    assert (await site.sign_in(provider)).status == 401
    assert site.reasons == ["unknown_key"]


# --- the provider's description ---


@pytest.mark.parametrize(
    ("described", "reason"),
    [
        ({"issuer": "https://evil.example"}, "wrong_issuer"),
        ({"issuer": "http://LOCALHOST"}, "wrong_issuer"),
        ({"authorization_endpoint": "http://provider.example/authorize"}, "endpoint"),
        ({"token_endpoint": "http://provider.example/token"}, "endpoint"),
        ({"token_endpoint": "https://gateway@provider.example/token"}, "endpoint"),
        ({"token_endpoint": "https://[::1/token"}, "endpoint"),
        ({"token_endpoint": "/token"}, "endpoint"),
        ({"authorization_endpoint": "javascript:alert(1)"}, "endpoint"),
        ({"authorization_endpoint": "https://provider.example/#fragment"}, "endpoint"),
        ({"jwks_uri": "file:///etc/passwd"}, "endpoint"),
        ({"jwks_uri": 7}, "malformed"),
    ],
)
async def test_a_wrong_description_leads_nowhere(
    site: Site, provider: Provider, described: dict[str, Any], reason: str
) -> None:
    """Nobody is sent to, and nothing is asked of, an address that will not do; 503 until it is mended."""
    provider.described = described
    reply = await site.get("/oidc/start")
    assert (reply.status, site.reasons) == (503, [reason])
    assert "Set-Cookie" not in reply.headers

    provider.described = {}
    assert (await site.sign_in(provider)).status == 200


@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/jwks"])
@pytest.mark.parametrize("name", MISBEHAVED)
async def test_a_provider_that_cannot_be_asked_is_away(site: Site, provider: Provider, path: str, name: str) -> None:
    """The way there is closed with 503, and opens by itself."""
    provider.answers[path], reason = MISBEHAVED[name]
    site.client._calls_s = PATIENCE_S if name == "slow" else CALLS_S
    reply = await site.get("/oidc/start")
    assert (reply.status, site.reasons) == (503, [reason])

    provider.answers.clear()
    site.client._calls_s = CALLS_S
    assert (await site.sign_in(provider)).status == 200


async def test_loopback_without_tls_is_for_the_demo_only(site: Site, provider: Provider) -> None:
    """In production http is refused at the start, in the demo beyond this machine."""
    for issuer, plain_loopback in ((provider.url, False), ("http://provider.example", True)):
        section = OidcSection(issuer=issuer, client_id=CLIENT, redirect=REDIRECT)
        with pytest.raises(SettingsRefused, match="must be https"):
            OidcClient(site.browser, section, Secret(SECRET), site.clock, plain_loopback=plain_loopback)


# --- returns ---


async def test_a_return_counts_once(site: Site, provider: Provider) -> None:
    """The same return again, with its own cookie, is refused before the provider hears of it."""
    asked, cookie = await site.begin(provider)
    query = {"code": provider.code, "state": asked["state"]}
    assert (await site.get("/oidc/return", cookie, **query)).status == 200

    again = await site.get("/oidc/return", cookie, **query)

    assert (again.status, "__Host-session" in again.cookies) == (400, False)
    assert provider.asked.count("/token") == 1


async def test_a_return_counts_in_its_own_browser_only(site: Site, provider: Provider) -> None:
    """Without the cookie, with another visit's, a forged or a mutilated one: 400, and the provider is not asked."""
    asked, cookie = await site.begin(provider)
    _, of_another = await site.begin()
    value = cookie.partition("=")[2]
    forged = [
        "",
        of_another,
        "__Host-oidc=",
        "__Host-oidc=AQ",
        f"__Host-oidc={value[:-4]}",
        f"__Host-oidc=B{value[1:]}",
        f"__Host-oidc={value[:60]}{'A' if value[60] != 'A' else 'B'}{value[61:]}",
        f"__Host-oidc={'A' * 3000}",
        "__Host-oidc=\u00e9",
        f"oidc={value}",
    ]
    for given in forged:
        reply = await site.get("/oidc/return", given, code=provider.code, state=asked["state"])
        assert (reply.status, "__Host-session" in reply.cookies) == (400, False), given
    assert "/token" not in provider.asked

    assert (await site.get("/oidc/return", cookie, code=provider.code, state=asked["state"])).status == 200


@pytest.mark.parametrize(
    "query",
    [
        "",
        "code=abc",
        "state=",
        "state=abc&code=abc",
        "state={state}x&code=abc",
        "state={state}&state={state}&code=abc",
        "state={state}&code=abc&code=abc",
        "state={state}&code=%00",
        "state={state}&code=%ff%fe",
        "state=%ed%a0%80&code=abc",
        "state={state}&code=abc&iss=%e2%80%ae",
    ],
)
async def test_malformed_returns_are_refused(site: Site, provider: Provider, query: str) -> None:
    """Anybody can write a query: 400, never 500."""
    asked, cookie = await site.begin(provider)

    address = URL(f"{site.url}/oidc/return?{query.format(state=asked['state'])}", encoded=True)
    async with site.browser.get(address, headers={"Cookie": cookie}) as response:
        assert response.status == 400
        assert asked["state"] not in await response.text()
    assert "/token" not in provider.asked


async def test_ten_minutes_are_enough(site: Site, provider: Provider) -> None:
    """A visit of 599 s ends well, one of 602 s does not, nor one that begins tomorrow."""
    for ahead_s, status in ((599, 200), (602, 400), (-60, 400)):
        site.clock.ahead_s = 0
        asked, cookie = await site.begin(provider)
        site.clock.ahead_s = ahead_s
        provider.now_s = site.clock.now().timestamp()
        reply = await site.get("/oidc/return", cookie, code=provider.code, state=asked["state"])
        assert reply.status == status, ahead_s


async def test_an_error_of_the_provider_signs_nobody_in(site: Site, provider: Provider) -> None:
    """Who pressed cancel there is refused as ever, and the provider's text is not repeated."""
    asked, cookie = await site.begin(provider)
    said = {"error": "access_denied", "error_description": "<b>canary</b>"}

    reply = await site.get("/oidc/return", cookie, state=asked["state"], **said)

    assert (reply.status, site.reasons) == (401, ["no_code"])
    assert "canary" not in f"{reply.body}{site.logged}"


async def test_a_code_of_another_provider_is_not_redeemed(site: Site, provider: Provider) -> None:
    """Who answers is checked where it says so, and must say so where it is announced (RFC 9207)."""
    assert (await site.sign_in(provider, iss=provider.url)).status == 200
    assert (await site.sign_in(provider, iss="https://evil.example")).status == 401
    assert provider.asked.count("/token") == 1

    provider.described = {"authorization_response_iss_parameter_supported": True}
    site.clock.ahead_s = CACHED_S
    assert (await site.sign_in(provider)).status == 401
    assert (await site.sign_in(provider, iss=provider.url + "/")).status == 401
    assert (await site.sign_in(provider, iss=provider.url)).status == 200
    assert site.reasons == ["wrong_answerer"] * 3


async def test_a_rotation_of_keys_stops_no_visit() -> None:
    """A visit that was begun under the key before ends well; one under a key that is gone does not."""
    old, new = new_key(), new_key()
    visits = Visits({1: old}, SystemClock())
    (first, sealed), (second, sealed_too) = visits.begin(), visits.begin()

    visits.renew({1: old, 2: new})
    assert visits.finish(sealed, first.state).nonce == first.nonce
    visits.renew({2: new})
    with pytest.raises(InvalidRequest):
        visits.finish(sealed_too, second.state)


async def test_memory_of_returns_is_bounded() -> None:
    """Whoever begins and ends visits for fun fills no memory."""
    visits = Visits(KEYS, SystemClock())
    visits._returned = dict.fromkeys(map(str, range(RETURNED_MAX)))

    visit, sealed = visits.begin()
    visits.finish(sealed, visit.state)

    assert len(visits._returned) == RETURNED_MAX
    assert visit.state in visits._returned
