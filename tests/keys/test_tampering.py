"""Every way to tamper with keys that we know, each with what it must be called: to people and in the audit log.

The key store has lived a little: generation 2 took over from 1, and the manifest has a second signing key. Whoever
tampers here may write any file of it, has what lay there earlier, and sometimes the root or the old signing key.
"""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import msgspec
import pytest

from keys import roots
from keys.errors import (
    ClockBehind,
    KeyForeign,
    KeyMissing,
    KeysError,
    KeystoreRefused,
    KeySwapped,
    ManifestForeign,
    ManifestForged,
    ManifestRolledBack,
    RootRefused,
)
from keys.files import write_private
from keys.keystore import MANIFEST, Keystore, new_entry
from keys.manifest import SIGNER, Act, KeyEntry, Manifest, RootEntry, require_current, sign_manifest
from keys.primitives import new_key
from keys.process_keys import process_key_path
from keys.root import RootKey
from keys.root_file import FileRoot
from keys.secret import Secret
from keys.signing import sign_note
from keys.states import Seen, State
from tests.gateway.store.postgres import Postgres
from tests.keys.commands import RunAsync, configure

PASSPHRASE = "correct horse battery staple"
MISSED = (AssertionError, pytest.fail.Exception)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@dataclass
class Scene:
    """The key store, and what its attacker has besides."""

    store: Keystore
    root: RootKey
    folder: Path
    now: datetime
    first: dict[Path, bytes] = field(default_factory=dict)
    """Every file of the store as the first manifest had it."""
    old_seed: Secret[bytes] = field(default_factory=new_key)
    """The first signing key."""

    @property
    def manifest(self) -> Manifest:
        return self.store.open(self.root).manifest

    @property
    def seed(self) -> Secret[bytes]:
        return self.store.open(self.root).signing

    @property
    def file(self) -> Path:
        """The manifest's."""
        return self.store.directory / MANIFEST

    def path(self, key: KeyEntry) -> Path:
        return self.store.path(1, key.id)

    def generation(self, number: int) -> Path:
        return self.path(self.manifest.key("kek", number))

    def sign(self, manifest: Manifest, seed: Secret[bytes] | None = None) -> None:
        """Put a manifest there, signed rightly unless another key is given."""
        self.file.write_bytes(sign_manifest(manifest, self.seed if seed is None else seed))

    def edit(self, find: str, put: str) -> None:
        """Change the manifest's text under its signature."""
        text = self.file.read_text()
        assert find in text
        self.file.write_text(text.replace(find, put, 1))

    def wrap_for(self, root: RootKey, environment: str, entry: KeyEntry, key: Secret[bytes]) -> bytes:
        """A wrap as a key store of that environment would hold it."""
        return root.wrap(key, Keystore(self.store.directory, environment).bound_to(entry))


def look(scene: Scene) -> None:
    """What `keys verify` looks at, but for the records."""
    keys = scene.store.open(scene.root)
    require_current(keys.manifest.stands, keys.manifest.written, Seen(3, 2), scene.now)
    keys.require_no_foreign()
    keys.require_intact(scene.folder / "secrets")
    keys.ring()


@pytest.fixture
def root_uri(tmp_path: Path, cheap_passphrases: None) -> str:
    """Where the root key lies: in a file, as the command line finds it."""
    write_private(tmp_path / "passphrase", PASSPHRASE.encode(), replace=False)
    return f"file:{tmp_path}/root.key?passphrase_file={tmp_path}/passphrase"


