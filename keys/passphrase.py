"""A key in a file, under a passphrase (Argon2id, RFC 9106).

    0x01 ‖ operations (4) ‖ memory in KiB (4) ‖ salt (16) ‖ nonce (12) ‖ encrypted key (32) ‖ tag (16)

The header is associated data, so the cost of guessing cannot be lowered in place. Behind it stands a label that says
what the key is for, so that a file of one kind does not open as another. The label of a root key is empty.
Whoever has the file and the passphrase has the key, so keep them on different media.
"""

from collections.abc import Callable
from pathlib import Path

from nacl import pwhash, utils
from nacl.exceptions import CryptoError

from keys.errors import BrokenSeal, PassphraseRefused
from keys.files import read_private, write_private
from keys.primitives import KEY_BYTES, NONCE_BYTES, TAG_BYTES, decrypt, encrypt, require_equal
from keys.secret import Secret

VERSION = b"\x01"
OPERATIONS = pwhash.argon2id.OPSLIMIT_MODERATE
MEMORY_KIB = pwhash.argon2id.MEMLIMIT_MODERATE // 1024
MEMORY_KIB_MAX = 4 * 1024 * 1024
OPERATIONS_MAX = 64
SALT_BYTES = pwhash.argon2id.SALTBYTES
HEADER_BYTES = 1 + 4 + 4 + SALT_BYTES
FILE_BYTES = HEADER_BYTES + NONCE_BYTES + KEY_BYTES + TAG_BYTES
CHARACTERS_MIN = 12


def new_passphrase(ask: Callable[[str], Secret[str]], of: str) -> Secret[str]:
    """Ask for a new passphrase twice; `of` says for what: `the root key`.

    Raises:
        PassphraseRefused: too short, or the two differ.
    """
    first = ask(f"new passphrase for {of}")
    require_long(first)
    again = ask("the same passphrase again")
    refused = PassphraseRefused("the two passphrases differ, and nothing was made: try again")
    require_equal(_bytes(first), _bytes(again), refused)
    return first


def require_long(passphrase: Secret[str]) -> None:
    """Refuse a passphrase that is quickly guessed at any cost; raises `PassphraseRefused`."""
    if len(passphrase.reveal()) < CHARACTERS_MIN:
        raise PassphraseRefused(f"the passphrase needs at least {CHARACTERS_MIN} characters")


def seal_file(path: Path, secret: Secret[bytes], passphrase: Secret[str], label: bytes) -> None:
    """Write a key of 32 bytes to a new file.

    Raises:
        PassphraseRefused: too short a passphrase.
        KeystoreRefused: the file exists, or cannot be written.
    """
    require_long(passphrase)
    assert len(secret.reveal()) == KEY_BYTES, "internal error: such a file holds one key"
    salt = utils.random(SALT_BYTES)
    header = VERSION + OPERATIONS.to_bytes(4, "big") + MEMORY_KIB.to_bytes(4, "big") + salt
    key = _stretch(passphrase, salt, OPERATIONS, MEMORY_KIB)
    write_private(path, header + encrypt(key, secret.reveal(), header + label), replace=False)


def open_file(path: Path, passphrase: Secret[str], label: bytes) -> Secret[bytes]:
    """The key in such a file.

    Raises:
        PassphraseRefused: another passphrase, another label, or the file was altered.
        KeystoreRefused: missing, or others could read or replace it.
    """
    raw = read_private(path)
    if raw[:1] != VERSION or len(raw) != FILE_BYTES:
        raise PassphraseRefused(
            f"{path} is not a key under a passphrase, or was cut short: restore it from its backup"
        )
    header, sealed = raw[:HEADER_BYTES], raw[HEADER_BYTES:]
    operations, memory_kib = int.from_bytes(header[1:5], "big"), int.from_bytes(header[5:9], "big")
    # Bounds, so that an altered header cannot make the start take all memory or all day.
    if not (OPERATIONS <= operations <= OPERATIONS_MAX and MEMORY_KIB <= memory_kib <= MEMORY_KIB_MAX):
        raise PassphraseRefused(f"{path} asks for a cost outside what is allowed: restore it from its backup")
    try:
        return Secret(decrypt(_stretch(passphrase, header[9:], operations, memory_kib), sealed, header + label))
    except BrokenSeal:
        raise PassphraseRefused(
            f"the passphrase does not open {path}: check the passphrase, and that this is the right file"
        ) from None


def _stretch(passphrase: Secret[str], salt: bytes, operations: int, memory_kib: int) -> Secret[bytes]:
    try:
        key = pwhash.argon2id.kdf(
            KEY_BYTES, _bytes(passphrase), salt, opslimit=operations, memlimit=memory_kib * 1024
        )
    except (CryptoError, MemoryError):
        raise PassphraseRefused(f"a passphrase takes {memory_kib // 1024} MiB to check: free that memory") from None
    return Secret(key)


def _bytes(passphrase: Secret[str]) -> bytes:
    try:
        return passphrase.reveal().encode()
    except UnicodeEncodeError:
        # A terminal with another character set hands out surrogates, and the error would quote one.
        raise PassphraseRefused("the passphrase is not UTF-8: set the terminal to UTF-8") from None
