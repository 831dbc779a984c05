"""The key store: a directory of its own that holds the manifest and every wrapped key. Never PostgreSQL.

    <store>/manifest            the signed manifest (`keys.manifest`)
    <store>/set-aside/          files that no manifest names, found among the keys
    <store>/restoring/          a copy that is being tried before it takes its place (`keys restore`)
    <store>/acts/               requests and approvals (`keys.acts`)
    <store>/ceremonies/         transcripts
    <store>/root-<n>/<key id>   one key, wrapped by root n, bound to environment, id, purpose and number

A key is written first and the manifest last, by rename: a reader sees the old state or the new one, and what an
interrupted command left behind is a file that no manifest names. While a root is being replaced every key lies
there twice, so that processes with either root follow.
"""

import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from keys.errors import (
    KeyForeign,
    KeyMissing,
    KeystoreRefused,
    KeySwapped,
    RootRefused,
    RootUnavailable,
)
from keys.files import (
    is_plain,
    make_private_directory,
    read_private,
    remove_private,
    require_private_directory,
    write_private,
)
from keys.manifest import (
    KEYSTORE,
    Act,
    Claim,
    KeyEntry,
    Manifest,
    Purpose,
    RootEntry,
    claim_of,
    read_manifest,
    sign_manifest,
)
from keys.primitives import commitment, context, new_key, require_equal
from keys.process_keys import HOLDERS, make_process_key, process_key_path, read_process_keys
from keys.ring import Key, Ring
from keys.root import NOT_THIS_ROOT, RootKey
from keys.secret import Secret
from keys.settings import DatabaseSection, KeysSection
from keys.signing import public_key
from keys.states import State

MANIFEST = "manifest"
SET_ASIDE = "set-aside"
RESTORING = "restoring"
ACTS = "acts"
CEREMONIES = "ceremonies"

ORIGINATE_DAYS = 365
PROCESS_DAYS = 365 * 4
"""SP 800-57 part 1, table 1: one year to protect with a key, three more to read what it protects."""


@dataclass(frozen=True, slots=True)
class Keystore:
    """The key store of one environment at one place."""

    directory: Path
    environment: str

    @classmethod
    def at(cls, uri: str, environment: str) -> "Keystore":
        """The store that `file:/absolute/directory` names."""
        parts = urlsplit(uri)
        if parts.scheme != "file" or parts.netloc or parts.query or parts.fragment or not parts.path.startswith("/"):
            raise KeystoreRefused("keys.store must be `file:/absolute/directory`")
        return cls(Path(unquote(parts.path)), environment)

    def exists(self) -> bool:
        """Whether a manifest was ever written here."""
        try:
            return (self.directory / MANIFEST).exists()
        except PermissionError:
            raise KeystoreRefused(f"{self.directory} cannot be entered by the user of this process") from None

    def require_apart_from(self, data_directory: Path) -> None:
        """Refuse a key store inside the database's directory, or the other way round."""
        store, data = self.directory.resolve(), data_directory.resolve()
        if store.is_relative_to(data) or data.is_relative_to(store):
            raise KeystoreRefused(
                f"the key store {store} and the database's files {data} must lie apart: move the key store"
            )

    def stamp(self) -> tuple[int, int, int]:
        """Changes whenever the manifest is replaced; cheap enough to ask every second."""
        try:
            about = (self.directory / MANIFEST).stat()
        except OSError:
            raise KeystoreRefused(f"{self.directory / MANIFEST} cannot be read: is the key store mounted?") from None
        return about.st_mtime_ns, about.st_ino, about.st_size

    def open(self, root: RootKey) -> "OpenKeystore":
        """The store with its manifest checked; raises `KeystoreRefused`, `ManifestRefused` or `RootRefused`."""
        require_private_directory(self.directory)
        raw = read_private(self.directory / MANIFEST)
        number, signing = self._signing_key(root, claim_of(raw))
        manifest = read_manifest(raw, public_key(signing), self.environment)
        return OpenKeystore(self, root, number, signing, manifest)

    def initialise(self, root: RootKey, entry: RootEntry, secrets_directory: Path, now: datetime) -> "OpenKeystore":
        """Make the first keys and manifest 1; refuses where a manifest exists."""
        if self.exists():
            raise KeystoreRefused(f"{self.directory} is initialised already")
        make_private_directory(self.directory)
        require_private_directory(self.directory)
        signing = new_key()
        purposes: tuple[Purpose, ...] = ("kek", "fingerprint", "hpke")
        entries = [
            self.add_key(root, entry.number, signing, new_entry(signing, "manifest-signing", 1, now)),
            *(
                self.add_key(root, entry.number, key, new_entry(key, p, 1, now))
                for p in purposes
                for key in [new_key()]
            ),
            *(
                new_entry(make_process_key(secrets_directory, process, purpose, 1), purpose, 1, now, holder=process)
                for process, purpose in HOLDERS
            ),
        ]
        manifest = Manifest(
            environment=self.environment,
            version=1,
            written=now,
            act=Act("initialise", "manifest-1"),
            roots=(entry,),
            keys=tuple(entries),
        )
        write_private(self.directory / MANIFEST, sign_manifest(manifest, signing), replace=False)
        return OpenKeystore(self, root, entry.number, signing, manifest)

    def add_key(self, root: RootKey, root_number: int, key: Secret[bytes], entry: KeyEntry) -> KeyEntry:
        """Write one wrapped key; no manifest names it yet."""
        write_private(self.path(root_number, entry.id), root.wrap(key, self.bound_to(entry)), replace=True)
        return entry

    def path(self, root_number: int, key_id: str) -> Path:
        """Where a key lies, wrapped under one root."""
        return self.directory / f"root-{root_number}" / key_id

    def read_key(self, root_number: int, entry: KeyEntry) -> bytes:
        """One wrapped key; raises `KeyMissing` or another `KeystoreRefused`."""
        path = self.path(root_number, entry.id)
        if not os.path.lexists(path):
            raise KeyMissing(f"{path}, the {entry.title}, is not there: restore the key store from its backup")
        require_private_directory(path.parent)
        return read_private(path)

    def bound_to(self, entry: KeyEntry) -> bytes:
        """What a wrapped key is bound to: it opens as no other key."""
        return context("keystore/v2", self.environment, entry.id, entry.purpose, entry.number)

    def _signing_key(self, root: RootKey, claim: Claim) -> tuple[int, Secret[bytes]]:
        entry = claim.signing_key
        require_key_id(entry.id)
        refused: RootRefused | KeystoreRefused = RootRefused(NOT_THIS_ROOT)
        for number in claim.root_numbers:
            try:
                return number, root.unwrap(self.read_key(number, entry), self.bound_to(entry))
            except RootUnavailable:
                raise
            except (RootRefused, KeystoreRefused) as error:
                refused = error
        raise refused


