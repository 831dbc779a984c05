"""How we connect: names and passwords from where they belong, TLS unless it is this machine, and errors without text.

The server's own settings, and connecting itself, are tested against a real server elsewhere.
"""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from keys.database import DSN_FORM, connect_arguments, driver_errors, query_errors
from keys.errors import DatabaseRefused, KeysError, KeystoreRefused, SettingsRefused
from keys.files import write_private
from keys.settings import DatabaseSection

CANARY = "Hunter2"
REACHED = "cannot be reached ({}): is it up, and is database.dsn right?"


@pytest.fixture
def secrets_directory(tmp_path: Path) -> Path:
    """The api process' password, as `keys init` and the demo lay it down."""
    write_private(tmp_path / "api" / "database.password", b"of the api\n", replace=False)
    return tmp_path


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate of an authority."""
    key, now = Ed25519PrivateKey.generate(), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
    authority = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, None)
    )
    path = tmp_path / "ca.pem"
    path.write_bytes(authority.public_bytes(Encoding.PEM))
    return path


def arguments(dsn: str, secrets_directory: Path, ca: str | None = None) -> dict[str, object]:
    """What the api process would connect with."""
    return connect_arguments(DatabaseSection(dsn=dsn, ca=ca), "api", secrets_directory)


def test_what_the_driver_is_told(secrets_directory: Path) -> None:
    """Host, port and database are the DSN's; role and password the process'; the server sees who it is."""
    assert arguments("postgresql://127.0.0.1:6543/city", secrets_directory) == {
        "host": "127.0.0.1",
        "port": 6543,
        "database": "city",
        "user": "gateway_api",
        "password": "of the api",
        "ssl": False,
        "timeout": 10.0,
        "server_settings": {"application_name": "gateway api"},
    }


def test_the_usual_port(secrets_directory: Path) -> None:
    """Without a port it is PostgreSQL's own; both spellings of the scheme are known."""
    assert arguments("postgres://localhost/city", secrets_directory)["port"] == 5432


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://{CANARY}@localhost/city",
        f"postgresql://user:{CANARY}@localhost/city",
        f"postgresql://:{CANARY}@localhost/city",
        "postgresql://@localhost/city",
        f"postgresql://localhost/city?password={CANARY}",
        "postgresql://localhost/city?sslmode=disable",
        f"postgresql://localhost/city#{CANARY}",
        f"postgresql://user:12/{CANARY}@localhost/city",
    ],
)
def test_a_dsn_with_a_user_a_password_or_options(secrets_directory: Path, dsn: str) -> None:
    """None of these may stand in the DSN, a password with a slash in it included, and the message shows none."""
    with pytest.raises(SettingsRefused, match=r"must not carry a user, a password or options") as caught:
        arguments(dsn, secrets_directory)

    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    "dsn",
    [
        "",
        "localhost/city",
        "mysql://localhost/city",
        "postgresql:///city",
        "postgresql://localhost",
        "postgresql://localhost/",
        "postgresql://localhost:port/city",
        "postgresql://localhost:65536/city",
        "postgresql://[::1/city",
        f"postgresql://user:{CANARY}/more@localhost/city",
    ],
)
def test_a_dsn_of_another_form(secrets_directory: Path, dsn: str) -> None:
    """Any other form is refused with the one that is wanted, and without the driver's or the parser's text."""
    with pytest.raises(SettingsRefused) as caught:
        arguments(dsn, secrets_directory)

    assert str(caught.value) == DSN_FORM
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_a_missing_password(tmp_path: Path) -> None:
    """A process without its password file is told which file it is."""
    with pytest.raises(KeystoreRefused, match=r"api/database\.password does not exist$"):
        arguments("postgresql://localhost/city", tmp_path)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.1.2.3", "[::1]"])
def test_no_tls_on_this_machine(secrets_directory: Path, host: str) -> None:
    """On loopback nothing is encrypted, and asyncpg is told so rather than left to choose."""
    assert arguments(f"postgresql://{host}/city", secrets_directory)["ssl"] is False


@pytest.mark.parametrize(
    "host",
    ["db.city.example", "10.0.0.1", "[fd00::1]", "localhost.city.example", "127.0.0.1.example", "0.0.0.0", "[::]"],  # noqa: S104 - refused as local
)
def test_verified_tls_elsewhere(secrets_directory: Path, host: str) -> None:
    """Everywhere else the server's certificate and its name are verified; there is no falling back."""
    context = arguments(f"postgresql://{host}/city", secrets_directory)["ssl"]

    assert isinstance(context, ssl.SSLContext)
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize("host", ["db.city.example", "localhost"])
def test_a_ca_of_our_own(secrets_directory: Path, host: str, certificate: Path) -> None:
    """With a CA named, it alone is trusted, and TLS is used on this machine too."""
    context = arguments(f"postgresql://{host}/city", secrets_directory, str(certificate))["ssl"]

    assert isinstance(context, ssl.SSLContext)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert [ca["subject"] for ca in context.get_ca_certs()] == [((("commonName", "test CA"),),)]


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_ca_that_cannot_be_used(secrets_directory: Path, content: bytes | None) -> None:
    """A missing or unusable CA file is a setting to correct, not a database that cannot be reached."""
    path = secrets_directory / "ca.pem"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(SettingsRefused, match=rf"^database\.ca: {path} must be a readable file of PEM certificates$"):
        arguments("postgresql://localhost/city", secrets_directory, str(path))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (asyncpg.UniqueViolationError(f"Key (number)=({CANARY}) already exists."), "refused (SQLSTATE 23505)"),
        (asyncpg.DataError(f"invalid input for query argument $1: {CANARY}"), "refused (SQLSTATE 22000)"),
        (asyncpg.InvalidPasswordError(f"password authentication failed for {CANARY}"), "refused (SQLSTATE 28P01)"),
        (asyncpg.InterfaceError(CANARY), REACHED.format("InterfaceError")),
        (
            asyncpg.InternalClientError(CANARY),
            "cannot be reached (InternalClientError): is it up, and is database.dsn right?",
        ),
        (
            ConnectionRefusedError(111, CANARY),
            "cannot be reached (ConnectionRefusedError): is it up, and is database.dsn right?",
        ),
        (
            ssl.SSLCertVerificationError(1, CANARY),
            "cannot be reached (SSLCertVerificationError): is it up, and is database.dsn right?",
        ),
        (TimeoutError(CANARY), REACHED.format("TimeoutError")),
    ],
)
async def test_driver_errors_without_their_text(error: Exception, told: str) -> None:
    """Whatever the driver says becomes our own refusal: a SQLSTATE or a class name, nothing else, and no cause."""
    with pytest.raises(DatabaseRefused) as caught:
        async with driver_errors():
            raise error

    assert str(caught.value) == f"the database {told}"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), BrokenPipeError(32, "Broken pipe")])
async def test_an_error_of_our_own_files(error: OSError) -> None:
    """Where a connection stands, a full disk or a closed pipe is not taken for the database; its loss is."""
    with pytest.raises(OSError, match=r"No space|Broken pipe"):
        async with query_errors():
            raise error
    with pytest.raises(DatabaseRefused, match=r"cannot be reached \(ConnectionResetError\)"):
        async with query_errors():
            raise ConnectionResetError


@pytest.mark.parametrize("error", [SettingsRefused("ours"), KeystoreRefused("ours"), ZeroDivisionError("a fault")])
async def test_other_errors_pass(error: Exception) -> None:
    """Our own refusals, and faults of the program, are not taken for the database's."""
    with pytest.raises((KeysError, ZeroDivisionError)) as caught:
        async with driver_errors():
            raise error

    assert caught.value is error
