"""Who is calling: an application of one department, known by its API key.

A key reads `gwk_<key id>_<secret>`. Only a keyed digest of it is stored; the id finds the row, the digest is
compared in constant time, and an unknown id takes the same path as a wrong secret.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from gateway.errors import NotIdentified, WrongCertificate
from gateway.rules.ids import new_id
from keys.primitives import mac, require_equal
from keys.secret import Secret

API_KEY = re.compile(r"gwk_([a-z2-7]{26})_([A-Za-z0-9_-]{43})")
NOBODY = bytes(32)


@dataclass(frozen=True, slots=True)
class Application:
    """One application of one department, and what it may do."""

    department: str
    application_id: str
    amount_minor_max: int
    certificate_san: str | None


@dataclass(frozen=True, slots=True)
class Credential:
    """What is stored of an API key. `digest_key` is the number of the key that made the digest."""

    digest_key: int
    digest: bytes
    application: Application


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """A fresh key: shown once, stored as a digest."""

    key_id: str
    secret: Secret[str]
    digest_key: int
    digest: bytes


class Register:
    """The applications as of one moment, immutable."""

    def __init__(self, credentials: Mapping[str, Credential], digest_keys: Mapping[int, Secret[bytes]]) -> None:
        self._credentials = credentials
        self._digest_keys = digest_keys
        self._newest = max(digest_keys)

    def identify(self, authorization: str | None, certificate_sans: tuple[str, ...] | None) -> Application:
        """The application that sent these credentials.

        `certificate_sans` are the subject alternative names of the client certificate, None without one.

        Raises:
            NotIdentified: no key, or not a valid one.
            WrongCertificate: a certificate of another application.
        """
        scheme, _, key = (authorization or "").partition(" ")
        match = API_KEY.fullmatch(key)
        if scheme.lower() != "bearer" or match is None:
            raise NotIdentified
        credential = self._credentials.get(match[1])
        stored = credential.digest if credential else NOBODY
        number = credential.digest_key if credential else self._newest
        # A digest key that is not here: as good as a wrong secret.
        digest_key = self._digest_keys.get(number, self._digest_keys[self._newest])
        require_equal(stored, digest_of(digest_key, Secret(key)), NotIdentified())
        if credential is None:
            raise NotIdentified
        application = credential.application
        if certificate_sans is not None and application.certificate_san not in certificate_sans:
            raise WrongCertificate
        return application


def new_api_key(digest_keys: Mapping[int, Secret[bytes]]) -> NewApiKey:
    """Make a key with 256 random bits, its digest under the newest digest key."""
    number = max(digest_keys)
    key_id = new_id("").removeprefix("_")
    secret = Secret(f"gwk_{key_id}_{secrets.token_urlsafe(32)}")
    return NewApiKey(key_id, secret, number, digest_of(digest_keys[number], secret))


def digest_of(digest_key: Secret[bytes], key: Secret[str]) -> bytes:
    """The keyed digest that stands for a key in the database."""
    return mac(digest_key, key.reveal().encode())
