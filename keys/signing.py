"""Signed notes: a text, and an Ed25519 signature that existing tools can check (C2SP signed-note).

    <text, lines each ending in a newline>
    <empty line>
    — <name> <base64(key hash (4) ‖ signature (64))>

The key hash is the first four bytes of SHA-256(name ‖ 0x0A ‖ 0x01 ‖ public key).
"""

import base64
import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from keys.errors import BrokenSeal
from keys.secret import Secret

ED25519 = b"\x01"
HASH_BYTES = 4


def public_key(seed: Secret[bytes]) -> bytes:
    """The 32 public bytes that belong to a private seed."""
    return Ed25519PrivateKey.from_private_bytes(seed.reveal()).public_key().public_bytes_raw()


def sign(seed: Secret[bytes], message: bytes) -> bytes:
    """The 64 bytes of an Ed25519 signature (RFC 8032)."""
    return Ed25519PrivateKey.from_private_bytes(seed.reveal()).sign(message)


def require_signed(public: bytes, message: bytes, signature: bytes) -> None:
    """Raises `BrokenSeal` unless this key made this signature of this message."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):  # ValueError: no key
        raise BrokenSeal("the signature is not of this key and this content") from None


def sign_note(seed: Secret[bytes], name: str, text: str) -> str:
    """`text`, which must end in a newline, with one signature line."""
    assert text.endswith("\n"), "internal error: a note's text ends in a newline"
    key = Ed25519PrivateKey.from_private_bytes(seed.reveal())
    signature = _key_hash(name, key.public_key().public_bytes_raw()) + key.sign(text.encode())
    return _written(text, name, signature)


def open_note(public: bytes, name: str, note: str) -> str:
    """The text of a note that this key signed under this name; else raises `BrokenSeal`."""
    text, _, line = note.rpartition("\n\n— ")
    text += "\n"
    try:
        raw = base64.b64decode(line.rpartition(" ")[2].rstrip("\n"), validate=True)
        # Written anew and compared: base64 and line ends have several spellings, a signed note has one.
        if note != _written(text, name, raw) or raw[:HASH_BYTES] != _key_hash(name, public):
            raise BrokenSeal(f"the note is not signed by {name}")
        Ed25519PublicKey.from_public_bytes(public).verify(raw[HASH_BYTES:], text.encode())
    except (InvalidSignature, ValueError):  # ValueError: no base64
        raise BrokenSeal(f"the signature of {name} does not hold") from None
    return text


def text_of(note: str) -> str:
    """What a note says, whoever signed it: to learn which key to check it with, and for nothing else."""
    return note.rpartition("\n\n— ")[0] + "\n"


def _written(text: str, name: str, signature: bytes) -> str:
    return f"{text}\n— {name} {base64.b64encode(signature).decode()}\n"


def _key_hash(name: str, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + ED25519 + public).digest()[:HASH_BYTES]
