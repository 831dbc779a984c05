"""Files taken in over TLS: by scripts and by forms, small and large, whole and cut, from who may and who may not."""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from secrets import token_hex
from typing import Any
from urllib.parse import urlsplit

import pytest

from gateway.rules.ids import new_id
from gateway.rules.settlement import SettlementLine
from gateway.web import upload as module
from gateway.web.gate import COOKIE
from tests.gateway.formats.files import bai2, line, native, stripe
from tests.gateway.store.charged import charged
from tests.gateway.store.postgres import HOST, PARKS, UTILITIES
from tests.gateway.web.site import EDGE, Site, with_file
from tests.system import Reply

pytestmark = pytest.mark.server

SETTLEMENTS, DEPOSITS = "/admin/v1/settlements", "/admin/v1/deposits"
CSV = {"Content-Type": "text/csv"}


@dataclass
class Counter:
    """The site, and sessions of finance: a script's and a browser's are the same here."""

    site: Site
    token: str
    csrf: str

    async def post(self, path: str, raw: bytes, token: str | None = None, **headers: str) -> Reply:
        """A file from a script."""
        return await self.site.call("POST", path, raw, self.token if token is None else token, **CSV | headers)

    async def get(self, path: str) -> Reply:
        """A look of a script."""
        return await self.site.call("GET", path, token=self.token)

    async def upload(self, path: str, raw: bytes, name: str = "native") -> Reply:
        """A file from a form."""
        return await self.site.upload(path, raw, name, self.token, self.csrf)

    async def follow(self, reply: Reply) -> tuple[str, Reply]:
        """From the form's answer to where it ends, and how that looks."""
        assert reply.status == 303, reply.body
        place = reply.headers["Location"]
        for _ in range(200):
            reply = await self.site.browse("GET", place, token=self.token)
            if reply.status == 303:
                place = reply.headers["Location"]
            elif "Refresh" not in reply.headers:
                return place, reply
            await asyncio.sleep(0.02)
        raise AssertionError("it never ended")

    async def count(self) -> int:
        """How many imports there are."""
        return int(await self.site.owner.fetchval("SELECT count(*) FROM gateway.imports"))

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection of one's own."""
        tls = ssl.create_default_context()
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        return await asyncio.open_connection(HOST, urlsplit(self.site.url).port, ssl=tls)

    async def raw(self, head: str, *chunks: bytes, close: bool = False) -> bytes:
        """Bytes as they are on a connection of their own, and the head of what comes back."""
        reader, writer = await self.connect()
        try:
            writer.write(head.replace("\n", "\r\n").encode())
            for chunk in chunks:
                writer.write(chunk)
                await writer.drain()
            if close:
                writer.transport.abort()
                return b""
            return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        finally:
            writer.close()

    def head(self, path: str, length: int | str, token: str | None = None) -> str:
        """Of a POST with a file, by a script."""
        bearer = self.token if token is None else token
        framing = f"Content-Length: {length}" if isinstance(length, int) else f"Transfer-Encoding: {length}"
        return (
            f"POST {path} HTTP/1.1\nHost: {HOST}\nConnection: close\nAuthorization: Bearer {bearer}\n"
            f"Content-Type: text/csv\n{framing}\n\n"
        )


@pytest.fixture(scope="module")
async def counter(site: Site) -> Counter:
    token = await site.token(await site.person("finance"))
    return Counter(site, token, await site.csrf(token))


@pytest.fixture
async def quick(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Counter]:
    """The same where nobody has much patience."""
    uploads = counter.site.parts.gate._uploads
    monkeypatch.setattr(uploads, "_grace_s", 0.3)
    yield counter
    assert uploads._places._value == module.PLACES


def lines(count: int = 3, **change: Any) -> list[SettlementLine]:
    """Of charges that nobody knows, in a file like no other."""
    return [line(number)._replace(reference=new_id("x"), **change) for number in range(2, 2 + count)]


