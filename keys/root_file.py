"""A root key in a file, under a passphrase (Argon2id, RFC 9106).

    0x01 ‖ operations (4) ‖ memory in KiB (4) ‖ salt (16) ‖ nonce (12) ‖ encrypted root (32) ‖ tag (16)

The header is associated data, so the cost of guessing cannot be lowered in place. For a machine without an
HSM: whoever has this file and the passphrase has everything, so keep them on different media.
"""

from pathlib import Path

from nacl import pwhash, utils

from keys.errors import BrokenSeal, RootRefused, UnknownFormat
from keys.files import read_private, write_private
from keys.primitives import KEY_BYTES, NONCE_BYTES, TAG_BYTES, decrypt, encrypt, new_key, subkey
from keys.secret import Secret

VERSION = b"\x01"
OPERATIONS = pwhash.argon2id.OPSLIMIT_MODERATE
MEMORY_KIB = pwhash.argon2id.MEMLIMIT_MODERATE // 1024
MEMORY_KIB_MAX = 4 * 1024 * 1024
OPERATIONS_MAX = 64
SALT_BYTES = pwhash.argon2id.SALTBYTES
HEADER_BYTES = 1 + 4 + 4 + SALT_BYTES
PASSPHRASE_CHARACTERS_MIN = 12


class FileRoot:
    """A root key held in this process's memory."""

    def __init__(self, root: Secret[bytes]) -> None:
        self._wrapping = subkey(root, "root/file/v1", "wrap")

    def wrap(self, secret: Secret[bytes], bound_to: bytes) -> bytes:
        """See `keys.root.RootKey.wrap`."""
        return VERSION + encrypt(self._wrapping, secret.reveal(), bound_to)

    def unwrap(self, wrapped: bytes, bound_to: bytes) -> Secret[bytes]:
        """See `keys.root.RootKey.unwrap`."""
        try:
            if wrapped[:1] != VERSION:
                raise UnknownFormat("the wrapped key is of no version that this release reads")
            return Secret(decrypt(self._wrapping, wrapped[len(VERSION) :], bound_to))
        except BrokenSeal:
            raise RootRefused(
                "this root key does not open the key store: `keys.root` and `keys.store` do not belong together,"
                " or a key file was swapped or altered"
            ) from None


def create(path: str, passphrase: Secret[str]) -> FileRoot:
    """Write a new root key file; refuses to replace one."""
    if len(passphrase.reveal()) < PASSPHRASE_CHARACTERS_MIN:
        raise RootRefused(f"the passphrase needs at least {PASSPHRASE_CHARACTERS_MIN} characters")
    root = new_key()
    salt = utils.random(SALT_BYTES)
    header = VERSION + OPERATIONS.to_bytes(4, "big") + MEMORY_KIB.to_bytes(4, "big") + salt
    key = _stretch(passphrase, salt, OPERATIONS, MEMORY_KIB)
    write_private(Path(path), header + encrypt(key, root.reveal(), header), replace=False)
    return FileRoot(root)


def open_file(path: str, passphrase: Secret[str]) -> FileRoot:
    """Open a root key file; raises `RootRefused` or `KeystoreRefused`."""
    if not Path(path).exists():
        raise RootRefused(f"{path} does not exist: `keys init` makes it, once; later it comes from its backup")
    raw = read_private(Path(path))
    if raw[:1] != VERSION or len(raw) != HEADER_BYTES + NONCE_BYTES + KEY_BYTES + TAG_BYTES:
        raise RootRefused(f"{path} is not a root key file, or was cut short: restore it from its backup")
    header, sealed = raw[:HEADER_BYTES], raw[HEADER_BYTES:]
    operations, memory_kib = int.from_bytes(header[1:5], "big"), int.from_bytes(header[5:9], "big")
    # Bounds, so that an altered header cannot make the start take all memory or all day.
    if not (OPERATIONS <= operations <= OPERATIONS_MAX and MEMORY_KIB <= memory_kib <= MEMORY_KIB_MAX):
        raise RootRefused(f"{path} asks for a cost outside what is allowed: restore it from its backup")
    try:
        return FileRoot(Secret(decrypt(_stretch(passphrase, header[9:], operations, memory_kib), sealed, header)))
    except BrokenSeal:
        raise RootRefused(f"the passphrase does not open {path}: check the passphrase file") from None


def _stretch(passphrase: Secret[str], salt: bytes, operations: int, memory_kib: int) -> Secret[bytes]:
    return Secret(
        pwhash.argon2id.kdf(
            KEY_BYTES, passphrase.reveal().encode(), salt, opslimit=operations, memlimit=memory_kib * 1024
        )
    )
