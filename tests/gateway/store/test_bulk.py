"""`POST /v1/tokens/bulk` over TLS before a real database: each line alone, in order, and every end of a stream."""

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import NotIdentified
from gateway.rules.access import Application
from gateway.rules.certificates import ClientCertificate
from gateway.store.database import Database
from gateway.web.bulk import CHUNK, CHUNK_BYTES, LINE_BYTES_MAX, NDJSON, WINDOW, BulkTokens, _chunks
from gateway.web.server import Limits
from tests.cards import canary
from tests.gateway.store.city import brands, caller
from tests.gateway.store.door import Door, opened
from tests.gateway.store.postgres import HOST, Postgres, Wire
from tests.gateway.store.quarter import Quarter
from tests.gateway.web.test_server import _issue
from tests.system import Reply

pytestmark = pytest.mark.server

PATH = "/v1/tokens/bulk"
SMALL_BYTES = 8_192
SOON = Limits(linger_s=0.1, shutdown_s=0.6)
ENDLESS = 50_000
BAD = canary(0)[:-1] + str((int(canary(0)[-1]) + 1) % 10)


def line(which: int, /, **more: Any) -> dict[str, Any]:
    """A line that is right, unless `more` spoils it."""
    return {
        "name": "Ramona Testholder",
        "card": {"number": canary(which), "exp_month": 12, "exp_year": 2031},
        "usage": "multi",
    } | more


