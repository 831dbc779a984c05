"""One-time codes of staff: TOTP (RFC 6238) with SHA-1, six digits and 30 seconds, as every app for them has it.

SHA-1 is used inside HMAC only, where its weakness does not matter. A code is good in its own step, the one before
and the one after; that each step is used once is the database's business, which keeps the last. The seed is sealed
for one account under a key of the admin process, so that a copy of the database makes no code.

    sealed: key number (1) ‖ nonce (12) ‖ encrypted seed (20) ‖ tag (16)
"""

import base64
import hmac
import re
import secrets
from collections.abc import Mapping
from datetime import datetime

from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP

from gateway.errors import SignInRefused
from keys.errors import BrokenSeal
from keys.primitives import context, decrypt, encrypt, subkey
from keys.process_keys import newest
from keys.secret import Secret

SEED_BYTES = 20
"""The length of the hash's output (RFC 4226 section 4)."""
DIGITS = 6
STEP_S = 30
ISSUER = "City payments"
CODE = re.compile(r"[0-9]{6}")


def new_seed() -> Secret[bytes]:
    """20 random bytes, which the authenticator app and the database share."""
    return Secret(secrets.token_bytes(SEED_BYTES))


def base32(seed: Secret[bytes]) -> Secret[str]:
    """The seed as people type it into an app."""
    return Secret(base64.b32encode(seed.reveal()).decode())


def otpauth_uri(username: str, seed: Secret[bytes]) -> Secret[str]:
    """The seed as a QR code carries it. A space is `%20`: apps show `+` as it stands."""
    return Secret(_totp(seed).get_provisioning_uri(username, ISSUER).replace("+", "%20"))


def code_at(seed: Secret[bytes], step: int) -> str:
    """The code of one step, counted in 30 seconds since 1970."""
    return _totp(seed).generate(step * STEP_S).decode()


def require_code(seed: Secret[bytes], code: str, now: datetime) -> int:
    """The step, of now or its neighbours, to which a code belongs; raises `SignInRefused`. Spaces do not matter."""
    current, given, found = int(now.timestamp()) // STEP_S, code.replace(" ", ""), None
    if not CODE.fullmatch(given):
        given = ""
    for step in (current - 1, current, current + 1):  # all of them, so that the time says nothing
        if hmac.compare_digest(code_at(seed, step), given):
            found = step
    if found is None:
        raise SignInRefused
    return found


def seal_seed(keys: Mapping[int, Secret[bytes]], staff_id: str, seed: Secret[bytes]) -> bytes:
    """The seed of one account under the newest of the admin's `staff-sealing` keys."""
    number, key = newest(keys)
    return bytes([number]) + encrypt(_sealing(key), seed.reveal(), _associated(staff_id))


def is_sealed_with_newest(keys: Mapping[int, Secret[bytes]], sealed: bytes) -> bool:
    """Whether no newer key has come since."""
    return sealed[:1] == bytes([newest(keys)[0]])


def open_seed(keys: Mapping[int, Secret[bytes]], staff_id: str, sealed: bytes) -> Secret[bytes]:
    """The inverse of `seal_seed`; raises `BrokenSeal` for another account's, or when its key is not here."""
    if not sealed or sealed[0] not in keys:
        raise BrokenSeal("a seed of one-time codes is sealed with a key that is not here")
    return Secret(decrypt(_sealing(keys[sealed[0]]), sealed[1:], _associated(staff_id)))


def _totp(seed: Secret[bytes]) -> TOTP:
    return TOTP(seed.reveal(), DIGITS, SHA1(), STEP_S)  # noqa: S303 - inside HMAC, as RFC 6238 has it


def _sealing(key: Secret[bytes]) -> Secret[bytes]:
    return subkey(key, "staff/totp-sealing/v1")


def _associated(staff_id: str) -> bytes:
    return context("staff/totp/v1", staff_id)