@pytest.fixture
def scene(tmp_path: Path, root_uri: str, secrets_directory: Path) -> Scene:
    """A key store at manifest 3. Its times are real, since the command line looks at the clock."""

    def nobody(what: str) -> Secret[str]:
        raise AssertionError(what)

    now = datetime.now(UTC)
    root = roots.create_root(root_uri, nobody)
    store = Keystore(tmp_path / "keystore", "demo")
    entry = RootEntry(1, "file", roots.location(root_uri), State.ACTIVE, now)
    keys = store.initialise(root, entry, secrets_directory, now)
    scene = Scene(store, root, tmp_path, now, old_seed=keys.signing)
    scene.first = {path: path.read_bytes() for path in store.directory.rglob("*") if path.is_file()}

    new = keys.make_key("kek", State.ACTIVE, now)
    following = keys.manifest.with_key(new).moved(keys.manifest.key("kek", 1), State.RETIRED, now)
    keys = keys.publish(following, Act("rotate", new.id), now)

    seed, old = new_key(), keys.manifest.active("manifest-signing")
    signing = store.add_key(root, 1, seed, new_entry(seed, "manifest-signing", 2, now))
    following = keys.manifest.with_key(signing).moved(old, State.RETIRED, now)
    following = following.moved(following.key("manifest-signing", 1), State.DESTROYED, now)
    keys.publish(following, Act("renew", old.id), now, signing=seed).discard(old.id)
    return scene


# --- what somebody does to wrapped keys ---


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def swap_generations(scene: Scene) -> None:
    swap(scene.generation(1), scene.generation(2))


def swap_purposes(scene: Scene) -> None:
    swap(scene.generation(1), scene.path(scene.manifest.active("fingerprint")))


def flip(index: int) -> Callable[[Scene], None]:
    def flip_blob(scene: Scene) -> None:
        raw = bytearray(scene.generation(2).read_bytes())
        raw[index] ^= 1
        scene.generation(2).write_bytes(raw)

    return flip_blob


def truncate_blob(scene: Scene) -> None:
    scene.generation(2).write_bytes(scene.generation(2).read_bytes()[:-1])


def empty_blob(scene: Scene) -> None:
    scene.generation(2).write_bytes(b"")


def lengthen_blob(scene: Scene) -> None:
    scene.generation(2).write_bytes(scene.generation(2).read_bytes() + b"\0")


def remove_blob(scene: Scene) -> None:
    scene.generation(2).unlink()


def put_another_stores_blob(scene: Scene) -> None:
    wrapped = scene.wrap_for(FileRoot(new_key()), "demo", scene.manifest.key("kek", 2), new_key())
    scene.generation(2).write_bytes(wrapped)


def put_another_environments_blob(scene: Scene) -> None:
    key = scene.store.open(scene.root).secret(scene.manifest.key("kek", 2))
    scene.generation(2).write_bytes(scene.wrap_for(scene.root, "live", scene.manifest.key("kek", 2), key))


def put_another_key_of_this_root(scene: Scene) -> None:
    scene.generation(2).write_bytes(scene.wrap_for(scene.root, "demo", scene.manifest.key("kek", 2), new_key()))


def widen_blob(scene: Scene) -> None:
    scene.generation(2).chmod(0o640)


def link(path: Path, scene: Scene) -> None:
    path.rename(scene.folder / "elsewhere")
    path.symlink_to(scene.folder / "elsewhere")


def link_blob(scene: Scene) -> None:
    link(scene.generation(2), scene)


def give_blob_away(scene: Scene) -> None:
    os.chown(scene.generation(2), 65534, 65534)


def add_foreign_key(scene: Scene) -> None:
    write_private(scene.store.path(1, "kek-3-0123456789abcdef"), scene.generation(2).read_bytes(), replace=False)


def add_hidden_foreign_key(scene: Scene) -> None:
    write_private(scene.store.path(1, ".kek"), b"", replace=False)


def add_foreign_root(scene: Scene) -> None:
    write_private(scene.store.path(9, scene.generation(2).name), scene.generation(2).read_bytes(), replace=False)


def put_destroyed_key_back(scene: Scene) -> None:
    path = next(path for path in scene.first if path.name.startswith("manifest-signing-1"))
    write_private(path, scene.first[path], replace=False)


# --- to the processes' own keys ---


def process_key(scene: Scene, holder: str) -> Path:
    return process_key_path(scene.folder / "secrets", holder, "audit-mac", 1)


def put_another_process_key(scene: Scene) -> None:
    process_key(scene, "worker").write_bytes(new_key().reveal())


