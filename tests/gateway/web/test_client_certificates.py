"""Client certificates over the wire: real handshakes against the safe server, identity as the api process judges it.

Numbers are those of the security battery: TLS and client identity, items 31-36. Item 31 and the certificates that
break RFC 5280 are in `test_server`; item 37 (half-open handshakes) too; item 38 is the processor client's.
"""

import asyncio
import base64
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.client import HTTPResponse
from pathlib import Path

import msgspec
import pytest
import structlog
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID

from gateway.clock import SystemClock
from gateway.errors import CertificateRefused, Unavailable
from gateway.rules.access import Application, Credential, NewApiKey, new_api_key
from gateway.rules.problems import of_status
from gateway.services.callers import FRESH_S, Callers
from gateway.web.certificates import RevocationFile, client_certificate, read_certificate
from gateway.web.problems import response as problem_response
from gateway.web.server import Limits, SafeServer, tls_context
from keys.primitives import new_key
from tests.authority import CLIENT, HERE, HOUR, SERVER, Authority, san

pytestmark = pytest.mark.server

PARKS = "urn:city:parks"
DIGEST_KEYS = {1: new_key()}
PATIENCE_S = 5.0
OK = (200, "")
REFUSED = (403, "certificate-refused")
WRONG = (403, "wrong-certificate")
BROKEN = (0, "handshake")


# --- the server, and what its process knows ---


class Watch(SystemClock):
    """A clock whose time a test can let pass at once."""

    ahead = timedelta()

    def now(self) -> datetime:
        return super().now() + self.ahead

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead.total_seconds()


@dataclass
class Registered:
    """Implements `callers.CredentialStore` in memory: two applications, a key each."""

    parks: NewApiKey = field(default_factory=lambda: new_api_key(DIGEST_KEYS))
    utilities: NewApiKey = field(default_factory=lambda: new_api_key(DIGEST_KEYS))
    denied: set[bytes] = field(default_factory=set)
    valid: dict[str, Credential] = field(init=False)

    def __post_init__(self) -> None:
        self.valid = {
            key.key_id: Credential(1, key.digest, Application(name, "app_1", 1, f"urn:city:{name}"))
            for name, key in (("parks", self.parks), ("utilities", self.utilities))
        }

    async def credentials(self) -> Mapping[str, Credential]:
        return dict(self.valid)

    async def denied_certificates(self) -> Collection[bytes]:
        return frozenset(self.denied)

    async def note_use(self, key_ids: Mapping[str, Collection[str]]) -> None:
        """Nobody looks."""


@dataclass
class Office:
    """A running server, its authority, and clients of it."""

    authority: Authority
    store: Registered
    clock: Watch
    log: structlog.testing.LogCapture
    revocations: RevocationFile
    server: SafeServer = field(init=False)

    @property
    def folder(self) -> Path:
        return self.authority.folder

    def revoke(self, content: bytes | None) -> None:
        """Replace the file of lists, or remove it, and let the time pass in which everybody hears of it."""
        path = self.folder / "ca.crl"
        path.unlink(missing_ok=True)
        if content is not None:
            path.with_suffix(".new").write_bytes(content)
            path.with_suffix(".new").rename(path)
        self.clock.ahead += timedelta(seconds=FRESH_S)

    def context(self, certificate: Path | None) -> ssl.SSLContext:
        """A client with this certificate."""
        context = ssl.create_default_context(cafile=self.folder / "ca.pem")
        if certificate is not None:
            context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        return context

    def connect(self, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self.server.port), timeout=PATIENCE_S)
        return context.wrap_socket(plain, server_hostname="localhost", session=session)

    def send(self, wire: ssl.SSLSocket, key: NewApiKey | None = None) -> tuple[int, str]:
        """One request on a connection that stays open; status, and the slug of a problem."""
        bearer = (key or self.store.parks).secret.reveal()
        wire.sendall(f"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {bearer}\r\n\r\n".encode())
        answer = HTTPResponse(wire)
        answer.begin()
        body = answer.read()
        slug = "" if answer.status < 400 else str(msgspec.json.decode(body)["type"]).rpartition("/")[2]
        return answer.status, slug

    async def ask(self, certificate: Path | None, key: NewApiKey | None = None) -> tuple[int, str]:
        """One request on a connection of its own; BROKEN when TLS did not let it happen."""

        def exchange() -> tuple[int, str]:
            try:
                with self.connect(self.context(certificate)) as wire:
                    return self.send(wire, key)
            except (ssl.SSLError, ConnectionError):
                return BROKEN

        return await asyncio.to_thread(exchange)

    def warnings(self) -> list[str]:
        """What was logged as one."""
        return [entry["event"] for entry in self.log.entries if entry["log_level"] == "warning"]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The city's, with a listener and an application."""
    authority = Authority(tmp_path_factory.mktemp("pki"))
    authority.issue("ca", purposes=(), ca=True)
    authority.issue("server", HERE, (SERVER,))
    authority.issue("parks", san(PARKS.encode()))
    authority.issue("utilities", san(b"urn:city:utilities"))
    return authority