# --- scripts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "?format=native", "?format=stripe"])
async def test_a_script_brings_a_settlement(counter: Counter, query: str) -> None:
    """201 with exactly what the file came to; the same again says so, and changes nothing."""
    raw = (stripe if "stripe" in query else native)(lines())
    first = await counter.post(SETTLEMENTS + query, raw)
    assert (first.status, first.json) == (
        201,
        {"id": first.json["id"], "lines": 3, "gross": 6_000, "fee": 264, "net": 5_736, "already_imported": False},
    )
    before = await counter.count()
    again = await counter.post(SETTLEMENTS + query, raw)
    assert (again.status, again.json) == (201, first.json | {"already_imported": True})
    assert await counter.count() == before


@pytest.mark.parametrize("media", ["text/csv", "text/plain", "application/octet-stream", "text/csv; charset=utf-8"])
async def test_a_script_brings_a_statement(counter: Counter, media: str) -> None:
    """Its sum is gross and net, and there is no fee."""
    raw = bai2([[f"16,142,5736,0,{token_hex(6)},B20261124,/"]])
    reply = await counter.post(DEPOSITS, raw, **{"Content-Type": media})
    told = {"lines": 1, "gross": 5_736, "fee": 0, "net": 5_736, "already_imported": False}
    assert (reply.status, reply.json) == (201, told | {"id": reply.json["id"]})


async def test_what_was_brought_is_shown(counter: Counter) -> None:
    """Listed newest first, by itself with its parts, and line by line, a page at a time."""
    charge = await charged(counter.site.owner)
    file = [each._replace(reference=charge.reference) if each.line == 3 else each for each in lines()]
    made = (await counter.post(SETTLEMENTS, native(file))).json
    listed = (await counter.get(f"{SETTLEMENTS}?limit=1")).json
    assert (listed["data"][0]["id"], listed["object"]) == (made["id"], "list")
    shown = (await counter.get(f"{SETTLEMENTS}/{made['id']}")).json
    assert (shown["net"], shown["format"], shown["settled"]) == (5_736, "native", ["2026-11-24"])
    assert [(part["department"], part["lines"]) for part in shown["parts"]] == [("city", 2), (PARKS, 1)]
    first = (await counter.get(f"{SETTLEMENTS}/{made['id']}/lines?limit=2")).json
    assert [(each["line"], each["charge"]) for each in first["data"]] == [(2, None), (3, charge.charge_id)]
    assert first["has_more"] is True
    rest = (await counter.get(f"{SETTLEMENTS}/{made['id']}/lines?limit=2&starting_after=3")).json
    assert ([each["line"] for each in rest["data"]], rest["has_more"]) == ([4], False)
    assert rest["data"][0] | {"line": 0, "reference": "", "department": "city"} == {
        "line": 0,
        "department": "city",
        "type": "charge",
        "charge": None,
        "reference": "",
        "gross": 2_000,
        "fee": 88,
        "net": 1_912,
        "currency": "USD",
        "created": "2026-11-23T18:04:05Z",
        "settled": "2026-11-24",
        "batch": "B20261124",
        "date": "2026-11-23",
    }
    deposit = (await counter.post(DEPOSITS, bai2([[f"16,142,1,0,{token_hex(6)},B2,/"]]))).json["id"]
    assert (await counter.get(DEPOSITS)).json["data"][0]["id"] == deposit
    (shown,) = (await counter.get(f"{DEPOSITS}/{deposit}/lines")).json["data"]
    assert (shown["amount"], shown["batch"], shown["deposited"]) == (1, "B2", "2026-11-24")
    for path in (f"{DEPOSITS}/{made['id']}", f"{SETTLEMENTS}/{deposit}", f"{DEPOSITS}/{made['id']}/lines"):
        assert (await counter.get(path)).status == 404
    for query in ("limit=0", "limit=201", "limit=x", "limit=-1", "starting_after=x"):
        assert (await counter.get(f"{SETTLEMENTS}/{made['id']}/lines?{query}")).status == 400