def swap_process_keys(scene: Scene) -> None:
    swap(process_key(scene, "worker"), process_key(scene, "api"))


def remove_process_key(scene: Scene) -> None:
    process_key(scene, "worker").rename(process_key(scene, "worker").with_name("audit-mac-2.key"))


def truncate_process_key(scene: Scene) -> None:
    process_key(scene, "worker").write_bytes(process_key(scene, "worker").read_bytes()[:-1])


def widen_process_key(scene: Scene) -> None:
    process_key(scene, "worker").chmod(0o640)


# --- to the signing key and the manifest ---


def flip_signing_key(scene: Scene) -> None:
    path = scene.path(scene.manifest.active("manifest-signing"))
    raw = bytearray(path.read_bytes())
    raw[40] ^= 1
    path.write_bytes(raw)


def remove_signing_key(scene: Scene) -> None:
    scene.path(scene.manifest.active("manifest-signing")).unlink()


def edit_state(scene: Scene) -> None:
    scene.edit('"state": "retired"', '"state": "active"')


def swap_rows(scene: Scene) -> None:
    one, other = scene.manifest.key("kek", 1).id, scene.manifest.key("kek", 2).id
    scene.file.write_text(scene.file.read_text().replace(one, "-").replace(other, one).replace('"-"', f'"{other}"'))


def swap_rows_of_the_directory(scene: Scene) -> None:
    """Rows and blobs both: under their own names, the other's bytes."""
    swap_rows(scene)
    kek = sorted(scene.store.directory.glob("root-1/kek-*"))
    swap(*kek)


def edit_signature(scene: Scene) -> None:
    raw = bytearray(scene.file.read_bytes())
    raw[-20] ^= 1
    scene.file.write_bytes(raw)


def truncate_manifest(scene: Scene) -> None:
    scene.file.write_bytes(scene.file.read_bytes()[:-10])


def empty_manifest(scene: Scene) -> None:
    scene.file.write_bytes(b"")


def put_no_text(scene: Scene) -> None:
    scene.file.write_bytes(b"\xff" + scene.file.read_bytes())


def sign_with_another_key(scene: Scene) -> None:
    scene.sign(scene.manifest, new_key())


def sign_with_the_old_key(scene: Scene) -> None:
    scene.sign(scene.manifest, scene.old_seed)


def sign_with_another_root(scene: Scene) -> None:
    entry, seed = scene.manifest.active("manifest-signing"), new_key()
    scene.sign(scene.manifest, seed)
    scene.path(entry).write_bytes(scene.wrap_for(FileRoot(new_key()), "demo", entry, seed))


def name_another_environment(scene: Scene) -> None:
    scene.sign(msgspec.structs.replace(scene.manifest, environment="live"))


def put_another_environments_store(scene: Scene) -> None:
    for path in (*scene.store.directory.glob("root-1/*"), scene.file):
        path.unlink()
    entry = RootEntry(1, "file", "file:/root.key", State.ACTIVE, scene.now)
    Keystore(scene.store.directory, "live").initialise(scene.root, entry, scene.folder / "secrets-live", scene.now)


def put_the_first_manifest_back(scene: Scene) -> None:
    scene.file.write_bytes(scene.first[scene.file])


def put_the_first_store_back(scene: Scene) -> None:
    for path in scene.store.directory.glob("root-1/*"):
        path.unlink()
    for path, content in scene.first.items():
        write_private(path, content, replace=True)


def sign_an_older_one_with_the_old_key(scene: Scene) -> None:
    """As `put_the_first_store_back`, but changed, and signed with the signing key that was replaced."""
    now = scene.now
    put_the_first_store_back(scene)
    scene.sign(msgspec.structs.replace(scene.manifest, version=2, written=now), scene.old_seed)


def name_a_path(scene: Scene) -> None:
    scene.edit(scene.manifest.active("manifest-signing").id, "../../root.key")


def name_no_signing_key(scene: Scene) -> None:
    scene.edit('"purpose": "manifest-signing",\n   "since"', '"purpose": "hpke",\n   "since"')
    scene.edit('"purpose": "manifest-signing",\n   "since"', '"purpose": "hpke",\n   "since"')


