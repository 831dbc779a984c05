"""Client certificates: what of one says who is calling, and what speaks against it at this moment.

TLS has verified the chain when the connection began; here is what can change while it is open. Whatever cannot be
told is held against the certificate (RFC 5280 §6.3: an undetermined status is none).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from gateway.errors import CertificateRefused, NotIdentified


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """A client's certificate. `uris` stand as they do in its subject alternative name, nothing folded or trimmed.

    `fingerprint` is the SHA-256 of the certificate, `issuer` its issuer's name, both of the DER. `issuer_key` is what
    it says of the key that signed it (AuthorityKeyIdentifier, RFC 5280 §4.2.1.1), None when it says nothing.
    """

    uris: tuple[str, ...]
    fingerprint: bytes
    issuer: bytes
    serial: int
    valid_from: datetime
    valid_until: datetime
    issuer_key: bytes | None = None


@dataclass(frozen=True, slots=True)
class Authority:
    """The certificate of one that signs others. Names and keys as in `ClientCertificate`.

    `key` is the SHA-256 of its public key: two keys under one name are two authorities. `key_name` is what
    certificates that it signed call the key (SubjectKeyIdentifier), None when it does not say.
    """

    key: bytes
    name: bytes
    key_name: bytes | None
    issuer: bytes
    serial: int
    issuer_key: bytes | None = None

    def may_have_signed(self, certificate: "ClientCertificate | Authority") -> bool:
        """Whether the certificate names it; one that says less than it might is held to be of every key it fits."""
        given = certificate.issuer_key
        return self.name == certificate.issuer and (None in {given, self.key_name} or given == self.key_name)


@dataclass(frozen=True, slots=True)
class RevocationList:
    """What the authority with this key has revoked, as of `issued`; it speaks until `expires`."""

    authority: bytes
    serials: frozenset[int]
    issued: datetime
    expires: datetime

    def in_force(self, now: datetime) -> bool:
        """Whether it may be believed now."""
        return self.issued <= now < self.expires


@dataclass(frozen=True, slots=True)
class Revocations:
    """The lists of all authorities. One without a list in force vouches for nobody, and so does a revoked one."""

    lists: tuple[RevocationList, ...] = ()
    authorities: tuple[Authority, ...] = ()

    def complete(self, now: datetime) -> bool:
        """Whether every authority that is not revoked has a list, there is one, and all their lists are in force."""
        left = [authority for authority in self.authorities if not self._revoked(authority)]
        return bool(left) and all(self._speaks(authority, now) for authority in left)

    def require_good(self, certificate: ClientCertificate, now: datetime) -> None:
        """Raises `CertificateRefused` when it or an authority above it is revoked, or when that cannot be told."""
        if not self._vouched(certificate, self._standing(now)):
            raise CertificateRefused

    def _standing(self, now: datetime) -> Sequence[Authority]:
        """The authorities that may vouch: what falls takes along whatever it alone held up."""
        left: Sequence[Authority] = [authority for authority in self.authorities if self._speaks(authority, now)]
        while len(kept := [authority for authority in left if self._stands(authority, left)]) < len(left):
            left = kept
        return left

    def _stands(self, authority: Authority, standing: Sequence[Authority]) -> bool:
        return not self._signers(authority) or self._vouched(authority, standing)

    def _vouched(self, certificate: ClientCertificate | Authority, standing: Sequence[Authority]) -> bool:
        signers = self._signers(certificate)
        return bool(signers) and all(signer in standing for signer in signers) and not self._revoked(certificate)

    def _revoked(self, certificate: ClientCertificate | Authority) -> bool:
        signers = self._signers(certificate)
        return any(certificate.serial in known.serials for signer in signers for known in self._of(signer))

    def _speaks(self, authority: Authority, now: datetime) -> bool:
        own = self._of(authority)
        return bool(own) and all(known.in_force(now) for known in own)

    def _of(self, authority: Authority) -> Sequence[RevocationList]:
        return [known for known in self.lists if known.authority == authority.key]

    def _signers(self, certificate: ClientCertificate | Authority) -> Sequence[Authority]:
        return [authority for authority in self.authorities if authority.may_have_signed(certificate)]


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