async def test_who_has_some_departments_sees_these(counter: Counter) -> None:
    """A clerk of the parks is shown the parks' lines and sums, on pages too, and of others' files nothing."""
    mine, theirs = await charged(counter.site.owner), await charged(counter.site.owner, UTILITIES)
    file = [each._replace(reference=who.reference) for each, who in zip(lines(2), (mine, theirs), strict=True)]
    made = (await counter.post(SETTLEMENTS, native(file))).json["id"]
    others = (await counter.post(SETTLEMENTS, native(lines()))).json["id"]
    token = await counter.site.token(await counter.site.person("auditor", departments=[PARKS]))
    shown = (await counter.site.call("GET", f"{SETTLEMENTS}/{made}", token=token)).json
    assert (shown["lines"], shown["net"], [part["department"] for part in shown["parts"]]) == (1, 1_912, [PARKS])
    listed = (await counter.site.call("GET", SETTLEMENTS, token=token)).json["data"]
    assert others not in [each["id"] for each in listed]
    assert (await counter.site.call("GET", f"{SETTLEMENTS}/{others}", token=token)).status == 404
    page = (await counter.site.browse("GET", f"/settlements/{made}", token=token)).body.decode()
    assert (mine.reference in page, theirs.reference in page) == (True, False)
    clerk = await counter.site.token(await counter.site.person("finance", departments=[PARKS]))
    assert "Import</button>" not in (await counter.site.browse("GET", "/settlements", token=clerk)).body.decode()
    refused = await counter.post(SETTLEMENTS, native(lines()), token=clerk)
    assert (refused.status, "all departments" in refused.json["detail"]) == (403, True)


# --- refusals -----------------------------------------------------------------------------------------------------


async def test_a_bad_file_is_refused_with_its_line(counter: Counter) -> None:
    """422 with line and reason, without a word of the file, and without anything of it kept."""
    raw, before = native(lines()), await counter.count()
    reply = await counter.post(SETTLEMENTS, raw.replace(b",20.00,0.88,19.12", b",20.00,0.88,CANARY", 1))
    assert (reply.status, reply.json["type"].rpartition("/")[2]) == (422, "file-refused")
    assert reply.json["detail"].startswith("Line 2, net:")
    assert b"CANARY" not in reply.body
    for bad in (b"", raw[:-20], b"\xff\xfe", b"a,b\n1,2\n", bai2([[f"16,142,1,0,{token_hex(6)},B2,/"]])):
        assert (await counter.post(SETTLEMENTS, bad)).status == 422
    assert await counter.count() == before
    assert (await counter.post(SETTLEMENTS, raw)).json["already_imported"] is False


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (f"{SETTLEMENTS}?format=bai2", {}, 400),
        (f"{SETTLEMENTS}?format=native&format=native", {}, 400),
        (f"{SETTLEMENTS}?from=x", {}, 400),
        (f"{DEPOSITS}?format=native", {}, 400),
        (SETTLEMENTS, {"Content-Type": "application/json"}, 415),
        (SETTLEMENTS, {"Content-Type": "text/plain"}, 415),
        (SETTLEMENTS, {"Content-Type": "text/csv; charset=utf-16"}, 415),
        (SETTLEMENTS, {"Content-Type": f"multipart/form-data; boundary={EDGE}"}, 415),
        (SETTLEMENTS, {"Content-Encoding": "gzip"}, 415),
        (SETTLEMENTS, {"Authorization": "Bearer none"}, 401),
        ("/admin/v1/refunds/x/approve", {}, 415),
        ("/settlements", {}, 415),
        ("/settlements", {"Content-Type": "multipart/form-data"}, 415),
        ("/settlements", {"Content-Type": "multipart/form-data; boundary="}, 415),
        ("/settlements", {"Content-Type": 'multipart/form-data; boundary="a'}, 415),
        ("/settlements", {"Content-Type": "multipart/form-data; boundary=a b"}, 415),
        ("/settlements", {"Content-Type": f"multipart/form-data; boundary={EDGE}; charset=utf-8"}, 415),
    ],
)
async def test_odd_requests_are_refused(counter: Counter, path: str, headers: dict[str, str], status: int) -> None:
    """An unknown format, a body of another type, nobody's session: a status, and nothing is imported."""
    before = await counter.count()
    given = {"Authorization": f"Bearer {counter.token}"} | CSV | headers
    reply = await counter.site.send("POST", path, native(lines()), given)
    assert reply.status == status, reply.body
    assert await counter.count() == before


