"""The admin site over the wire: sessions of scripts and browsers, forged forms, broken bodies, bad days.

Numbers in test names are those of the security battery: 40 to 51, and 97 to 103 of pages.
"""

import asyncio
import json
import re
import socket
import ssl
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from gateway.web.gate import ANSWER_HEADERS, COOKIE
from tests.gateway.store.postgres import UTILITIES
from tests.gateway.test_cli import run
from tests.gateway.test_config import MINIMAL
from tests.gateway.web.site import PASSWORD, Person, Site
from tests.system import Reply

pytestmark = pytest.mark.server

NEW_PASSWORD = "seven green kayaks at 2 docks"
SCRIPT = "<script>alert(1)</script>"
URLENCODED = "application/x-www-form-urlencoded"


def cookie_of(reply: Reply) -> str:
    """The session that an answer hands over."""
    return reply.headers["Set-Cookie"].partition("=")[2].partition(";")[0]


async def form(site: Site, person: Person, password: str = PASSWORD) -> dict[str, str]:
    """A sign-in form, filled in."""
    return {"username": person.username, "password": password, "code": await site.code(person)}


def test_without_its_section_it_does_not_start(tmp_path: Path) -> None:
    """One line that says what is missing, and exit code 1."""
    (tmp_path / "gateway.toml").write_text(MINIMAL)
    done = run("admin", "--config", str(tmp_path / "gateway.toml"))

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("gateway: the file has no [admin] section")


# --- sessions ---


async def test_a_script_signs_in_and_out(site: Site) -> None:
    """201 with token and end; the token is somebody until it is deleted, and 401 from the next request on."""
    person = await site.person("finance", "records", departments=["parks", "utilities"])
    token = await site.token(person)

    assert (await site.call("GET", "/admin/v1/me", token=token)).json == {
        "username": person.username,
        "roles": ["finance", "records"],
        "departments": ["parks", "utilities"],
    }
    assert (await site.call("DELETE", "/admin/v1/sessions", token=token)).status == 204
    gone = await site.call("GET", "/admin/v1/me", token=token)
    assert (gone.status, gone.problem) == (401, "not-identified")
    assert gone.headers["WWW-Authenticate"] == "Bearer"
    assert await site.audited(person) == ["staff.signed_in", "staff.signed_out"]


async def test_39_whatever_is_wrong_is_told_the_same(site: Site) -> None:
    """No token, half a token, an ended one and another scheme: byte for byte one 401."""
    known = await site.token(await site.person("finance"))
    answers = [await site.call("GET", "/admin/v1/me", token=token) for token in ("", "x", known[:-1], known + "A")]
    answers.append(await site.call("GET", "/admin/v1/me", Authorization=f"Basic {known}"))

    assert {(reply.status, reply.body) for reply in answers} == {(401, answers[0].body)}


async def test_a_wrong_factor_is_one_refusal_and_repeats_nothing(site: Site) -> None:
    """Wrong name, password or code give the same document and the same page, without a word of what was typed."""
    person = await site.person("finance")
    right = {"username": person.username, "password": PASSWORD, "totp": await site.code(person)}
    wrong = [right | {field: "zq.canary"} for field in right]
    scripts = [await site.call("POST", "/admin/v1/sessions", body) for body in wrong]
    forms = [{"username": body["username"], "password": body["password"], "code": body["totp"]} for body in wrong]
    pages = [await site.browse("POST", "/sign-in", typed) for typed in forms]

    assert {(reply.status, reply.body) for reply in scripts} == {(401, scripts[0].body)}
    assert scripts[0].problem == "sign-in-refused"
    assert {(reply.status, reply.body) for reply in pages} == {(401, pages[0].body)}
    assert b"canary" not in scripts[0].body + pages[0].body
    assert all("Set-Cookie" not in reply.headers for reply in (*scripts, *pages))


