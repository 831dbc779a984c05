"""Profiles: what a demo takes, and what a file for production may not have in it."""

import asyncio
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from gateway.config import ApiSection, Config, ProcessorSection, StubSection
from gateway.profile import in_production, require_profile
from gateway.wiring import serve_api
from keys.errors import SettingsRefused
from keys.secret import Secret
from keys.settings import DatabaseSection, KeysSection

REAL, DEMO = "payments.city.test", "Gateway demo api"


def _certificate(path: Path, *names: tuple[str, str]) -> Path:
    """A file of certificates, each of (subject, issuer)."""
    now, key, pem = datetime.now(UTC), ec.generate_private_key(ec.SECP256R1()), b""
    for subject, issuer in names:
        by, whose = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in (issuer, subject))
        builder = x509.CertificateBuilder(by, whose, key.public_key(), 1, now, now + timedelta(hours=1))
        pem += builder.sign(key, SHA256()).public_bytes(Encoding.PEM)
    path.write_bytes(pem)
    return path


@pytest.fixture
def production(tmp_path: Path) -> Config:
    """A file as the city would write it."""
    listener = _certificate(tmp_path / "api.pem", (REAL, "City issuing CA"))
    authority = _certificate(tmp_path / "ca.pem", ("City issuing CA", "City root CA"))
    return Config(
        environment="city",
        keys=KeysSection(root="file:/root.key", store="file:/keystore", secrets=str(tmp_path)),
        database=DatabaseSection(dsn="postgresql://db.city.test/gateway"),
        api=ApiSection(
            cert=str(listener), key="/api.key", client_ca=str(authority), client_crl=str(tmp_path / "ca.crl"), port=1
        ),
        processor=ProcessorSection(url="https://processor.test"),
    )


def _require(config: Config) -> None:
    require_profile(config, {"api.cert": config.api.cert, "api.client_ca": config.api.client_ca})


def _with_api(config: Config, **change: object) -> Config:
    return msgspec.structs.replace(config, api=msgspec.structs.replace(config.api, **change))


def test_production_is_what_a_file_is_unless_it_says_otherwise(production: Config) -> None:
    """Nobody runs a demo by forgetting a line."""
    assert in_production(production)
    assert not in_production(msgspec.structs.replace(production, profile="demo"))


def test_a_file_for_production_starts(production: Config) -> None:
    """With certificates of the city, a list of revocations and a processor elsewhere, and no stub."""
    _require(production)


@pytest.mark.parametrize("missing", [["client_crl"], ["client_crl", "client_ca"]])
def test_production_needs_an_authority_and_its_list(production: Config, missing: list[str]) -> None:
    """Without one of them no application could be known by its certificate."""
    with pytest.raises(SettingsRefused, match=r"api\.client_ca, and api\.client_crl"):
        _require(_with_api(production, **dict.fromkeys(missing)))


def test_a_list_without_its_authority_is_a_doubt(production: Config) -> None:
    """In a demo, too: whoever set it believes that certificates are looked at."""
    demo = msgspec.structs.replace(_with_api(production, client_ca=None), profile="demo")
    with pytest.raises(SettingsRefused, match=r"^api\.client_crl"):
        _require(demo)
    _require(_with_api(demo, client_crl=None))


def test_production_has_no_stub(production: Config) -> None:
    """A section of it is a leftover of a demo."""
    stub = StubSection(cert="/stub.pem", key="/stub.key", memory="/stub.sqlite")
    with pytest.raises(SettingsRefused, match=r"\[stub\]"):
        _require(msgspec.structs.replace(production, stub=stub))


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9:8446", True),
        ("[::1]:8446", True),
        ("[::ffff:127.0.0.1]", True),
        ("0.0.0.0", True),  # noqa: S104 - nothing is bound
        ("localhost", True),
        ("LOCALHOST", True),
        ("localhost.", True),
        ("stub.localhost:1", True),
        ("127.1", True),
        ("127.1:8446", True),
        ("0x7f.1", True),
        ("0x7F000001", True),
        ("0177.0.0.1", True),
        ("2130706433", True),
        ("0", True),
        ("localhost.localdomain", True),
        ("ip6-localhost", True),
        ("IP6-loopback.", True),
        ("128.1", False),
        ("2147483649", False),
        ("ip6-localhost.processor.test", False),
        ("processor.test", False),
        ("localhost.processor.test", False),
        ("128.0.0.1", False),
        ("[2001:db8::1]", False),
    ],
)
def test_production_speaks_to_a_processor_elsewhere(production: Config, host: str, here: bool) -> None:
    """A processor on this machine is a double, however its address is written."""
    config = msgspec.structs.replace(production, processor=ProcessorSection(url=f"https://{host}"))
    if here:
        with pytest.raises(SettingsRefused, match=r"processor\.url"):
            _require(config)
    else:
        _require(config)