@pytest.fixture
async def office(authority: Authority) -> AsyncIterator[Office]:
    """A server that keeps lists, with an empty one in force."""
    log, clock, store = structlog.testing.LogCapture(), Watch(), Registered()
    logger = structlog.wrap_logger(None, processors=[log])
    revocations = RevocationFile(authority.folder / "ca.crl", authority.folder / "ca.pem", clock, logger)
    office = Office(authority, store, clock, log, revocations)
    office.revoke(authority.revocations())
    callers = Callers(store, DIGEST_KEYS, clock, revocations)

    async def who(request: web.Request) -> web.StreamResponse:
        try:
            caller = await callers.identify(request.headers["Authorization"], client_certificate(request))
        except Exception as error:
            if (answer := problem_response(error)) is None:
                raise
            return answer
        return web.Response(text=caller.department)

    application = web.Application()
    application.router.add_get("/", who)
    office.server = SafeServer(
        application,
        socket.create_server(("127.0.0.1", 0)),
        tls=tls_context(
            authority.folder / "server.pem", authority.folder / "server.key", authority.folder / "ca.pem"
        ),
        limits=Limits(linger_s=0.1, shutdown_s=1),
        refusal=of_status,
        observe=lambda _request, _status, _duration_s: None,
        log=logger,
    )
    await office.server.start()
    yield office
    await office.server.stop()


# --- 32, 34: whose certificate, and what for ---


async def test_the_application_s_own_certificate_serves(office: Office, authority: Authority) -> None:
    """34: with its key it serves; with the key of another application it is 403, and so the other way round."""
    parks, utilities = authority.folder / "parks.pem", authority.folder / "utilities.pem"

    assert await office.ask(parks) == OK
    assert await office.ask(utilities) == WRONG
    assert await office.ask(parks, office.store.utilities) == WRONG
    assert await office.ask(parks, new_api_key(DIGEST_KEYS)) == (401, "not-identified")
    assert await office.ask(None) == OK


async def test_certificates_of_others_and_of_other_times_break_the_handshake(
    office: Office, authority: Authority, tmp_path: Path
) -> None:
    """32: another authority's, of another or the same name, one's own, expired, not yet valid, for servers only."""
    named = san(PARKS.encode())
    strangers = [
        Authority(tmp_path, "Rogue authority").issue("rogue", named),
        Authority(tmp_path).issue("twin", named),
        authority.issue("self-signed", named, by_itself=True),
        authority.issue("expired", named, begins=-2 * HOUR, ends=-HOUR),
        authority.issue("future", named, begins=HOUR, ends=2 * HOUR),
        authority.issue("server-only", named, (SERVER,)),
    ]

    assert {path.stem: await office.ask(path) for path in strangers} == {path.stem: BROKEN for path in strangers}
    assert await office.ask(authority.folder / "parks.pem") == OK
    with pytest.raises(CertificateRefused):  # a second wall, should TLS ever let it in
        read_certificate(_der(authority, "server-only"))


