"""The key store: made whole or made again; keys added, published and discarded; where it may lie.

What happens when somebody tampers with it is told in `test_tampering`.
"""

import re
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import msgspec
import pytest

from keys import keystore, process_keys
from keys.errors import KeyMissing, KeyRefused, KeystoreRefused, RootRefused
from keys.files import write_private
from keys.keystore import SET_ASIDE, Keystore, open_keystore
from keys.manifest import KEYSTORE, Act, Manifest, RootEntry
from keys.primitives import commitment, new_key
from keys.process_keys import HOLDERS, read_process_keys
from keys.root_file import FileRoot
from keys.settings import DatabaseSection, KeysSection
from keys.states import State, Use

WRAPPED = ("manifest-signing", "kek", "fingerprint", "hpke")
FILES = len(WRAPPED) + len(HOLDERS) + 1
"""How many files a start makes: wrapped keys, those of the processes, the manifest."""


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of a directory, by name."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# --- made ---


def test_what_is_made(store: Keystore, root: FileRoot, root_entry: RootEntry, now: datetime) -> None:
    """One key of each kind, and what each process needs: active, for one year and four; the root is named."""
    manifest = store.open(root).manifest
    purposes = sorted((key.purpose, key.holder) for key in manifest.keys)

    assert (manifest.version, manifest.environment, manifest.written) == (1, "demo", now)
    assert (manifest.roots, manifest.root) == ((root_entry,), root_entry)
    assert purposes == sorted([(purpose, KEYSTORE) for purpose in WRAPPED] + [(p, holder) for holder, p in HOLDERS])
    assert {(key.state, key.number, key.since) for key in manifest.keys} == {(State.ACTIVE, 1, now)}
    assert {key.originate_until - now for key in manifest.keys} == {timedelta(days=365)}
    assert {key.process_until - now for key in manifest.keys} == {timedelta(days=1460)}
    assert len({key.id for key in manifest.keys}) == len(manifest.keys) == FILES - 1


def test_files_are_private_and_hold_no_key(store: Keystore, root: FileRoot, secrets_directory: Path) -> None:
    """Every file is 0600, and neither keys nor their bytes in hexadecimal stand in the key store."""
    keys = store.open(root)
    secrets = [keys.secret(entry).reveal() for entry in keys.manifest.keys if entry.holder == KEYSTORE]
    secrets += [read_process_keys(secrets_directory, *holder)[1].reveal() for holder in HOLDERS]
    stored = b"".join(contents(store.directory).values())

    assert not any(secret in stored or secret.hex().encode() in stored for secret in secrets)
    assert {path.stat().st_mode & 0o777 for path in store.directory.rglob("*") if path.is_file()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (store.directory, store.directory / "root-1")} == {0o700}
    assert len(set(secrets)) == FILES - 1


def test_the_ring_works(store: Keystore, root: FileRoot, now: datetime) -> None:
    """The ring of a new store wraps and unwraps, and indexes."""
    ring = store.open(root).ring()
    place = ring.place("parks", "tok_1")
    dek, wrapped = ring.new_dek(place, now)

    assert ring.unwrap(place, wrapped, now).reveal() == dek.reveal()
    assert (ring.environment, ring.version, ring.written) == ("demo", 1, now)
    assert (ring.active.number, ring.fingerprint.number) == (1, 1)
    assert ring.fingerprint.require(Use.ORIGINATE, now) is ring.fingerprint.secret


def test_processes_keys_are_those_of_the_manifest(store: Keystore, root: FileRoot, secrets_directory: Path) -> None:
    """Each process' key has the commitment that the manifest states."""
    manifest = store.open(root).manifest
    for holder, purpose in HOLDERS:
        entry = manifest.key(purpose, 1, holder)
        key = read_process_keys(secrets_directory, holder, purpose)[1]
        assert commitment(key, entry.id).hex() == entry.commitment


