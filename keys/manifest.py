"""The manifest: which keys exist, in which state, until when; signed, and only ever newer.

It names each key with a commitment, so a wrapped blob swapped for another is found when it is opened. It is
a signed note whose signing key is wrapped under the root itself: who holds the root can check it, and an
attacker who can only write files can neither forge one nor swap the signer. An older manifest put back is found by
its version, which the database mirrors (`keys.deks`).
"""

from datetime import datetime
from typing import Literal

import msgspec

from keys.errors import BrokenSeal, ManifestRefused
from keys.ring import State
from keys.secret import Secret
from keys.signing import open_note, sign_note

SIGNER = "gateway-keys"

Purpose = Literal["kek", "fingerprint", "manifest-signing", "audit-mac", "api-digest"]


class KeyEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One key: everything about it but its bytes."""

    id: str
    purpose: Purpose
    number: int
    state: State
    created: datetime
    originate_until: datetime
    process_until: datetime
    commitment: str
    holder: str
    """`keystore` when it is wrapped there, else the process that has it in a file of its own."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All keys of one environment. `version` grows by one with every change."""

    format: Literal[1]
    environment: str
    version: int
    written: datetime
    root: str
    """The scheme of the root key's URI; its place and passphrase are the configuration's."""
    keys: tuple[KeyEntry, ...]

    def of(self, purpose: Purpose) -> tuple[KeyEntry, ...]:
        """The keys of one purpose, in order of their numbers."""
        return tuple(sorted((k for k in self.keys if k.purpose == purpose), key=lambda k: k.number))


def sign_manifest(manifest: Manifest, seed: Secret[bytes]) -> bytes:
    """The bytes of the manifest file."""
    text = msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=1).decode()
    return sign_note(seed, SIGNER, text + "\n").encode()


def read_manifest(raw: bytes, public: bytes, environment: str) -> Manifest:
    """Check and parse the manifest file; raises `ManifestRefused`."""
    try:
        text = open_note(public, SIGNER, raw.decode())
        manifest = msgspec.json.decode(text, type=Manifest)
    except (BrokenSeal, UnicodeDecodeError, msgspec.MsgspecError):
        raise ManifestRefused(
            "the manifest is not signed by this key store's own key: restore the key store from its backup"
        ) from None
    if manifest.environment != environment:
        raise ManifestRefused(
            f"the key store is of environment '{manifest.environment}', the configuration of '{environment}':"
            " correct `environment` or `keys.store`"
        )
    return manifest


def require_current(manifest: Manifest, version_seen: int) -> None:
    """Refuse a manifest older than one that the database has seen; raises `ManifestRefused`."""
    if manifest.version < version_seen:
        raise ManifestRefused(
            f"manifest {manifest.version} is older than {version_seen}, which this database has seen:"
            " put the newest key store back"
        )
