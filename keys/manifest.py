"""The manifest: which keys exist, in which state, until when; who looks after them; signed, and only ever newer.

It names each key with a commitment, so a wrapped blob swapped for another is found when it is opened. It is
a signed note whose signing key is wrapped under the root itself: who holds the root can check it, and an
attacker who can only write files can neither forge one nor swap the signer. An older manifest put back is found by
its version, which the database mirrors (`keys.deks`).

A manifest is never changed: `with_key`, `moved` and the like give the next one, still without version and signature;
`keys.keystore` publishes it.
"""

from datetime import datetime, timedelta
from typing import Literal, Self

import msgspec

from keys.errors import (
    BrokenSeal,
    ClockBehind,
    KeystoreRefused,
    ManifestForeign,
    ManifestForged,
    ManifestRolledBack,
    UnknownKey,
)
from keys.files import FILE_BYTES_MAX
from keys.officers import Officer
from keys.secret import Secret
from keys.signing import open_note, public_key, sign_note, text_of
from keys.states import Seen, State, require_move

SIGNER = "gateway-keys"
FORMAT: Literal[2] = 2
CLOCK_TOLERANCE = timedelta(minutes=5)

Purpose = Literal[
    "kek",
    "fingerprint",
    "hpke",
    "manifest-signing",
    "audit-mac",
    "audit-head",
    "api-digest",
    "staff-sealing",
    "close-pack",
]

KEYSTORE = "keystore"
"""The holder of a key that lies wrapped in the key store; any other holder is a process with a file of its own."""


class KeyEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One key: everything about it but its bytes."""

    id: str
    purpose: Purpose
    number: int
    """The generation of a KEK, the version of any other key; counted for each purpose and holder."""
    state: State
    since: datetime
    """When it entered this state."""
    created: datetime
    originate_until: datetime
    process_until: datetime
    commitment: str
    holder: str

    @property
    def title(self) -> str:
        """How people call it."""
        name = {"kek": "generation", "fingerprint": "fingerprint key"}.get(self.purpose, f"{self.purpose} key")
        return f"{name} {self.number}" + ("" if self.holder == KEYSTORE else f" of {self.holder}")


class Act(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What made this version. Kept, so that an interrupted act is finished under its own name."""

    name: str
    subject: str
    actor: str = "keys"
    """The names of the officer who asked and the one who approved, or `keys` for what one person may do alone."""
    request: str = ""
    """The id of the signed request that two officers stand behind."""