def ndjson(lines: Sequence[object]) -> bytes:
    """Lines as they are sent; bytes are sent as they are."""
    return b"".join((each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n" for each in lines)


def read(content: bytes) -> list[dict[str, Any]]:
    """Answers; the last one is whole, too."""
    assert not content or content.endswith(b"\n")
    return [json.loads(each) for each in content.splitlines()]


def slugs(answers: Sequence[dict[str, Any]]) -> list[str]:
    """What each answer is: `token`, or the type of a problem."""
    return [each.get("object") or each["type"].rpartition("/")[2] for each in answers]


@dataclass
class Bulk:
    """A department, and its stream."""

    city: Quarter
    door: Door
    pki: Path

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.city.department}", "Content-Type": NDJSON}

    async def post(self, body: Any, **headers: str) -> Reply:
        """One stream: bytes, or an iterator of them."""
        url = self.door.url + PATH
        async with self.door.session.post(url, data=body, headers=self.headers | headers) as response:
            return Reply(response.status, await response.read(), dict(response.headers))

    async def send(self, *lines: object) -> list[dict[str, Any]]:
        """One stream of these lines; gives the answers."""
        reply = await self.post(ndjson(lines))
        assert (reply.status, reply.headers["Content-Type"]) == (200, NDJSON), reply.body
        return read(reply.body)

    async def connect(self, buffer_bytes: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection of one's own that has sent the head of an endless stream."""
        sock = socket.socket()
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF) if buffer_bytes else ():
            sock.setsockopt(socket.SOL_SOCKET, option, buffer_bytes)
        sock.connect((HOST, int(self.door.url.rpartition(":")[2])))
        tls = ssl.create_default_context(cafile=self.pki / "ca.pem")
        reader, writer = await asyncio.open_connection(sock=sock, ssl=tls, server_hostname=HOST)
        head = [f"POST {PATH} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in self.headers.items())]
        writer.write("\r\n".join([*head, "Transfer-Encoding: chunked", "", ""]).encode())
        return reader, writer

    async def tokens(self) -> set[str]:
        """All that are stored."""
        rows = await self.city.owner.fetch(
            "SELECT token_id FROM gateway.tokens WHERE department_id = $1", self.city.department
        )
        return {row["token_id"] for row in rows}

    async def audited(self, event: str) -> int:
        """How many audit rows there are of one kind."""
        told = "SELECT count(*) FROM audit.events WHERE department_id = $1 AND event = $2"
        return int(await self.city.owner.fetchval(told, self.city.department, event))

    async def free(self) -> None:
        """Until the department's last stream has ended."""
        async with asyncio.timeout(20):
            while (await self.post(b"")).status == 503:
                await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for the API, and who vouches for it."""
    folder = tmp_path_factory.mktemp("pki")
    _issue(folder, "ca", None)
    _issue(folder, "server", "ca")
    return folder


async def known(authorization: str | None, _certificate: ClientCertificate | None) -> Application:
    """Here a department's name is its API key."""
    return caller((authorization or "").removeprefix("Bearer "))


@pytest.fixture
async def bulk(quarter: Quarter, pki: Path) -> AsyncIterator[Bulk]:
    """A department's stream."""
    async with opened(quarter, quarter.page(), known, pki=pki) as door:
        yield Bulk(quarter, door, pki)


def chunked(content: bytes) -> bytes:
    """A piece of a chunked body (RFC 9112 section 7.1)."""
    return f"{len(content):x}\r\n".encode() + content + b"\r\n"


SPOILT: tuple[tuple[object, str], ...] = (
    (line(0, card={"number": BAD, "exp_month": 12, "exp_year": 2031}), "card-refused"),
    (line(0, card={"number": canary(0), "exp_month": 12, "exp_year": 2020}), "card-refused"),
    (line(0, colour="red"), "invalid-request"),
    (line(0, name=f"Ramona {canary(0)}"), "card-number-in-text"),
    (line(0, usage="often"), "invalid-request"),
    (b'{"name": "a", "name": "b"}', "invalid-request"),
    (b"", "invalid-request"),
    (b'{"name": "' + canary(0).encode(), "invalid-request"),
    (b"\xff\xfe", "invalid-request"),
)
"""Lines and what is wrong with them, in the eyes of `POST /v1/tokens`, too."""

REFUSED_HERE: tuple[tuple[object, str], ...] = (
    (line(0, card={"number": canary(0), "exp_month": 12, "exp_year": 2031, "cvc": "737"}), "card-refused"),
    (line(0, idempotency_key=""), "idempotency-key-invalid"),
    (line(0, idempotency_key="k\u00e9y"), "idempotency-key-invalid"),
    (line(0, idempotency_key=canary(0)), "card-number-in-text"),
    (line(0, name="x" * LINE_BYTES_MAX), "invalid-request"),
    (b"{" * (3 * LINE_BYTES_MAX), "invalid-request"),
)
"""Lines that are refused on this route alone."""


async def test_a_line_fails_alone_and_in_its_place(bulk: Bulk) -> None:
    """Between two good lines each, every bad one has its problem: what the same body is told at `POST /v1/tokens`."""
    spoilt = (*SPOILT, *REFUSED_HERE)
    lines = [each for n, (bad, _) in enumerate(spoilt) for each in (line(n + 1), bad)]
    reply = await bulk.post(ndjson(lines)[:-1])  # the last line need not end
    answers = read(reply.body)

    assert slugs(answers) == [each for _, slug in spoilt for each in ("token", slug)]
    assert [each["card"]["last4"] for each in answers[::2]] == [canary(n + 1)[-4:] for n in range(len(spoilt))]
    assert {each["id"] for each in answers[::2]} == await bulk.tokens()
    for (bad, _), answer in zip(SPOILT, answers[1::2], strict=False):
        single = await bulk.door.call("POST", "/v1/tokens", ndjson([bad])[:-1], department=bulk.city.department)
        assert single.json == answer
    assert canary(0).encode() not in reply.body
    assert BAD.encode() not in reply.body


async def test_a_thousand_lines(bulk: Bulk) -> None:
    """Each its own token and audit row; of ten cards that come often each has one fingerprint."""
    answers = await bulk.send(*(line(n % 10) for n in range(1_000)))

    assert slugs(answers) == ["token"] * 1_000
    assert [each["card"]["last4"] for each in answers] == [canary(n % 10)[-4:] for n in range(1_000)]
    assert len({each["card"]["fingerprint"] for each in answers}) == 10
    assert {each["id"] for each in answers} == await bulk.tokens()
    assert (len(await bulk.tokens()), await bulk.audited("token.created")) == (1_000, 1_000)


async def test_answers_come_while_lines_are_still_to_come(bulk: Bulk) -> None:
    """Who waits for an answer before the next line is served."""
    asked: asyncio.Queue[int | None] = asyncio.Queue()

    async def lines() -> AsyncIterator[bytes]:
        while (card := await asked.get()) is not None:
            content = ndjson([line(card)])
            yield content[:30]
            yield content[30:]

    asked.put_nowait(1)  # aiohttp sends a head together with what comes first
    post = bulk.door.session.post(bulk.door.url + PATH, data=lines(), headers=bulk.headers)
    async with asyncio.timeout(20), post as response:
        for card, then in ((1, 2), (2, 3), (3, None)):
            answer = json.loads(await response.content.readline())
            assert answer["card"]["last4"] == canary(card)[-4:]
            asked.put_nowait(then)
        assert await response.content.read() == b""


async def test_under_its_key_a_line_may_be_sent_again(bulk: Bulk) -> None:
    """The answers of then, byte for byte, also within one stream; another card under the key is refused."""
    lines = [line(n, idempotency_key=f"k-{n}") for n in range(100)]
    first = await bulk.post(ndjson([*lines, lines[7]]))
    again = await bulk.post(ndjson([*lines, lines[7]]))
    other = await bulk.send(line(1, idempotency_key="k-0"), line(0, idempotency_key="k-0", usage="single"))
    answers = read(first.body)

    assert slugs(answers) == ["token"] * 101
    assert (again.body, answers[100]) == (first.body, answers[7])
    assert slugs(other) == ["idempotency-key-reused"] * 2
    assert len(await bulk.tokens()) == 100
    own = await bulk.door.call("POST", "/v1/tokens", line(0), "k-0", department=bulk.city.department)
    assert own.json["id"] not in {each["id"] for each in answers}  # the route has keys of its own


async def test_what_is_said_before_the_first_line(bulk: Bulk) -> None:
    """An application has one stream at a time; a key belongs to a line; the type is NDJSON; no line is no answer."""
    reader, writer = await bulk.connect()
    await reader.readuntil(b"\r\n\r\n")
    busy = await bulk.post(ndjson([line(1)]))
    writer.close()
    await bulk.free()
    keyed = await bulk.post(ndjson([line(1)]), **{"Idempotency-Key": "k"})
    typed = await bulk.post(ndjson([line(1)]), **{"Content-Type": "application/json"})

    assert (busy.status, busy.problem, busy.headers["Retry-After"]) == (503, "unavailable", "1")
    assert (keyed.status, keyed.problem) == (400, "invalid-request")
    assert (typed.status, typed.problem) == (415, "media-type-unsupported")
    assert await bulk.send() == []
    assert await bulk.tokens() == set()


async def test_a_client_that_is_cut_off_leaves_nothing_running(bulk: Bulk) -> None:
    """What it was told is stored, the rest of its lines is not begun, and its place is free."""
    reader, writer = await bulk.connect()
    writer.write(chunked(ndjson([line(n) for n in range(5_000)])))
    async with asyncio.timeout(20):
        told = [(await reader.readuntil(b"}\n")).rpartition(b"\r\n")[2] for _ in range(CHUNK)]
    writer.transport.abort()
    await bulk.free()
    running = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]  # type: ignore[union-attr]
    (last,) = await bulk.send(line(0))  # comes behind what was being committed
    stored = await bulk.tokens()

    assert [name for name in running if name.startswith(("_Work.", "_Stream."))] == []
    assert {json.loads(each)["id"] for each in told} | {last["id"]} <= stored
    assert len(stored) < 5_000
    await asyncio.sleep(0.2)
    assert await bulk.tokens() == stored


async def test_who_does_not_read_is_not_read_from(quarter: Quarter, pki: Path) -> None:
    """Lines wait at the client, not here; when it reads again, none is lost."""
    async with opened(quarter, quarter.page(), known, pki=pki, buffer_bytes=SMALL_BYTES) as door:
        bulk = Bulk(quarter, door, pki)
        reader, writer = await bulk.connect(SMALL_BYTES)
        sent = 0
        with suppress(TimeoutError):
            while sent < ENDLESS:
                writer.write(chunked(ndjson([line(1, name="")] * 10)))
                sent += 10
                await asyncio.wait_for(writer.drain(), 1)
        assert sent < ENDLESS
        writer.write(chunked(ndjson([line(1)])) + chunked(b""))
        async with asyncio.timeout(20):
            answers = await reader.read()
        assert answers.count(b"/problems/invalid-request") == sent
        assert len(await bulk.tokens()) == 1


async def test_who_never_reads_is_cut_off(quarter: Quarter, pki: Path) -> None:
    """After the write deadline its place is another's."""
    limits = Limits(write_s=0.3)
    async with opened(quarter, quarter.page(), known, pki=pki, limits=limits, buffer_bytes=SMALL_BYTES) as door:
        bulk = Bulk(quarter, door, pki)
        _, writer = await bulk.connect(SMALL_BYTES)
        async with asyncio.timeout(20):
            with suppress(OSError):
                while True:
                    writer.write(chunked(ndjson([line(1, name="")] * 10)))
                    await writer.drain()
        await bulk.free()


async def test_who_loses_the_right_loses_it_at_once(quarter: Quarter, pki: Path) -> None:
    """A key that is revoked while a stream runs: lines are told so, the stream ends, and it is audited."""
    good = True

    async def judged(authorization: str | None, certificate: ClientCertificate | None) -> Application:
        if not good:
            raise NotIdentified
        return await known(authorization, certificate)

    async with opened(quarter, quarter.page(), known, recognize=judged, pki=pki, limits=SOON) as door:
        bulk = Bulk(quarter, door, pki)
        reader, writer = await bulk.connect()
        before = await quarter.owner.fetchval("SELECT count(*) FROM audit.events WHERE event = 'identity.refused'")
        async with asyncio.timeout(20):
            writer.write(chunked(ndjson([line(1)])))
            await reader.readuntil(b"}\n")
            good = False
            writer.write(chunked(ndjson([line(2), line(3)])))
            rest = await reader.read()
        after = await quarter.owner.fetchval("SELECT count(*) FROM audit.events WHERE event = 'identity.refused'")

        assert rest.count(b"/problems/not-identified") == 2
        assert rest.endswith(b"0\r\n\r\n")  # a whole answer (RFC 9112 section 7.1)
        assert (len(await bulk.tokens()), after - before) == (1, 1)


async def test_when_the_database_goes_the_stream_ends_whole(
    quarter: Quarter, pki: Path, postgres: Postgres, wire: Wire
) -> None:
    """Lines in work are told 503, the rest is not looked at; sent again under their keys all have one token each."""
    connect = postgres.arguments(port=wire.port) | {"database": quarter.database}
    database = await Database.open(connect, 4, acquire_timeout_s=0.5, statement_timeout_s=0.5)
    lines = [line(n, idempotency_key=f"k-{n}") for n in range(2 * WINDOW)]
    async with opened(quarter, quarter.page(api=database), known, pki=pki) as door:
        bulk = Bulk(quarter, door, pki)
        await bulk.send(lines[0])
        wire.silent = True
        answers = await bulk.send(*lines)
        wire.silent = False

        assert set(slugs(answers)) == {"unavailable"}
        assert len(answers) <= WINDOW
        await bulk.free()
        async with asyncio.timeout(20):
            while "unavailable" in slugs(await bulk.send(lines[0])):
                await asyncio.sleep(0.05)
        assert slugs(await bulk.send(*lines)) == ["token"] * len(lines)
        assert len(await bulk.tokens()) == len(lines)
    await database.close()


@pytest.mark.parametrize("how", ["silence", "stop"])
async def test_a_stream_that_is_ended_ends_whole(quarter: Quarter, pki: Path, how: str) -> None:
    """Whether the client falls silent or the process stops: what was begun is answered, and then it is the end."""
    page = quarter.page()
    given_up = BulkTokens(page.tokens, brands(), 0.3 if how == "silence" else 60)
    async with opened(quarter, page, known, bulk=given_up, pki=pki, limits=SOON) as door:
        bulk = Bulk(quarter, door, pki)
        reader, writer = await bulk.connect()
        writer.write(chunked(ndjson([line(1)]) + b'{"name": '))
        async with asyncio.timeout(20):
            await reader.readuntil(b"}\n")
            rest = asyncio.create_task(reader.read())
            if how == "silence":
                assert (await rest).endswith(b"0\r\n\r\n")
    assert (await rest).endswith(b"0\r\n\r\n")
    assert len(await bulk.tokens()) == 1


async def test_who_was_fast_may_not_be_slow_for_ever(quarter: Quarter, pki: Path) -> None:
    """Whoever has sent much at once, and then a byte now and then, is given up like anybody else."""
    page = quarter.page()
    hasty = BulkTokens(page.tokens, brands(), 0.5)
    async with opened(quarter, page, known, bulk=hasty, pki=pki, limits=SOON) as door:
        bulk = Bulk(quarter, door, pki)
        reader, writer = await bulk.connect()
        writer.write(chunked(b"{}\n" * 40_000))
        rest = asyncio.create_task(reader.read())
        async with asyncio.timeout(20):
            while not rest.done():
                writer.write(chunked(b"{"))
                await asyncio.sleep(0.05)
        assert (await rest).endswith(b"0\r\n\r\n")
        await bulk.free()


async def test_lines_are_held_back_to_the_quota(quarter: Quarter, pki: Path) -> None:
    """An application of one request a second is refused no line, but they are begun one after the other."""

    async def slow(authorization: str | None, certificate: ClientCertificate | None) -> Application:
        return replace(await known(authorization, certificate), requests_per_s_max=1)

    async with opened(quarter, quarter.page(), slow, pki=pki, limits=SOON) as door:
        bulk = Bulk(quarter, door, pki)
        reader, writer = await bulk.connect()
        writer.write(chunked(ndjson([line(n) for n in range(60)])))
        async with asyncio.timeout(20):
            answers = [json.loads((await reader.readuntil(b"}\n")).rpartition(b"\r\n")[2]) for _ in range(2)]
        await asyncio.sleep(0.5)  # for as many as will come
        writer.transport.abort()
        await bulk.free()

        assert slugs(answers) == ["token"] * 2
        assert 2 <= len(await bulk.tokens()) < 60


def test_long_lines_are_begun_few_at_a_time() -> None:
    """So many lines together, and no more bytes of them than others can wait for; none is lost, and none moves."""
    lines = [b"x" * 40_000, b"y" * 65_537, *(b"%d" % number for number in range(200)), b"z" * 65_536, b""]
    chunks = list(_chunks(lines, 64))
    assert [line for chunk in chunks for line in chunk] == lines
    assert all(len(chunk) <= 64 for chunk in chunks)
    assert all(len(chunk) == 1 or sum(map(len, chunk)) <= CHUNK_BYTES for chunk in chunks)