async def test_certificates_that_are_for_nobody_s_application_are_refused(
    office: Office, authority: Authority
) -> None:
    """32: an authority's as a leaf, without a purpose, without a URI: TLS takes them, the gateway does not."""
    named = san(PARKS.encode())
    useless = [
        authority.issue("authority-as-leaf", named, ca=True),
        authority.issue("no-purpose", named, ()),
        authority.issue("no-name"),
        authority.issue("a-host", san(PARKS.encode(), tag=0x82)),
        authority.issue("a-mailbox", san(PARKS.encode(), tag=0x81)),
    ]

    assert {path.stem: await office.ask(path) for path in useless} == {path.stem: REFUSED for path in useless}
    assert await office.ask(authority.issue("both-purposes", named, (CLIENT, SERVER))) == OK


async def test_a_certificate_that_ends_ends_its_open_connection_s_rights(
    office: Office, authority: Authority
) -> None:
    """32: TLS looked at the time when the connection began; each request is looked at again."""

    def exchange() -> list[tuple[int, str]]:
        with office.connect(office.context(authority.folder / "parks.pem")) as wire:
            first = office.send(wire)
            office.clock.ahead += 2 * HOUR
            office.revoke(authority.revocations(ends=9 * HOUR))
            return [first, office.send(wire)]

    assert await asyncio.to_thread(exchange) == [OK, REFUSED]


# --- 33: revocation, and what becomes of everybody without a list ---


@pytest.mark.parametrize("how", ["revoked", "denied"])
async def test_a_revoked_certificate_is_refused_on_an_open_connection(
    office: Office, authority: Authority, how: str
) -> None:
    """33, 35: within two seconds of the list or of the deny list, on the same connection and on a new one."""

    def exchange() -> list[tuple[int, str]]:
        with office.connect(office.context(authority.folder / "parks.pem")) as wire:
            first = office.send(wire)
            if how == "denied":
                office.store.denied.add(authority.issued["parks"].fingerprint(hashes.SHA256()))
            office.revoke(authority.revocations(*(["parks"] if how == "revoked" else [])))
            return [first, office.send(wire), office.send(wire)]

    assert await asyncio.to_thread(exchange) == [OK, REFUSED, REFUSED]
    assert await office.ask(authority.folder / "parks.pem") == REFUSED
    assert await office.ask(authority.folder / "utilities.pem", office.store.utilities) == OK
    assert await office.ask(None) == OK


async def test_a_revoked_key_is_refused_on_an_open_connection(office: Office, authority: Authority) -> None:
    """35: a key, or an application with all its keys, is nobody's within two seconds, certificate or not."""

    def exchange() -> list[tuple[int, str]]:
        with office.connect(office.context(authority.folder / "parks.pem")) as wire:
            first = office.send(wire)
            office.store.valid.clear()
            office.clock.ahead += timedelta(seconds=FRESH_S)
            return [first, office.send(wire)]

    assert await asyncio.to_thread(exchange) == [OK, (401, "not-identified")]


