"""Certificates as they come: from a connection, from the authorities' revocation lists, from the files of a listener.

TLS has verified the chain (`web.server.tls_context`); `rules.certificates` judges what is read here. A list is a PEM
file that whoever runs the authority replaces by rename; it is followed without a restart.
"""

import asyncio
import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from aiohttp import web
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from structlog.typing import FilteringBoundLogger

from gateway.errors import CertificateRefused, Unavailable
from gateway.rules.certificates import Authority, ClientCertificate, RevocationList, Revocations
from gateway.services.ports import Clock
from keys.errors import SettingsRefused

URI = re.compile(r"[!-~]+")
"""Printable ASCII without a space (RFC 3986 §2): what looks like another name is not even compared with it."""

CERTIFICATES_KEPT = 1024
DEMO_NAME = "Gateway demo"
"""How the subjects and issuers of development certificates begin (`deploy/certificates.py`)."""

PEM_LIST = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)


def client_certificate(request: web.BaseRequest) -> ClientCertificate | None:
    """The certificate of the request's connection, None without one; raises `CertificateRefused`."""
    tls = request.transport.get_extra_info("ssl_object") if request.transport else None
    der = tls.getpeercert(binary_form=True) if tls else None
    return read_certificate(der) if der else None


@lru_cache(CERTIFICATES_KEPT)
def read_certificate(der: bytes) -> ClientCertificate:
    """What a leaf for a client says; raises `CertificateRefused` for anything else (RFC 5280 §4.2.1).

    It has one URI: of two, nobody could tell which of them its authority meant to vouch for.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        extensions = certificate.extensions
        alternatives = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        uris = tuple(alternatives.get_values_for_type(x509.UniformResourceIdentifier))
        authority = any(isinstance(found.value, x509.BasicConstraints) and found.value.ca for found in extensions)
        read = ClientCertificate(
            uris=uris,
            fingerprint=certificate.fingerprint(SHA256()),
            issuer=certificate.issuer.public_bytes(),
            serial=certificate.serial_number,
            valid_from=certificate.not_valid_before_utc,
            valid_until=certificate.not_valid_after_utc,
            issuer_key=_issuer_key(certificate),
        )
    except Exception:  # noqa: BLE001 - whoever calls wrote it, and the parser's errors have no common base
        raise CertificateRefused from None
    if authority or ExtendedKeyUsageOID.CLIENT_AUTH not in purposes or len(uris) != 1 or not URI.fullmatch(uris[0]):
        raise CertificateRefused
    return read


class RevocationFile:
    """The lists of the authorities in `authorities`, in one file. Implements `callers.RevocationSource`.

    What is missing, unreadable, not signed by an authority, out of date or not yet valid vouches for nobody; a
    warning says so when that begins.
    """

    def __init__(self, path: Path, authorities: Path, clock: Clock, log: FilteringBoundLogger) -> None:
        self._path = path
        self._certificates = _certificates(authorities, "api.client_ca")
        self._authorities = _authorities(self._certificates, "api.client_ca")
        self._clock = clock
        self._log = log
        self._version: tuple[int, ...] = ()
        self._lists: tuple[RevocationList, ...] = ()
        self._usable = True

    async def look(self) -> Revocations:
        """The lists as they are now."""
        try:
            await asyncio.to_thread(self._read)
        except Exception:  # noqa: BLE001 - no list, however odd, takes those along who need none
            self._version, self._lists = (), ()
        found = self._current()
        usable = found.complete(self._clock.now())
        if self._usable and not usable:
            self._log.warning("crl.unusable")
        self._usable = usable
        return found

    async def require_usable(self) -> None:
        """Raises `Unavailable` while applications with a certificate are refused for want of a list."""
        if not self._current().complete(self._clock.now()):
            raise Unavailable

    def _current(self) -> Revocations:
        return Revocations(self._lists, self._authorities)

    def _read(self) -> None:
        """Read the file if it is another one than last time; raises for the whole file if one list is no good."""
        status = self._path.stat()
        version = status.st_ino, status.st_mtime_ns, status.st_size
        if version != self._version:
            blocks = PEM_LIST.findall(self._path.read_bytes())
            self._lists = tuple(_revocation_list(block, self._certificates) for block in blocks)
            self._version = version


def require_no_demo_certificates(path: Path, setting: str) -> None:
    """Raises `SettingsRefused` for a file with a development certificate in it."""
    names = [
        name for certificate in _certificates(path, setting) for name in (certificate.subject, certificate.issuer)
    ]
    common = [attribute.value for name in names for attribute in name.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if any(str(value).startswith(DEMO_NAME) for value in common):
        raise SettingsRefused(f"{setting} is a development certificate: production brings certificates of its own")


def _certificates(path: Path, setting: str) -> Sequence[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError):
        raise SettingsRefused(f"{setting} is no file of certificates in PEM that this process may read") from None


def _authorities(certificates: Iterable[x509.Certificate], setting: str) -> tuple[Authority, ...]:
    try:
        return tuple(map(_authority, certificates))
    except Exception:  # noqa: BLE001 - as in `read_certificate`
        raise SettingsRefused(f"{setting} has a certificate in it that cannot be read") from None


def _authority(certificate: x509.Certificate) -> Authority:
    names = [found.value for found in certificate.extensions if isinstance(found.value, x509.SubjectKeyIdentifier)]
    return Authority(
        key=_key(certificate),
        name=certificate.subject.public_bytes(),
        key_name=names[0].digest if names else None,
        issuer=certificate.issuer.public_bytes(),
        serial=certificate.serial_number,
        issuer_key=_issuer_key(certificate),
    )


def _key(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the public key, as it stands in the certificate."""
    form = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(form).digest()


def _issuer_key(certificate: x509.Certificate) -> bytes | None:
    said = [found.value for found in certificate.extensions if isinstance(found.value, x509.AuthorityKeyIdentifier)]
    return said[0].key_identifier if said else None


def _revocation_list(pem: bytes, authorities: Iterable[x509.Certificate]) -> RevocationList:
    """One list; raises ValueError when no authority signed it, or it is not a whole one (RFC 5280 §5.2, §6.3.3)."""
    read = x509.load_pem_x509_crl(pem)
    named = (authority for authority in authorities if authority.subject == read.issuer)
    signer = next((authority for authority in named if _signed(read, authority)), None)
    if signer is None:
        raise ValueError("not signed by an authority")
    if any(extension.critical for extension in read.extensions):
        raise ValueError("a delta, or of some certificates only, or something that is not known here")
    if read.next_update_utc is None:
        raise ValueError("without an end")
    serials = frozenset(entry.serial_number for entry in read)
    return RevocationList(_key(signer), serials, read.last_update_utc, read.next_update_utc)


def _signed(read: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    try:
        return read.is_signature_valid(authority.public_key())  # type: ignore[arg-type] # of other kinds: TypeError
    except (TypeError, InvalidSignature):
        return False
