"""A running processor double, and someone who calls it."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.processor.stub.server import ProcessorStub
from tests.gateway.processor.caller import HASTE, Caller, Clock, Pki, config


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """A self-signed certificate for 127.0.0.1 that clients trust."""
    folder = tmp_path_factory.mktemp("pki")
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "processor")])
    now = datetime.now(UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(cert.public_bytes(pem))
    plain = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(
        private.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption_algorithm=plain)
    )
    return Pki(folder / "cert.pem", folder / "key.pem")


@pytest.fixture
def clock() -> Clock:
    """Hold the time of the running double."""
    return Clock()


@pytest.fixture
async def stub(pki: Pki, tmp_path: Path, clock: Clock) -> AsyncIterator[ProcessorStub]:
    """Run a double with an empty memory."""
    server = ProcessorStub(config(pki, tmp_path / "memory.db"), pace=HASTE, clock=clock)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def caller(pki: Pki, stub: ProcessorStub) -> AsyncIterator[Caller]:
    """Open the pool of one client."""
    async with aiohttp.ClientSession() as session:
        yield Caller(session, pki.client_context(), stub.control_port, stub.wire_port)
