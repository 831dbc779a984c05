"""The demo's certificates: an authority of its own, and what it signs for the listeners and the applications.

Elliptic curve keys (P-256), a year at most. Production brings certificates of its own.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from keys.files import write_private

AUTHORITY_DAYS = 365
LEAF_DAYS = 90
RENEW_DAYS = 30
BACKDATED = timedelta(minutes=5)
LISTENER_NAMES = (x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1")))


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority in a folder."""

    folder: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def open(cls, folder: Path) -> "Authority":
        """The authority of this folder; a new one when there is none, or it ends soon."""
        certificate_path, key_path = folder / "ca.pem", folder / "ca.key"
        if _lasts(certificate_path):
            key = load_pem_private_key(key_path.read_bytes(), None)
            assert isinstance(key, ec.EllipticCurvePrivateKey), "internal error: we make no other keys"
            return cls(folder, x509.load_pem_x509_certificate(certificate_path.read_bytes()), key)
        for stale in (*folder.glob("*.pem"), *folder.glob("*.crl")):
            stale.unlink()
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Gateway demo authority")])
        certificate = (
            _builder(name, name, key.public_key(), AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
            .sign(key, SHA256())
        )
        _write(folder, "ca", certificate, key)
        return cls(folder, certificate, key)

    def listener(self, name: str) -> None:
        """`<name>.pem` and `<name>.key` for a server on this machine."""
        self._issue(name, LISTENER_NAMES, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]))

    def application(self, name: str, uri: str) -> None:
        """`<name>.pem` and `<name>.key` for a client known by this URI."""
        names = (x509.UniformResourceIdentifier(uri),)
        self._issue(name, names, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]))

    def revocations(self) -> None:
        """`ca.crl`: nothing is revoked, unless a list is there already."""
        if not (self.folder / "ca.crl").exists():
            self.revoke()

    def revoke(self, *serials: int) -> None:
        """Replace `ca.crl` by a list of exactly these; it is valid as long as the authority."""
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - BACKDATED)
            .next_update(self.certificate.not_valid_after_utc)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .add_extension(x509.CRLNumber(time.time_ns()), critical=False)
        )
        for serial in serials:
            gone = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now - BACKDATED).build()
            builder = builder.add_revoked_certificate(gone)
        written = builder.sign(self.key, SHA256()).public_bytes(Encoding.PEM)
        write_private(self.folder / "ca.crl", written, replace=True)

    def _issue(self, name: str, alternatives: tuple[x509.GeneralName, ...], purpose: x509.ExtendedKeyUsage) -> None:
        if _lasts(self.folder / f"{name}.pem"):
            return
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Gateway demo {name}")])
        certificate = (
            _builder(subject, self.certificate.subject, key.public_key(), LEAF_DAYS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(purpose, critical=False)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, SHA256())
        )
        _write(self.folder, name, certificate, key)


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _lasts(path: Path) -> bool:
    if not path.exists():
        return False
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    return certificate.not_valid_after_utc > datetime.now(UTC) + timedelta(days=RENEW_DAYS)


def _write(folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    # The key first: a certificate that exists says that its key does.
    write_private(folder / f"{name}.key", pem, replace=True)
    write_private(folder / f"{name}.pem", certificate.public_bytes(Encoding.PEM), replace=True)