async def test_100_a_browsers_session_is_new_bound_to_the_host_and_ends(site: Site) -> None:
    """`__Host-`, Secure, HttpOnly, SameSite=Strict, no expiry; what was sent before is not taken over."""
    person = await site.person("approver")
    planted = "A" * 43
    signed_in = await site.browse("POST", "/sign-in", await form(site, person), planted)
    name, _, rest = signed_in.headers["Set-Cookie"].partition("=")
    session, *attributes = rest.split("; ")

    assert (signed_in.status, signed_in.headers["Location"], name) == (303, "/", COOKIE)
    assert attributes == ["Path=/", "Secure", "HttpOnly", "SameSite=Strict"]
    assert session != planted
    assert (await site.browse("GET", "/", token=session)).status == 200
    out = await site.browse("POST", "/sign-out", {"csrf": await site.csrf(session)}, session)
    assert (out.status, out.headers["Location"], cookie_of(out)) == (303, "/sign-in?out", "")
    assert "Max-Age=0" in out.headers["Set-Cookie"]
    assert (await site.browse("GET", "/", token=session)).headers["Location"] == "/sign-in?ended"
    # A link in a mail does not bring a cookie that is `Strict`: the browser keeps it nevertheless.
    assert "Set-Cookie" not in (await site.browse("GET", "/refunds")).headers


async def test_scripts_take_no_cookie_and_pages_no_bearer(site: Site) -> None:
    """A session is good either way round, but never in the other's dress."""
    token = await site.token(await site.person("finance"))

    assert (await site.call("GET", "/admin/v1/me", Cookie=f"{COOKIE}={token}")).status == 401
    assert (await site.call("GET", "/", token=token)).headers["Location"] == "/sign-in"
    assert (await site.browse("GET", "/", token=token)).status == 200


async def test_40_a_secret_in_an_address_is_refused(site: Site) -> None:
    """A query is nothing that these routes take."""
    token = await site.token(await site.person("finance"))

    assert (await site.call("GET", f"/admin/v1/me?token={token}", token=token)).problem == "invalid-request"
    assert (await site.call("POST", f"/admin/v1/sessions?password={PASSWORD.replace(' ', '+')}")).status == 400


async def test_51_what_is_taken_away_is_gone_with_the_next_request(site: Site) -> None:
    """A role, a department, the account: no session outlives its grant, script's or browser's."""
    person = await site.person("approver")
    script = await site.token(person)
    browser = cookie_of(await site.browse("POST", "/sign-in", await form(site, person)))
    foreign = await site.refund(UTILITIES)

    async def seen() -> list[int]:
        path = f"/admin/v1/refunds/{foreign}/approve"
        return [
            (await site.call("POST", path, token=script)).status,
            (await site.browse("GET", "/refunds", token=browser)).status,
        ]

    await site.owner.execute("UPDATE gateway.staff SET departments = '{parks}' WHERE staff_id = $1", person.staff_id)
    assert await seen() == [404, 200]
    await site.owner.execute("UPDATE gateway.staff SET roles = '{records}' WHERE staff_id = $1", person.staff_id)
    assert await seen() == [403, 403]
    await site.owner.execute("UPDATE gateway.staff SET disabled_at = now() WHERE staff_id = $1", person.staff_id)
    assert await seen() == [401, 303]


# --- passwords ---


async def test_a_first_password_opens_nothing_but_its_own_change(site: Site) -> None:
    """Until it is changed: 403 for scripts, the way to the form for people; afterwards everything."""
    person = await site.person("finance", must_change=True)
    token = await site.token(person)

    refused = await site.call("GET", "/admin/v1/me", token=token)
    assert (refused.status, refused.problem) == (403, "password-must-change")
    for path in ("/", "/refunds"):
        assert (await site.browse("GET", path, token=token)).headers["Location"] == "/password?first"
    typed = {"csrf": await site.csrf(token), "old": PASSWORD, "new": NEW_PASSWORD, "again": NEW_PASSWORD}
    assert (await site.browse("POST", "/password", typed | {"again": "x"}, token)).status == 422
    changed = await site.browse("POST", "/password", typed, token)
    assert (changed.status, changed.headers["Location"]) == (303, "/?changed")
    assert (await site.call("GET", "/admin/v1/me", token=token)).status == 200
    assert await site.token(replace(person, password=NEW_PASSWORD))