@dataclass(frozen=True, slots=True)
class OpenKeystore:
    """A key store whose manifest was checked, and the root that opened it."""

    store: Keystore
    root: RootKey
    root_number: int
    signing: Secret[bytes]
    manifest: Manifest

    def ring(self, before: Ring | None = None) -> Ring:
        """Every key that the manifest names and that still exists, opened and compared with its commitment.

        What the ring before had open is not asked of the root again: a change of states needs no HSM.
        """
        known = {key.id: key.secret for key in _all(before)} if before else {}
        return Ring(
            environment=self.store.environment,
            version=self.manifest.version,
            written=self.manifest.written,
            signing_key=self.manifest.stands.signing_key,
            generations={key.number: key for key in self._keys("kek", known)},
            fingerprints={key.number: key for key in self._keys("fingerprint", known)},
        )

    def secret(self, entry: KeyEntry) -> Secret[bytes]:
        """One key of the store; raises `KeySwapped` when it is not the one that the manifest names."""
        path = self.store.path(self.root_number, entry.id)
        swapped = KeySwapped(f"{path} is not the {entry.title} that the manifest names: restore it from its backup")
        try:
            secret = self.root.unwrap(self.store.read_key(self.root_number, entry), self.store.bound_to(entry))
        except RootUnavailable:
            raise
        except RootRefused:  # the root is right, for it opened the signing key
            raise swapped from None
        require_equal(bytes.fromhex(entry.commitment), commitment(secret, entry.id), swapped)
        return secret

    def make_key(self, purpose: Purpose, state: State, now: datetime) -> KeyEntry:
        """A new key in the store; nothing uses it before a manifest that names it is published."""
        self.require_one_root()
        key = new_key()
        entry = new_entry(key, purpose, self.manifest.next_number(purpose), now, state=state)
        return self.store.add_key(self.root, self.root_number, key, entry)

    def publish(
        self, manifest: Manifest, act: Act, now: datetime, *, signing: Secret[bytes] | None = None, above: int = 0
    ) -> "OpenKeystore":
        """Write the next manifest, signed, with a version above `above`; the fleet follows within two seconds."""
        seed = self.signing if signing is None else signing
        following = self.next(manifest, act, now, above=above)
        write_private(self.store.directory / MANIFEST, sign_manifest(following, seed), replace=True)
        return OpenKeystore(self.store, self.root, self.root_number, seed, following)

    def next(self, manifest: Manifest, act: Act, now: datetime, *, above: int = 0) -> Manifest:
        """The manifest that `publish` would write; signed, it has the same bytes each time."""
        version = max(self.manifest.version, above) + 1
        return msgspec.structs.replace(manifest, version=version, written=now, act=act)

    def copy_under(self, root: RootKey, number: int) -> None:
        """Wrap every key of the store under another root, too; no manifest names that root yet."""
        self.require_one_root()
        for entry in self.manifest.keys:
            if entry.holder == KEYSTORE and entry.state is not State.DESTROYED:
                self.store.add_key(root, number, self.secret(entry), entry)

    def discard(self, key_id: str) -> None:
        """Overwrite and remove a wrapped key, under every root. Copies elsewhere are `keys.backup`'s concern."""
        copies = [self.store.path(root.number, key_id) for root in self.manifest.roots]
        copies += (self.store.directory / SET_ASIDE).glob(f"*-{key_id}")
        for copy in filter(is_plain, copies):  # a folder or a pipe of that name is no key, and foreign
            remove_private(copy)

    def named(self) -> frozenset[Path]:
        """Where the manifest says that wrapped keys lie, under every root that stands."""
        return frozenset(
            self.store.path(root.number, key.id)
            for root in self.manifest.roots
            if root.state is not State.DESTROYED
            for key in self.manifest.keys
            if key.holder == KEYSTORE and key.state is not State.DESTROYED
        )

    def foreign(self) -> Sequence[Path]:
        """Files among the wrapped keys that the manifest does not name, or no longer."""
        known = self.named()
        folders = sorted(self.store.directory.glob("root-*"))
        for folder in folders:
            require_private_directory(folder)
        return sorted(path for folder in folders for path in folder.iterdir() if path not in known)

    def set_aside(self, path: Path) -> None:
        """Take a foreign file away: a key that the manifest calls destroyed is wiped; anything else may be needed."""
        destroyed = {key.id for key in self.manifest.keys if key.state is State.DESTROYED}
        dropped = {f"root-{root.number}" for root in self.manifest.roots if root.state is State.DESTROYED}
        if is_plain(path) and (path.name in destroyed or path.parent.name in dropped):
            remove_private(path)
            return
        make_private_directory(self.store.directory / SET_ASIDE)
        path.replace(self.store.directory / SET_ASIDE / f"{path.parent.name}-{path.name}")

    def require_no_foreign(self) -> None:
        """Raises `KeyForeign` for the first of them."""
        for path in self.foreign():
            raise KeyForeign(
                f"{path} is no key of this manifest: a command that was interrupted left it, or somebody put it"
                " there; the next `keys rotate` sets it aside"
            )

    def require_intact(self, secrets: Path) -> None:
        """Open every key, in the store and of the processes, and compare it with its commitment: `KeySwapped`."""
        for entry in self.manifest.keys:
            if entry.state is State.DESTROYED:
                continue
            if entry.holder == KEYSTORE:
                self.secret(entry)
                continue
            path = process_key_path(secrets, entry.holder, entry.purpose, entry.number)
            swapped = KeySwapped(f"{path} is not the {entry.title} of the manifest: restore it from its backup")
            key = read_process_keys(secrets, entry.holder, entry.purpose).get(entry.number)
            if key is None:
                raise swapped
            require_equal(bytes.fromhex(entry.commitment), commitment(key, entry.id), swapped)

    def require_one_root(self) -> None:
        """Refuse to make keys while two roots stand, for each would need both."""
        standing = [root.number for root in self.manifest.roots if root.state is not State.DESTROYED]
        if len(standing) > 1:
            raise KeystoreRefused(
                f"the root is being replaced (root {standing[0]} by root {standing[-1]}):"
                " finish that first with `keys ceremony replace --finish`"
            )

    def _keys(self, purpose: Purpose, known: Mapping[str, Secret[bytes]]) -> Iterator[Key]:
        for entry in self.manifest.of(purpose, KEYSTORE):
            if entry.state is not State.DESTROYED:
                secret = known[entry.id] if entry.id in known else self.secret(entry)
                yield Key(entry.number, entry.state, entry.originate_until, entry.process_until, secret, entry.id)