def name_no_root(scene: Scene) -> None:
    text = scene.file.read_text()
    start, end = text.index(' "roots": ['), text.index(' "version"')
    scene.file.write_text(f'{text[:start]} "roots": [],\n{text[end:]}')


def write_another_format(scene: Scene) -> None:
    text = sign_manifest(scene.manifest, scene.seed).decode().rpartition("\n\n")[0] + "\n"
    scene.file.write_text(sign_note(scene.seed, SIGNER, text.replace('"format": 2', '"format": 3')))


def date_it_ahead(scene: Scene) -> None:
    scene.sign(msgspec.structs.replace(scene.manifest, written=scene.now + timedelta(hours=1)))


def remove_manifest(scene: Scene) -> None:
    scene.file.unlink()


def link_manifest(scene: Scene) -> None:
    link(scene.file, scene)


def widen_manifest(scene: Scene) -> None:
    scene.file.chmod(0o604)


def widen_store(scene: Scene) -> None:
    scene.store.directory.chmod(0o750)


def link_store(scene: Scene) -> None:
    link(scene.store.directory, scene)


def widen_root_directory(scene: Scene) -> None:
    (scene.store.directory / "root-1").chmod(0o770)


def link_root_directory(scene: Scene) -> None:
    link(scene.store.directory / "root-1", scene)


SWAPPED = "that the manifest names: restore it from its backup"
PROCESS_SWAPPED = "is not the audit-mac key 1 of worker of the manifest: restore it from its backup"
FORGED = "is not signed by this key store's own key: restore the key store from its backup"
NOT_TOGETHER = "`keys.root` and `keys.store` do not belong together, or a key file was swapped or altered"
WIDE = "is open to others: `chmod 0600 "
LINKED = "or is a symbolic link; it must be a plain file"
LINKED_DIRECTORY = "must be a directory and no symbolic link"
MISSING = "is not there: restore the key store from its backup"
ALONE = "must belong to this user alone: `chmod 0700 "
STRAY = "is no key of this manifest"
SEEN = "which this database has seen"
BACK = "put the newest key store back"


@dataclass(frozen=True)
class Case:
    """A deed, and what it must be called. `everywhere`: `keys status`, which opens no key, finds it as well."""

    deed: Callable[[Scene], None]
    error: type[KeysError]
    event: str | None
    told: str
    everywhere: bool = True


REGIONS = {"version": 0, "first of nonce": 1, "last of nonce": 12, "first of key": 13, "last of key": 44, "tag": 60}

