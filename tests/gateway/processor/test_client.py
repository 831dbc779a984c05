"""The processor's client against a far side that misbehaves in every way that a network and a server can.

The far side is a real TLS server on raw streams. It reads each request whole, keeps it, and then does what the
test scripts.
"""

import asyncio
import gzip
import itertools
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from structlog.testing import capture_logs

from gateway.processor.client import ANSWER_BYTES_MAX, ProcessorClient, open_session
from gateway.rules.card import Brands, Card, read_card
from gateway.rules.lifecycle import Kind, Progress
from gateway.rules.recovery import Offers
from gateway.services.ports import (
    Absent,
    Approved,
    Declined,
    Movement,
    NotFound,
    NotSent,
    Outcome,
    Payment,
    Unknown,
)
from keys.secret import Secret
from tests.cards import canary

pytestmark = pytest.mark.server

HOST = "127.0.0.1"
CREDENTIAL = "a-processor-key-for-tests"
NUMBER = canary(61_001)
HOLDER = "Ramona Testholder"
CVC = "737"
AMOUNT = 4_321
NOT_AFTER = datetime(2027, 1, 15, 8, 0, 59, 999_999, UTC)
CARRYING = frozenset({Kind.SALE, Kind.AUTHORIZATION})
"""The kinds that carry a card."""
PATHS: Mapping[Kind, str] = {
    Kind.SALE: "/wire/sale",
    Kind.AUTHORIZATION: "/wire/authorize",
    Kind.CAPTURE: "/wire/capture",
    Kind.VOID: "/wire/void",
    Kind.REFUND: "/wire/refund",
}
DONE: Mapping[str, str] = {
    "/wire/sale": "captured",
    "/wire/authorize": "authorized",
    "/wire/capture": "captured",
    "/wire/void": "voided",
    "/wire/refund": "refunded",
    "/wire/verify": "verified",
}
"""By route: how the far side says that it was done."""
PATIENT_S = 5.0
CONNECT_S = 0.3
"""Long enough for a handshake on a busy machine."""
HASTY_S = 0.5
"""For the far sides that never come to an end."""
FLOOD_BYTES = 100_000_000
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: closing sends a reset."""


@dataclass(frozen=True)
class Request:
    """What arrived, whole."""

    head: bytes
    body: bytes

    @property
    def line(self) -> str:
        return self.head.split(b"\r\n", 1)[0].decode()

    @property
    def path(self) -> str:
        return self.line.split(" ")[1]

    @property
    def headers(self) -> dict[str, str]:
        lines = self.head.decode().split("\r\n")[1:-2]
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Script = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class FarSide:
    """The server. `script` answers each request; `requests` are those that came whole."""

    port: int = 0
    script: Script = field(default_factory=lambda: says(ok))
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    sent_bytes: int = 0

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.port}/"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until somebody ends it."""
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                request = Request(head, b"")
                body = await reader.readexactly(int(request.headers.get("content-length", "0")))
                self.requests.append(request := Request(head, body))
                await self.script(request, writer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@dataclass(frozen=True)
class Identity:
    """A self-signed certificate, which clients may be told to trust."""

    cert: Path
    key: Path

    @property
    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.cert, self.key)
        return context