def _all(ring: Ring) -> Iterable[Key]:
    return (*ring.generations.values(), *ring.fingerprints.values())


def open_keystore(keys: KeysSection, database: DatabaseSection, environment: str) -> Keystore:
    """The store that the settings name, apart from the database's files; raises `KeystoreRefused`."""
    keystore = Keystore.at(keys.store, environment)
    if database.directory is not None:
        keystore.require_apart_from(Path(database.directory))
    return keystore


def new_entry(
    key: Secret[bytes],
    purpose: Purpose,
    number: int,
    now: datetime,
    *,
    state: State = State.ACTIVE,
    holder: str = KEYSTORE,
) -> KeyEntry:
    """What the manifest says of a key that was just made."""
    # Random, so that an id tells nothing of the key and is never used twice.
    key_id = f"{purpose}-{number}-{secrets.token_hex(8)}"
    return KeyEntry(
        id=key_id,
        purpose=purpose,
        number=number,
        state=state,
        since=now,
        created=now,
        originate_until=now + timedelta(days=ORIGINATE_DAYS),
        process_until=now + timedelta(days=PROCESS_DAYS),
        commitment=commitment(key, key_id).hex(),
        holder=holder,
    )


def require_key_id(key_id: str) -> None:
    """Refuse an id that would leave the directory; raises `KeySwapped`."""
    if not key_id.replace("-", "").isalnum() or not key_id.isascii():
        raise KeySwapped("the manifest names a key by what is no key's id: restore the key store from its backup")
