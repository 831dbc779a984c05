"""The key store: made whole or made again, and every way to tamper with its files found and named."""

import base64
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import msgspec
import pytest

from keys import keystore
from keys.errors import KeysError, KeystoreRefused, ManifestRefused, RootRefused
from keys.files import write_private
from keys.keystore import (
    MANIFEST,
    PROCESSES,
    SIGNING_KEY,
    Keystore,
    open_keystore,
    process_key_path,
    read_process_key,
)
from keys.manifest import Manifest, sign_manifest
from keys.primitives import commitment, context, new_key
from keys.ring import State, Use
from keys.root_file import FileRoot
from keys.secret import Secret
from keys.settings import DatabaseSection, KeysSection

FILES = 10
"""How many files a start makes: three wrapped keys, six of the processes, the manifest."""

Tamper = Callable[[Keystore, FileRoot], None]


def blob(store: Keystore, kind: str) -> Path:
    """The file of the one key of this kind."""
    (path,) = store.directory.glob(f"{kind}-*")
    return path


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of a directory, by name."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def seed(store: Keystore, root: FileRoot) -> Secret[bytes]:
    """The manifest's signing key, opened as somebody with the root would."""
    bound = context("keystore/v1", store.environment, SIGNING_KEY, "manifest-signing", 1)
    return root.unwrap((store.directory / SIGNING_KEY).read_bytes(), bound)


def publish(store: Keystore, root: FileRoot, manifest: Manifest) -> None:
    """Sign a manifest rightly and put it in the place of the old one."""
    write_private(store.directory / MANIFEST, sign_manifest(manifest, seed(store, root)), replace=True)