CASES = [
    *(
        pytest.param(Case(flip(index), KeySwapped, "key.swapped", SWAPPED, everywhere=False), id=f"flip {region}")
        for region, index in REGIONS.items()
    ),
    Case(swap_generations, KeySwapped, "key.swapped", f"is not the generation 1 {SWAPPED}", everywhere=False),
    Case(swap_purposes, KeySwapped, "key.swapped", f"is not the generation 1 {SWAPPED}", everywhere=False),
    Case(truncate_blob, KeySwapped, "key.swapped", SWAPPED, everywhere=False),
    Case(empty_blob, KeySwapped, "key.swapped", SWAPPED, everywhere=False),
    Case(lengthen_blob, KeySwapped, "key.swapped", SWAPPED, everywhere=False),
    Case(put_another_stores_blob, KeySwapped, "key.swapped", SWAPPED, everywhere=False),
    Case(put_another_environments_blob, KeySwapped, "key.swapped", SWAPPED, everywhere=False),
    Case(put_another_key_of_this_root, KeySwapped, "key.swapped", SWAPPED, everywhere=False),
    Case(remove_blob, KeyMissing, "key.missing", f"the generation 2, {MISSING}", everywhere=False),
    Case(widen_blob, KeystoreRefused, None, WIDE, everywhere=False),
    Case(link_blob, KeystoreRefused, None, LINKED, everywhere=False),
    pytest.param(
        Case(give_blob_away, KeystoreRefused, None, "belongs to another user: `chown` it", everywhere=False),
        marks=as_root,
        id="give_blob_away",
    ),
    Case(put_another_process_key, KeySwapped, "key.swapped", PROCESS_SWAPPED, everywhere=False),
    Case(swap_process_keys, KeySwapped, "key.swapped", "of the manifest: restore it", everywhere=False),
    Case(remove_process_key, KeySwapped, "key.swapped", PROCESS_SWAPPED, everywhere=False),
    Case(truncate_process_key, KeystoreRefused, None, "is not a key of 32 bytes", everywhere=False),
    Case(widen_process_key, KeystoreRefused, None, WIDE, everywhere=False),
    Case(add_foreign_key, KeyForeign, "key.foreign", STRAY, everywhere=False),
    Case(add_hidden_foreign_key, KeyForeign, "key.foreign", STRAY, everywhere=False),
    Case(add_foreign_root, KeyForeign, "key.foreign", STRAY, everywhere=False),
    Case(put_destroyed_key_back, KeyForeign, "key.foreign", STRAY, everywhere=False),
    Case(flip_signing_key, RootRefused, "root.refused", NOT_TOGETHER),
    Case(remove_signing_key, KeyMissing, "key.missing", f"the manifest-signing key 2, {MISSING}"),
    Case(edit_state, ManifestForged, "manifest.forged", FORGED),
    Case(swap_rows, ManifestForged, "manifest.forged", FORGED),
    Case(swap_rows_of_the_directory, ManifestForged, "manifest.forged", FORGED),
    Case(edit_signature, ManifestForged, "manifest.forged", FORGED),
    Case(truncate_manifest, ManifestForged, "manifest.forged", FORGED),
    Case(empty_manifest, ManifestForged, "manifest.forged", FORGED),
    Case(put_no_text, ManifestForged, "manifest.forged", FORGED),
    Case(sign_with_another_key, ManifestForged, "manifest.forged", FORGED),
    Case(sign_with_the_old_key, ManifestForged, "manifest.forged", FORGED),
    Case(name_no_signing_key, ManifestForged, "manifest.forged", FORGED),
    Case(
        write_another_format,
        ManifestForged,
        "manifest.forged",
        "is of format 3, this release reads format 2: use the release that",
    ),
    Case(name_a_path, KeySwapped, "key.swapped", "what is no key's id: restore the key store from its backup"),
    Case(sign_with_another_root, RootRefused, "root.refused", NOT_TOGETHER),
    Case(name_no_root, RootRefused, "root.refused", NOT_TOGETHER),
    Case(put_another_environments_store, RootRefused, "root.refused", NOT_TOGETHER),
    Case(name_another_environment, ManifestForeign, "manifest.foreign", "correct `environment` or `keys.store`"),
    Case(put_the_first_manifest_back, KeyMissing, "key.missing", f"the manifest-signing key 1, {MISSING}"),
    Case(put_the_first_store_back, ManifestRolledBack, "manifest.rolled_back", f"1 is older than 3, {SEEN}: {BACK}"),
    Case(sign_an_older_one_with_the_old_key, ManifestRolledBack, "manifest.rolled_back", BACK),
    Case(date_it_ahead, ClockBehind, "clock.behind", "set the clock right"),
    Case(remove_manifest, KeystoreRefused, None, "manifest does not exist"),
    Case(link_manifest, KeystoreRefused, None, LINKED),
    Case(widen_manifest, KeystoreRefused, None, WIDE),
    Case(widen_store, KeystoreRefused, None, ALONE),
    Case(link_store, KeystoreRefused, None, f"keystore {LINKED_DIRECTORY}"),
    Case(widen_root_directory, KeystoreRefused, None, f"root-1 {ALONE}"),
    Case(link_root_directory, KeystoreRefused, None, f"root-1 {LINKED_DIRECTORY}"),
]
"""Where one command would find two things, what it comes to first is what it says."""


def name_of(case: object) -> str:
    return case.deed.__name__ if isinstance(case, Case) else str(case)