class Custodian(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who holds one share of a root."""

    name: str
    left: datetime | None = None


class RootEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One root key: where it lives, never what it is. Two stand only while the root is being replaced."""

    number: int
    scheme: str
    location: str
    state: State
    since: datetime
    threshold: int = 0
    custodians: tuple[Custodian, ...] = ()


class Backup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A copy of the key store that exists somewhere."""

    id: str
    created: datetime
    recipients: tuple[str, ...]
    generations: tuple[int, ...]
    forgotten: datetime | None = None
    """When it was said to be destroyed."""
    roots: tuple[int, ...] = ()
    """The roots that open it; none in the entries of earlier releases."""

    def holds(self, key: KeyEntry) -> bool:
        """Whether a key lies in it; asked of keys that are not destroyed."""
        return key.number in self.generations if key.purpose == "kek" else key.created <= self.created


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All keys of one environment. `version` grows by one with every change."""

    format: Literal[2] = FORMAT
    environment: str
    version: int
    written: datetime
    act: Act
    roots: tuple[RootEntry, ...]
    keys: tuple[KeyEntry, ...]
    officers: tuple[Officer, ...] = ()
    backups: tuple[Backup, ...] = ()

    def of(self, purpose: Purpose, holder: str | None = None) -> tuple[KeyEntry, ...]:
        """The keys of one purpose, in order of their numbers."""
        found = (key for key in self.keys if key.purpose == purpose and holder in {None, key.holder})
        return tuple(sorted(found, key=lambda key: (key.holder, key.number)))

    def key(self, purpose: Purpose, number: int, holder: str = KEYSTORE) -> KeyEntry:
        """One key; raises `UnknownKey` with what there is."""
        keys = self.of(purpose, holder)
        for key in keys:
            if key.number == number:
                return key
        numbers = ", ".join(str(key.number) for key in keys) or "none"
        raise UnknownKey(f"there is no {purpose} {number} (there is: {numbers})")

    def active(self, purpose: Purpose, holder: str = KEYSTORE) -> KeyEntry:
        """The key that protects what is new."""
        for key in self.of(purpose, holder):
            if key.state is State.ACTIVE:
                return key
        raise UnknownKey(f"no {purpose} key of {holder} is active")

    def next_number(self, purpose: Purpose, holder: str = KEYSTORE) -> int:
        """A number that no key of this purpose ever had."""
        return max((key.number for key in self.of(purpose, holder)), default=0) + 1

    @property
    def stands(self) -> Seen:
        """Its version, and the number of the key that signs it."""
        return Seen(self.version, self.active("manifest-signing").number)

    @property
    def root(self) -> RootEntry:
        """The root that is in use."""
        return next(root for root in self.roots if root.state is State.ACTIVE)

    def with_key(self, entry: KeyEntry) -> Self:
        """The next manifest, with one more key."""
        return msgspec.structs.replace(self, keys=(*self.keys, entry))

    def moved(self, key: KeyEntry, state: State, now: datetime) -> Self:
        """The next manifest, with a key in another state; raises `KeyRefused` where the table has no such way."""
        require_move(key.title, key.state, state)
        return self.replaced(msgspec.structs.replace(key, state=state, since=now))

    def replaced(self, changed: KeyEntry) -> Self:
        """The next manifest, with this entry in the place of the one with its id."""
        return msgspec.structs.replace(self, keys=tuple(changed if k.id == changed.id else k for k in self.keys))


class Claim(msgspec.Struct, frozen=True):
    """What an unverified manifest says of how to verify it, and which one it is."""

    version: int
    act: Act
    roots: tuple[RootEntry, ...]
    keys: tuple[KeyEntry, ...]

    @property
    def root_numbers(self) -> tuple[int, ...]:
        """The roots under which its keys may lie wrapped, newest first."""
        return tuple(sorted((r.number for r in self.roots if r.state is not State.DESTROYED), reverse=True))

    @property
    def signing_key(self) -> KeyEntry:
        """The key that is said to have signed it."""
        for key in self.keys:
            if key.purpose == "manifest-signing" and key.state is State.ACTIVE:
                return key
        raise ManifestForged(FORGED)


class Format(msgspec.Struct, frozen=True):
    """Which format an unverified manifest says it has."""

    format: int


FORGED = "the manifest is not signed by this key store's own key: restore the key store from its backup"


def sign_manifest(manifest: Manifest, seed: Secret[bytes]) -> bytes:
    """The bytes of the manifest file; raises `KeystoreRefused` where they could not be read back."""
    try:
        text = msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=1).decode()
        signed = sign_note(seed, SIGNER, text + "\n").encode()
        readable = read_manifest(signed, public_key(seed), manifest.environment) == manifest
    except (ManifestForged, UnicodeError):
        readable = False
    if not readable:
        raise KeystoreRefused(
            "nothing was changed: the key store could not be read again with this in it; use plain names"
        )
    if len(signed) > FILE_BYTES_MAX:
        raise KeystoreRefused(
            f"nothing was changed: the manifest would have more than {FILE_BYTES_MAX >> 20} MiB; most of it are key"
            " backups: destroy old ones and say so with `keys backup --forget`"
        )
    return signed


def claim_of(raw: bytes) -> Claim:
    """Which keys to try on a manifest file. Nothing of it is believed before `read_manifest`."""
    try:
        text = text_of(raw.decode())
        if (written := msgspec.json.decode(text, type=Format).format) != FORMAT:
            raise ManifestForged(
                f"the manifest is of format {written}, this release reads format {FORMAT}: use the release that wrote"
                " it (a demo begins anew with ./deploy/run --reset)"
            )
        return msgspec.json.decode(text, type=Claim)
    except (UnicodeDecodeError, msgspec.MsgspecError):
        raise ManifestForged(FORGED) from None


def read_manifest(raw: bytes, public: bytes, environment: str) -> Manifest:
    """Check and parse the manifest file; raises `ManifestRefused`."""
    try:
        manifest = msgspec.json.decode(open_note(public, SIGNER, raw.decode()), type=Manifest)
    except (BrokenSeal, UnicodeDecodeError, msgspec.MsgspecError):
        raise ManifestForged(FORGED) from None
    if manifest.environment != environment:
        raise ManifestForeign(
            f"the key store is of environment '{manifest.environment}', the configuration of '{environment}':"
            " correct `environment` or `keys.store`"
        )
    return manifest


def require_current(stands: Seen, written: datetime, seen: Seen, now: datetime) -> None:
    """Refuse a manifest older than one that the database has seen, or newer than this machine's clock.

    One that is signed with an older key is refused whatever its version: its maker may be whoever took that key.
    Raises `ManifestRolledBack` or `ClockBehind`.
    """
    if stands.version < seen.version:
        raise ManifestRolledBack(
            f"manifest {stands.version} is older than {seen.version}, which this database has seen:"
            " put the newest key store back"
        )
    if stands.signing_key < seen.signing_key:
        raise ManifestRolledBack(
            f"manifest {stands.version} is signed with key {stands.signing_key}, which was replaced by key"
            f" {seen.signing_key}: put the newest key store back"
        )
    if now + CLOCK_TOLERANCE < written:
        raise ClockBehind(
            f"this machine's clock says {now:%Y-%m-%d %H:%M} UTC, the manifest is of {written:%Y-%m-%d %H:%M}:"
            " set the clock right"
        )