@pytest.mark.parametrize(
    "spoilt",
    [
        "missing",
        "empty",
        "garbage",
        "cut",
        "expired",
        "future",
        "forged",
        "stranger's",
        "partial",
        "one of two forged",
        "odd name",
        "said twice",
    ],
)
async def test_without_a_usable_list_nobody_is_vouched_for(
    office: Office, authority: Authority, tmp_path: Path, spoilt: str
) -> None:
    """33: fails closed, with one warning and a reason in readiness, and opens again by itself with a good list."""
    whole, forged = authority.revocations(), Authority(tmp_path).revocations()
    contents = {
        "missing": None,
        "empty": b"",
        "garbage": b"no list\x00",
        "cut": whole[: len(whole) // 2],
        "expired": authority.revocations(begins=-9 * HOUR, ends=-HOUR),
        "future": authority.revocations(begins=HOUR, ends=9 * HOUR),
        "forged": forged,
        "stranger's": Authority(tmp_path, "Rogue authority").revocations(),
        "partial": authority.revocations(partial=True),
        "one of two forged": whole + forged,
        "odd name": _odd_list(authority, "odd name"),
        "said twice": _odd_list(authority, "said twice"),
    }
    await office.revocations.look()
    await office.revocations.require_usable()
    office.revoke(contents[spoilt])
    for _ in range(2):
        assert await office.ask(authority.folder / "parks.pem") == REFUSED
        office.clock.ahead += timedelta(seconds=FRESH_S)
    assert await office.ask(None) == OK
    with pytest.raises(Unavailable):
        await office.revocations.require_usable()
    assert office.warnings() == ["crl.unusable"]

    office.revoke(whole)
    assert await office.ask(authority.folder / "parks.pem") == OK
    await office.revocations.require_usable()
    office.revoke(None)
    assert await office.ask(authority.folder / "parks.pem") == REFUSED
    assert office.warnings() == ["crl.unusable"] * 2


async def test_a_list_that_runs_out_closes_the_door(office: Office, authority: Authority) -> None:
    """33: nobody touched the file; once the next list is due, it does not count any more."""
    office.revoke(authority.revocations(ends=timedelta(minutes=1)))
    assert await office.ask(authority.folder / "parks.pem") == OK
    office.clock.ahead += timedelta(minutes=1)
    assert await office.ask(authority.folder / "parks.pem") == REFUSED
    assert office.warnings() == ["crl.unusable"]


async def test_a_list_may_carry_several_authorities(office: Office, authority: Authority, tmp_path: Path) -> None:
    """33: while authorities change, each needs a list: with one of two the old one's certificates still serve."""
    other = Authority(tmp_path, "New authority")
    other.issue("ca", purposes=(), ca=True)
    both = tmp_path / "both.pem"
    both.write_bytes((authority.folder / "ca.pem").read_bytes() + (tmp_path / "ca.pem").read_bytes())
    (tmp_path / "both.crl").write_bytes(authority.revocations("parks"))
    file = RevocationFile(tmp_path / "both.crl", both, office.clock, structlog.get_logger())
    parks, utilities = [read_certificate(_der(authority, name)) for name in ("parks", "utilities")]
    other.issue("new", san(PARKS.encode()))
    new = read_certificate(_der(other, "new"))

    found = await file.look()
    found.require_good(utilities, office.clock.now())
    for refused in (parks, new):
        with pytest.raises(CertificateRefused):
            found.require_good(refused, office.clock.now())
    assert not found.complete(office.clock.now())
    (tmp_path / "both.crl").write_bytes(authority.revocations("parks") + b"\n" + other.revocations())
    found = await file.look()
    found.require_good(new, office.clock.now())
    assert found.complete(office.clock.now())


def _chain(root: Authority, folder: Path) -> Authority:
    """An authority whose certificate is of another; both are in `chain.pem`."""
    below = Authority(folder, "Issuing authority")
    key = below.key.public_key()
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(root.name, below.name, key, x509.random_serial_number(), now - HOUR, now + HOUR)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root.key.public_key()), critical=False)
        .sign(root.key, hashes.SHA256())
    )
    root.issued["below"] = certificate
    pem = certificate.public_bytes(Encoding.PEM)
    (folder / "chain.pem").write_bytes((root.folder / "ca.pem").read_bytes() + pem)
    return below


async def test_a_revoked_issuing_authority_vouches_for_nobody(
    office: Office, authority: Authority, tmp_path: Path
) -> None:
    """33: the root revokes it; its own list, good for another hour, says nothing of that and counts no more."""
    below = _chain(authority, tmp_path)
    below.issue("leaf", san(PARKS.encode()))
    file = RevocationFile(tmp_path / "chain.crl", tmp_path / "chain.pem", office.clock, structlog.get_logger())
    leaf, now = read_certificate(_der(below, "leaf")), office.clock.now()
    (tmp_path / "chain.crl").write_bytes(authority.revocations() + below.revocations())
    (await file.look()).require_good(leaf, now)

    (tmp_path / "chain.new").write_bytes(authority.revocations("below") + below.revocations())
    (tmp_path / "chain.new").rename(tmp_path / "chain.crl")
    found = await file.look()
    with pytest.raises(CertificateRefused):
        found.require_good(leaf, now)
    found.require_good(read_certificate(_der(authority, "utilities")), now)
    assert found.complete(now)