def test_a_store_is_made_once(
    store: Keystore, root: FileRoot, root_entry: RootEntry, secrets_directory: Path, now: datetime
) -> None:
    """Where a manifest is, nothing is made again, and nothing changes."""
    before = contents(store.directory.parent)

    with pytest.raises(KeystoreRefused, match=r"is initialised already$"):
        store.initialise(root, root_entry, secrets_directory, now)
    assert contents(store.directory.parent) == before


@pytest.mark.parametrize("files", range(FILES))
def test_an_interrupted_start_is_finished(
    tmp_path: Path,
    root: FileRoot,
    root_entry: RootEntry,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
    files: int,
) -> None:
    """However many files the first run wrote, it left no manifest, and the second run makes a store that works."""
    store, left = Keystore(tmp_path / "keystore", "demo"), iter(range(files))

    def write_until(path: Path, content: bytes, *, replace: bool) -> None:
        if next(left, None) is None:
            raise InterruptedError
        write_private(path, content, replace=replace)

    with monkeypatch.context() as interrupting:
        for module in (keystore, process_keys):
            interrupting.setattr(module, "write_private", write_until)
        with pytest.raises(InterruptedError):
            store.initialise(root, root_entry, tmp_path / "secrets", now)
    assert len(contents(tmp_path)) == files
    assert not store.exists()

    store.initialise(root, root_entry, tmp_path / "secrets", now)
    keys = store.open(root)
    assert keys.ring().active.number == keys.ring().fingerprint.number == 1
    for entry in keys.manifest.of("audit-mac"):
        key = read_process_keys(tmp_path / "secrets", entry.holder, "audit-mac")[1]
        assert commitment(key, entry.id).hex() == entry.commitment


def test_a_wide_directory_is_not_made_a_store(
    tmp_path: Path, root: FileRoot, root_entry: RootEntry, now: datetime
) -> None:
    """A directory that others may enter is refused before any key is made."""
    (tmp_path / "wide").mkdir()
    (tmp_path / "wide").chmod(0o755)

    with pytest.raises(KeystoreRefused, match="chmod 0700"):
        Keystore(tmp_path / "wide", "demo").initialise(root, root_entry, tmp_path / "secrets", now)
    assert contents(tmp_path) == {}


# --- changed ---


def test_a_key_in_no_manifest_is_no_key(store: Keystore, root: FileRoot, now: datetime) -> None:
    """A key that was made and not published is in no ring, and is listed as foreign."""
    keys = store.open(root)
    made = keys.make_key("kek", State.ACTIVE, now)

    assert (made.number, made.purpose, made.holder) == (2, "kek", KEYSTORE)
    assert list(store.open(root).ring().generations) == [1]
    assert keys.foreign() == [store.path(1, made.id)]


def test_a_published_manifest_is_the_next_one(store: Keystore, root: FileRoot, now: datetime) -> None:
    """Version and time move on, the act is told, the new key works; the store as it was opened stays as it was."""
    keys, later = store.open(root), now + timedelta(days=1)
    made = keys.make_key("kek", State.PENDING, now)
    published = keys.publish(keys.manifest.with_key(made), Act("prepare", made.id, "ada", "act_1"), later)

    assert store.open(root).manifest == published.manifest
    assert (published.manifest.version, published.manifest.written) == (2, later)
    assert published.manifest.act == Act("prepare", made.id, "ada", "act_1")
    assert keys.manifest.version == 1
    assert store.open(root).ring().generations[2].state is State.PENDING
    assert published.foreign() == []


def test_signed_with_a_new_key(store: Keystore, root: FileRoot, now: datetime) -> None:
    """A manifest signed with a new signing key opens by what it says of itself, the old key gone."""
    keys = store.open(root)
    old, seed = keys.manifest.active("manifest-signing"), new_key()
    new = store.add_key(root, 1, seed, keystore.new_entry(seed, "manifest-signing", 2, now))
    following = keys.manifest.with_key(new).moved(old, State.RETIRED, now)
    keys.publish(following, Act("renew", new.id), now, signing=seed).discard(old.id)

    assert store.open(root).manifest.active("manifest-signing") == new
    assert not store.path(1, old.id).exists()