async def test_a_script_changes_its_password_and_ends_other_sessions(site: Site) -> None:
    """204; a password that will not do is 422 with the reason, and none of it in the answer."""
    person = await site.person("finance")
    other, token = await site.token(person), await site.token(person)

    short = await site.call("POST", "/admin/v1/password", {"old": PASSWORD, "new": "zqshort"}, token)
    assert (short.status, short.problem) == (422, "password-refused")
    assert b"zqshort" not in short.body
    done = await site.call("POST", "/admin/v1/password", {"old": PASSWORD, "new": NEW_PASSWORD}, token)
    assert (done.status, done.body) == (204, b"")
    assert (await site.call("GET", "/admin/v1/me", token=token)).status == 200
    assert (await site.call("GET", "/admin/v1/me", token=other)).status == 401


# --- forged and broken requests ---


async def test_98_a_form_that_is_not_ours_does_nothing(site: Site) -> None:
    """No token, another session's, a GET, another site's page: refused, nothing decided, and written down."""
    person = await site.person("approver")
    token, other = await site.token(person), await site.token(await site.person("approver"))
    refund, csrf, foreign = await site.refund(), await site.csrf(token), await site.csrf(other)
    path, yes, before = f"/refunds/{refund}", {"verdict": "approved"}, await site.verdicts()

    for typed in (yes, yes | {"csrf": ""}, yes | {"csrf": foreign}, yes | {"csrf": "é"}):
        assert (await site.browse("POST", path, typed, token)).status == 403
    assert (await site.browse("GET", f"{path}?verdict=approved", token=token)).status == 405
    elsewhere = {"Sec-Fetch-Site": "cross-site"}
    assert (await site.browse("POST", path, yes | {"csrf": csrf}, token, **elsewhere)).status == 403
    assert await site.verdicts() == before
    assert "permission.refused" in await site.audited(person)
    assert (await site.browse("POST", path, yes | {"csrf": csrf}, token)).status == 303
    assert await site.verdicts() == before + 1


@pytest.mark.parametrize(
    ("site_header", "origin", "status"),
    [
        ("same-origin", "null", 401),
        ("same-origin", "", 401),
        ("", "own", 401),
        ("", "", 403),
        ("", "null", 403),
        ("", "https://evil.test", 403),
        ("", "http", 403),
        ("none", "own", 403),
        ("same-site", "own", 403),
        ("cross-site", "own", 403),
    ],
)
async def test_98_who_sends_a_form(site: Site, site_header: str, origin: str, status: int) -> None:
    """The browser's word counts; an old browser's Origin must be ours, scheme and port included; else 403."""
    given = {"own": site.url, "http": site.url.replace("https", "http")}.get(origin, origin)
    typed = {"username": "nobody", "password": "x", "code": "000000"}
    reply = await site.browse("POST", "/sign-in", typed, **{"Sec-Fetch-Site": site_header, "Origin": given})

    assert reply.status == status
    assert "Set-Cookie" not in reply.headers


@pytest.mark.parametrize(
    ("path", "media_type", "taken"),
    [
        ("/admin/v1/sessions", URLENCODED, "application/json"),
        ("/admin/v1/sessions", "text/plain", f"application/json, {URLENCODED}"),
        ("/admin/v1/sessions", "multipart/form-data", f"application/json, {URLENCODED}"),
        ("/sign-in", "application/json", URLENCODED),
        ("/sign-in", "text/plain", f"application/json, {URLENCODED}"),
        ("/sign-in", f"{URLENCODED}; charset=utf-16", f"application/json, {URLENCODED}"),
    ],
)
async def test_26_a_body_of_another_kind_is_not_read(site: Site, path: str, media_type: str, taken: str) -> None:
    """JSON for scripts, forms for pages: nobody gets past the gate with the other, and a 415 says what is taken."""
    headers = {"Content-Type": media_type, "Sec-Fetch-Site": "same-origin"}
    reply = await site.send("POST", path, b"{}", headers)
    assert (reply.status, reply.headers["Accept"]) == (415, taken)


