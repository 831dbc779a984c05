"""The envelope, version 1: a record sealed under a data key of its own, and that data key wrapped.

    sealed record = 0x01 ‖ commitment (32) ‖ nonce (12) ‖ ciphertext ‖ tag (16)
    wrapped DEK   = 0x01 ‖ nonce (12) ‖ encrypted DEK (32) ‖ tag (16)

A record is bound to its place twice. Environment, department, record id, field set and version go into the
derivation of the encryption key *and* into the associated data, so a row copied over another does not open.
The generation of the KEK is no part of it: rotation never touches a record, only the wrap, which names it.

The seal is key-committing. From the DEK two values are derived, an encryption key and a commitment. The
commitment is compared, in constant time, before anything is decrypted: AES-GCM alone lets a forger build one
ciphertext that opens under two keys; two keys with one commitment would be a collision of SHA-256.

One algorithm set a version byte; a version 2 would be a new byte, not a setting.
"""

from dataclasses import dataclass

from keys.errors import UnknownFormat, WrongKey
from keys.primitives import (
    KEY_BYTES,
    NONCE_BYTES,
    TAG_BYTES,
    context,
    decrypt,
    derive,
    encrypt,
    require_equal,
)
from keys.secret import Secret

VERSION = b"\x01"
COMMITMENT_BYTES = 32
SEALED_BYTES_MIN = len(VERSION) + COMMITMENT_BYTES + NONCE_BYTES + TAG_BYTES
WRAPPED_BYTES = len(VERSION) + NONCE_BYTES + KEY_BYTES + TAG_BYTES


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record lives: nothing sealed for one place opens in another."""

    environment: str
    department: str
    record: str


def seal(dek: Secret[bytes], place: Place, field_set: str, plaintext: Secret[bytes]) -> bytes:
    """Seal the fields of one record. The nonce is chosen inside."""
    bound = _record_context(place, field_set)
    key, committed = _record_keys(dek, bound)
    return VERSION + committed + encrypt(key, plaintext.reveal(), bound)


def unseal(dek: Secret[bytes], place: Place, field_set: str, sealed: bytes) -> Secret[bytes]:
    """Open what `seal` made, at the same place, with the same data key.

    Raises:
        UnknownFormat: another version, or too short.
        WrongKey: the commitment is not that of this key at this place.
        BrokenSeal: nonce, ciphertext or tag was altered.
    """
    if sealed[:1] != VERSION or len(sealed) < SEALED_BYTES_MIN:
        raise UnknownFormat("this sealed record is of no version that this release reads")
    bound = _record_context(place, field_set)
    key, committed = _record_keys(dek, bound)
    body = sealed[len(VERSION) :]
    require_equal(
        committed, body[:COMMITMENT_BYTES], WrongKey("the record was sealed under another key or elsewhere")
    )
    return Secret(decrypt(key, body[COMMITMENT_BYTES:], bound))


def wrap_dek(kek: Secret[bytes], place: Place, generation: int, dek: Secret[bytes]) -> bytes:
    """Wrap a record's data key under one generation of the KEK."""
    return VERSION + encrypt(kek, dek.reveal(), _dek_context(place, generation))


def unwrap_dek(kek: Secret[bytes], place: Place, generation: int, wrapped: bytes) -> Secret[bytes]:
    """Open what `wrap_dek` made, for the same record and generation.

    Raises:
        UnknownFormat: another version or length.
        BrokenSeal: altered, or the wrap of another record, department or generation.
    """
    if wrapped[:1] != VERSION or len(wrapped) != WRAPPED_BYTES:
        raise UnknownFormat("this wrapped data key is of no version that this release reads")
    return Secret(decrypt(kek, wrapped[len(VERSION) :], _dek_context(place, generation)))


def _record_context(place: Place, field_set: str) -> bytes:
    return context("envelope/record", VERSION, place.environment, place.department, place.record, field_set)


def _dek_context(place: Place, generation: int) -> bytes:
    return context("envelope/dek", VERSION, place.environment, place.department, place.record, generation)


def _record_keys(dek: Secret[bytes], bound: bytes) -> tuple[Secret[bytes], bytes]:
    # The DEK is uniformly random and seals one record, so HKDF needs no salt (RFC 5869 §3.1).
    derived = derive(dek, bound, length=KEY_BYTES + COMMITMENT_BYTES)
    return Secret(derived[:KEY_BYTES]), derived[KEY_BYTES:]
