"""Client certificates: what of one says who is calling, and what speaks against it at this moment.

TLS has verified the chain when the connection began; here is what can change while it is open. Whatever cannot be
told is held against the certificate (RFC 5280 §6.3: an undetermined status is none).
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from gateway.errors import CertificateRefused, NotIdentified


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """A client's certificate. `uris` stand as they do in its subject alternative name, nothing folded or trimmed.

    `fingerprint` is the SHA-256 of the certificate, `issuer` its issuer's name, both of the DER.
    """

    uris: tuple[str, ...]
    fingerprint: bytes
    issuer: bytes
    serial: int
    valid_from: datetime
    valid_until: datetime


@dataclass(frozen=True, slots=True)
class RevocationList:
    """What one authority has revoked, as of `issued`; it speaks until `expires`."""

    issuer: bytes
    serials: frozenset[int]
    issued: datetime
    expires: datetime

    def in_force(self, now: datetime) -> bool:
        """Whether it may be believed now."""
        return self.issued <= now < self.expires


@dataclass(frozen=True, slots=True)
class Revocations:
    """The lists of all authorities. An authority without a list in force vouches for nobody."""

    lists: tuple[RevocationList, ...] = ()
    authorities: frozenset[bytes] = frozenset()

    def complete(self, now: datetime) -> bool:
        """Whether every authority has a list, and all lists are in force."""
        listed = {known.issuer for known in self.lists}
        return bool(listed) and listed >= self.authorities and all(known.in_force(now) for known in self.lists)

    def require_good(self, certificate: ClientCertificate, now: datetime) -> None:
        """Raises `CertificateRefused` when it is revoked, or when that cannot be told."""
        own = [known for known in self.lists if known.issuer == certificate.issuer]
        if not own or not all(known.in_force(now) and certificate.serial not in known.serials for known in own):
            raise CertificateRefused


@dataclass(frozen=True, slots=True)
class Trust:
    """What is known of certificates, as of one moment. `revocations` None: this installation keeps no lists."""

    required: bool = False
    revocations: Revocations | None = None
    denied: Collection[bytes] = frozenset()

    def require_shown(self, certificate: ClientCertificate | None) -> None:
        """Raises `NotIdentified` where a certificate is required and there is none."""
        if certificate is None and self.required:
            raise NotIdentified("Show the application's client certificate; an API key alone does not do here.")

    def require_good(self, certificate: ClientCertificate, now: datetime) -> None:
        """Raises `CertificateRefused` when it is out of date, denied or revoked, or nobody can tell."""
        if not certificate.valid_from <= now <= certificate.valid_until or certificate.fingerprint in self.denied:
            raise CertificateRefused
        if self.revocations is not None:
            self.revocations.require_good(certificate, now)