@pytest.mark.parametrize(
    "body",
    [b"", b"&&", b"username", b"username=%ff&password=x&code=1", b"username=a&username=b&password=x&code=1",
     b"username=a&password=x&code=1&more=1", b"username=%00&password=x&code=1", b"username=\xc3&password=x&code=1",
     b"username=" + b"a" * 2000 + b"&password=x&code=1", b"&".join(b"a%d=1" % n for n in range(40))],
)  # fmt: skip
async def test_a_broken_form_is_a_page(site: Site, body: bytes) -> None:
    """400, a page that says what to do, and nothing of what was sent."""
    headers = {"Content-Type": URLENCODED, "Sec-Fetch-Site": "same-origin"}
    reply = await site.send("POST", "/sign-in", body, headers)

    assert (reply.status, reply.headers["Content-Type"]) == (400, "text/html; charset=utf-8")
    assert b"send it once more" in reply.body


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"username":"a","password":"b"}', b'{"username":"a","username":"b","password":"c","totp":"1"}',
     b'{"username":"a","password":"b","totp":1}', b'{"username":"a","password":"b","totp":"1","role":"approver"}',
     b'{"username":"a\\u0000","password":"b","totp":"1"}', b'{"username":"\\ud800","password":"b","totp":"1"}'],
)  # fmt: skip
async def test_48_a_broken_body_is_a_problem(site: Site, body: bytes) -> None:
    """Unknown fields, duplicates, wrong types and what no database holds: 400, and no try is counted."""
    before = await site.owner.fetchval("SELECT count(*) FROM gateway.sign_in_tries")
    reply = await site.call("POST", "/admin/v1/sessions", body)

    assert (reply.status, reply.problem) == (400, "invalid-request")
    assert await site.owner.fetchval("SELECT count(*) FROM gateway.sign_in_tries") == before


# --- pages ---


async def test_99_every_answer_forbids_what_it_does_not_need(site: Site) -> None:
    """Pages, the style sheet, JSON, errors, and the answer to bytes that are no request: the same headers."""
    paths = ("/sign-in", "/", "/nowhere", "/static/admin.css", "/admin/v1/me", "/admin/v1/nowhere", "/healthz")
    replies = [await site.send("GET", path, None, {}) for path in paths]
    heads = [{name.lower(): value for name, value in reply.headers.items()} for reply in replies]
    heads.append(await asyncio.to_thread(_head_of_refusal, site))

    for head in heads:
        for name, value in ANSWER_HEADERS.items():
            assert head[name.lower()] == value
        assert (head["cache-control"], head["x-content-type-options"]) == ("no-store", "nosniff")
        assert "server" not in head
    allowed = dict(part.split(" ", 1) for part in ANSWER_HEADERS["Content-Security-Policy"].split("; "))
    assert (allowed["default-src"], allowed["script-src"], allowed["style-src"]) == ("'none'", "'self'", "'self'")
    scripts = re.findall(rb"<script.*?</script>|\son\w+=|javascript:", b"".join(reply.body for reply in replies))
    assert set(scripts) == {b'<script src="/static/admin.js" defer></script>'}


def _head_of_refusal(site: Site) -> dict[str, str]:
    tls = ssl.create_default_context(cafile=site.secrets.parent / "ca.pem")
    address = urlsplit(site.url)
    with (
        socket.create_connection((address.hostname, address.port), timeout=5) as plain,
        tls.wrap_socket(plain, server_hostname=address.hostname) as wire,
    ):
        wire.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nbroken\r\n\r\n")
        received = b""
        while chunk := wire.recv(65_536):
            received += chunk
    status, *lines = received.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    assert " 400 " in status
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


async def test_97_what_others_wrote_is_text(site: Site) -> None:
    """An application's name and reference with markup in them stand on the page as they were typed."""
    token = await site.token(await site.person("approver"))
    await site.refund(reference=SCRIPT)
    page = (await site.browse("GET", "/refunds", token=token)).body.decode()

    assert SCRIPT not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