def identity(folder: Path, address: str = HOST, ends: timedelta = timedelta(days=1)) -> Identity:
    """A certificate for this address until so long from now."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "processor")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now + ends)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, SHA256())
    )
    made = Identity(folder / "cert.pem", folder / "key.pem")
    made.cert.write_bytes(certificate.public_bytes(Encoding.PEM))
    made.key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return made


@asynccontextmanager
async def listening(who: Identity | None) -> AsyncIterator[FarSide]:
    """A far side that shows this certificate, or speaks no TLS at all."""
    far = FarSide()
    server = await asyncio.start_server(far.serve, HOST, 0, ssl=who.context if who else None)
    far.port = server.sockets[0].getsockname()[1]
    try:
        yield far
    finally:
        server.close()


@pytest.fixture(scope="session")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """Whom the client trusts."""
    return identity(tmp_path_factory.mktemp("trusted"))


@pytest.fixture
async def far(trusted: Identity) -> AsyncIterator[FarSide]:
    """A far side that the client trusts; healthy until a test scripts it."""
    async with listening(trusted) as far:
        yield far


@asynccontextmanager
async def client_of(url: str, trusted: Identity, call_s: float = PATIENT_S) -> AsyncIterator[ProcessorClient]:
    """The client as the gateway opens it, less patient."""
    async with open_session(trusted.cert, Secret(CREDENTIAL), CONNECT_S) as session:
        yield ProcessorClient(session, url, call_s=call_s, inquire_s=call_s)


@pytest.fixture
async def client(far: FarSide, trusted: Identity) -> AsyncIterator[ProcessorClient]:
    """A client of the far side."""
    async with client_of(far.url, trusted) as client:
        yield client


@pytest.fixture
async def hasty(far: FarSide, trusted: Identity) -> AsyncIterator[ProcessorClient]:
    """A client of the far side that gives up soon."""
    async with client_of(far.url, trusted, HASTY_S) as client:
        yield client


@cache
def card() -> Card:
    """A card whose number is nowhere else."""
    return read_card(Brands.load(), Secret(NUMBER), 12, 2031)


def payment(cvc: str | None = CVC) -> Payment:
    """What goes with a sale."""
    return Payment(card(), Secret(HOLDER), None if cvc is None else Secret(cvc))


def movement(kind: Kind = Kind.SALE, reference: str = "pr_1", **change: Any) -> Movement:
    """A movement as the store gives it. What follows a charge follows `pr_1`, or what is told."""
    whole: dict[str, Any] = {
        "department": "parks",
        "movement_id": "mv_1",
        "charge_id": "ch_1",
        "kind": kind,
        "amount_minor": AMOUNT,
        "currency": "USD",
        "reference": reference,
        "charge_reference": reference if kind in CARRYING else "pr_1",
        "application_id": "app_1",
        "route": "/v1/charges",
        "idempotency_key": "key-1",
        "progress": Progress.SENDING,
        "with_cvc": True,
        "not_after": NOT_AFTER,
        "epoch": 1,
        "sends": 1,
        "decline_class": None,
        "decline_code": None,
        "created_at": NOT_AFTER - timedelta(seconds=60),
        "running": True,
    }
    return Movement(**whole | change)


async def send(client: ProcessorClient, moved: Movement) -> Outcome:
    """One movement, with a card if it needs one."""
    return await client.send(moved, payment() if moved.kind in CARRYING else None)


async def sell(client: ProcessorClient, reference: str = "pr_1") -> Outcome:
    """One sale."""
    return await client.send(movement(reference=reference), payment())


# --- what the far side says -----------------------------------------------------------------------------------


def ok(request: Request, **change: Any) -> bytes:
    """A whole answer about this request, done unless told otherwise."""
    asked = request.json
    told = {
        "reference": asked["reference"],
        "amount": asked.get("amount", 0),
        "currency": asked.get("currency", "USD"),
        "status": DONE.get(request.path, "captured"),
        "decline": None,
        "checks": {"cvc": "pass"},
    }
    return json.dumps(told | change).encode()


def declined(request: Request, code: Any = "05") -> bytes:
    """The issuer refuses with this code."""
    return ok(request, status="declined", decline={"class": "soft", "code": code})


def http(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> bytes:
    """A response of HTTP/1.1 that keeps the connection."""
    fields = {"Content-Type": "application/json", "Content-Length": str(len(body))} | dict(headers or {})
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} Whatever\r\n{head}\r\n".encode() + body


def says(body: Callable[[Request], bytes], status: int = 200, headers: Mapping[str, str] | None = None) -> Script:
    """Answer each request with this body."""

    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(http(body(request), status, headers))

    return script


def raw(answer: Callable[[Request], bytes]) -> Script:
    """Answer with these bytes, and end the connection."""

    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(request))
        await writer.drain()
        writer.close()

    return script


def reset_after(answer: Callable[[Request], bytes]) -> Script:
    """Send these bytes, then a TCP reset."""

    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(request))
        await writer.drain()
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort()

    return script


def half(request: Request) -> bytes:
    """A response cut in its body."""
    return http(ok(request))[:-20]


# --- the answers that count -----------------------------------------------------------------------------------


async def test_clear_answers_are_believed(far: FarSide, client: ProcessorClient) -> None:
    """Captured, verified and declined come through as what they are, and nothing else is asked or sent."""
    assert await sell(client) == Approved("pass")
    assert await client.verify("vf_1", payment()) == Approved("pass")
    far.script = says(lambda request: declined(request, "N7"))
    assert await sell(client, "pr_2") == Declined("pass", "soft", "N7")

    assert [request.line for request in far.requests] == [
        "POST /wire/sale HTTP/1.1",
        "POST /wire/verify HTTP/1.1",
        "POST /wire/sale HTTP/1.1",
    ]
    whole = {"number": NUMBER, "exp_month": 12, "exp_year": 2031, "name": HOLDER, "cvc": CVC}
    asked = {"reference": "pr_1", "amount": AMOUNT, "currency": "USD", "not_after": 1_800_000_059}
    assert far.requests[0].json == asked | {"card": whole}
    assert far.requests[1].json == {"reference": "vf_1", "card": whole}
    assert far.connections == 1


async def test_only_needed_headers_are_sent(far: FarSide, client: ProcessorClient) -> None:
    """No User-Agent, no Accept, nothing that tells versions: a request is five headers and its body."""
    await sell(client)
    assert set(far.requests[0].headers) == {"host", "authorization", "content-type", "content-length"}
    assert far.requests[0].headers["authorization"] == f"Bearer {CREDENTIAL}"


async def test_without_a_code_none_is_sent(far: FarSide, client: ProcessorClient) -> None:
    """A sale from a token has no verification code, not even an empty one."""
    await client.send(movement(), payment(cvc=None))
    assert "cvc" not in far.requests[0].json["card"]


@pytest.mark.parametrize("kind", Kind)
async def test_every_kind_of_movement_has_its_route(far: FarSide, client: ProcessorClient, kind: Kind) -> None:
    """Each kind goes to its own route, with a card or a charge, and is done when the far side says its own word."""
    moved = movement(kind, "pr_9", amount_minor=77)
    assert await send(client, moved) == Approved("pass")
    request = far.requests[0]
    assert request.line == f"POST {PATHS[kind]} HTTP/1.1"
    named = {"card"} if kind in CARRYING else {"charge"}
    assert set(request.json) == {"reference", "amount", "currency", "not_after"} | named
    assert (request.json["reference"], request.json["amount"]) == ("pr_9", 77)
    assert request.json.get("charge", "pr_1") == "pr_1"

    words = set(DONE.values()) - {DONE[PATHS[kind]]}
    for word in words:
        far.script = says(lambda r, word=word: ok(r, status=word))  # type: ignore[misc]
        assert await send(client, moved) == Unknown("wrong_echo")


@pytest.mark.parametrize("kind", Kind)
async def test_what_was_not_done_has_words_of_its_own(far: FarSide, client: ProcessorClient, kind: Kind) -> None:
    """Cancelled is absence for ever; expired is this copy only, and so proves nothing, and is no alarm."""
    far.script = says(lambda r: ok(r, status="cancelled"))
    assert await send(client, movement(kind, "pr_9")) == Absent()
    far.script = says(lambda r: ok(r, status="expired"))
    with capture_logs() as logs:
        assert await send(client, movement(kind, "pr_9")) == Unknown("expired")
    assert logs == []
    far.script = says(declined)
    assert await send(client, movement(kind, "pr_9")) == Declined("pass", "soft", "05")


@pytest.mark.parametrize("kind", Kind)
async def test_the_same_movement_is_the_same_bytes(
    far: FarSide, client: ProcessorClient, trusted: Identity, kind: Kind
) -> None:
    """Sent again, by anybody, under another epoch and long after, a movement is byte for byte what it was."""
    await send(client, movement(kind, "pr_9"))
    later = movement(kind, "pr_9", epoch=7, sends=2, progress=Progress.UNKNOWN, running=False)
    async with client_of(far.url, trusted) as other:
        await send(other, later)
    first, second = far.requests
    assert first.body == second.body
    assert first.head == second.head


async def test_the_time_limit_is_never_rounded_up(far: FarSide, client: ProcessorClient) -> None:
    """What is sent as `not_after` is the whole second before it."""
    for microsecond in (0, 1, 500_000, 999_999):
        await send(client, movement(not_after=NOT_AFTER.replace(microsecond=microsecond)))
    assert {request.json["not_after"] for request in far.requests} == {int(NOT_AFTER.timestamp())}


# --- nothing was sent -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flaw", ["authority", "name", "date"])
async def test_doubtful_certificates_get_nothing(trusted: Identity, tmp_path: Path, flaw: str) -> None:
    """An unknown authority, another's name, an expired certificate: not sent, and no request arrives."""
    ends = timedelta(days=-1) if flaw == "date" else timedelta(days=1)
    shown = identity(tmp_path, "127.0.0.2" if flaw == "name" else HOST, ends)
    trusts = trusted if flaw == "authority" else shown
    async with listening(shown) as far, client_of(far.url, trusts) as client:
        assert await sell(client) == NotSent()
        assert await client.inquire(movement()) == Unknown("unreachable")
        assert far.requests == []


