"""A visit to the city's sign-in provider: what the browser carries there and must bring back.

Nobody is signed in yet, so nothing is written down here: the visit itself travels in a cookie, sealed under a key of
the admin process. It is good for ten minutes and for one return. Which ones have returned is kept in memory only;
behind that stands the provider, which takes a code once (RFC 6749 section 10.5), and only with this visit's verifier.

    sealed: base64url of key number (1) ‖ nonce (12) ‖ encrypted JSON ‖ tag (16)
"""

import base64
import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from gateway.errors import InvalidRequest
from gateway.services.ports import Clock
from keys.errors import KeysError
from keys.primitives import context, decrypt, encrypt, require_equal, subkey
from keys.process_keys import newest
from keys.secret import Secret

GOOD_S = 600
"""How long somebody may take at the provider."""
SEALED_CHARS_MAX = 1024
RETURNED_MAX = 10_000
"""How many returns are remembered; each one's cookie had been begun by us less than ten minutes before."""

BEGIN_AGAIN = (
    "This sign-in was not begun in this browser, took longer than ten minutes, or was finished already:"
    " begin it again at the sign-in page."
)
_ASSOCIATED = context("staff/oidc-visit/v1")


@dataclass(frozen=True, slots=True, eq=False)
class Visit:
    """Three random texts of 256 bits: `state` names the visit, `nonce` its ID token, `verifier` its code (PKCE)."""

    state: str
    nonce: str
    verifier: Secret[str]

    @property
    def challenge(self) -> str:
        """What the provider is shown of the verifier beforehand: method S256 (RFC 7636 section 4.2)."""
        return _text(hashlib.sha256(self.verifier.reveal().encode()).digest())


class _Carried(msgspec.Struct, frozen=True, array_like=True):
    state: str
    nonce: str
    verifier: str
    began_s: int


class Visits:
    """Begins visits and takes their returns, each once."""

    def __init__(self, sealing_keys: Mapping[int, Secret[bytes]], clock: Clock) -> None:
        self._sealing_keys = sealing_keys
        self._clock = clock
        self._returned: dict[str, None] = {}

    def renew(self, sealing_keys: Mapping[int, Secret[bytes]]) -> None:
        """Go on with these keys: they were rotated."""
        self._sealing_keys = sealing_keys

    def begin(self) -> tuple[Visit, str]:
        """A new visit, and the same sealed, in letters that a cookie may have."""
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        number, key = newest(self._sealing_keys)
        carried = msgspec.json.encode(_Carried(state, nonce, verifier, self._now_s()))
        sealed = bytes([number]) + encrypt(_sealing(key), carried, _ASSOCIATED)
        return Visit(state, nonce, Secret(verifier)), _text(sealed)

    def finish(self, sealed: str, state: str) -> Visit:
        """The visit that ends with this return; raises `InvalidRequest` for any other, and the second time."""
        refused = InvalidRequest(BEGIN_AGAIN)
        carried = self._open(sealed)
        require_equal(carried.state.encode(), state.encode(), refused)
        if not 0 <= self._now_s() - carried.began_s <= GOOD_S or carried.state in self._returned:
            raise refused
        self._returned[carried.state] = None
        if len(self._returned) > RETURNED_MAX:
            del self._returned[next(iter(self._returned))]  # the oldest
        return Visit(carried.state, carried.nonce, Secret(carried.verifier))

    def _open(self, sealed: str) -> _Carried:
        try:
            raw = base64.urlsafe_b64decode(sealed[:SEALED_CHARS_MAX] + "==")
            opened = decrypt(_sealing(self._sealing_keys[raw[0]]), raw[1:], _ASSOCIATED)
            return msgspec.json.decode(opened, type=_Carried)
        except (ValueError, LookupError, KeysError):
            raise InvalidRequest(BEGIN_AGAIN) from None

    def _now_s(self) -> int:
        return int(self._clock.now().timestamp())


def _sealing(key: Secret[bytes]) -> Secret[bytes]:
    return subkey(key, "staff/oidc-visit-sealing/v1")


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
