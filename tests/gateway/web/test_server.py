"""The safe server over the wire: raw bytes on TLS sockets.

Numbers in test names and ids are those of the security battery: HTTP framing and transport, items 1-30.
Not possible here: item 13's `X-Forwarded-For` (never read), item 26's multipart parser (never called),
item 22's health port (a listener of its own), item 29's plain port (a TLS context is required).
"""

import asyncio
import functools
import json
import logging
import os
import re
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
import structlog
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.web import server as module
from gateway.web.server import REQUEST_ID, ROUTE, Limits, SafeServer, assert_safe_parser, tls_context

pytestmark = pytest.mark.server

CANARY = "4111111111111111"
BODY = json.dumps({"pan": CANARY}).encode()
LIMITS = Limits(
    handshake_s=0.2,
    header_s=0.2,
    body_s=0.2,
    linger_s=0.1,
    write_s=0.4,
    shutdown_s=1,
    connections_max=24,
)
PATIENCE_S = 3.0


# --- certificates ---


@dataclass(frozen=True)
class Pki:
    folder: Path

    def path(self, name: str) -> Path:
        return self.folder / name

    def client(self, who: str | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.path("ca.pem"))
        if who is not None:
            context.load_cert_chain(self.path(f"{who}.pem"), self.path(f"{who}.key"))
        return context


def _issue(folder: Path, name: str, issuer: str | None, *, by_the_book: bool = True) -> None:
    """One EC key and certificate: a CA when `issuer` is None, else a leaf signed by it (RFC 5280 4.2.1.1)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer_key, issuer_name = key, subject
    if issuer is not None:
        loaded = serialization.load_pem_private_key((folder / f"{issuer}.key").read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        issuer_key = loaded
        issuer_name = x509.load_pem_x509_certificate((folder / f"{issuer}.pem").read_bytes()).subject
    now, is_ca = datetime.now(UTC), issuer is None
    usage = x509.KeyUsage(not is_ca, False, False, False, False, is_ca, is_ca, False, False)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
    builder = (
        x509.CertificateBuilder(issuer_name, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(names, critical=False)
    )
    if by_the_book:
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
        builder = builder.add_extension(authority, critical=False)
    certificate = builder.sign(issuer_key, hashes.SHA256())
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """A CA with a server and an application, a leaf that breaks RFC 5280, and a rogue of another CA."""
    folder = tmp_path_factory.mktemp("pki")
    for name, issuer in (("ca", None), ("rogue-ca", None), ("server", "ca"), ("app", "ca")):
        _issue(folder, name, issuer)
    _issue(folder, "rogue", "rogue-ca")
    _issue(folder, "sloppy", "ca", by_the_book=False)
    return Pki(folder)


# --- the server under test, on a loop in a thread of its own ---


@dataclass
class Running:
    """A server in its thread, what it logged and told its observer, and a client for it."""

    pki: Pki
    log: structlog.testing.LogCapture = field(default_factory=structlog.testing.LogCapture)
    seen: list[tuple[str | None, int, float, str]] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)
    calls: list[str] = field(default_factory=list)
    buffered: list[int] = field(default_factory=list)
    server: SafeServer = field(init=False)
    loop: asyncio.AbstractEventLoop = field(init=False)
    thread: threading.Thread = field(init=False)
    stop: Callable[[], object] = field(init=False)

    def observe(self, request: web.BaseRequest, status: int, duration_s: float) -> None:
        self.seen.append((request.get(ROUTE), status, duration_s, request[REQUEST_ID]))

    def plain(self) -> socket.socket:
        wire = socket.create_connection(("127.0.0.1", self.server.port), timeout=PATIENCE_S)
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return wire

    def connect(self, context: ssl.SSLContext | None = None, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
        context = context or self.pki.client()
        with ExitStack() as undo:
            plain = undo.enter_context(self.plain())
            wire = context.wrap_socket(plain, server_hostname="localhost", session=session)
            undo.pop_all()
            return wire

    def exchange(self, sent: bytes) -> bytes:
        """What a new connection answers to `sent`, up to its end; TimeoutError when it stays open."""
        with self.connect() as wire:
            wire.sendall(sent)
            return read_to_end(wire)


def read_to_end(wire: socket.socket) -> bytes:
    """Everything up to the end of the connection; TimeoutError when it stays open."""
    received = b""
    with suppress(ConnectionResetError, ssl.SSLEOFError):
        while chunk := wire.recv(65_536):
            received += chunk
    return received


def read_answer(wire: socket.socket) -> bytes:
    """One answer with a Content-Length, from a connection that stays open."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += wire.recv(65_536)
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += wire.recv(65_536)
    return head + b"\r\n\r\n" + body


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread makes true."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "condition never came true"
        time.sleep(0.01)


def refusal(status: int) -> bytes:
    """The constant body of the server under test."""
    return b'{"status":%d}' % status


