"""An authority of the tests: it issues certificates, good ones and others, and says which it has revoked."""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

HOUR = timedelta(hours=1)
CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
HERE = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
"""The names of a listener on this machine."""

COMMON_NAME = "urn:city:parks"
"""The subject of every certificate: nothing should ever look at it."""


def san(uri: bytes, tag: int = 0x86) -> x509.UnrecognizedExtension:
    """A subject alternative name byte for byte, also what no library would write; `tag` 0x86 is a URI."""
    name = bytes([tag, len(uri)]) + uri
    return x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, bytes([0x30, len(name)]) + name)


class Authority:
    """Issues into a folder. Two of one name are two authorities."""

    def __init__(self, folder: Path, name: str = "City authority") -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.issued: dict[str, x509.Certificate] = {}

    def issue(
        self,
        name: str,
        alternative: x509.ExtensionType | None = None,
        purposes: Collection[x509.ObjectIdentifier] = (CLIENT,),
        *,
        ca: bool = False,
        begins: timedelta = -HOUR,
        ends: timedelta = HOUR,
        by_itself: bool = False,
    ) -> Path:
        """A certificate and its key, `<name>.pem` and `<name>.key`; gives the former."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, COMMON_NAME)])
        signer, issuer = (key, subject) if by_itself else (self.key, self.name)
        if name == "ca":
            key, signer, subject, issuer = self.key, self.key, self.name, self.name
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now + begins)
            .not_valid_after(now + ends)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(True, False, False, False, False, ca, ca, False, False), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        )
        if purposes:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        if alternative is not None:
            builder = builder.add_extension(alternative, critical=False)
        self.issued[name] = builder.sign(signer, hashes.SHA256())
        path = self.folder / f"{name}.pem"
        path.write_bytes(self.issued[name].public_bytes(Encoding.PEM))
        path.with_suffix(".key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return path

    def revocations(
        self, *names: str, begins: timedelta = -HOUR, ends: timedelta = HOUR, partial: bool = False
    ) -> bytes:
        """A list of these, PEM; a `partial` one says so in a critical extension, as deltas do (RFC 5280 §5.2.4)."""
        now = datetime.now(UTC)
        builder = x509.CertificateRevocationListBuilder(self.name, now + begins, now + ends)
        if partial:
            builder = builder.add_extension(x509.DeltaCRLIndicator(1), critical=True)
        for name in names:
            gone = x509.RevokedCertificateBuilder(self.issued[name].serial_number, now).build()
            builder = builder.add_revoked_certificate(gone)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)