async def test_a_new_key_of_an_authority_has_a_list_of_its_own(
    office: Office, authority: Authority, tmp_path: Path
) -> None:
    """33: the name is the same, the key is not: the old key's list says nothing of the new key's certificates."""
    twin = Authority(tmp_path)
    twin.issue("ca", purposes=(), ca=True)
    twin.issue("new", san(PARKS.encode()))
    both = tmp_path / "both.pem"
    both.write_bytes((authority.folder / "ca.pem").read_bytes() + (tmp_path / "ca.pem").read_bytes())
    (tmp_path / "both.crl").write_bytes(authority.revocations())
    file = RevocationFile(tmp_path / "both.crl", both, office.clock, structlog.get_logger())
    new, old, now = read_certificate(_der(twin, "new")), _der(authority, "utilities"), office.clock.now()

    found = await file.look()
    with pytest.raises(CertificateRefused):
        found.require_good(new, now)
    found.require_good(read_certificate(old), now)
    assert not found.complete(now)
    (tmp_path / "both.crl").write_bytes(authority.revocations() + twin.revocations())
    found = await file.look()
    found.require_good(new, now)
    assert found.complete(now)


# --- 35: resumption ---


async def test_a_resumed_session_has_no_rights_of_its_own(office: Office, authority: Authority) -> None:
    """35: TLS 1.2 brings the certificate back with the session, after revocation too; it is judged like any other."""

    def exchange() -> tuple[list[tuple[int, str]], bool | None]:
        context = office.context(authority.folder / "parks.pem")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with office.connect(context) as first:
            before, session = office.send(first), first.session
            with suppress(OSError):  # a connection that is cut takes its session along
                first.unwrap()
        office.revoke(authority.revocations("parks"))
        with office.connect(context, session) as second:
            return [before, office.send(second)], second.session_reused

    assert await asyncio.to_thread(exchange) == ([OK, REFUSED], True)


# --- 36: names that look alike ---

ALIKE = {
    "upper case": b"URN:CITY:PARKS",
    "one capital": b"urn:city:Parks",
    "space behind": b"urn:city:parks ",
    "space before": b" urn:city:parks",
    "new line": b"urn:city:parks\n",
    "NUL behind": b"urn:city:parks\x00",
    "NUL and more": b"urn:city:parks\x00.evil.test",
    "wildcard": b"urn:city:*",
    "prefix": b"urn:city:park",
    "longer": b"urn:city:parks2",
    "percent": b"urn:city:%70arks",
    "fragment": b"urn:city:parks#",
    "homograph": "urn:city:p\u0430rks".encode(),
    "full width": "urn:city:park\uff53".encode(),
    "combining": "urn:city:parks\u200d".encode(),
    "latin 1": b"urn:city:p\xe4rks",
    "empty": b"",
}


@pytest.mark.parametrize("alike", ALIKE)
async def test_a_name_that_looks_alike_is_another_name(office: Office, authority: Authority, alike: str) -> None:
    """36: nothing is folded, trimmed, cut at NUL or matched by a pattern: nobody with one is the parks."""
    path = authority.issue("alike", san(ALIKE[alike]))

    assert await office.ask(path) in {WRONG, REFUSED, BROKEN}


async def test_a_name_that_cannot_be_read_is_a_failed_handshake(office: Office, authority: Authority) -> None:
    """36: Python cannot decode it; that ends the connection as any other failure of a handshake does."""
    office.log.entries.clear()
    await office.ask(authority.issue("unreadable", san(ALIKE["latin 1"])))
    async with asyncio.timeout(5):
        while "handshake.failed" not in [entry["event"] for entry in office.log.entries]:
            await asyncio.sleep(0.01)


async def test_the_common_name_is_no_name(office: Office, authority: Authority) -> None:
    """36: the subject says `urn:city:parks` in all of these certificates; only the alternative name is asked."""
    assert await office.ask(authority.issue("only-cn", san(b"urn:city:nobody"))) == WRONG