def _app(running: Running) -> web.Application:  # noqa: C901  a page of small handlers
    async def echo(request: web.Request) -> web.Response:
        return web.json_response(await request.json(), headers={"X-Id": request[REQUEST_ID]})

    async def thing(request: web.Request) -> web.Response:
        return web.Response(text=",".join(sorted(name.lower() for name in request.headers)))

    async def cookies(request: web.Request) -> web.Response:
        return web.Response(text=str(len(request.cookies)))

    async def boom(request: web.Request) -> web.Response:
        raise LookupError(await request.text())

    async def timeout(request: web.Request) -> web.Response:
        raise TimeoutError(await request.text())

    async def torn(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"begun")
        raise LookupError(await request.text())

    async def big(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(1000):
            await response.write(b"x" * 65_536)
            assert request.transport is not None
            running.buffered.append(request.transport.get_write_buffer_size())
        return response

    async def wait(_: web.Request) -> web.Response:
        running.calls.append("begun")
        try:
            await asyncio.to_thread(running.release.wait, PATIENCE_S)
        except asyncio.CancelledError:
            running.calls.append("cancelled")
            raise
        running.calls.append("finished")
        return web.Response(text="waited")

    async def who(request: web.Request) -> web.Response:
        assert request.transport is not None
        certificate = request.transport.get_extra_info("ssl_object").getpeercert(True)
        subject = x509.load_der_x509_certificate(certificate).subject
        return web.Response(text=str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value))

    async def found(_: web.Request) -> web.Response:
        raise web.HTTPSeeOther("/things/1")

    app = web.Application()
    app.router.add_post("/echo", echo)
    app.router.add_get("/things/{id}", thing)
    app.router.add_get("/cookies", cookies)
    for name, handler in (("boom", boom), ("timeout", timeout), ("torn", torn)):
        app.router.add_post(f"/{name}", handler)
    app.router.add_get("/big", big)
    app.router.add_get("/wait", wait)
    app.router.add_get("/found", found)
    app.router.add_get("/who", who)
    return app


@contextmanager
def run(
    pki: Pki, loop_factory: Callable[[], asyncio.AbstractEventLoop], limits: Limits, grace_s: float = 0
) -> Iterator[Running]:
    """Serve in a thread; it ends with `Running.stop` or with the block."""
    running, ready = Running(pki), threading.Event()

    async def main() -> None:
        running.server = SafeServer(
            _app(running),
            socket.create_server(("127.0.0.1", 0)),
            tls=tls_context(pki.path("server.pem"), pki.path("server.key"), pki.path("ca.pem")),
            limits=limits,
            refusal=refusal,
            observe=running.observe,
            log=structlog.wrap_logger(
                None, processors=[running.log], wrapper_class=structlog.make_filtering_bound_logger(0)
            ),
        )
        await running.server.start()
        running.loop, stopping = asyncio.get_running_loop(), asyncio.Event()
        running.stop = functools.partial(running.loop.call_soon_threadsafe, stopping.set)
        ready.set()
        await stopping.wait()
        await running.server.stop(grace_s)

    def thread() -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())

    running.thread = threading.Thread(target=thread)
    running.thread.start()
    assert ready.wait(PATIENCE_S)
    try:
        yield running
    finally:
        running.release.set()
        if running.thread.is_alive():
            running.stop()
        running.thread.join()


Own = AbstractContextManager[Running]


@pytest.fixture(scope="module")
def shared(pki: Pki) -> Iterator[Running]:
    """One server for the module; ask for `server`."""
    with run(pki, asyncio.new_event_loop, LIMITS) as running:
        yield running


@pytest.fixture
def server(shared: Running) -> Running:
    """The module's server with nothing left over from the test before."""
    until(lambda: shared.server.connections == 0)
    shared.log.entries.clear()
    shared.seen.clear()
    shared.calls.clear()
    shared.release.clear()
    return shared


@pytest.fixture
def own(pki: Pki) -> Callable[..., Own]:
    """A server for one test, with limits of its own, and maybe a grace for when it stops."""
    return lambda limits, grace_s=0: run(pki, asyncio.new_event_loop, limits, grace_s)


@dataclass
class Silence:
    """Everything the process may have said: its two outputs, and the logging of its libraries."""

    capfd: pytest.CaptureFixture[str]
    caplog: pytest.LogCaptureFixture

    def check(self, running: Running, *answers: bytes) -> None:
        out, err = self.capfd.readouterr()
        for text in (out, err, self.caplog.text, repr(running.log.entries), *map(repr, answers)):
            assert CANARY not in text
        assert err == ""


