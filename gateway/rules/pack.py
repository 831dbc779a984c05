"""The evidence of a close: one JSON document that can be made again, byte for byte, from what is stored.

Whatever went into the close is in it, or a digest of it is: files and their lines, the match and each of its items,
journal and postings, exceptions with all that was done about them, who proposed and who approved. Change one stored
row, and the rebuilt pack has another SHA-256 than the one that was signed.

    canonical   UTF-8, keys sorted, no space, integers only, one newline at the end (RFC 8785 knows more: floats)
    signed      Ed25519 (RFC 8032) over the line `gateway/close-pack/v1` and the 32 bytes of its SHA-256
    checked     with the pack, the signature file and a public key; no network, no database (`gateway close verify`)

A row's digest is the SHA-256 of its values as a JSON array, and that of many rows the SHA-256 of theirs in a row, in
the order that the query says (`store/closes.sql`).
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

import msgspec

from keys.errors import BrokenSeal
from keys.secret import Secret
from keys.signing import public_key, require_signed, sign

FORMAT = "gateway/close-pack/v1"
HASH_BYTES = 32


class SignatureFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`pack.sig`: whose signature over which pack. Hash in hex, signature in base64."""

    format: str
    key: int
    sha256: str
    signature: str


@dataclass(frozen=True, slots=True)
class Seal:
    """What is kept of a pack: its hash, and the signature of it by the key of that number."""

    sha256: bytes
    signature: bytes
    key: int

    @classmethod
    def of(cls, pack: bytes, keys: Mapping[int, Secret[bytes]]) -> Self:
        """Sign a pack with the newest of these keys."""
        number, digest = max(keys), sha256(pack)
        return cls(digest, sign(keys[number], _message(digest)), number)

    def require(self, pack: bytes, public: bytes) -> None:
        """Raises `BrokenSeal` unless this is the seal of these bytes by this key."""
        if sha256(pack) != self.sha256:
            raise BrokenSeal("the pack is not the one that was signed: its SHA-256 differs")
        require_signed(public, _message(self.sha256), self.signature)

    def file(self) -> bytes:
        """As it is handed out beside the pack."""
        told = SignatureFile(FORMAT, self.key, self.sha256.hex(), base64.b64encode(self.signature).decode())
        return msgspec.json.encode(told) + b"\n"

    @classmethod
    def read(cls, raw: bytes) -> Self:
        """A signature file; raises `BrokenSeal` where it is none."""
        try:
            told = msgspec.json.decode(raw, type=SignatureFile)
            digest, signature = bytes.fromhex(told.sha256), base64.b64decode(told.signature, validate=True)
        except (msgspec.MsgspecError, ValueError):
            raise BrokenSeal("this is no signature file of a close pack") from None
        if told.format != FORMAT or len(digest) != HASH_BYTES:
            raise BrokenSeal(f"this is no signature file of {FORMAT}")
        return cls(digest, signature, told.key)


def canonical(content: Mapping[str, Any]) -> bytes:
    """The one spelling of a document; raises `TypeError` for what has several, like a float."""
    _require_plain(content)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def sha256(content: bytes) -> bytes:
    """Of a pack."""
    return hashlib.sha256(content).digest()


def public_keys(keys: Mapping[int, Secret[bytes]]) -> Mapping[int, bytes]:
    """What to check signatures with, by number; 32 bytes each."""
    return {number: public_key(key) for number, key in sorted(keys.items())}


def told(moment: datetime) -> str:
    """A moment as packs spell it: RFC 3339 in UTC, to the microsecond."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


def _message(digest: bytes) -> bytes:
    return FORMAT.encode() + b"\n" + digest


def _require_plain(value: Any) -> None:
    match value:
        case None | bool() | int() | str():
            return
        case dict():
            if not all(type(key) is str for key in value):
                raise TypeError("internal error: a pack's keys are text")
            for each in value.values():
                _require_plain(each)
        case list() | tuple():
            for each in value:
                _require_plain(each)
        case _:
            raise TypeError("internal error: a pack holds text, integers, truth values, lists and objects")