def test_a_discarded_key_is_gone(store: Keystore, root: FileRoot) -> None:
    """Its file is overwritten and removed; discarding it again is no error."""
    keys = store.open(root)
    path = store.path(1, keys.manifest.active("hpke").id)
    with path.open("rb") as held:
        keys.discard(path.name)
        keys.discard(path.name)
        assert set(held.read()) == {0}
    assert not path.exists()


def test_a_key_that_is_missing(store: Keystore, root: FileRoot) -> None:
    """The refusal names the file and the key, and says where both come from; what stands beside it still opens."""
    keys = store.open(root)
    hpke, kek = keys.manifest.active("hpke"), keys.manifest.active("kek")
    path = store.path(1, hpke.id)
    path.unlink()

    line = f"{path}, the hpke key 1, is not there: restore the key store from its backup"
    with pytest.raises(KeyMissing, match=f"^{re.escape(line)}$"):
        keys.secret(hpke)
    assert commitment(keys.secret(kek), kek.id).hex() == kek.commitment


def test_destroyed_keys_need_no_file(store: Keystore, root: FileRoot, now: datetime) -> None:
    """A key that the manifest calls destroyed is not looked for, and not in the ring."""
    keys = store.open(root)
    (kek,) = keys.manifest.of("kek")
    following = keys.manifest.moved(kek, State.COMPROMISED, now)
    following = following.moved(following.key("kek", 1), State.DESTROYED, now)
    keys.publish(following, Act("destroy", kek.id), now).discard(kek.id)

    assert store.open(root).ring().generations == {}
    assert store.open(root).manifest.key("kek", 1).commitment == kek.commitment


# --- set aside ---


def aside(store: Keystore) -> dict[str, bytes]:
    """What was set aside, by name."""
    return {path.name: path.read_bytes() for path in (store.directory / SET_ASIDE).glob("*")}


def test_what_no_manifest_names_is_set_aside(store: Keystore, root: FileRoot, now: datetime) -> None:
    """It is moved, byte for byte, to where only this user looks, and named after where it lay."""
    keys = store.open(root)
    made = store.path(1, keys.make_key("kek", State.ACTIVE, now).id)
    other = store.path(9, made.name)
    write_private(other, b"of another root", replace=False)
    wrapped, before = made.read_bytes(), contents(store.directory)
    for path in keys.foreign():
        keys.set_aside(path)

    assert aside(store) == {f"root-1-{made.name}": wrapped, f"root-9-{made.name}": b"of another root"}
    assert (store.directory / SET_ASIDE).stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (store.directory / SET_ASIDE).iterdir()} == {0o600}
    assert store.open(root).foreign() == []
    assert sorted(contents(store.directory).values()) == sorted(before.values())


def test_what_was_destroyed_is_wiped(store: Keystore, root: FileRoot, now: datetime) -> None:
    """The file of a destroyed key, left by a power cut or put back by somebody, is overwritten and gone."""
    keys = store.open(root)
    (kek,) = keys.manifest.of("kek")
    following = keys.manifest.moved(kek, State.COMPROMISED, now)
    following = following.moved(following.key("kek", 1), State.DESTROYED, now)
    destroyed = keys.publish(following, Act("destroy", kek.id), now)
    (path,) = destroyed.foreign()
    with path.open("rb") as held:
        destroyed.set_aside(path)
        assert set(held.read()) == {0}

    assert not path.exists()
    assert aside(store) == {}


def test_what_lies_under_a_dropped_root_is_wiped(store: Keystore, root: FileRoot, now: datetime) -> None:
    """Every key of the old root, though the new one has them all; a stranger there goes with them."""
    both = store.open(both_roots(store, root, now))
    write_private(store.path(1, "kek-7-0123456789abcdef"), b"strange", replace=False)
    old, new = both.manifest.roots
    dropped = msgspec.structs.replace(old, state=State.DESTROYED)
    following = msgspec.structs.replace(both.manifest, roots=(dropped, new))
    keys = both.publish(following, Act("drop-root", "root-2"), now)
    listed = keys.foreign()
    for path in listed:
        keys.set_aside(path)

    assert len(listed) == len(WRAPPED) + 1
    assert {path.parent.name for path in listed} == {"root-1"}
    assert list((store.directory / "root-1").iterdir()) == []
    assert aside(store) == {}
    assert keys.ring().active.number == 1