@pytest.mark.parametrize("setting", ["cert", "client_ca"])
@pytest.mark.parametrize(
    "names",
    [
        [(DEMO, "City issuing CA")],
        [(REAL, "Gateway demo authority")],
        [(REAL, "City issuing CA"), ("City issuing CA", "Gateway demo authority")],
    ],
    ids=["subject", "issuer", "second"],
)
def test_production_refuses_development_certificates(
    production: Config, tmp_path: Path, setting: str, names: list[tuple[str, str]]
) -> None:
    """By the subject or the issuer of any certificate in the file: their keys lie on many machines."""
    demo = _certificate(tmp_path / "demo.pem", *names)
    with pytest.raises(SettingsRefused, match=rf"api\.{setting} is a development certificate"):
        _require(_with_api(production, **{setting: str(demo)}))
    _require(msgspec.structs.replace(_with_api(production, **{setting: str(demo)}), profile="demo"))


def test_production_trusts_no_development_authority_at_the_processor_s(production: Config, tmp_path: Path) -> None:
    """Whoever has a demo's key could otherwise stand in for the processor, and be sent card numbers."""
    url = "https://processor.test"
    demo = _certificate(tmp_path / "demo.pem", ("Gateway demo authority", "Gateway demo authority"))
    config = msgspec.structs.replace(production, processor=ProcessorSection(url=url, ca=str(demo)))
    with pytest.raises(SettingsRefused, match=r"^processor\.ca is a development certificate"):
        _require(config)
    _require(msgspec.structs.replace(config, profile="demo"))
    _require(msgspec.structs.replace(config, processor=ProcessorSection(url=url, ca=production.api.client_ca)))


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_certificate_that_cannot_be_read_stops_the_start(
    production: Config, tmp_path: Path, content: bytes | None
) -> None:
    """One line says which setting."""
    if content is not None:
        (tmp_path / "broken.pem").write_bytes(content)
    with pytest.raises(SettingsRefused, match=r"^api\.client_ca is no file of certificates"):
        _require(_with_api(production, client_ca=str(tmp_path / "broken.pem")))


def test_a_demo_may_have_all_of_it(production: Config) -> None:
    """The same file with everything wrong starts as a demo."""
    stub = StubSection(cert="/stub.pem", key="/stub.key", memory="/stub.sqlite")
    processor = ProcessorSection(url="https://127.0.0.1:8446")
    demo = msgspec.structs.replace(production, profile="demo", stub=stub, processor=processor)
    _require(_with_api(demo, client_ca=None, client_crl=None))


def test_the_api_process_looks_before_it_does_anything(production: Config) -> None:
    """It refuses before it asks for a passphrase, listens or reads a key."""

    def ask(_question: str) -> Secret[str]:
        raise AssertionError("nobody is asked")

    with pytest.raises(SettingsRefused, match=r"api\.client_ca, and"):
        asyncio.run(serve_api(_with_api(production, client_crl=None), ask, structlog.get_logger()))


def test_the_stub_does_not_run_in_production(tmp_path: Path) -> None:
    """`gateway stub` refuses for the profile first, with one line."""
    file = tmp_path / "gateway.toml"
    file.write_text(
        'environment = "city"\nprofile = "production"\n'
        '[keys]\nroot = "file:/root.key"\nstore = "file:/keystore"\nsecrets = "/secrets"\n'
        '[database]\ndsn = "postgresql://127.0.0.1/gateway"\n'
        '[api]\ncert = "/api.pem"\nkey = "/api.key"\n[processor]\nurl = "https://processor.test"\n'
    )
    file.chmod(0o600)
    command = Path(sys.prefix) / "bin" / "gateway"
    done = subprocess.run(
        [command, "stub", "--config", file], capture_output=True, text=True, check=False, timeout=30
    )

    assert done.returncode == 1
    assert "profile is production" in done.stderr
    assert done.stderr.count("\n") == 1
