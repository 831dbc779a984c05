"""The container of a key backup: a set of files that only its named recipients can open.

    "KEYSBACKUP" ‖ 0x01 ‖ header length (4) ‖ header, JSON ‖ nonce (12) ‖ encrypted files ‖ tag (16)

A fresh backup key encrypts the files (AES-256-GCM under a subkey) with everything before the nonce as associated
data. The header holds that key once for each recipient, in a sealed box, and a commitment to it that is compared
before anything is decrypted, so that all recipients see the same files. Inside, the files are one MessagePack map
from relative path to bytes.

A container does not say who made it: anyone can seal to a public key. What lies in it has to prove itself: the
manifest is signed under the root, and has a commitment to each key. `keys restore` takes nothing else out of it but
the evidence of acts and ceremonies, which is signed or proves nothing.
"""

import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import PurePosixPath
from typing import Annotated, Literal

import msgspec

from keys.errors import BackupRefused, BrokenSeal
from keys.officers import Moment, Officer, OfficerKey, OfficerName, seal_for
from keys.primitives import commitment, decrypt, encrypt, new_key, require_equal, subkey
from keys.secret import Secret

MAGIC = b"KEYSBACKUP"
VERSION = b"\x01"
LENGTH_BYTES = 4
HEADER_STARTS = len(MAGIC) + len(VERSION) + LENGTH_BYTES
BYTES_MAX = 64 * 1024 * 1024
PATH_CHARACTERS_MAX = 255

CUT_OR_ALTERED = "the backup was altered or cut short: take another copy of it"

_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
PATH = re.compile(rf"{_PART}(/{_PART})*")
"""No dot first: neither `..` nor a hidden file. No slash first: no absolute path."""

BackupId = Annotated[str, msgspec.Meta(pattern=r"^backup_[0-9a-f]{32}\Z")]


class Recipient(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The backup key, sealed for one officer."""

    name: OfficerName
    sealed: bytes


class BackupHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What anyone can read of a backup. Nothing of it is proven before `open_backup`."""

    format: Literal[1]
    id: BackupId
    environment: Annotated[str, msgspec.Meta(pattern=r"^[!-~]{1,100}\Z")]
    manifest_version: int
    created: Moment
    recipients: tuple[Recipient, ...]
    commitment: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]

    @property
    def names(self) -> tuple[str, ...]:
        """Who can open it."""
        return tuple(recipient.name for recipient in self.recipients)


def new_backup_id() -> str:
    """An id that was never used."""
    return f"backup_{secrets.token_hex(16)}"


def seal_backup(
    files: Mapping[str, bytes],
    recipients: Sequence[Officer],
    *,
    backup_id: str,
    environment: str,
    manifest_version: int,
    created: datetime,
) -> bytes:
    """Files by relative path, for these officers and nobody else.

    Raises:
        BackupRefused: no recipient, one twice, a path that leads elsewhere, or more than 64 MiB.
        OfficerRefused: a recipient's public key is none.
    """
    require_recipients(recipients)
    _require_paths(files)
    key = new_key()
    boxes = tuple(Recipient(officer.name, seal_for(officer, key)) for officer in recipients)
    digest = commitment(key, backup_id).hex()
    header = BackupHeader(1, backup_id, environment, manifest_version, created, boxes, digest)
    encoded = msgspec.json.encode(header)
    start = MAGIC + VERSION + len(encoded).to_bytes(LENGTH_BYTES, "big") + encoded
    sealed = start + encrypt(_body_key(key), msgspec.msgpack.encode(dict(files)), start)
    read_header(sealed)  # what could not be read back is not handed out
    return sealed


def read_header(raw: bytes) -> BackupHeader:
    """What a backup says of itself; raises `BackupRefused` where it is none."""
    if len(raw) > BYTES_MAX:
        raise BackupRefused(f"a key backup has at most {BYTES_MAX >> 20} MiB, and this is larger")
    if not raw.startswith(MAGIC + VERSION):
        raise BackupRefused("this file is not a key backup, or of a version that this release does not read")
    try:
        return msgspec.json.decode(raw[HEADER_STARTS : _header_end(raw)], type=BackupHeader)
    except (msgspec.MsgspecError, UnicodeError):  # text that is no UTF-8 is no error of msgspec's
        raise BackupRefused(CUT_OR_ALTERED) from None


def open_backup(raw: bytes, officer_key: OfficerKey) -> Mapping[str, bytes]:
    """The files of a backup, by relative path, opened by one of its recipients.

    Raises:
        BackupRefused: not a recipient's key, altered, or a path in it leads elsewhere.
    """
    header = read_header(raw)
    key = _backup_key(header, officer_key)
    end = _header_end(raw)
    try:
        files = msgspec.msgpack.decode(decrypt(_body_key(key), raw[end:], raw[:end]), type=dict[str, bytes])
    except (BrokenSeal, msgspec.MsgspecError, UnicodeError):
        raise BackupRefused(CUT_OR_ALTERED) from None
    _require_paths(files)
    return files


def _header_end(raw: bytes) -> int:
    # Behind the end of what is there, when it was cut short: then the header is no JSON.
    return HEADER_STARTS + int.from_bytes(raw[HEADER_STARTS - LENGTH_BYTES : HEADER_STARTS], "big")


def _backup_key(header: BackupHeader, officer_key: OfficerKey) -> Secret[bytes]:
    for recipient in header.recipients:
        with suppress(BrokenSeal):
            key = officer_key.unseal(recipient.sealed)
            require_equal(bytes.fromhex(header.commitment), commitment(key, header.id), BackupRefused(CUT_OR_ALTERED))
            return key
    line = f"take the key that {' or '.join(header.names) or 'nobody'} had when it was made"
    raise BackupRefused(f"{header.id} does not open with this key: {line}")


def _body_key(key: Secret[bytes]) -> Secret[bytes]:
    return subkey(key, "backup/v1", "files")


def require_recipients(recipients: Sequence[Officer]) -> None:
    """Raises `BackupRefused` where nobody could open the backup, or somebody twice."""
    names = [officer.name for officer in recipients]
    if not names:
        raise BackupRefused("a key backup needs a recipient: `--for` names an officer")
    if len(set(names)) < len(names):
        raise BackupRefused("a key backup names each of its recipients once")
    for officer in recipients:
        if officer.removed is not None:
            raise BackupRefused(f"{officer.name} was removed as an officer and gets no key backup")


def _require_paths(paths: Collection[str]) -> None:
    """Refuse what would be written outside the folder that a backup is restored to, or over another of its files."""
    if not all(len(path) <= PATH_CHARACTERS_MAX and PATH.fullmatch(path) for path in paths):
        raise BackupRefused("a path in this backup leads elsewhere, or is not plain and relative: do not trust it")
    if any(str(parent) in paths for path in paths for parent in PurePosixPath(path).parents):
        raise BackupRefused("a path in this backup is a file and a folder at once: do not trust it")