def test_a_link_is_set_aside_and_not_what_it_points_at(store: Keystore, root: FileRoot, tmp_path: Path) -> None:
    """Whoever puts one among the keys gets no other file moved or emptied."""
    (tmp_path / "precious").write_bytes(b"precious")
    link = store.path(1, "kek-7-0123456789abcdef")
    link.symlink_to(tmp_path / "precious")
    store.open(root).set_aside(link)

    assert (store.directory / SET_ASIDE / f"root-1-{link.name}").is_symlink()
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert not link.is_symlink()


def test_a_linked_folder_is_no_root(store: Keystore, root: FileRoot, tmp_path: Path) -> None:
    """Where a link stands in the place of a root's folder, nothing is done before it is gone."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_bytes(b"precious")
    (store.directory / "root-9").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeystoreRefused, match="root-9 must be a directory and no symbolic link"):
        store.open(root).foreign()

    assert (tmp_path / "elsewhere" / "precious").exists()


# --- two roots ---


def both_roots(store: Keystore, root: FileRoot, now: datetime) -> FileRoot:
    """Replace the root half-way: every key lies there under both. Gives the new root."""
    keys, other = store.open(root), FileRoot(new_key())
    for entry in keys.manifest.keys:
        if entry.holder == KEYSTORE:
            store.add_key(other, 2, keys.secret(entry), entry)
    old = msgspec.structs.replace(keys.manifest.root, state=State.RETIRED)
    new = RootEntry(2, "file", "file:/other.key", State.ACTIVE, now)
    following = msgspec.structs.replace(keys.manifest, roots=(old, new))
    keys.publish(following, Act("replace-root", "root-2"), now)
    return other


def test_either_root_opens_while_both_stand(store: Keystore, root: FileRoot, now: datetime) -> None:
    """Processes with the old root and those with the new one see the same keys; a third root sees none."""
    other = both_roots(store, root, now)
    old, new = store.open(root), store.open(other)

    assert (old.root_number, new.root_number) == (1, 2)
    assert old.manifest == new.manifest
    assert old.ring().active.secret.reveal() == new.ring().active.secret.reveal()
    assert old.foreign() == new.foreign() == []
    with pytest.raises(RootRefused, match="do not belong together"):
        store.open(FileRoot(new_key()))


def test_no_key_is_made_while_both_stand(store: Keystore, root: FileRoot, now: datetime) -> None:
    """It would need both roots; the refusal says how to finish, and nothing is written."""
    other = both_roots(store, root, now)
    before = contents(store.directory)

    for each in (root, other):
        with pytest.raises(KeystoreRefused, match=r"^the root is being replaced .*`keys ceremony replace --finish`$"):
            store.open(each).make_key("kek", State.ACTIVE, now)
    assert contents(store.directory) == before


def test_a_move_that_the_table_does_not_have(store: Keystore, root: FileRoot, now: datetime) -> None:
    """No manifest can be made in which a key goes back."""
    manifest: Manifest = store.open(root).manifest
    retired = manifest.moved(manifest.active("kek"), State.RETIRED, now)

    with pytest.raises(KeyRefused, match=r"^generation 1 is retired: it cannot become active$"):
        retired.moved(retired.key("kek", 1), State.ACTIVE, now)


# --- looked at ---


def test_the_stamp_changes_with_the_manifest(store: Keystore, root: FileRoot, now: datetime) -> None:
    """Looked at twice it is the same; a new manifest, even of the same size and second, has another."""
    before = store.stamp()
    assert before == store.stamp()

    keys = store.open(root)
    keys.publish(keys.manifest, Act("test", "nothing"), now)
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