async def test_refused_connections_are_not_sent(trusted: Identity) -> None:
    """Nobody listens: not sent."""
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
    async with client_of(f"https://{HOST}:{port}", trusted) as client:
        assert await sell(client) == NotSent()


@pytest.mark.parametrize("behaviour", ["stall", "plain text", "hang up", "reset"])
async def test_failed_handshakes_are_not_sent(trusted: Identity, behaviour: str) -> None:
    """A far side that never finishes the handshake, speaks no TLS, or hangs up in it: not sent, within the limit."""
    received: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read(65_536))
        match behaviour:
            case "plain text":
                writer.write(http(b"{}"))
            case "reset":
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            case "stall":
                received.append(await reader.read())
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    url = f"https://{HOST}:{server.sockets[0].getsockname()[1]}"
    async with server, client_of(url, trusted) as client, asyncio.timeout(CONNECT_S + 1):
        assert await sell(client) == NotSent()
    assert received[0][:1] == b"\x16", "a ClientHello, in clear"
    assert NUMBER.encode() not in b"".join(received)


async def test_a_full_pool_sends_nothing(far: FarSide, trusted: Identity) -> None:
    """A call that gets no connection in time was not sent; those before it are unknown when they time out."""

    async def silent(_request: Request, _writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(2 * HASTY_S)

    far.script = silent
    references = [f"pr_{index}" for index in range(70)]
    async with client_of(far.url, trusted, 2 * HASTY_S) as client:
        outcomes = await asyncio.gather(*(sell(client, reference) for reference in references))
    not_sent = {reference for reference, outcome in zip(references, outcomes, strict=True) if outcome == NotSent()}
    assert len(not_sent) >= 6
    assert outcomes.count(Unknown("timeout")) == 70 - len(not_sent) > 0
    assert not_sent.isdisjoint(request.json["reference"] for request in far.requests)


# --- nothing is believed --------------------------------------------------------------------------------------

NOT_BELIEVED: Mapping[str, tuple[str, Callable[[Request], bytes]]] = {
    "another reference": ("wrong_echo", lambda r: ok(r, reference="pr_2")),
    "another amount": ("wrong_echo", lambda r: ok(r, amount=AMOUNT - 1)),
    "another currency": ("wrong_echo", lambda r: ok(r, currency="CAD")),
    "a verification": ("wrong_echo", lambda r: ok(r, status="verified")),
    "an authorization": ("wrong_echo", lambda r: ok(r, status="authorized")),
    "a void": ("wrong_echo", lambda r: ok(r, status="voided")),
    "a refund": ("wrong_echo", lambda r: ok(r, status="refunded")),
    "a cancel of another sale": ("wrong_echo", lambda r: ok(r, status="cancelled", reference="pr_2")),
    "a cancel of another amount": ("wrong_echo", lambda r: ok(r, status="cancelled", amount=1)),
    "a decline that is cancelled": ("malformed", lambda r: declined(r).replace(b'"declined"', b'"cancelled"')),
    "a decline that is expired": ("malformed", lambda r: declined(r).replace(b'"declined"', b'"expired"')),
    "a decline of another sale": ("wrong_echo", lambda r: declined(r).replace(b"pr_1", b"pr_2")),
    "a status that we do not know": ("malformed", lambda r: ok(r, status="pending")),
    "no decline in a decline": ("malformed", lambda r: ok(r, status="declined")),
    "a decline in a capture": ("malformed", lambda r: declined(r).replace(b'"declined"', b'"captured"')),
    "no reference": ("malformed", lambda r: ok(r).replace(b"reference", b"referee")),
    "an amount as text": ("malformed", lambda r: ok(r, amount=str(AMOUNT))),
    "an amount as float": ("malformed", lambda r: ok(r, amount=AMOUNT + 0.0)),
    "an amount without end": ("malformed", lambda r: ok(r).replace(b"4321", b"9" * 6000)),
    "a second status": ("malformed", lambda r: ok(r)[:-1] + b', "status": "declined"}'),
    "a second amount, the same": ("malformed", lambda r: ok(r)[:-1] + b', "amount": 4321}'),
    "a second code": ("malformed", lambda r: declined(r).replace(b'"05"', b'"05", "code": "51"')),
    "half a document": ("malformed", lambda r: ok(r)[:-20]),
    "two documents": ("malformed", lambda r: ok(r) * 2),
    "a list": ("malformed", lambda r: b"[" + ok(r) + b"]"),
    "nothing": ("malformed", lambda _: b""),
    "nesting without end": ("malformed", lambda r: ok(r)[:-1] + b', "more": ' + b"[" * 15_000),
    "no UTF-8": ("malformed", lambda r: ok(r).replace(b"pr_1", b"\xff")),
    "UTF-16": ("malformed", lambda r: ok(r).decode().encode("utf-16")),
    "a page": ("malformed", lambda _: b"<!doctype html><title>Maintenance</title>"),
    "gzip": ("malformed", lambda r: gzip.compress(ok(r))),
    "too much": ("too_large", lambda r: ok(r) + b" " * ANSWER_BYTES_MAX),
    "a code with a line end": ("malformed", lambda r: declined(r, "05\nlevel=info")),
    "a code that ends in a line end": ("malformed", lambda r: declined(r, "05\n")),
    "a code without end": ("too_large", lambda r: declined(r, "5" * 1_000_000)),
    "a code in another alphabet": ("malformed", lambda r: declined(r, "\N{ARABIC-INDIC DIGIT FIVE}")),
    "a code that is a card number": ("malformed", lambda r: declined(r, NUMBER)),
    "a code that is empty": ("malformed", lambda r: declined(r, "")),
    "a code that is a number": ("malformed", lambda r: declined(r, 5)),
    "a class of its own": ("malformed", lambda r: declined(r).replace(b'"soft"', b'"<script>"')),
}
"""By name: why not, and the body of a 200."""


@pytest.mark.parametrize("name", NOT_BELIEVED)
async def test_bodies_that_are_not_believed(far: FarSide, client: ProcessorClient, name: str) -> None:
    """What is not whole, well-formed and about this very sale is unknown, asked once, and leaves no text behind."""
    reason, body = NOT_BELIEVED[name]
    far.script = says(body)
    with capture_logs() as logs:
        assert await sell(client) == Unknown(reason)
    assert len(far.requests) == 1
    assert [set(entry) for entry in logs] == [{"event", "log_level", "reason"}]
    assert logs[0]["reason"] == reason


NOT_BELIEVED_LATER = ["another amount", "another reference", "a refund", "a second status", "a code with a line end"]


@pytest.mark.parametrize("name", NOT_BELIEVED_LATER)
async def test_inquiries_believe_no_more(far: FarSide, client: ProcessorClient, name: str) -> None:
    """The answer inside an inquiry or a cancel is judged as strictly as one to a sale, and calls for a person."""
    reason, body = NOT_BELIEVED[name]
    far.script = says(found("sale", body))
    with capture_logs() as logs:
        assert await client.inquire(movement()) == Unknown(reason)
        assert await client.cancel(movement()) == Unknown(reason)
    assert [(entry["log_level"], entry["reason"]) for entry in logs] == [("error", reason)] * 2


def found(kind: str, body: Callable[[Request], bytes] = ok) -> Callable[[Request], bytes]:
    """The answer to an inquiry or a cancel about a movement of this kind that was decided so."""

    def answer(request: Request) -> bytes:
        asked = Request(request.head, json.dumps(request.json | {"amount": AMOUNT}).encode())
        return b'{"status": "found", "kind": "%s", "answer": %s}' % (kind.encode(), body(asked))

    return answer


OFFERS = b'"offers": {"dedupe_window_s": 60, "cancel": true, "expiry": false}'
INQUIRIES: Mapping[bytes, object] = {
    b'{"status": "not_found", "reference": "pr_1", %s}' % OFFERS: NotFound(Offers(60, cancel=True, expiry=False)),
    b'{"status": "not_found", "reference": "pr_1", %s}' % OFFERS.replace(b"60", b"null").replace(b"false", b"true"): (
        NotFound(Offers(None, cancel=True, expiry=True))
    ),
    b'{"status": "not_found", "reference": "pr_1"}': Unknown("malformed"),
    b'{"status": "not_found", %s}' % OFFERS: Unknown("malformed"),
    b'{"status": "not_found", "reference": "pr_2", %s}' % OFFERS: Unknown("wrong_echo"),
    b'{"status": "not_found", "reference": "pr_1", "offers": null}': Unknown("malformed"),
    **{
        b'{"status": "not_found", "reference": "pr_1", %s}' % OFFERS.replace(right, wrong): Unknown("malformed")
        for right, wrong in (
            (b'"cancel": true, ', b""),
            (b', "expiry": false', b""),
            (b'"dedupe_window_s": 60, ', b""),
            (b"true", b"1"),
            (b"true", b"null"),
            (b"false", b'"false"'),
            (b"60", b"-1"),
            (b"60", b'"60"'),
            (b"60", b"true"),
            (b"60", b"NaN"),
            (b"60", b"Infinity"),
            (b"60", b"1e999"),
            (b"60", b"1e13"),
            (b'"expiry"', b'"cancel": false, "expiry"'),
        )
    },
    b'{"status": "cancelled", "reference": "pr_1"}': Absent(),
    b'{"status": "cancelled", "reference": "pr_2"}': Unknown("wrong_echo"),
    b'{"status": "cancelled"}': Unknown("malformed"),
    b'{"status": "found"}': Unknown("malformed"),
    b'{"status": "found", "kind": "sale", "answer": null}': Unknown("malformed"),
    b'{"status": "perhaps"}': Unknown("malformed"),
    b'{"status": "not_found", "status": "found"}': Unknown("malformed"),
    b'{"reference": "pr_1"}': Unknown("malformed"),
    b"null": Unknown("malformed"),
    b"[]": Unknown("malformed"),
    b"{}": Unknown("malformed"),
}


@pytest.mark.parametrize("body", INQUIRIES)
async def test_inquiries_without_an_answer(far: FarSide, client: ProcessorClient, body: bytes) -> None:
    """Only a plain word about this reference counts: that it is void, or not known, and what helps then."""
    far.script = says(lambda _: body)
    assert await client.inquire(movement()) == INQUIRIES[body]


@pytest.mark.parametrize("body", INQUIRIES)
async def test_cancels_without_an_answer(far: FarSide, client: ProcessorClient, body: bytes) -> None:
    """A cancel is believed as an inquiry is; that the reference is not known is no answer to it."""
    far.script = says(lambda _: body)
    expected = INQUIRIES[body]
    assert await client.cancel(movement()) == (Unknown("malformed") if b"not_found" in body else expected)


@pytest.mark.parametrize("kind", Kind)
async def test_what_was_decided_is_believed_of_the_same_kind_only(
    far: FarSide, client: ProcessorClient, kind: Kind
) -> None:
    """Inquiries and cancels give what was decided; an answer about a movement of another kind is about another."""
    moved = movement(kind, "pr_9")
    for told in Kind:
        done = {"status": DONE[PATHS[kind]]}
        far.script = says(found(told, lambda r, done=done: ok(r, **done)))  # type: ignore[misc]
        expected = Approved("pass") if told is kind else Unknown("wrong_echo")
        assert await client.inquire(moved) == await client.cancel(moved) == expected
        far.script = says(found(told, declined))
        assert (await client.inquire(moved) == Declined("pass", "soft", "05")) is (told is kind)
    far.script = says(found(kind, lambda r: ok(r, status="cancelled")))
    assert await client.inquire(moved) == await client.cancel(moved) == Unknown("wrong_echo")


async def test_inquiries_and_cancels_ask_for_the_reference_only(far: FarSide, client: ProcessorClient) -> None:
    """They carry the reference, a cancel also its charge's: no card, no amount."""
    moved = movement(Kind.REFUND, "pr_9")
    await client.inquire(moved)
    await client.cancel(moved)
    assert [(request.line, request.json) for request in far.requests] == [
        ("POST /wire/inquire HTTP/1.1", {"reference": "pr_9"}),
        ("POST /wire/cancel HTTP/1.1", {"reference": "pr_9", "charge": "pr_1"}),
    ]


@pytest.mark.parametrize("status", [201, 400, 404, 409, 500])
async def test_only_200_cancels(far: FarSide, client: ProcessorClient, status: int) -> None:
    """A cancel that is not offered, or fails, says nothing about the reference."""
    far.script = says(lambda _: b'{"status": "cancelled", "reference": "pr_1", "error": "not_offered"}', status)
    assert await client.cancel(movement()) == Unknown("status")


@pytest.mark.parametrize("status", [201, 202, 203, 226, 400, 401, 402, 404, 409, 429, 500, 502, 503])
async def test_only_200_is_an_answer(far: FarSide, client: ProcessorClient, status: int) -> None:
    """Any other status is unknown, whatever its body says: an error may come after the money moved."""
    far.script = says(ok, status)
    assert await sell(client) == Unknown("status")
    assert len(far.requests) == 1


CUT: Mapping[str, Script] = {
    "reset after the request": reset_after(lambda _: b""),
    "closed after the request": raw(lambda _: b""),
    "reset half-way": reset_after(half),
    "closed half-way": raw(half),
    "closed in the head": raw(lambda r: http(ok(r))[:30]),
    "a broken chunk": raw(lambda _: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"),
    "a chunk too short": raw(
        lambda r: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % (len(ok(r)) + 9) + ok(r)
    ),
    "no last chunk": raw(
        lambda r: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(ok(r)) + ok(r) + b"\r\n"
    ),
    "no HTTP": raw(lambda _: b"220 smtp.example ESMTP\r\n"),
    "two lengths": raw(lambda r: http(ok(r), headers={"content-length": "2"})),
    "headers without end": raw(
        lambda _: b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % index for index in range(50_000))
    ),
    "a header without end": raw(lambda _: b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1_000_000),
}


@pytest.mark.parametrize("name", CUT)
async def test_broken_answers_are_unknown(far: FarSide, client: ProcessorClient, name: str) -> None:
    """Once a request may have left, no break of the connection is taken for a refusal, and none asks again."""
    far.script = CUT[name]
    assert await sell(client) == Unknown("connection")
    assert len(far.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(
    far: FarSide, client: ProcessorClient, trusted: Identity, status: int
) -> None:
    """A redirect is unknown; the card goes neither elsewhere nor twice."""
    async with listening(trusted) as elsewhere:
        far.script = says(ok, status, {"Location": elsewhere.url})
        assert await sell(client) == Unknown("status")
        far.script = says(ok, status, {"Location": far.url})
        assert await sell(client) == Unknown("status")
        assert elsewhere.connections == 0
    assert len(far.requests) == 2


async def test_cookies_are_not_sent_back(far: FarSide, client: ProcessorClient) -> None:
    """What the far side wants us to remember is forgotten."""
    far.script = says(ok, headers={"Set-Cookie": "follow=me; Path=/; Secure", "Alt-Svc": 'h2=":1"'})
    assert [await sell(client), await sell(client)] == [Approved("pass")] * 2
    assert "cookie" not in far.requests[1].headers


async def test_a_bomb_is_not_inflated(far: FarSide, client: ProcessorClient) -> None:
    """A compressed answer was not asked for, and is not opened."""
    far.script = says(lambda r: gzip.compress(ok(r)), headers={"Content-Encoding": "gzip"})
    assert await sell(client) == Unknown("malformed")
    far.script = says(lambda r: gzip.compress(ok(r) + b" " * 10_000_000), headers={"Content-Encoding": "gzip"})
    assert await sell(client) == Unknown("malformed")


async def test_a_flood_is_cut_off(far: FarSide, client: ProcessorClient) -> None:
    """Of a hundred megabytes only what buffers hold is taken, and the connection ends."""
    chunk = b" " * 65_536

    async def flood(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % FLOOD_BYTES)
        while far.sent_bytes < FLOOD_BYTES:
            writer.write(chunk)
            await writer.drain()
            far.sent_bytes += len(chunk)

    far.script = flood
    assert await sell(client) == Unknown("too_large")
    assert far.sent_bytes < FLOOD_BYTES / 10


@pytest.mark.parametrize("drop", [b" ", b"X-More: 1\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_endless_answers_time_out(far: FarSide, hasty: ProcessorClient, drop: bytes) -> None:
    """A far side that drips a body, a head, or interim answers for ever has the time of one call, no more."""
    start = {b" ": b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"X-More: 1\r\n": b"HTTP/1.1 200 OK\r\n"}

    async def drip(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(start.get(drop, b""))
        while not writer.is_closing():
            writer.write(drop)
            await asyncio.sleep(0.02)

    far.script = drip
    async with asyncio.timeout(2 * HASTY_S):
        assert await sell(hasty) == Unknown("timeout")
    assert len(far.requests) == 1


async def test_silence_times_out(far: FarSide, hasty: ProcessorClient) -> None:
    """A far side that takes the request and says nothing: unknown, for sales and inquiries alike."""

    async def silent(_request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(2 * HASTY_S)

    far.script = silent
    async with asyncio.timeout(1.5 * HASTY_S):
        sold, found = await asyncio.gather(sell(hasty), hasty.inquire(movement()))
    assert sold == found == Unknown("timeout")


# --- once each ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [raw(lambda _: b""), reset_after(lambda _: b"")], ids=["closed", "reset"])
async def test_a_request_on_a_dying_connection_is_sent_once(
    far: FarSide, client: ProcessorClient, ends: Script
) -> None:
    """A kept connection that ends just as the request comes: unknown, never sent again by itself."""
    assert await sell(client, "pr_1") == Approved("pass")
    far.script = ends
    assert await sell(client, "pr_2") == Unknown("connection")
    assert await client.inquire(movement(reference="pr_2")) == Unknown("connection")
    far.script = says(ok)
    assert await sell(client, "pr_3") == Approved("pass")
    assert [request.json["reference"] for request in far.requests] == ["pr_1", "pr_2", "pr_2", "pr_3"]


async def test_every_call_is_one_post(far: FarSide, client: ProcessorClient) -> None:
    """The far side closes kept connections at any moment around the next request: no reference arrives twice."""
    delays_s = itertools.cycle([0, 0.0002, 0.001])

    async def leave_soon(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(http(ok(request)))
        asyncio.get_running_loop().call_later(next(delays_s), writer.close)

    far.script = leave_soon
    outcomes = [await sell(client, f"pr_{index}") for index in range(150)]
    arrived = [request.json["reference"] for request in far.requests]
    assert len(arrived) == len(set(arrived))
    assert {type(outcome) for outcome in outcomes} <= {Approved, Unknown}
    assert outcomes.count(Approved("pass")) <= len(arrived)


async def test_an_answer_ahead_of_its_question_is_not_believed(far: FarSide, client: ProcessorClient) -> None:
    """What was waiting on a kept connection is not taken for the answer to the next sale."""

    async def twice(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(http(ok(request)) + http(ok(request, amount=1)))

    far.script = twice
    assert await sell(client, "pr_1") == Approved("pass")
    assert await sell(client, "pr_2") in {Approved("pass"), Unknown("wrong_echo"), Unknown("connection")}
    assert [request.json["reference"] for request in far.requests] == ["pr_1", "pr_2"]


async def test_proxies_of_the_environment_are_ignored(
    far: FarSide, client: ProcessorClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy variable set on the machine takes no card anywhere."""
    async with listening(None) as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://{HOST}:{proxy.port}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        assert await sell(client) == Approved("pass")
        assert proxy.connections == 0


async def test_nothing_of_a_card_is_logged(
    far: FarSide, hasty: ProcessorClient, caplog: pytest.LogCaptureFixture
) -> None:
    """A far side that repeats the card in its errors puts it into no log, ours or a library's."""
    caplog.set_level(0)
    with capture_logs() as logs:
        for script in (
            says(lambda r: r.body, 400),
            says(lambda r: r.body),
            says(lambda r: ok(r, reference=NUMBER)),
            raw(lambda r: r.body),
        ):
            far.script = script
            assert isinstance(await sell(hasty), Unknown)
    assert len(far.requests) == 4
    everything = f"{logs}{caplog.text}{[record.__dict__ for record in caplog.records]}"
    assert NUMBER not in everything
    assert HOLDER not in everything