async def test_a_large_file_is_for_these_routes_and_people_only(counter: Counter) -> None:
    """Elsewhere the old bound holds; and who is not signed in, or may not import, is answered before it is read."""
    big = native(lines(2_000))
    assert len(big) > 100_000
    assert (await counter.post(SETTLEMENTS, big)).json["lines"] == 2_000
    head = counter.head("/admin/v1/sessions", len(big)).replace("text/csv", "application/json")
    assert (await counter.raw(head)).startswith(b"HTTP/1.1 413 ")
    auditor = await counter.site.token(await counter.site.person("auditor"))
    for token, status in (("none", b"401"), (auditor, b"403")):
        answer = await counter.raw(counter.head(SETTLEMENTS, 60_000_000, token))  # not a byte of it was sent
        assert answer.startswith(b"HTTP/1.1 " + status), answer


# --- bodies that are slow, huge or cut ----------------------------------------------------------------------------


async def test_what_is_too_large_is_refused(quick: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its length, before it comes; and without one as soon as it is too much."""
    assert (await quick.raw(quick.head(SETTLEMENTS, 64 * 1024 * 1024 + 1))).startswith(b"HTTP/1.1 413 ")
    monkeypatch.setattr(module, "BYTES_MAX", 1_000)
    chunks = [b"200\r\n" + b"x" * 512 + b"\r\n" for _ in range(3)]
    assert (await quick.raw(quick.head(SETTLEMENTS, "chunked"), *chunks)).startswith(b"HTTP/1.1 413 ")


async def test_who_is_silent_or_slow_is_given_up(quick: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    """No byte for a while, or too few of them for too long: 408, and the place is free again."""
    assert (await quick.raw(quick.head(SETTLEMENTS, 1_000), b"x")).startswith(b"HTTP/1.1 408 ")
    monkeypatch.setattr(module, "BYTES_A_SECOND_MIN", 1_000_000)
    reader, writer = await quick.connect()
    writer.write(quick.head(SETTLEMENTS, 1_000).replace("\n", "\r\n").encode())
    answering = asyncio.create_task(reader.readline())
    for _ in range(100):
        if answering.done():
            break
        writer.write(b"x")
        await asyncio.sleep(0.05)
    assert answering.done()
    assert (await answering).startswith(b"HTTP/1.1 408 ")
    writer.transport.abort()


async def test_what_is_cut_leaves_nothing(quick: Counter) -> None:
    """The client is gone in the middle: no import, and the place is free again."""
    raw, before = native(lines(50)), await quick.count()
    await quick.raw(quick.head(SETTLEMENTS, len(raw)), raw[:-10], close=True)
    broken = b"5\r\nabcde\r\nzz\r\n"
    assert b" 400 " in (await quick.raw(quick.head(SETTLEMENTS, "chunked"), broken)).partition(b"\r\n")[0]
    await asyncio.sleep(0.1)
    assert await quick.count() == before
    assert (await quick.post(SETTLEMENTS, raw)).status == 201


async def test_two_are_received_at_once(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third waits, and is asked to come back, by script and by form; once one is through there is room again."""
    monkeypatch.setattr(module, "WAIT_S", 0.3)
    raw, writers = native(lines()), []
    for _ in range(2):
        _, writer = await counter.connect()
        writer.write(counter.head(SETTLEMENTS, 1_000).replace("\n", "\r\n").encode())
        writers.append(writer)
    while not counter.site.parts.gate._uploads._places.locked():
        await asyncio.sleep(0.01)
    third = await counter.post(SETTLEMENTS, raw)
    assert (third.status, third.headers["Retry-After"]) == (503, "1")
    assert (await counter.upload("/settlements", raw)).status == 503
    monkeypatch.setattr(module, "WAIT_S", 5.0)
    waiting = asyncio.create_task(counter.post(SETTLEMENTS, raw))
    await asyncio.sleep(0.1)
    for writer in writers:
        writer.transport.abort()
    assert (await waiting).status == 201


# --- people -------------------------------------------------------------------------------------------------------


async def test_a_person_brings_a_file(counter: Counter) -> None:
    """The form leads to how far it is, and on to what it came to; the same file again says so."""
    raw = native(lines())
    place, page = await counter.follow(await counter.upload("/settlements", raw))
    assert re.fullmatch(r"/settlements/im_[a-z2-7]{26}\?now=imported", place)
    assert "USD 57.36" in page.body.decode()
    assert "All of its lines and totals agree" in page.body.decode()
    place, page = await counter.follow(await counter.upload("/settlements", raw))
    assert (place.endswith("?now=again"), "imported before" in page.body.decode()) == (True, True)
    place, page = await counter.follow(
        await counter.upload("/deposits", bai2([[f"16,142,5736,0,{token_hex(6)},B2,/"]]), "bai2")
    )
    assert (place.startswith("/deposits/im_"), "USD 57.36" in page.body.decode()) == (True, True)
    for path in ("/settlements", "/deposits"):
        page = await counter.site.browse("GET", path, token=counter.token)
        assert (page.status, "multipart/form-data" in page.body.decode()) == (200, True)


async def test_a_file_that_was_brought_as_another_thing(counter: Counter) -> None:
    """Its bytes are known, and not as a bank statement: that is said, and what it was read as."""
    raw = native(lines())
    await counter.follow(await counter.upload("/settlements", raw))
    _, page = await counter.follow(await counter.upload("/deposits", raw, "bai2"))
    said = page.body.decode()
    assert page.status == 422
    assert ("imported before, as a settlement file" in said, "read as: BAI2" in said) == (True, True)


async def test_a_person_learns_why_a_file_is_refused(counter: Counter) -> None:
    """In the words that a script gets, on a page; of an import that is somebody else's nothing."""
    before = await counter.count()
    place, page = await counter.follow(await counter.upload("/settlements", native(lines())[:-5]))
    assert (page.status, "Line 5" in page.body.decode()) == (422, True)
    assert await counter.count() == before
    other = await counter.site.token(await counter.site.person("finance"))
    assert (await counter.site.browse("GET", place, token=other)).status == 404
    assert (await counter.upload("/settlements", b"x", "nonsense")).status == 400


async def test_the_page_shows_how_far_it_is(counter: Counter) -> None:
    """While somebody else's import is written this one waits: the page says so, and asks again by itself."""
    lock = "SELECT pg_advisory_{}(hashtext('gateway.imports'))"
    await counter.site.owner.execute(lock.format("lock"))
    try:
        reply = await counter.upload("/settlements", native(lines()))
        page = await counter.site.browse("GET", reply.headers["Location"], token=counter.token)
        assert (page.status, page.headers["Refresh"]) == (200, "1")
        assert "0 lines read so far" in page.body.decode()
        assert "<progress" in page.body.decode()
    finally:
        await counter.site.owner.execute(lock.format("unlock"))
    place, _ = await counter.follow(reply)
    assert place.startswith("/settlements/im_")


FORM = with_file("CSRF", "native", b"FILE")
ODD_FORMS = {
    "no csrf": (FORM.replace(b"CSRF", b""), 403),
    "another session's": (FORM.replace(b"CSRF", b"x" * 43), 403),
    "no form at all": (b"", 400),
    "cut in the head": (FORM[:40], 400),
    "cut in the file": (FORM[:-30], 400),
    "cut in the last mark": (FORM[:-6], 400),
    "more after it": (FORM + b"x", 400),
    "a part more": (FORM[:-4] + FORM, 400),
    "another order": (FORM.replace(b'"csrf"', b'"f"').replace(b'"format"', b'"csrf"'), 400),
    "an unknown field": (FORM.replace(b'"format"', b'"colour"'), 400),
    "a field twice": (FORM.replace(b'"format"', b'"csrf"'), 400),
    "a long value": (FORM.replace(b"native", b"n" * 300), 400),
    "a long head": (FORM.replace(b"d.csv", b"d" * 3_000), 400),
    "an odd head": (FORM.replace(b"form-data", b"attachment", 1), 400),
    "encoded": (FORM.replace(b"text/csv", b"text/csv\r\nContent-Transfer-Encoding : base64"), 400),
    "text before": (b"preamble\r\n" + FORM, 400),
    "bytes for text": (FORM.replace(b"native", b"nat\xefve"), 400),
    "unknown format": (FORM.replace(b"native", b"Native"), 400),
}


@pytest.mark.parametrize("what", ODD_FORMS)
async def test_odd_forms_are_refused(quick: Counter, what: str) -> None:
    """Whatever is not the page's own form, byte by byte: refused, and the place is free again."""
    before = await quick.count()
    form, status = ODD_FORMS[what]
    form = form.replace(b"CSRF", quick.csrf.encode()).replace(b"FILE", native(lines()))
    headers = {"Content-Type": f"multipart/form-data; boundary={EDGE}", "Cookie": f"{COOKIE}={quick.token}"}
    reply = await quick.site.send("POST", "/settlements", form, headers | {"Sec-Fetch-Site": "same-origin"})
    assert reply.status == status, reply.body
    assert await quick.count() == before


@pytest.mark.parametrize("site_said", ["cross-site", "same-site", "none"])
async def test_a_form_of_elsewhere_is_refused(quick: Counter, site_said: str) -> None:
    """Before a byte of the file is read."""
    headers = {"Content-Type": f"multipart/form-data; boundary={EDGE}", "Cookie": f"{COOKIE}={quick.token}"}
    form = with_file(quick.csrf, "native", native(lines()))
    reply = await quick.site.send("POST", "/settlements", form, headers | {"Sec-Fetch-Site": site_said})
    assert reply.status == 403


@pytest.mark.parametrize("size", [1, 7])
async def test_a_form_may_come_in_pieces(counter: Counter, size: int) -> None:
    """Marks and heads that are torn apart on the way are found all the same, and the file is the file."""
    raw = native(lines(500))
    body = with_file(counter.csrf, "native", raw)
    head = (
        f"POST /settlements HTTP/1.1\nHost: {HOST}\nConnection: close\nCookie: {COOKIE}={counter.token}\n"
        f"Sec-Fetch-Site: same-origin\nContent-Type: multipart/form-data; boundary={EDGE}\n"
        f"Content-Length: {len(body)}\n\n"
    )
    first, last = body.index(raw) + 10, len(body) - 60
    reader, writer = await counter.connect()
    writer.write(head.replace("\n", "\r\n").encode())
    for begin, end, step in ((0, first, size), (first, last, last), (last, len(body), size)):
        for at in range(begin, end, step):
            writer.write(body[at : min(at + step, end)])
            await asyncio.sleep(0.001)
    answer = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    found = re.search(rb"Location: (/imports/\w+)", answer)
    assert found, answer
    place, _ = await counter.follow(Reply(303, b"", {"Location": found[1].decode()}))
    assert place.endswith("?now=imported")
    assert (await counter.post(SETTLEMENTS, raw)).json["already_imported"] is True
