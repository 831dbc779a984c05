"""What an ID token must say before it signs anybody in (OpenID Connect Core 3.1.3.7, RFC 8725).

joserfc checks the signature; which algorithms, which keys and which claims are taken is decided here. A token names
its key by `kid` only: what it brings along itself (`jwk`, `jku`, `x5u`, `x5c`) is not looked at, and one that has
anything critical (`crit`) is refused.
"""

import base64
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
from joserfc import jws
from joserfc.errors import InvalidKeyIdError, JoseError, SecurityWarning
from joserfc.jwk import JWKRegistry, Key, KeySet

ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA", "Ed25519")
"""Signatures only: with a MAC, who reads the key could write tokens."""
SKEW_S = 60
"""How far the provider's clock may be from ours."""
FRESH_S = 900
"""How long ago somebody may have proved at the provider who they are: as long as a session of ours may idle (PCI DSS
8.2.8), else the provider's own session would renew ours for a day."""

COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")

Parsed = TypeVar("Parsed")
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e11)]


class Doubt(Exception):
    """Why the provider's word is not taken: one of our own words, for the log."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class UnknownKey(Doubt):
    """The token is signed with a key that is not among these; the provider may have a new one."""

    def __init__(self) -> None:
        super().__init__("unknown_key")


@dataclass(frozen=True, slots=True)
class Expected:
    """Whose word about whom, at which visit, and when (seconds since 1970)."""

    issuer: str
    client_id: str
    nonce: str
    amr: Sequence[str]
    now_s: float


class _Header(msgspec.Struct, frozen=True):
    crit: Any = msgspec.UNSET
    b64: Any = msgspec.UNSET


class _Claims(msgspec.Struct, frozen=True):
    iss: str
    sub: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    aud: str | tuple[str, ...]
    exp: Seconds
    iat: Seconds
    auth_time: Seconds
    nonce: str
    amr: tuple[str, ...] = ()
    azp: str | None = None
    nbf: Seconds = 0


class _Jwks(msgspec.Struct, frozen=True):
    keys: tuple[dict[str, Any], ...]


def parsed(raw: bytes, kind: type[Parsed]) -> Parsed:
    """JSON of this shape; raises `Doubt`."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, RecursionError):
        raise Doubt("malformed") from None


def key_set(document: bytes) -> KeySet:
    """The keys of a JWK Set (RFC 7517 section 5), without those that cannot be read; raises `Doubt`."""
    jwks = parsed(document, _Jwks)
    return KeySet([key for jwk in jwks.keys if (key := _readable(jwk)) is not None])


def require_subject(token: str, keys: KeySet, expected: Expected) -> str:
    """`sub`, the provider's name for the person.

    Raises:
        UnknownKey: the keys must be read again.
        Doubt: anything else is not as it must be.
    """
    claims = parsed(_signed(token, keys), _Claims)
    audience = (claims.aud,) if isinstance(claims.aud, str) else claims.aud
    earliest_s, latest_s = expected.now_s - SKEW_S, expected.now_s + SKEW_S
    demands = {
        "wrong_issuer": claims.iss == expected.issuer,
        "wrong_audience": expected.client_id in audience,
        "wrong_party": claims.azp == expected.client_id or (claims.azp is None and len(audience) == 1),
        "wrong_nonce": claims.nonce == expected.nonce,
        "expired": earliest_s < claims.exp,
        "not_yet": max(claims.iat, claims.nbf, claims.auth_time) <= latest_s,
        "proved_long_ago": earliest_s - FRESH_S <= claims.auth_time,
        "one_factor": not set(claims.amr).isdisjoint(expected.amr),
    }
    for reason, met in demands.items():
        if not met:
            raise Doubt(reason)
    return claims.sub


def _signed(token: str, keys: KeySet) -> bytes:
    """What one of the keys has signed."""
    if not COMPACT.fullmatch(token):
        raise Doubt("malformed")
    registry = jws.JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)
    try:
        header = parsed(base64.urlsafe_b64decode(token.partition(".")[0] + "=="), _Header)
        if header.crit is not msgspec.UNSET or header.b64 is not msgspec.UNSET:
            raise Doubt("critical_header")
        with warnings.catch_warnings():
            # RFC 9864 has a new name for EdDSA, and providers still use the old one.
            warnings.simplefilter("ignore", SecurityWarning)
            return jws.deserialize_compact(token, keys, registry=registry).payload or b""
    except InvalidKeyIdError:
        raise UnknownKey from None
    except (JoseError, ValueError):
        raise Doubt("forged") from None


def _readable(jwk: dict[str, Any]) -> Key | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SecurityWarning)  # a key that joserfc warns of is too short
            return JWKRegistry.import_key(jwk)
    except (JoseError, LookupError, SecurityWarning, TypeError, ValueError):
        return None