@pytest.mark.parametrize("odd", ["two names", "odd name", "said twice", "version"])
async def test_an_odd_certificate_is_refused_like_any_other(office: Office, authority: Authority, odd: str) -> None:
    """36: two URIs, a name that the parser does not know, an extension given twice, a version that there is not."""
    names = san(PARKS.encode()).value[2:]
    both = b"\x86" + bytes([len(OTHER)]) + OTHER
    alternatives = {
        "two names": bytes([0x30, len(names + both)]) + names + both,
        "odd name": bytes([0x30, len(names + ODD_NAME)]) + names + ODD_NAME,
    }
    value = alternatives.get(odd, bytes([0x30, len(names)]) + names)
    path = authority.issue("odd", x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, value))
    if odd not in alternatives:
        spoil = _said_twice if odd == "said twice" else _of_no_version
        path.write_bytes(pem_of(_signed_anew(_der(authority, "odd"), spoil, authority)))

    with pytest.raises(CertificateRefused):
        read_certificate(x509_der(path))
    assert await office.ask(path) in ({REFUSED} if odd in alternatives else {REFUSED, BROKEN})


OTHER = b"urn:city:other"
ODD_NAME = bytes.fromhex("a508a106") + b"\x0c\x04odd!"
"""An ediPartyName (RFC 5280 §4.2.1.6), which nobody uses and the parser does not read."""


def _odd_list(authority: Authority, odd: str) -> bytes:
    """A list that the authority did sign, with an extension that the parser raises for."""
    now = datetime.now(UTC)
    value = bytes([0x30, len(ODD_NAME)]) + ODD_NAME
    extension = x509.UnrecognizedExtension(ExtensionOID.ISSUER_ALTERNATIVE_NAME, value)
    builder = x509.CertificateRevocationListBuilder(authority.name, now - HOUR, now + HOUR)
    signed = builder.add_extension(extension, critical=False).sign(authority.key, hashes.SHA256())
    der = signed.public_bytes(Encoding.DER)
    if odd == "said twice":
        der = _signed_anew(der, _said_twice, authority)
    return pem_of(der, "X509 CRL")


def _signed_anew(der: bytes, spoil: Callable[[bytes], bytes], authority: Authority) -> bytes:
    """A certificate or list with other contents, and the authority's signature over these."""
    contents, algorithm, _ = _parts(der)
    contents = spoil(contents)
    signature = authority.key.sign(contents, ec.ECDSA(hashes.SHA256()))
    return _tlv(0x30, contents + algorithm + _tlv(0x03, b"\x00" + signature))


def _said_twice(contents: bytes) -> bytes:
    """The last extension once more."""
    *before, tagged = _parts(contents)
    (extensions,) = _parts(tagged)
    each = _parts(extensions)
    again = _tlv(tagged[0], _tlv(0x30, b"".join([*each, each[-1]])))
    return _tlv(0x30, b"".join([*before, again]))


def _of_no_version(contents: bytes) -> bytes:
    """Version 8, of which there is none."""
    _, *after = _parts(contents)
    return _tlv(0x30, b"".join([_tlv(0xA0, b"\x02\x01\x07"), *after]))


def _parts(der: bytes) -> list[bytes]:
    """What a constructed value is made of, each whole."""

    def ends(at: int) -> tuple[int, int]:
        length, start = der[at + 1], at + 2
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(der[at + 2 : start])
        return start, start + length

    at, end = ends(0)
    found = []
    while at < end:
        after = ends(at)[1]
        found.append(der[at:after])
        at = after
    return found


def _tlv(tag: int, value: bytes) -> bytes:
    size = len(value)
    if size < 0x80:
        return bytes([tag, size]) + value
    octets = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(octets)]) + octets + value


def pem_of(der: bytes, what: str = "CERTIFICATE") -> bytes:
    """In the form of RFC 7468."""
    return f"-----BEGIN {what}-----\n".encode() + base64.encodebytes(der) + f"-----END {what}-----\n".encode()


def x509_der(path: Path) -> bytes:
    """The certificate in a PEM file, whatever it says."""
    return ssl.PEM_cert_to_DER_cert(path.read_text())


def test_what_is_no_certificate_is_refused() -> None:
    """Bytes that no parser takes are a refused certificate, not an error of ours."""
    for der in (b"", b"\x30", b"\x00" * 500):
        with pytest.raises(CertificateRefused):
            read_certificate(der)


def _der(authority: Authority, name: str) -> bytes:
    return authority.issued[name].public_bytes(Encoding.DER)