def spellings(secret: bytes) -> Iterator[str]:
    """What a message might let slip of a secret: its first half is enough."""
    for part in (secret, secret[: len(secret) // 2]):
        yield from (part.hex(), base64.b64encode(part).decode().rstrip("="), repr(part)[2:-1])


# --- made ---


def test_what_is_made(store: Keystore, root: FileRoot, secrets_directory: Path, now: datetime) -> None:
    """A KEK, a fingerprint key, a signing key, and what each process needs: active, for one year and four."""
    manifest = store.manifest(root)
    purposes = sorted((key.purpose, key.holder) for key in manifest.keys)

    assert (manifest.version, manifest.environment, manifest.root, manifest.written) == (1, "demo", "file", now)
    assert purposes == sorted(
        [("kek", "keystore"), ("fingerprint", "keystore"), ("manifest-signing", "keystore"), ("api-digest", "api")]
        + [("audit-mac", process) for process in PROCESSES]
    )
    assert {(key.state, key.number) for key in manifest.keys} == {(State.ACTIVE, 1)}
    assert {key.originate_until - now for key in manifest.keys} == {timedelta(days=365)}
    assert {key.process_until - now for key in manifest.keys} == {timedelta(days=1460)}
    assert len({key.id for key in manifest.keys}) == len(manifest.keys) == 9


def test_files_are_private_and_hold_no_key(store: Keystore, root: FileRoot, secrets_directory: Path) -> None:
    """Every file is 0600, and neither keys nor their bytes in hexadecimal stand in the key store."""
    ring = store.ring(root)
    keys = [ring.active.secret.reveal(), ring.fingerprint.secret.reveal(), seed(store, root).reveal()]
    keys += [read_process_key(secrets_directory, process, "audit-mac").reveal() for process in PROCESSES]
    stored = b"".join(contents(store.directory).values())

    assert not any(key in stored or key.hex().encode() in stored for key in keys)
    assert {path.stat().st_mode & 0o777 for path in store.directory.iterdir()} == {0o600}
    assert store.directory.stat().st_mode & 0o777 == 0o700
    assert len(set(keys)) == 8


def test_the_ring_works(store: Keystore, root: FileRoot, now: datetime) -> None:
    """The ring of a new store wraps and unwraps, and indexes."""
    ring = store.ring(root)
    place = ring.place("parks", "tok_1")
    dek, wrapped = ring.new_dek(place, now)

    assert ring.unwrap(place, wrapped, now).reveal() == dek.reveal()
    assert (ring.environment, ring.version, ring.active.number, ring.fingerprint.number) == ("demo", 1, 1, 1)
    assert ring.fingerprint.require(Use.ORIGINATE, now) is ring.fingerprint.secret


def test_processes_keys_are_those_of_the_manifest(store: Keystore, root: FileRoot, secrets_directory: Path) -> None:
    """Each process' key has the commitment that the manifest states, and a directory of its own."""
    manifest = store.manifest(root)
    for entry in (*manifest.of("audit-mac"), *manifest.of("api-digest")):
        key = read_process_key(secrets_directory, entry.holder, entry.purpose)
        assert commitment(key, entry.id).hex() == entry.commitment
        assert process_key_path(secrets_directory, entry.holder, entry.purpose).parent.name == entry.holder


def test_a_store_is_made_once(store: Keystore, root: FileRoot, secrets_directory: Path, now: datetime) -> None:
    """Where a manifest is, nothing is made again, and nothing changes."""
    before = contents(store.directory.parent)

    with pytest.raises(KeystoreRefused, match=r"is initialised already$"):
        store.initialise(root, "file", secrets_directory, now)
    assert contents(store.directory.parent) == before


@pytest.mark.parametrize("files", range(FILES))
def test_an_interrupted_start_is_finished(
    tmp_path: Path, root: FileRoot, now: datetime, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    """However many files the first run wrote, it left no manifest, and the second run makes a store that works."""
    store, left = Keystore(tmp_path / "keystore", "demo"), iter(range(files))

    def write_until(path: Path, content: bytes, *, replace: bool) -> None:
        if next(left, None) is None:
            raise InterruptedError
        write_private(path, content, replace=replace)

    with monkeypatch.context() as interrupting:
        interrupting.setattr(keystore, "write_private", write_until)
        with pytest.raises(InterruptedError):
            store.initialise(root, "file", tmp_path / "secrets", now)
    assert len(contents(tmp_path)) == files
    assert not store.exists()

    store.initialise(root, "file", tmp_path / "secrets", now)
    assert store.ring(root).active.number == store.ring(root).fingerprint.number == 1
    for entry in store.manifest(root).of("audit-mac"):
        key = read_process_key(tmp_path / "secrets", entry.holder, "audit-mac")
        assert commitment(key, entry.id).hex() == entry.commitment


def test_a_wide_directory_is_not_made_a_store(tmp_path: Path, root: FileRoot, now: datetime) -> None:
    """A directory that others may enter is refused before any key is made."""
    (tmp_path / "wide").mkdir()
    (tmp_path / "wide").chmod(0o755)

    with pytest.raises(KeystoreRefused, match="chmod 0700"):
        Keystore(tmp_path / "wide", "demo").initialise(root, "file", tmp_path / "secrets", now)
    assert contents(tmp_path) == {}


# --- tampered with ---


def swap_blobs(store: Keystore, root: FileRoot) -> None:
    kek, fingerprint = blob(store, "kek"), blob(store, "fingerprint")
    one, other = kek.read_bytes(), fingerprint.read_bytes()
    kek.write_bytes(other)
    fingerprint.write_bytes(one)


def put_foreign_blob(store: Keystore, root: FileRoot) -> None:
    kek = blob(store, "kek")
    kek.write_bytes(FileRoot(new_key()).wrap(new_key(), context("keystore/v1", "demo", kek.name, "kek", 1)))


def put_other_key_of_this_root(store: Keystore, root: FileRoot) -> None:
    kek = blob(store, "kek")
    kek.write_bytes(root.wrap(new_key(), context("keystore/v1", "demo", kek.name, "kek", 1)))


def put_blob_of_other_environment(store: Keystore, root: FileRoot) -> None:
    kek = blob(store, "kek")
    kek.write_bytes(root.wrap(new_key(), context("keystore/v1", "live", kek.name, "kek", 1)))


def flip_blob(store: Keystore, root: FileRoot) -> None:
    raw = bytearray(blob(store, "kek").read_bytes())
    raw[30] ^= 1
    blob(store, "kek").write_bytes(raw)


def truncate_blob(store: Keystore, root: FileRoot) -> None:
    blob(store, "kek").write_bytes(blob(store, "kek").read_bytes()[:-1])


def empty_blob(store: Keystore, root: FileRoot) -> None:
    blob(store, "kek").write_bytes(b"")


def remove_blob(store: Keystore, root: FileRoot) -> None:
    blob(store, "kek").unlink()


def link_blob(store: Keystore, root: FileRoot) -> None:
    kek = blob(store, "kek")
    kek.rename(store.directory.parent / "elsewhere")
    kek.symlink_to(store.directory.parent / "elsewhere")


def widen_blob(store: Keystore, root: FileRoot) -> None:
    blob(store, "kek").chmod(0o640)


def edit_manifest(store: Keystore, root: FileRoot) -> None:
    manifest = store.directory / MANIFEST
    manifest.write_bytes(manifest.read_bytes().replace(b'"active"', b'"retire"', 1))


def edit_signature(store: Keystore, root: FileRoot) -> None:
    raw = bytearray((store.directory / MANIFEST).read_bytes())
    raw[-20] ^= 1
    (store.directory / MANIFEST).write_bytes(raw)


def sign_with_other_key(store: Keystore, root: FileRoot) -> None:
    (store.directory / MANIFEST).write_bytes(sign_manifest(store.manifest(root), new_key()))


def sign_with_other_root(store: Keystore, root: FileRoot) -> None:
    signing, stranger = new_key(), FileRoot(new_key())
    (store.directory / MANIFEST).write_bytes(sign_manifest(store.manifest(root), signing))
    bound = context("keystore/v1", "demo", SIGNING_KEY, "manifest-signing", 1)
    (store.directory / SIGNING_KEY).write_bytes(stranger.wrap(signing, bound))


def name_other_environment(store: Keystore, root: FileRoot) -> None:
    publish(store, root, msgspec.structs.replace(store.manifest(root), environment="live"))


def truncate_manifest(store: Keystore, root: FileRoot) -> None:
    (store.directory / MANIFEST).write_bytes((store.directory / MANIFEST).read_bytes()[:-10])


def remove_manifest(store: Keystore, root: FileRoot) -> None:
    (store.directory / MANIFEST).unlink()


def link_manifest(store: Keystore, root: FileRoot) -> None:
    (store.directory / MANIFEST).rename(store.directory.parent / "elsewhere")
    (store.directory / MANIFEST).symlink_to(store.directory.parent / "elsewhere")


def widen_manifest(store: Keystore, root: FileRoot) -> None:
    (store.directory / MANIFEST).chmod(0o644)


def widen_directory(store: Keystore, root: FileRoot) -> None:
    store.directory.chmod(0o750)


def remove_signing_key(store: Keystore, root: FileRoot) -> None:
    (store.directory / SIGNING_KEY).unlink()


NOT_TOGETHER = "`keys.root` and `keys.store` do not belong together, or a key file was swapped or altered"
RESTORE_STORE = "restore the key store from its backup"


@pytest.mark.parametrize(
    ("tamper", "error", "told"),
    [
        (swap_blobs, RootRefused, NOT_TOGETHER),
        (put_foreign_blob, RootRefused, NOT_TOGETHER),
        (put_other_key_of_this_root, ManifestRefused, "is not the key that the manifest names: restore it"),
        (put_blob_of_other_environment, RootRefused, NOT_TOGETHER),
        (flip_blob, RootRefused, NOT_TOGETHER),
        (truncate_blob, RootRefused, NOT_TOGETHER),
        (empty_blob, RootRefused, NOT_TOGETHER),
        (remove_blob, KeystoreRefused, "does not exist"),
        (link_blob, KeystoreRefused, "it must be a plain file"),
        (widen_blob, KeystoreRefused, "is open to others: `chmod 0600 "),
        (edit_manifest, ManifestRefused, RESTORE_STORE),
        (edit_signature, ManifestRefused, RESTORE_STORE),
        (sign_with_other_key, ManifestRefused, RESTORE_STORE),
        (sign_with_other_root, RootRefused, NOT_TOGETHER),
        (name_other_environment, ManifestRefused, "correct `environment` or `keys.store`"),
        (truncate_manifest, ManifestRefused, RESTORE_STORE),
        (remove_manifest, KeystoreRefused, "manifest does not exist"),
        (link_manifest, KeystoreRefused, "it must be a plain file"),
        (widen_manifest, KeystoreRefused, "is open to others: `chmod 0600 "),
        (widen_directory, KeystoreRefused, "must belong to this user alone: `chmod 0700 "),
        (remove_signing_key, KeystoreRefused, "does not exist"),
    ],
)
def test_tampering(store: Keystore, root: FileRoot, tamper: Tamper, error: type[KeysError], told: str) -> None:
    """Each way gives one class of error, a message that says what to do, and not a byte of any secret."""
    before = store.ring(root)
    secrets = [before.active.secret, before.fingerprint.secret, seed(store, root)]
    wrapped = [path.read_bytes() for path in store.directory.iterdir() if path.name != MANIFEST]
    tamper(store, root)

    with pytest.raises(KeysError) as caught:
        store.ring(root)
    message = str(caught.value)
    assert caught.type is error
    assert told in message
    assert "\n" not in message
    for secret in [*(secret.reveal() for secret in secrets), *wrapped]:
        assert not any(spelling in message for spelling in spellings(secret))


def test_another_root(store: Keystore) -> None:
    """Another root opens nothing, and says that root and store do not belong together."""
    with pytest.raises(RootRefused, match=NOT_TOGETHER):
        store.manifest(FileRoot(new_key()))


def test_another_environment(store: Keystore, root: FileRoot) -> None:
    """The same directory under another environment's name does not open: every blob is bound to its own."""
    with pytest.raises(RootRefused):
        Keystore(store.directory, "live").ring(root)


def test_destroyed_keys_need_no_file(store: Keystore, root: FileRoot) -> None:
    """A key that the manifest calls destroyed is not looked for, and not in the ring."""
    manifest = store.manifest(root)
    gone = [
        msgspec.structs.replace(key, state=State.DESTROYED) if key.purpose == "kek" else key for key in manifest.keys
    ]
    publish(store, root, msgspec.structs.replace(manifest, version=2, keys=tuple(gone)))
    blob(store, "kek").unlink()

    assert store.ring(root).generations == {}
    assert store.ring(root).version == 2


def test_a_blob_renamed_is_found(store: Keystore, root: FileRoot) -> None:
    """A wrapped key under another id's name does not open, even one of the same root and purpose."""
    kek, manifest = blob(store, "kek"), store.manifest(root)
    renamed = [
        msgspec.structs.replace(key, id="kek-0000000000000000") if key.purpose == "kek" else key
        for key in manifest.keys
    ]
    publish(store, root, msgspec.structs.replace(manifest, keys=tuple(renamed)))
    kek.rename(store.directory / "kek-0000000000000000")

    with pytest.raises(RootRefused, match=NOT_TOGETHER):
        store.ring(root)


# --- looked at ---


def test_the_stamp_changes_with_the_manifest(store: Keystore, root: FileRoot) -> None:
    """Looked at twice it is the same; a new manifest, even of the same size and second, has another."""
    before = store.stamp()
    assert before == store.stamp()

    publish(store, root, store.manifest(root))
    assert store.stamp() != before


def test_the_stamp_of_nothing(tmp_path: Path) -> None:
    """Where no manifest can be seen, the message asks for the mount."""
    with pytest.raises(KeystoreRefused, match=r"cannot be read: is the key store mounted\?$"):
        Keystore(tmp_path, "demo").stamp()


def test_at_a_uri(tmp_path: Path) -> None:
    """A `file:` URI with an absolute path names a directory; spaces are percent-encoded, three slashes are one."""
    assert Keystore.at("file:/var/lib/keys", "demo") == Keystore(Path("/var/lib/keys"), "demo")
    assert Keystore.at("file:///var/lib/keys", "demo") == Keystore(Path("/var/lib/keys"), "demo")
    assert Keystore.at("file:" + quote("/var/lib/key store"), "demo").directory == Path("/var/lib/key store")


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "/var/lib/keys",
        "file:keys",
        "file://keys",
        "file://var/lib/keys",
        "s3://bucket/keys",
        "file:/keys?mode=1",
        "file:/keys#part",
        "postgresql://host/keys",
    ],
)
def test_at_no_uri_that_we_know(uri: str) -> None:
    """Any other form is refused with the form that is wanted; a host is not taken for a directory."""
    with pytest.raises(KeystoreRefused, match=r"^keys\.store must be `file:/absolute/directory`$"):
        Keystore.at(uri, "demo")


@pytest.mark.parametrize(
    ("store_at", "data_at", "apart"),
    [
        ("keys", "data", True),
        ("keys", "keys-data", True),
        ("data/keys", "data", False),
        ("data/base/../keys", "data", False),
        ("keys", "keys/data", False),
        ("same", "same", False),
        ("link", "data", False),
    ],
)
def test_apart_from_the_database(tmp_path: Path, store_at: str, data_at: str, apart: bool) -> None:
    """The key store and the database's files hold neither the other, links and dots followed."""
    (tmp_path / "data" / "keys").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "data" / "keys")
    keys = KeysSection(root="file:/root.key", store=f"file:{tmp_path}/{store_at}", secrets="/secrets")
    database = DatabaseSection(dsn="postgresql://localhost/x", directory=f"{tmp_path}/{data_at}")
    if apart:
        assert open_keystore(keys, database, "demo").directory == tmp_path / store_at
        return

    with pytest.raises(KeystoreRefused, match=r"must lie apart: move the key store$"):
        open_keystore(keys, database, "demo")


def test_a_database_elsewhere_is_apart(tmp_path: Path) -> None:
    """Without a directory of the server on this machine there is nothing to compare."""
    keys = KeysSection(root="file:/root.key", store=f"file:{tmp_path}", secrets="/secrets")

    assert open_keystore(keys, DatabaseSection(dsn="postgresql://host/x"), "demo").environment == "demo"


def test_a_process_without_its_key(tmp_path: Path) -> None:
    """A missing key of a process is named by its path."""
    with pytest.raises(KeystoreRefused, match=r"api/audit-mac.key does not exist"):
        read_process_key(tmp_path, "api", "audit-mac")
