"""Client certificates of the running product: revoked while a connection is open, and asked for in production."""

import asyncio
import json
import os
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from keys.files import write_private
from tests.authority import HERE, SERVER, Authority, san
from tests.cards import canary
from tests.system import BIN, Client, System, free_ports

pytestmark = pytest.mark.server

WITHIN_S = 2.0
URI = "urn:city:pool-kiosk"


def _revoke(system: System, *certificates: str) -> None:
    """Have the demo's authority say that these are revoked, and no others."""
    tls, now = system.home / "tls", datetime.now(UTC)
    authority = x509.load_pem_x509_certificate((tls / "ca.pem").read_bytes())
    key: Any = load_pem_private_key((tls / "ca.key").read_bytes(), None)
    builder = x509.CertificateRevocationListBuilder(
        authority.subject, now - timedelta(hours=1), now + timedelta(days=9)
    )
    for path in certificates:
        serial = x509.load_pem_x509_certificate(Path(path).read_bytes()).serial_number
        builder = builder.add_revoked_certificate(x509.RevokedCertificateBuilder(serial, now).build())
    write_private(tls / "ca.new", builder.sign(key, SHA256()).public_bytes(Encoding.PEM), replace=True)
    (tls / "ca.new").rename(tls / "ca.crl")


async def _until(client: Client, status: int) -> float:
    """Seconds until a request on the open connection has this status."""
    started_s = time.monotonic()
    while (await client.call("GET", "/v1/charges")).status != status:
        assert time.monotonic() - started_s < WITHIN_S + 3, "it never had"
        await asyncio.sleep(0.05)
    return time.monotonic() - started_s


async def test_a_revoked_certificate_is_refused_within_two_seconds(system: System, parks: Client) -> None:
    """On its open connection; the key alone and another application's certificate serve on, and so does it again."""
    try:
        async with Client(system, "parks", "parks") as revoked, Client(system, "utilities", "utilities") as other:
            assert await _until(revoked, 200) < WITHIN_S
            _revoke(system, system.demo["apps"]["parks"]["cert"])
            assert await _until(revoked, 403) < WITHIN_S + 0.5
            refused = await revoked.call("GET", "/v1/charges")
            assert refused.problem == "certificate-refused"
            assert [(await client.call("GET", "/v1/charges")).status for client in (other, parks)] == [200, 200]
            _revoke(system)
            assert await _until(revoked, 200) < WITHIN_S + 0.5
    finally:
        _revoke(system)


async def test_without_a_list_no_certificate_is_taken(system: System, parks: Client) -> None:
    """The log and the readiness say so; in a demo keys alone serve on, so it is degraded and not unavailable."""
    crl = system.home / "tls" / "ca.crl"
    try:
        async with Client(system, "parks", "parks") as client:
            await _until(client, 200)
            crl.unlink()
            await _until(client, 403)
            await asyncio.sleep(1)  # readiness is a second old at most
            ready = await parks.call("GET", "/readyz")
            assert (ready.status, ready.json) == (200, {"status": "degraded", "reasons": ["revocation"]})
            assert (await parks.call("GET", "/v1/charges")).status == 200
            _revoke(system)
            await _until(client, 200)
    finally:
        _revoke(system)
    assert '"crl.unusable"' in (system.home / "log" / "api.log").read_text()


@contextmanager
def _production(system: System, authority: Authority) -> Iterator[str]:
    """A second api process on the demo's data, with the profile and the certificates of production; gives its URL."""
    folder, ports = authority.folder, list(free_ports())
    settings = (system.home / "gateway.toml").read_text().replace('profile = "demo"', 'profile = "production"')
    sections = [
        section for section in settings.split("\n\n") if not section.startswith(("[stub]", "[admin]", "[oidc]"))
    ]
    (folder / "gateway.toml").write_text("\n\n".join(sections))
    (folder / "gateway.toml").chmod(0o600)
    changed = {
        "GATEWAY_API_PORT": str(ports[0]),
        "GATEWAY_METRICS_PORT": str(ports[1]),
        "GATEWAY_API_CERT": str(folder / "server.pem"),
        "GATEWAY_API_KEY": str(folder / "server.key"),
        "GATEWAY_API_CLIENT_CA": str(folder / "ca.pem"),
        "GATEWAY_API_CLIENT_CRL": str(folder / "ca.crl"),
        "GATEWAY_PROCESSOR_URL": "https://processor.test",
        "GATEWAY_PROCESSOR_CA": str(folder / "ca.pem"),
    }
    environment = system.plain | changed | {"GATEWAY_CONFIG": str(folder / "gateway.toml")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([BIN / "gateway", "api"], env=os.environ | environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while '"started"' not in (folder / "log").read_text():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, "it did not start"
            time.sleep(0.05)
        yield f"https://localhost:{ports[0]}"
    finally:
        process.terminate()
        process.wait(30)


async def test_production_asks_for_the_certificate_and_refuses_test_numbers(system: System, tmp_path: Path) -> None:
    """A key alone is 401 there; with its certificate a card is taken, unless its number is a published one."""
    authority = Authority(tmp_path)
    authority.issue("ca", purposes=(), ca=True)
    authority.issue("server", HERE, (SERVER,))
    kiosk = authority.issue("kiosk", san(URI.encode()))
    (tmp_path / "ca.crl").write_bytes(authority.revocations())
    added = json.loads(system.command("gateway", "app", "add", "parks", "Kiosk", "--certificate-san", URI))
    headers = {"Authorization": f"Bearer {added['api_key']}"}

    async def tokenized(url: str, certificate: Path | None, number: str) -> tuple[int, str]:
        tls = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        if certificate is not None:
            tls.load_cert_chain(certificate, certificate.with_suffix(".key"))
        card = {"number": number, "exp_month": 12, "exp_year": 2031}
        body = {"name": "Ramona Testholder", "card": card, "usage": "single"}
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls), headers=headers) as session,
            session.post(f"{url}/v1/tokens", json=body) as response,
        ):
            told = json.loads(await response.read())
            return response.status, told.get("type", "").rpartition("/")[2]

    with _production(system, authority) as url:
        assert await tokenized(url, None, canary(73_001)) == (401, "not-identified")
        assert await tokenized(url, kiosk, canary(73_001)) == (201, "")
        assert await tokenized(url, kiosk, "4242424242424242") == (422, "card-refused")
        (tmp_path / "ca.crl").unlink()
        await asyncio.sleep(WITHIN_S)
        assert await tokenized(url, kiosk, canary(73_001)) == (403, "certificate-refused")
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=tmp_path / "ca.pem"))
            ) as session,
            session.get(f"{url}/readyz") as response,
        ):
            assert (response.status, (await response.json())["reasons"][0]) == (503, "revocation")