async def test_102_nothing_sent_leads_anywhere(site: Site) -> None:
    """Neither a query nor a Host decides where somebody goes after signing in."""
    person = await site.person("finance")
    for path in ("/sign-in?next=//evil.test", "/sign-in?ended=https://evil.test"):
        reply = await site.browse("POST", path, await form(site, person), Host="evil.test")
        assert (reply.status, reply.headers["Location"]) == (303, "/")
        assert b"evil" not in reply.body
    assert b"evil" not in (await site.browse("GET", "/sign-in?next=//evil.test")).body


async def test_who_comes_second_is_told_so(site: Site) -> None:
    """One verdict for ever: the same or another one later is 409, as JSON and as a page."""
    token, refund = await site.token(await site.person("approver")), await site.refund()
    first = await site.call("POST", f"/admin/v1/refunds/{refund}/approve", {}, token)
    again = await site.call("POST", f"/admin/v1/refunds/{refund}/reject", token=token)
    typed = {"csrf": await site.csrf(token), "verdict": "approved"}
    page = await site.browse("POST", f"/refunds/{refund}", typed, token)

    assert (first.status, first.json["id"], first.json["verdict"]) == (200, refund, "approved")
    assert (again.status, again.problem) == (409, "already-decided")
    assert (page.status, b"Somebody was faster" in page.body) == (409, True)
    unknown = typed | {"verdict": "maybe"}
    assert (await site.browse("POST", f"/refunds/{refund}", unknown, token)).status == 400


async def test_a_decision_takes_no_body(site: Site) -> None:
    """The route says all: a field is an unknown one."""
    token, refund = await site.token(await site.person("approver")), await site.refund()

    assert (await site.call("POST", f"/admin/v1/refunds/{refund}/approve", {"verdict": "x"}, token)).status == 400


# --- bad days ---


async def test_readiness_says_what_is_missing(site: Site) -> None:
    """Without the right to write the audit log the process is not ready, and decides nothing."""
    token, refund = await site.token(await site.person("approver")), await site.refund()
    await site.owner.execute("REVOKE INSERT ON audit.events FROM gateway_admin")
    try:
        await asyncio.sleep(1.1)  # a report is a second old at most
        ready = await site.send("GET", "/readyz", None, {})
        decided = await site.call("POST", f"/admin/v1/refunds/{refund}/approve", token=token)
    finally:
        await site.owner.execute("GRANT INSERT ON audit.events TO gateway_admin")
        await asyncio.sleep(1.1)  # nor is anybody else told of it

    assert (ready.status, ready.json) == (503, {"status": "unavailable", "reasons": ["audit"]})
    assert (decided.status, decided.problem) == (503, "unavailable")
    assert (await site.call("POST", f"/admin/v1/refunds/{refund}/approve", token=token)).status == 200


async def test_an_error_of_ours_is_a_page_too(site: Site) -> None:
    """Where a table is missing: 500 with a page and a document, both without a word of what it was."""
    token = await site.token(await site.person("finance"))
    await site.owner.execute("ALTER TABLE gateway.departments RENAME TO elsewhere")
    try:
        page = await site.browse("GET", "/refunds", token=token)
        script = await site.call("GET", "/admin/v1/refunds", token=token)
    finally:
        await site.owner.execute("ALTER TABLE gateway.elsewhere RENAME TO departments")

    assert (page.status, b"Something went wrong here" in page.body) == (500, True)
    assert (script.status, script.problem) == (500, "internal-error")
    for said in (page.body, script.body):
        assert not any(word in said for word in (b"SQL", b"42P01", b"departments", b"Traceback"))
    assert (await site.browse("GET", "/refunds", token=token)).status == 200


async def test_it_asks_for_no_certificate_and_speaks_tls_only(site: Site) -> None:
    """A plain request gets no answer at all."""
    address = urlsplit(site.url)
    with pytest.raises(aiohttp.ClientError):
        async with site.session.get(f"http://{address.netloc}/healthz"):
            pass
    assert json.loads((await site.send("GET", "/healthz", None, {})).body) == {"status": "ok"}