def everything(folder: Path) -> dict[str, tuple[int, object]]:
    """Each file, folder and link below, with its permissions and what is in it."""

    def inside(path: Path) -> object:
        return path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None

    return {
        str(path): (stat.S_IMODE(path.lstat().st_mode), inside(path))
        for path in folder.rglob("*")
        if not path.is_fifo()
    }


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_what_it_is_called(scene: Scene, case: Case) -> None:
    """Each deed has one class of refusal, one audit event or none, and one line; nothing is changed by looking."""
    look(scene)
    case.deed(scene)
    before = everything(scene.folder)

    with pytest.raises(KeysError) as caught:
        look(scene)
    assert caught.type is case.error
    assert caught.value.event == case.event
    assert case.told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert everything(scene.folder) == before


def test_an_attack_has_an_event_of_its_own() -> None:
    """Swapping, adding, taking away, forging, foreign and old stores and wrong clocks are told apart."""
    told = {(case.error, case.event) for case in CASES if isinstance(case, Case) and case.event}

    assert len(told) == len({error for error, _ in told}) == len({event for _, event in told}) == 8


def test_an_old_signing_key_signs_nothing_newer(scene: Scene) -> None:
    """Once the signing key was renewed, the old one signs no manifest of any version, even with its wrap put back."""
    put_the_first_store_back(scene)
    manifest = msgspec.structs.replace(scene.manifest, version=4, written=scene.now)
    scene.sign(manifest, scene.old_seed)

    with pytest.raises(KeysError):
        look(scene)


# --- as a person meets it ---


@pytest.fixture
async def config(scene: Scene, postgres: Postgres, owner: asyncpg.Connection, root_uri: str) -> Path:
    """A configuration for the command line, beside a database that has seen manifest 3."""
    await owner.execute("INSERT INTO gateway.key_generations VALUES (1, 'retired'), (2, 'active')")
    await owner.execute("INSERT INTO gateway.key_manifest (version, signing_key) VALUES (3, 2)")
    return configure(scene.folder, postgres, root_uri)


async def audited(owner: asyncpg.Connection) -> list[tuple[str, ...]]:
    """The audit log, once; then it is emptied."""
    rows = await owner.fetch("DELETE FROM audit.events RETURNING event, outcome, actor, process, department_id")
    return [tuple(row) for row in rows]


@pytest.mark.server
async def test_nothing_is_found_where_nothing_is(
    config: Path, owner: asyncpg.Connection, run_async: RunAsync
) -> None:
    """Both commands pass over a key store that is as it should be, and write no audit row."""
    for command in ("status", "verify"):
        ran = await run_async(command, "--config", str(config))
        assert (ran.code, ran.errors) == (0, "")
    assert await audited(owner) == []


@pytest.mark.server
@pytest.mark.parametrize("case", CASES, ids=name_of)
async def test_what_a_person_is_told(
    scene: Scene, config: Path, owner: asyncpg.Connection, run_async: RunAsync, case: Case
) -> None:
    """`keys verify`, and `keys status` where it can see it: exit 1, one line, one audit row for an attack."""
    case.deed(scene)
    before = everything(scene.folder)
    for command in ("verify", "status") if case.everywhere else ("verify",):
        ran = await run_async(command, "--config", str(config))

        assert (ran.code, ran.output, ran.errors.count("\n")) == (1, "", 1)
        assert ran.errors.startswith("keys: ")
        assert case.told in ran.errors
        expected = [(case.event, "refused", "keys", "keys", "city")] if case.event else []
        assert await audited(owner) == expected
    assert everything(scene.folder) == before


def truncate_root(folder: Path) -> None:
    (folder / "root.key").write_bytes((folder / "root.key").read_bytes()[:-1])


def alter_root(folder: Path) -> None:
    raw = bytearray((folder / "root.key").read_bytes())
    raw[-1] ^= 1
    (folder / "root.key").write_bytes(raw)