@pytest.fixture
def silence(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Silence:
    """The proof that nothing of a request was said, once the test asks for it."""
    caplog.set_level(logging.DEBUG)
    return Silence(capfd, caplog)


# --- requests ---


def ask(
    line: str = "POST /echo HTTP/1.1", *headers: str, body: bytes = BODY, host: str | None = "localhost"
) -> bytes:
    """A request that is right but for what the test makes wrong; each carries the canary in headers."""
    lines = [line, *([f"Host: {host}"] if host else []), f"Referer: https://x/?pan={CANARY}", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


JSON = "Content-Type: application/json"
LENGTH = f"Content-Length: {len(BODY)}"
CHUNKED = "Transfer-Encoding: chunked"
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
SMUGGLED = ask("GET /things/1 HTTP/1.1", body=b"")


def post(*headers: str, line: str = "POST /echo HTTP/1.1", body: bytes = BODY) -> bytes:
    """A request with a JSON body and its length."""
    return ask(line, JSON, LENGTH, *headers, body=body)


def chunked(body: bytes, *headers: str) -> bytes:
    """A request whose body is `body` as it stands, chunk heads and all."""
    return ask("POST /echo HTTP/1.1", JSON, CHUNKED, *headers, body=body)


def get(target: str, *headers: str) -> bytes:
    """A request without a body."""
    return ask(f"GET {target} HTTP/1.1", *headers, body=b"")


def status_of(answer: bytes) -> int:
    """The status code of an answer."""
    return int(answer.split(b" ", 2)[1])


HOSTILE: list[tuple[str, bytes, int]] = [
    ("1 length and chunked", chunked(CHUNKS + SMUGGLED, LENGTH), 400),
    ("2 two lengths", post("Content-Length: 3"), 400),
    ("2 one length twice", post(LENGTH), 400),
    *(
        (f"3 length {value}", ask("POST /echo HTTP/1.1", JSON, f"Content-Length: {value}"), 400)
        for value in ("+2", "-1", "0x2", "2, 2", "1_0", "9" * 23, CANARY + "x")
    ),
    *(
        (f"4 coding {value!r}", ask("POST /echo HTTP/1.1", JSON, f"Transfer-Encoding:{value}", body=CHUNKS), 400)
        for value in (
            " xchunked",
            " chunked, chunked",
            " chunked, identity",
            " \x0bchunked",
            " Chunked",
            f" {CANARY}",
        )
    ),
    ("4 coding before a space", ask("POST /echo HTTP/1.1", JSON, "Transfer-Encoding : chunked", body=CHUNKS), 400),
    ("4 coding twice", chunked(CHUNKS, CHUNKED), 400),
    (
        "5 coding gzip, chunked",
        ask("POST /echo HTTP/1.1", JSON, "Transfer-Encoding: gzip, chunked", body=CHUNKS),
        400,
    ),
    ("6 chunked in 1.0", ask("POST /echo HTTP/1.0", JSON, CHUNKED, body=CHUNKS), 400),
    ("7 version 2.0", post(line="POST /echo HTTP/2.0"), 505),
    ("7 version 1.2", post(line="POST /echo HTTP/1.2"), 400),
    ("7 version 3", post(line=f"POST /echo HTTP/{CANARY}"), 400),
    ("8 version 0.9", post(line="POST /echo HTTP/0.9"), 505),
    *(
        (f"9 chunk {body[:12]!r}", chunked(body), 400)
        for body in (
            b"0x2\r\n{}\r\n0\r\n\r\n",
            b"2\n{}\n0\n\n",
            b"2;x\n=y\r\n{}\r\n0\r\n\r\n",
            b"1" * 18 + b"\r\n" + BODY,
            BODY,
            b"2\r\n" + BODY + b"\r\n0\r\n\r\n",
        )
    ),
    ("11 bare LF", post().replace(b"\r\n", b"\n", 3), 400),
    ("11 bare CR", post(f"X-Note: a\r{CANARY}"), 400),
    ("11 folded", post("X-Note: a", f" {CANARY}"), 400),
    ("11 NUL", post(f"X-Note: a\x00{CANARY}"), 400),
    ("11 no name", post(f": {CANARY}"), 400),
    ("11 space in name", post(f"X {CANARY}: a"), 400),
    ("12 no host", ask("POST /echo HTTP/1.1", JSON, LENGTH, host=None), 400),
    ("12 two hosts", post("Host: localhost"), 400),
    *(
        (f"13 two of {name}", post(f"{name}: a", f"{name}: {CANARY}"), 400)
        for name in ("Authorization", "Idempotency-Key")
    ),
    ("13 two content types", post("Content-Type: application/json"), 400),
    *(
        (f"13 {name} with {char!r}", post(f"{name}: {CANARY}{char}1"), 400)
        for name in ("Authorization", "Idempotency-Key")
        for char in ("\t", "\xe9", "\x7f", "\x01")
    ),
    ("13 host with \xe9", ask("POST /echo HTTP/1.1", JSON, LENGTH, host=f"h\xe9{CANARY}"), 400),
    ("14 absolute form", post(line=f"POST http://localhost/echo?{CANARY} HTTP/1.1"), 400),
    ("14 absolute form, TLS", post(line="POST https://localhost/echo HTTP/1.1"), 400),
    ("14 authority form", ask(f"GET localhost:{CANARY[:4]} HTTP/1.1", body=b""), 400),
    ("14 asterisk form", ask("OPTIONS * HTTP/1.1", body=b""), 405),
    ("15 websocket", post("Upgrade: websocket", "Connection: Upgrade", body=BODY + SMUGGLED), 400),
    ("15 h2c", post("Upgrade: h2c", "Connection: Upgrade", body=BODY + SMUGGLED), 400),
    ("15 upgrade to what", post(f"Upgrade: {CANARY}", body=BODY + SMUGGLED), 400),
    ("15 HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + CANARY.encode(), 400),
    ("16 CONNECT", ask("CONNECT localhost:443 HTTP/1.1", body=SMUGGLED), 405),
    ("16 TRACE", ask("TRACE /echo HTTP/1.1", body=b""), 405),
    ("16 PROPFIND", post(line="PROPFIND /echo HTTP/1.1"), 405),
    ("16 made up", post(line=f"X{CANARY} /echo HTTP/1.1"), 400),
    ("18 long line", get("/" + CANARY * 300), 400),
    ("18 long header", post("X-Note: " + CANARY * 300), 400),
    ("18 all headers together", post(*(f"X-Note-{i}: {CANARY * 200}" for i in range(3))), 431),
    ("18 200 headers", post(*(f"X-Note-{i}: {CANARY}" for i in range(200))), 400),
    ("23 expect", post(f"Expect: {CANARY}"), 417),
    ("24 one over", ask("POST /echo HTTP/1.1", JSON, "Content-Length: 65537", body=b"0" * 65_537), 413),
    ("24 chunked over", chunked(b"10001\r\n" + b"0" * 65_537 + b"\r\n0\r\n\r\n"), 413),
    *(
        (f"25 {coding}", post(f"Content-Encoding: {coding}"), 415)
        for coding in ("gzip", "deflate", "br", "zstd", "identity", CANARY)
    ),
    *(
        (
            f"26 {kind or 'nothing'}",
            ask("POST /echo HTTP/1.1", LENGTH, *([f"Content-Type: {kind}"] if kind else [])),
            415,
        )
        for kind in (
            "",
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/json; charset=utf-16",
            "application/json; charset=utf-8; x=y",
            "application/jsonx",
            f"application/{CANARY}",
        )
    ),
    *(
        (f"27 {target[:24]}", get(target), 404)
        for target in (
            "/things/../echo",
            "/./things/1",
            "/things/%2e%2e%2fecho",
            "/things/1%00",
            "/things/%c0%ae",
            "//things/1",
            "/things//1",
            "/things/1/",
            "/things/1;x=1",
            "/things/1#a",
            f"/%74hings/{CANARY}",
            "/things/" + CANARY * 200 + "%",
        )
    ),
    ("27 raw bytes in the path", get("/things/\xe9"), 400),
    ("27 raw bytes in the query", get(f"/things/1?{CANARY}=\xe9"), 400),
    ("27 NUL in the path", get("/things/1\x00"), 400),
]


@pytest.mark.parametrize(("sent", "status"), [pytest.param(*row[1:], id=row[0]) for row in HOSTILE])
def test_hostile_request_is_refused_once_in_silence(
    server: Running, silence: Silence, sent: bytes, status: int
) -> None:
    """A hostile request gets one constant answer and a closed connection, and leaves no trace of its bytes."""
    answer = server.exchange(sent)

    head, _, body = answer.partition(b"\r\n\r\n")
    assert status_of(answer) == status
    assert body == refusal(status)
    assert answer.count(b"HTTP/1.") == 1
    assert b"\r\nConnection: close\r\n" in head + b"\r\n"
    assert [seen[1] for seen in server.seen] == [status]
    assert status_of(server.exchange(post("Connection: close"))) == 200
    silence.check(server, answer)


ORDINARY: list[tuple[str, bytes, int]] = [
    ("json", post("Connection: close"), 200),
    ("charset", ask("POST /echo HTTP/1.1", f"{JSON}; charset=UTF-8", LENGTH, "Connection: close"), 200),
    ("chunked", chunked(CHUNKS, "Connection: close"), 200),
    ("1.0", post(line="POST /echo HTTP/1.0"), 200),
    ("one of each", post("Authorization: Bearer a", "Idempotency-Key: a b", "Connection: close"), 200),
    ("redirect", get("/found", "Connection: close"), 303),
    ("query", get("/things/1?a=%20b", "Connection: close"), 200),
    ("no such path", get(f"/{CANARY}", "Connection: close"), 404),
    ("other method", post("Connection: close", line="PUT /echo HTTP/1.1"), 405),
    ("raised", post("Connection: close", line="POST /boom HTTP/1.1"), 500),
    ("timed out", post("Connection: close", line="POST /timeout HTTP/1.1"), 500),
    ("malformed", b"\x00" + CANARY.encode(), 400),
]


@pytest.mark.parametrize(("sent", "status"), [pytest.param(*row[1:], id=row[0]) for row in ORDINARY])
def test_every_answer_carries_the_same_headers(server: Running, sent: bytes, status: int) -> None:
    """Whoever made the answer, it is not stored, not sniffed, has HSTS and a fresh id, and names no software."""
    head = server.exchange(sent).partition(b"\r\n\r\n")[0].decode()

    fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:])
    assert status_of(head.encode()) == status
    assert fields["Cache-Control"] == "no-store"
    assert fields["X-Content-Type-Options"] == "nosniff"
    assert fields["Strict-Transport-Security"] == "max-age=31536000"
    assert re.fullmatch(r"req_[a-p]{32}", fields["Request-Id"])
    assert "Server" not in fields
    assert "aiohttp" not in head
    assert "Python" not in head
    assert [(seen[1], seen[3]) for seen in server.seen] == [(status, fields["Request-Id"])]


def test_request_id_is_the_handlers_and_never_the_clients(server: Running) -> None:
    """A handler sees the id that the answer carries; one sent by the client is not taken over."""
    answer = server.exchange(post("Request-Id: req_mine", "Connection: close")).decode()

    made = re.findall(r"(?:Request-Id|X-Id): (\S+)", answer)
    assert len(made) == 2
    assert made[0] == made[1] != "req_mine"


def test_observer_hears_the_route_and_never_the_path(server: Running) -> None:
    """The observer is told the template of the route, and none for an unknown path or a wrong method."""
    for target in (f"/things/{CANARY}", f"/{CANARY}"):
        server.exchange(get(target, "Connection: close"))
    server.exchange(post("Connection: close", line="PUT /echo HTTP/1.1"))

    assert [seen[:2] for seen in server.seen] == [("GET /things/{id}", 200), (None, 404), (None, 405)]
    assert all(0 <= seen[2] < PATIENCE_S for seen in server.seen)


def test_unknown_path_and_wrong_method_keep_the_connection(server: Running) -> None:
    """The router's 404 and 405 are constant problems on a connection that may go on; 405 says what is allowed."""
    with server.connect() as wire:
        wire.sendall(get("/nowhere"))
        missing = read_answer(wire)
        wire.sendall(post(line="PUT /echo HTTP/1.1"))
        wrong = read_answer(wire)
        wire.sendall(post())
        right = read_answer(wire)

    assert [status_of(answer) for answer in (missing, wrong, right)] == [404, 405, 200]
    assert missing.endswith(refusal(404))
    assert wrong.endswith(refusal(405))
    assert b"\r\nAllow: POST\r\n" in wrong


@pytest.mark.parametrize("route", ["boom", "timeout"])
def test_failing_handler_tells_nothing(server: Running, silence: Silence, route: str) -> None:
    """An exception becomes a constant 500; the log has its class and places, not its message."""
    answer = server.exchange(post(line=f"POST /{route} HTTP/1.1"))

    assert status_of(answer) == 500
    assert answer.endswith(refusal(500))
    (entry,) = server.log.entries
    assert entry["event"] == "request.failed"
    assert entry["error"] == {"boom": "LookupError", "timeout": "TimeoutError"}[route]
    assert re.search(r"web/test_server\.py:\d+$", entry["frames"][-1])
    silence.check(server, answer)


def test_torn_stream_is_cut_off(server: Running, silence: Silence) -> None:
    """A handler that fails in the middle of its answer cannot be answered for: the stream ends without its end."""
    answer = server.exchange(post(line="POST /torn HTTP/1.1"))

    assert b"begun" in answer
    assert not answer.endswith(b"0\r\n\r\n")
    assert answer.count(b"HTTP/1.") == 1
    assert b"\r\nServer:" not in answer
    assert [seen[:2] for seen in server.seen] == [("POST /torn", 500)]
    silence.check(server, answer)


def test_bad_cookie_is_not_logged(server: Running, silence: Silence) -> None:
    """The warning by which aiohttp quotes an illegal cookie reaches nobody."""
    answer = server.exchange(get("/cookies", f"Cookie: a,{CANARY}=1", "Connection: close"))

    assert status_of(answer) == 200
    silence.check(server, answer)


def test_trailers_are_not_headers(server: Running, silence: Silence) -> None:
    """10: an Authorization behind the last chunk never becomes a header of the request."""
    trailed = chunked(
        b"0\r\nAuthorization: Bearer %s\r\nContent-Length: 9\r\n\r\n" % CANARY.encode(), "Connection: close"
    )
    answer = server.exchange(trailed.replace(b"POST /echo", b"GET /things/1"))

    assert status_of(answer) in {200, 400}
    assert b"authorization" not in answer
    assert answer.count(b"HTTP/1.") == 1
    silence.check(server, answer)


def test_continue_is_said_once_and_only_to_what_will_be_read(server: Running) -> None:
    """23: `Expect: 100-continue` is honoured for a body we take, and refused without it for one we do not."""
    with server.connect() as wire:
        wire.sendall(post("Expect: 100-continue", "Connection: close", body=b""))
        assert wire.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        wire.sendall(BODY)
        assert status_of(read_to_end(wire)) == 200
    too_long = ask("POST /echo HTTP/1.1", JSON, "Content-Length: 65537", "Expect: 100-continue", body=b"")
    assert status_of(server.exchange(too_long)) == 413


def test_body_of_exactly_the_limit_is_taken(server: Running) -> None:
    """24: 65,536 bytes pass, with a length or chunked."""
    body = b'"' + b"x" * 65_534 + b'"'
    length = ask("POST /echo HTTP/1.1", JSON, "Content-Length: 65536", "Connection: close", body=body)

    assert status_of(server.exchange(length)) == 200
    assert status_of(server.exchange(chunked(b"10000\r\n%s\r\n0\r\n\r\n" % body, "Connection: close"))) == 200


def test_endless_body_is_read_no_further(server: Running, silence: Silence) -> None:
    """24: an endless chunked body is refused, and its connection ends while it still sends."""
    begun = time.monotonic()
    with server.connect() as wire, suppress(OSError):
        wire.sendall(chunked(b""))
        while time.monotonic() - begun < PATIENCE_S:
            wire.sendall(b"4000\r\n" + b"0" * 0x4000 + b"\r\n")
    assert time.monotonic() - begun < 2
    assert [seen[1] for seen in server.seen] == [413]
    silence.check(server)


def test_body_broken_in_a_later_packet_is_refused_at_once(server: Running, silence: Silence) -> None:
    """9: garbage where a chunk should begin is a 400 although the head was fine, not a wait for the deadline."""
    with server.connect() as wire:
        wire.sendall(chunked(b"2\r\n{}\r\n"))
        time.sleep(0.1)
        begun = time.monotonic()
        wire.sendall(BODY + b"\r\n\r\n")
        answer = read_to_end(wire)

    assert time.monotonic() - begun < LIMITS.body_s / 2
    assert status_of(answer) == 400
    assert answer.count(b"HTTP/1.") == 1
    silence.check(server, answer)


def test_single_bytes_are_put_together(server: Running) -> None:
    """18: a request in segments of one byte is read like any other, and its limits hold."""
    with server.connect() as wire:
        for byte in post("Connection: close"):
            wire.sendall(bytes([byte]))
        assert status_of(read_to_end(wire)) == 200
    with server.connect() as wire:
        for byte in post(f"X-Note: {CANARY * 20}")[:60] + CANARY.encode() * 300:
            try:
                wire.sendall(bytes([byte]))
            except OSError:
                break
        assert status_of(read_to_end(wire)) == 400


# --- slow clients ---


SLOW = [
    pytest.param(b"", None, id="19 silent"),
    pytest.param(b"POST /ec", None, id="19 half a line"),
    pytest.param(b"GET /\r\n", None, id="8 no version"),
    pytest.param(ask(body=b"")[:-4], None, id="19 half a head"),
    pytest.param(post(body=b""), 408, id="20 no body"),
    pytest.param(post(body=BODY[:9]), 408, id="20 half a body"),
    pytest.param(chunked(b"50\r\n{"), 408, id="20 half a chunk"),
]


@pytest.mark.parametrize(("sent", "status"), SLOW)
@pytest.mark.parametrize("dripping", [False, True], ids=["still", "dripping"])
def test_slow_client_is_closed(
    server: Running, silence: Silence, sent: bytes, status: int | None, dripping: bool
) -> None:
    """A client that stops, or drips, is closed at the deadline: in silence before a whole head, with 408 after."""
    begun = time.monotonic()
    with server.connect() as wire:
        wire.sendall(sent)
        answer = _drip(wire) if dripping and sent else read_to_end(wire)

    assert 0.1 < time.monotonic() - begun < 2
    assert (status_of(answer) if answer and status else None) == status
    silence.check(server, answer)


def _drip(wire: ssl.SSLSocket) -> bytes:
    wire.settimeout(0.05)
    for _ in range(100):
        try:
            return wire.recv(65_536)
        except TimeoutError:
            with suppress(OSError):
                wire.sendall(b"0")
        except OSError:
            return b""
    pytest.fail("the connection stays open")


def test_idle_connection_is_kept_longer_than_a_head_may_take(server: Running) -> None:
    """Between requests a client may pause for longer than for a head: it finds its connection still there."""
    with server.connect() as wire:
        for pause_s in (2 * LIMITS.header_s, 0):
            wire.sendall(post())
            assert status_of(read_answer(wire)) == 200
            time.sleep(pause_s)


def test_second_head_has_a_deadline_too(server: Running) -> None:
    """19: after an answer, a kept connection that sends half a head is closed like a new one."""
    with server.connect() as wire:
        wire.sendall(post())
        read_answer(wire)
        begun = time.monotonic()
        wire.sendall(post()[:40])
        assert read_to_end(wire) == b""
        assert time.monotonic() - begun < 2


def test_slow_reader_is_closed(server: Running, silence: Silence) -> None:
    """21: who asks for much and reads nothing is cut off at the write deadline."""
    begun = time.monotonic()
    with server.connect() as wire:
        wire.sendall(get("/big"))
        until(lambda: bool(server.seen) and server.server.connections == 0)
        assert time.monotonic() - begun < 2
        assert max(server.buffered) <= 2 * 65_536
        with suppress(ssl.SSLError, ConnectionError):
            assert len(read_to_end(wire)) < 64_000_000
    silence.check(server)


def test_stalled_handshake_is_closed_and_counted(server: Running, silence: Silence) -> None:
    """37: a handshake that never comes holds a place under the cap, but not for longer than its deadline."""
    begun = time.monotonic()
    with server.plain() as wire:
        until(lambda: server.server.connections == 1)
        assert read_to_end(wire) == b""
    assert 0.1 < time.monotonic() - begun < 2
    until(lambda: server.server.connections == 0)
    silence.check(server)


def test_plaintext_on_the_tls_port_is_closed(server: Running, silence: Silence) -> None:
    """29: HTTP in the clear is answered by no HTTP, and neither repeated nor logged."""
    with server.plain() as wire:
        wire.sendall(post())
        answer = read_to_end(wire)
    assert b"HTTP" not in answer
    until(lambda: server.server.connections == 0)
    assert [entry["event"] for entry in server.log.entries] == ["handshake.failed"]
    silence.check(server, answer)


def test_connections_beyond_the_cap_are_closed_at_once(server: Running) -> None:
    """22, 37: half-open handshakes fill the cap like connections do; when one ends, the next is served."""
    refused_before = server.server.connections_refused
    idle = [server.plain() for _ in range(LIMITS.connections_max)]
    until(lambda: server.server.connections == LIMITS.connections_max)
    with server.plain() as extra:
        extra.settimeout(LIMITS.handshake_s / 2)
        assert read_to_end(extra) == b""
    for wire in idle:
        wire.close()
    until(lambda: server.server.connections == 0)

    assert server.server.connections_refused == refused_before + 1
    assert status_of(server.exchange(post("Connection: close"))) == 200


# --- pipelining, disconnection, stopping ---


def test_pipelined_requests_are_answered_in_order(server: Running) -> None:
    """17: fifty requests in one write come back in the order they were asked."""
    bodies = [b'{"n": %d}' % n for n in range(50)]
    asked = [
        ask(
            "POST /echo HTTP/1.1",
            JSON,
            f"Content-Length: {len(b)}",
            *(["Connection: close"] if b is bodies[-1] else []),
            body=b,
        )
        for b in bodies
    ]
    answer = server.exchange(b"".join(asked))
    assert re.findall(rb'\{"n": (\d+)\}', answer) == [b"%d" % n for n in range(50)]


def test_pipelined_flood_is_held_back(server: Running) -> None:
    """17: behind a running request, no more is read than a bounded buffer."""
    with server.connect() as wire:
        wire.sendall(get("/wait"))
        until(lambda: server.calls == ["begun"])
        wire.settimeout(0.3)
        with pytest.raises(TimeoutError):
            wire.sendall(get("/things/1") * 400_000)
    server.release.set()
    until(lambda: server.calls == ["begun", "finished"])


def test_nothing_behind_a_refusal_is_served(server: Running) -> None:
    """A refusal ends its connection: requests pipelined behind it are not looked at."""
    answer = server.exchange(post("Idempotency-Key: a", "Idempotency-Key: b") + get("/things/1") * 3)
    assert answer.count(b"HTTP/1.") == 1
    assert len(server.seen) == 1


def test_client_that_leaves_does_not_cancel_its_request(server: Running) -> None:
    """A handler runs to its end although its client has gone: a charge under way is not torn."""
    with server.connect() as wire:
        wire.sendall(get("/wait"))
        until(lambda: server.calls == ["begun"])
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until(lambda: server.server.connections == 0)
    server.release.set()

    until(lambda: server.calls == ["begun", "finished"])
    until(lambda: [seen[:2] for seen in server.seen] == [("GET /wait", 200)])


def test_client_that_leaves_in_its_body_is_counted_once(server: Running, silence: Silence) -> None:
    """A body whose client is gone never reaches its handler and counts as 400."""
    with server.connect() as wire:
        wire.sendall(post(body=BODY[:9]))
        time.sleep(0.05)
    until(lambda: [seen[:2] for seen in server.seen] == [("POST /echo", 400)])
    silence.check(server)


def test_stop_lets_a_running_request_end(own: Callable[[Limits], Own]) -> None:
    """After stop nobody connects, idle connections close, and a running request is answered."""
    with own(LIMITS) as running, running.connect() as idle, running.connect() as wire:
        wire.sendall(get("/wait"))
        until(lambda: running.calls == ["begun"])
        address = running.server.sock.getsockname()
        running.stop()
        until(lambda: running.server.sock.fileno() == -1)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        running.release.set()
        assert read_to_end(wire).endswith(b"waited")
        assert read_to_end(idle) == b""


def test_stop_is_told_with_answers(own: Callable[..., Own]) -> None:
    """While it stops, every answer ends its connection and says so: those under way, and the next on a kept one."""
    with own(LIMITS, grace_s=PATIENCE_S) as running, running.connect() as kept, running.connect() as busy:
        kept.sendall(get("/things/1"))
        assert b"Connection: close" not in read_answer(kept)
        busy.sendall(get("/wait"))
        until(lambda: running.calls == ["begun"])
        running.stop()
        until(lambda: running.server.sock.fileno() == -1)
        kept.sendall(get("/nowhere"))
        running.release.set()
        for wire, status in ((kept, 404), (busy, 200)):
            answer = read_to_end(wire)
            assert status_of(answer) == status
            assert b"\r\nConnection: close\r\n" in answer


def test_stop_waits_for_the_other_half_of_a_request(own: Callable[..., Own]) -> None:
    """Of what is idle one closes at once when it stops, be it new or used; one with half a head is heard out."""
    request = get("/things/1")
    with ExitStack() as stack:
        running = stack.enter_context(own(Limits(header_s=PATIENCE_S, linger_s=0.1)))
        new, used, half = (stack.enter_context(running.connect()) for _ in range(3))
        for wire in (used, half):
            wire.sendall(request)
            read_answer(wire)
        half.sendall(request[:20])
        until(lambda: [connection.idle for connection in running.server.manager.connections].count(False) == 1)  # type: ignore[attr-defined]
        running.stop()
        assert read_to_end(new) == read_to_end(used) == b""
        half.sendall(request[20:])
        assert status_of(read_to_end(half)) == 200


def test_stop_ends_what_outlasts_it(own: Callable[[Limits], Own]) -> None:
    """A request that outlasts `shutdown_s` is cancelled, and stop returns."""
    with own(Limits(shutdown_s=0.4, linger_s=0.1)) as running, running.connect() as wire:
        wire.sendall(get("/wait"))
        until(lambda: running.calls == ["begun"])
        begun = time.monotonic()
        running.stop()
        assert read_to_end(wire) == b""
        until(lambda: running.server.connections == 0)
        assert 0.3 < time.monotonic() - begun < 2
        assert running.calls == ["begun", "cancelled"]


# --- the loop, the parser, TLS ---


def test_loop_tells_of_errors_by_class_only(server: Running, silence: Silence) -> None:
    """What falls through to the event loop is logged without its message and without what it was called with."""

    def fail(_: str) -> None:
        raise LookupError(CANARY)

    server.loop.call_soon_threadsafe(fail, CANARY)
    until(lambda: bool(server.log.entries))

    (entry,) = server.log.entries
    assert (entry["event"], entry["error"]) == ("loop.failed", "LookupError")
    assert entry["about"] == ["exception", "handle", "message"]
    silence.check(server)


def test_failing_observer_tells_nothing(own: Callable[[Limits], Own], silence: Silence) -> None:
    """What fails in answering itself ends the connection and is logged by class."""

    def fail(*_: object) -> None:
        raise LookupError(CANARY)

    with own(LIMITS) as running:
        running.server.observe = fail
        answer = running.exchange(get("/things/1"))
        assert [entry["event"] for entry in running.log.entries] == ["connection.failed"]
        assert running.log.entries[0]["error"] == "LookupError"
        silence.check(running, answer)


def test_pure_python_parser_is_refused() -> None:
    """30: without aiohttp's C parser nothing starts."""
    assert_safe_parser()
    started = subprocess.run(
        [sys.executable, "-c", "from gateway.web.server import assert_safe_parser; assert_safe_parser()"],
        env={**os.environ, "AIOHTTP_NO_EXTENSIONS": "1"},
        cwd=Path(module.__file__).parents[2],
        capture_output=True,
        check=False,
    )
    assert started.returncode == 1
    assert b"UnsafeParserError" in started.stderr


@pytest.mark.parametrize("ciphers", ["ECDHE+AES:!AESGCM:!AESCCM", "AES128-GCM-SHA256", "ECDHE+AESCCM", "NULL"])
def test_weak_cipher_is_refused(server: Running, ciphers: str) -> None:
    """31: TLS 1.2 without ECDHE or without an AEAD cipher of the list finds nothing in common."""
    context = server.pki.client()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(f"{ciphers}:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        server.connect(context)


def test_old_version_is_refused(server: Running) -> None:
    """31: TLS 1.1 is refused by a server that would take it if it could."""
    context = server.pki.client()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        server.connect(context)


def test_nothing_of_tls_13_is_resumed(server: Running) -> None:
    """35: without tickets, every connection proves itself anew."""
    context = server.pki.client("app")
    context.set_alpn_protocols(["h2", "http/1.1"])
    with server.connect(context) as first:
        first.sendall(get("/who", "Connection: close"))
        assert read_to_end(first).endswith(b"app")
        assert first.version() == "TLSv1.3"
        assert first.selected_alpn_protocol() == "http/1.1"
        assert first.session is None or not first.session.has_ticket


def test_resumed_tls_12_session_keeps_its_certificate(server: Running) -> None:
    """35: a session id brings back the client that made the session, whatever certificate is offered now."""
    context = server.pki.client("app")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with server.connect(context) as first:
        first.sendall(get("/who", "Connection: close"))
        assert read_to_end(first).endswith(b"app")
        assert first.compression() is None
        session = first.session
    assert session is not None
    assert not session.has_ticket
    with server.connect(context, session) as second:
        second.sendall(get("/who", "Connection: close"))
        assert read_to_end(second).endswith(b"app")


def test_certificate_of_a_stranger_is_refused(server: Running, silence: Silence) -> None:
    """32: a client certificate of another CA, or not by the book, is refused; one of ours, or none, is served."""
    for who, served in ((None, True), ("app", True), ("rogue", False), ("sloppy", False)):
        with server.connect(server.pki.client(who)) as wire:
            answer = b""
            with suppress(ssl.SSLError, ConnectionError):
                wire.sendall(post("Connection: close"))
                answer = read_to_end(wire)
        assert bool(answer) is served
    silence.check(server, answer)


def test_encrypted_key_fails_instead_of_asking(pki: Pki, tmp_path: Path) -> None:
    """A key under a passphrase is an error, not a question on the terminal."""
    key = serialization.load_pem_private_key(pki.path("server.key").read_bytes(), None)
    sealed = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    (tmp_path / "sealed.key").write_bytes(sealed)
    with pytest.raises(ssl.SSLError):
        tls_context(pki.path("server.pem"), tmp_path / "sealed.key", None)
