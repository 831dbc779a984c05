"""Who is calling: an application of one department, known by its API key; and what it may do.

A key reads `gwk_<key id>_<secret>`. Only a keyed digest of it is stored; the id finds the row, the digest is
compared in constant time, and an unknown id takes the same path as a wrong secret. A client certificate, where one
is shown, must name the key's application, by an exact map from its URI. Identity is judged at every request, not
once a connection.
"""

import re
import secrets
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from gateway.errors import NotIdentified, NotPermitted, ServiceUnknown, WrongCertificate
from gateway.rules.certificates import ClientCertificate, Trust
from gateway.rules.fees import FeeCosts
from gateway.rules.ids import new_id
from gateway.rules.personal import EVERY_FIELD
from keys.primitives import mac, require_equal
from keys.secret import Secret

API_KEY = re.compile(r"gwk_([a-z2-7]{26})_([A-Za-z0-9_-]{43})")
NOBODY = bytes(32)
UNBOUNDED = 1_000_000


class Scope(StrEnum):
    """What a route of the public API asks for, and an application is granted."""

    TOKENS_READ = "tokens:read"
    TOKENS_WRITE = "tokens:write"
    TOKENS_ERASE = "tokens:erase"
    CHARGES_READ = "charges:read"
    CHARGES_WRITE = "charges:write"
    CHARGES_REFUND = "charges:refund"


@dataclass(frozen=True, slots=True)
class Application:
    """One application of one department, and what it may do.

    `services` None is all that the department registered; above `refund_minor_max` a refund waits for an approver,
    None means that none waits; `personal_fields` is the department's contract, field to reason (`rules.personal`);
    `fee_costs` bound the department's convenience fee.
    """

    department: str
    application_id: str
    amount_minor_max: int
    certificate_san: str | None
    scopes: frozenset[Scope] = frozenset(Scope)
    services: frozenset[str] | None = None
    refund_minor_max: int | None = None
    requests_per_s_max: int = UNBOUNDED
    personal_fields: Mapping[str, str] = field(default_factory=lambda: {EVERY_FIELD: "everything"}, hash=False)
    fee_costs: FeeCosts = field(default_factory=FeeCosts)

    def require(self, scope: Scope) -> None:
        """Raises `NotPermitted` without this scope."""
        if scope not in self.scopes:
            raise NotPermitted

    def require_service(self, service: str | None) -> None:
        """Raises `ServiceUnknown`. An application of named services names one of them, always."""
        if self.services is not None and service not in self.services:
            raise ServiceUnknown("The application may not charge for this; it names a granted service.", ["/service"])


@dataclass(frozen=True, slots=True)
class Credential:
    """What is stored of an API key. `digest_key` is the number of the key that made the digest."""

    digest_key: int
    digest: bytes
    application: Application
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """A fresh key: shown once, stored as a digest."""

    key_id: str
    secret: Secret[str]
    digest_key: int
    digest: bytes


class Register:
    """The applications as of one moment, immutable, and what was then known of certificates."""

    def __init__(
        self,
        credentials: Mapping[str, Credential],
        digest_keys: Mapping[int, Secret[bytes]],
        trust: Trust = Trust(),  # noqa: B008 - immutable
    ) -> None:
        self._credentials = credentials
        self._digest_keys = digest_keys
        self._newest = max(digest_keys)
        self._trust = trust
        self._owners = _owners(credentials)

    def identify(
        self, authorization: str | None, certificate: ClientCertificate | None, now: datetime
    ) -> Application:
        """The application that sent these credentials, `certificate` among them if it showed one.

        Raises:
            NotIdentified: no key, or not a valid one; no certificate where one is required.
            CertificateRefused: the certificate is out of date, denied or revoked, or nobody can tell.
            WrongCertificate: it is a certificate of another application, or of two.
        """
        self._trust.require_shown(certificate)
        application = self._of_key(authorization, now)
        if certificate is not None:
            self._trust.require_good(certificate, now)
            named = {owner for uri in certificate.uris for owner in self._owners.get(uri, ())}
            if named != {_own(application)}:
                raise WrongCertificate
        return application

    def _of_key(self, authorization: str | None, now: datetime) -> Application:
        key = bearer(authorization)
        if key is None:
            raise NotIdentified
        credential = self._credentials.get(key_id_of(key))
        stored = credential.digest if credential else NOBODY
        number = credential.digest_key if credential else self._newest
        # A digest key that is not here: as good as a wrong secret.
        digest_key = self._digest_keys.get(number, self._digest_keys[self._newest])
        require_equal(stored, digest_of(digest_key, key), NotIdentified())
        if credential is None or (credential.expires_at is not None and credential.expires_at <= now):
            raise NotIdentified
        return credential.application


def bearer(authorization: str | None) -> Secret[str] | None:
    """The API key in an `Authorization` header (RFC 6750 §2.1); None when it has not the form of one."""
    scheme, _, key = (authorization or "").partition(" ")
    return Secret(key) if scheme.lower() == "bearer" and API_KEY.fullmatch(key) else None


def key_id_of(key: Secret[str]) -> str:
    """The part of an API key that is no secret."""
    return key.reveal().split("_")[1]


def new_api_key(digest_keys: Mapping[int, Secret[bytes]]) -> NewApiKey:
    """Make a key with 256 random bits, its digest under the newest digest key."""
    number = max(digest_keys)
    key_id = new_id("").removeprefix("_")
    secret = Secret(f"gwk_{key_id}_{secrets.token_urlsafe(32)}")
    return NewApiKey(key_id, secret, number, digest_of(digest_keys[number], secret))


def digest_of(digest_key: Secret[bytes], key: Secret[str]) -> bytes:
    """The keyed digest that stands for a key in the database."""
    return mac(digest_key, key.reveal().encode())


def _own(application: Application) -> tuple[str, str]:
    return application.department, application.application_id


def _owners(credentials: Mapping[str, Credential]) -> Mapping[str, frozenset[tuple[str, str]]]:
    """URI of a certificate to the applications that claim it: of two, it identifies neither."""
    owners = defaultdict(set)
    for credential in credentials.values():
        if (uri := credential.application.certificate_san) is not None:
            owners[uri].add(_own(credential.application))
    return {uri: frozenset(claiming) for uri, claiming in owners.items()}
