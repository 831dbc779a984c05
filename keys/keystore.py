"""The key store: a directory of its own that holds the manifest and every wrapped key. Never PostgreSQL.

    <store>/manifest            the signed manifest (`keys.manifest`)
    <store>/<key id>            one key, wrapped by the root, bound to environment, id, purpose and number
    <secrets>/<process>/<name>  the keys of processes that cannot reach the root, a plain file each, mode 0600

The manifest is written last and by rename: a reader sees the old state or the new one, and an interrupted
`keys init` is finished by running it again.
"""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

from keys.errors import KeystoreRefused, ManifestRefused
from keys.files import make_private_directory, read_private, require_private_directory, write_private
from keys.manifest import KeyEntry, Manifest, Purpose, read_manifest, sign_manifest
from keys.primitives import commitment, context, new_key, require_equal
from keys.ring import Key, Ring, State
from keys.root import RootKey
from keys.secret import Secret
from keys.settings import DatabaseSection, KeysSection
from keys.signing import public_key

MANIFEST = "manifest"
SIGNING_KEY = "manifest-signing-1"
KEYSTORE = "keystore"

PROCESSES = ("api", "admin", "worker", "reseal", "keys")
"""Each has an audit MAC key of its own, so that none but the sealer can forge another's rows."""

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
        return (self.directory / MANIFEST).exists()

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

    def manifest(self, root: RootKey) -> Manifest:
        """The manifest, its signature checked."""
        require_private_directory(self.directory)
        raw = read_private(self.directory / MANIFEST)
        return read_manifest(raw, public_key(self._signing_key(root)), self.environment)

    def ring(self, root: RootKey) -> Ring:
        """Every key that the manifest names and that still exists, opened and compared with its commitment."""
        manifest = self.manifest(root)
        return Ring(
            environment=self.environment,
            version=manifest.version,
            generations={key.number: key for key in self._keys(root, manifest, "kek")},
            fingerprints={key.number: key for key in self._keys(root, manifest, "fingerprint")},
        )

    def initialise(self, root: RootKey, root_scheme: str, secrets_directory: Path, now: datetime) -> Manifest:
        """Make the first keys and manifest 1; refuses where a manifest exists."""
        if self.exists():
            raise KeystoreRefused(f"{self.directory} is initialised already")
        make_private_directory(self.directory)
        require_private_directory(self.directory)
        signing = new_key()
        entries = [
            self._add(root, signing, SIGNING_KEY, "manifest-signing", now),
            self._add(root, new_key(), _new_id("kek"), "kek", now),
            self._add(root, new_key(), _new_id("fingerprint"), "fingerprint", now),
            *_process_keys(secrets_directory, now),
        ]
        manifest = Manifest(
            format=1,
            environment=self.environment,
            version=1,
            written=now,
            root=root_scheme,
            keys=tuple(entries),
        )
        write_private(self.directory / MANIFEST, sign_manifest(manifest, signing), replace=False)
        return manifest

    def _add(self, root: RootKey, key: Secret[bytes], key_id: str, purpose: Purpose, now: datetime) -> KeyEntry:
        wrapped = root.wrap(key, self._bound_to(key_id, purpose, 1))
        write_private(self.directory / key_id, wrapped, replace=True)
        return _entry(key, key_id, purpose, KEYSTORE, now)

    def _signing_key(self, root: RootKey) -> Secret[bytes]:
        wrapped = read_private(self.directory / SIGNING_KEY)
        return root.unwrap(wrapped, self._bound_to(SIGNING_KEY, "manifest-signing", 1))

    def _keys(self, root: RootKey, manifest: Manifest, purpose: Purpose) -> Iterator[Key]:
        for entry in manifest.of(purpose):
            if entry.state is State.DESTROYED:
                continue
            wrapped = read_private(self.directory / entry.id)
            secret = root.unwrap(wrapped, self._bound_to(entry.id, purpose, entry.number))
            require_equal(
                bytes.fromhex(entry.commitment),
                commitment(secret, entry.id),
                ManifestRefused(f"{entry.id} is not the key that the manifest names: restore it from its backup"),
            )
            yield Key(entry.number, entry.state, entry.originate_until, entry.process_until, secret)

    def _bound_to(self, key_id: str, purpose: str, number: int) -> bytes:
        return context("keystore/v1", self.environment, key_id, purpose, number)


def open_keystore(keys: KeysSection, database: DatabaseSection, environment: str) -> Keystore:
    """The store that the settings name, apart from the database's files; raises `KeystoreRefused`."""
    keystore = Keystore.at(keys.store, environment)
    if database.directory is not None:
        keystore.require_apart_from(Path(database.directory))
    return keystore


def process_key_path(secrets_directory: Path, process: str, purpose: Purpose) -> Path:
    """Where a process without the root has a key of its own."""
    return secrets_directory / process / f"{purpose}.key"


def read_process_key(secrets_directory: Path, process: str, purpose: Purpose) -> Secret[bytes]:
    """That key; raises `KeystoreRefused`."""
    return Secret(read_private(process_key_path(secrets_directory, process, purpose)))


def _process_keys(secrets_directory: Path, now: datetime) -> Sequence[KeyEntry]:
    wanted: list[tuple[str, Purpose]] = [(process, "audit-mac") for process in PROCESSES]
    wanted.append(("api", "api-digest"))
    entries = []
    for process, purpose in wanted:
        key = new_key()
        write_private(process_key_path(secrets_directory, process, purpose), key.reveal(), replace=True)
        entries.append(_entry(key, _new_id(f"{purpose}-{process}"), purpose, process, now))
    return entries


def _entry(key: Secret[bytes], key_id: str, purpose: Purpose, holder: str, now: datetime) -> KeyEntry:
    return KeyEntry(
        id=key_id,
        purpose=purpose,
        number=1,
        state=State.ACTIVE,
        created=now,
        originate_until=now + timedelta(days=ORIGINATE_DAYS),
        process_until=now + timedelta(days=PROCESS_DAYS),
        commitment=commitment(key, key_id).hex(),
        holder=holder,
    )


def _new_id(kind: str) -> str:
    # Random, so that an id tells nothing of the key and is never used twice.
    return f"{kind}-{secrets.token_hex(8)}"
