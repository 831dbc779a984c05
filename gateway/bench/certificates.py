"""Certificates of one run: an authority, a server, a client; elliptic curve keys (P-256), valid for a day.

They keep RFC 5280 as strictly as `gateway.web.server.tls_context` asks for it.
"""

from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gateway.clock import SystemClock
from keys.files import write_private

CLIENT = "urn:gateway:bench:application:load"
"""The name in the client's certificate, by which the gateway knows its application."""

BACKDATED = timedelta(minutes=5)
LIFE = timedelta(days=1)
SERVER_NAMES = (x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1")))


def certify(folder: Path) -> None:
    """Write `ca.pem`, and `server` and `client` (`.pem`, `.key`), which it signed; its own key is kept nowhere."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("authority")
    authority = (
        _builder(name, name, key, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, SHA256())
    )
    write_private(folder / "ca.pem", authority.public_bytes(Encoding.PEM), replace=False)
    _issue(folder / "server", name, key, SERVER_NAMES, ExtendedKeyUsageOID.SERVER_AUTH)
    client = (x509.UniformResourceIdentifier(CLIENT),)
    _issue(folder / "client", name, key, client, ExtendedKeyUsageOID.CLIENT_AUTH)


def _issue(
    path: Path,
    issuer: x509.Name,
    signing: ec.EllipticCurvePrivateKey,
    names: tuple[x509.GeneralName, ...],
    purpose: x509.ObjectIdentifier,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(_name(path.name), issuer, key, signing)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(signing, SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_private(path.with_suffix(".key"), pem, replace=False)
    write_private(path.with_suffix(".pem"), certificate.public_bytes(Encoding.PEM), replace=False)


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Gateway bench {name}")])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, signing: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = SystemClock().now()
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + LIFE)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(identifier, critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    unused = dict.fromkeys((*others, "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, **unused)