def put_another_root(folder: Path) -> None:
    (folder / "root.key").unlink()
    roots.create_root(f"file:{folder}/root.key?passphrase_file={folder}/passphrase", Secret)


def change_passphrase(folder: Path) -> None:
    (folder / "passphrase").write_text("incorrect horse battery staple")


def remove_root(folder: Path) -> None:
    (folder / "root.key").unlink()


def widen_root(folder: Path) -> None:
    (folder / "root.key").chmod(0o640)


def widen_passphrase(folder: Path) -> None:
    (folder / "passphrase").chmod(0o644)


def link_root(folder: Path) -> None:
    (folder / "root.key").rename(folder / "elsewhere")
    (folder / "root.key").symlink_to(folder / "elsewhere")


def put_passphrase_in_uri(folder: Path) -> None:
    rewrite(folder, f"passphrase_file={folder}/passphrase", f"passphrase={PASSPHRASE.replace(' ', '%20')}")


def put_store_inside_the_database(folder: Path) -> None:
    rewrite(folder, f"{folder}/postgres", str(folder))


def rewrite(folder: Path, find: str, put: str) -> None:
    """Change the configuration file."""
    config = folder / "gateway.toml"
    assert find in config.read_text()
    config.write_text(config.read_text().replace(find, put))


@pytest.mark.server
@pytest.mark.parametrize(
    ("deed", "event", "told"),
    [
        (truncate_root, "root.refused", "was cut short: restore it from its backup"),
        (alter_root, "root.refused", "check the passphrase, and that this is the right file"),
        (put_another_root, "root.refused", NOT_TOGETHER),
        (change_passphrase, "root.refused", "check the passphrase, and that this is the right file"),
        (remove_root, "root.refused", "later it comes from its backup"),
        (widen_root, None, WIDE),
        (widen_passphrase, None, WIDE),
        (link_root, None, LINKED),
        (put_passphrase_in_uri, "root.refused", "a passphrase does not stand in a URI: name a passphrase_file"),
        (put_store_inside_the_database, None, "must lie apart: move the key store"),
    ],
)
async def test_a_root_that_is_not_as_it_must_be(
    scene: Scene,
    config: Path,
    owner: asyncpg.Connection,
    run_async: RunAsync,
    deed: Callable[[Path], None],
    event: str | None,
    told: str,
) -> None:
    """Root, passphrase and configuration are refused in the same way; no passphrase is shown, and nothing changed."""
    deed(scene.folder)
    before = everything(scene.folder)
    for command in ("verify", "status"):
        ran = await run_async(command, "--config", str(config))

        assert (ran.code, ran.output, ran.errors.count("\n")) == (1, "", 1)
        assert told in ran.errors
        assert "battery" not in ran.errors
        assert await audited(owner) == ([(event, "refused", "keys", "keys", "city")] if event else [])
    assert everything(scene.folder) == before


@pytest.mark.server
async def test_a_passphrase_in_the_environment(
    scene: Scene, config: Path, owner: asyncpg.Connection, run_async: RunAsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor may it stand there: the line says to use a file."""
    monkeypatch.setenv("GATEWAY_KEYS_ROOT", f"file:{scene.folder}/root.key?passphrase=correct%20horse")
    ran = await run_async("status", "--config", str(config))

    assert (ran.code, ran.errors) == (
        1,
        "keys: keys.root: a passphrase does not stand in a URI: name a passphrase_file\n",
    )


@pytest.mark.server
async def test_a_command_that_changes_keys_refuses_as_well(
    scene: Scene, config: Path, owner: asyncpg.Connection, run_async: RunAsync
) -> None:
    """With an older key store put back `keys rotate` changes nothing: neither files nor mirror."""
    put_the_first_store_back(scene)
    before = everything(scene.folder)
    ran = await run_async("rotate", "--config", str(config))

    assert (ran.code, ran.output) == (1, "")
    assert BACK in ran.errors
    assert everything(scene.folder) == before
    assert await owner.fetchval("SELECT version FROM gateway.key_manifest") == 3
    assert [event for event, *_ in await audited(owner)] == ["manifest.rolled_back"]
