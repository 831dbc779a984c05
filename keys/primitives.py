"""Every raw call of a cipher, a MAC or a derivation that this product makes, in one short file.

AES-256-GCM (SP 800-38D) with a random 96-bit nonce chosen here and a 128-bit tag; HKDF-SHA-256 (RFC 5869);
HMAC-SHA-256 (RFC 2104). There is no cipher setting and no nonce argument: what cannot be passed cannot be
passed wrongly. `context` is how a place is named everywhere: each field carries its length, so that
("a", "bc") and ("ab", "c") never become the same bytes.
"""

import hashlib
import hmac
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keys.errors import BrokenSeal, UnknownFormat
from keys.secret import Secret

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16


def new_key() -> Secret[bytes]:
    """32 bytes from the operating system's generator."""
    return Secret(secrets.token_bytes(KEY_BYTES))


def context(*fields: str | int | bytes) -> bytes:
    """One unambiguous byte string for a list of fields: four bytes of length, then the field, each time."""
    parts: list[bytes] = []
    for field in fields:
        raw = field if isinstance(field, bytes) else str(field).encode()
        parts += (len(raw).to_bytes(4, "big"), raw)
    return b"".join(parts)


def encrypt(key: Secret[bytes], plaintext: bytes, associated: bytes) -> bytes:
    """Nonce (12) ‖ ciphertext ‖ tag (16)."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + AESGCM(key.reveal()).encrypt(nonce, plaintext, associated)


def decrypt(key: Secret[bytes], sealed: bytes, associated: bytes) -> bytes:
    """The inverse of `encrypt`.

    Raises:
        UnknownFormat: shorter than a nonce and a tag.
        BrokenSeal: not authentic under this key and these associated bytes.
    """
    if len(sealed) < NONCE_BYTES + TAG_BYTES:
        raise UnknownFormat("the sealed bytes are too short")
    try:
        return AESGCM(key.reveal()).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], associated)
    except InvalidTag:
        raise BrokenSeal("the sealed bytes are not authentic here") from None


def derive(key: Secret[bytes], info: bytes, length: int = KEY_BYTES, salt: bytes | None = None) -> bytes:
    """HKDF-SHA-256 (RFC 5869) of a key that is uniformly random already, hence no salt by default."""
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(key.reveal())


def subkey(key: Secret[bytes], *label: str | int | bytes) -> Secret[bytes]:
    """A key for one purpose, derived from another; no key serves two purposes."""
    return Secret(derive(key, context(*label)))


def mac(key: Secret[bytes], message: bytes) -> bytes:
    """HMAC-SHA-256, 32 bytes."""
    return hmac.digest(key.reveal(), message, hashlib.sha256)


def require_equal(expected: bytes, given: bytes, error: Exception) -> None:
    """Compare in constant time; raises `error` when they differ."""
    if not hmac.compare_digest(expected, given):
        raise error


def commitment(key: Secret[bytes], key_id: str) -> bytes:
    """32 bytes that only this key, under this id, can have; they reveal nothing of it."""
    return derive(key, context("keys/commitment/v1", key_id))
