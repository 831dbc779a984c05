"""Copies of the key store through the commands: what goes into one, what may come out, and what a refusal leaves.

The restore drill (tests/acceptance) brings a whole host back; here a city keeps its database and loses its keys.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from keys.backup import open_backup, read_header, seal_backup
from keys.files import read_private_line, write_private
from keys.keystore import RESTORING
from keys.manifest import Act
from keys.officers import OfficerKey, officer_of, open_officer_key
from keys.states import State
from tests.keys.commands import Ran, RunAsync
from tests.keys.database import City
from tests.keys.test_rotation import move_all, register

pytestmark = pytest.mark.server


@pytest.fixture
def now() -> datetime:
    """The real time: the command line looks at the clock."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Office:
    """A city with two officers, ada and ben, at the command line."""

    city: City
    folder: Path
    settings: str
    run: RunAsync

    async def keys(self, *arguments: str) -> Ran:
        """Run a command."""
        return await self.run(*arguments, "--config", self.settings)

    async def done(self, *arguments: str) -> str:
        """Run one that ends well."""
        ran = await self.keys(*arguments)
        assert ran.code == 0, ran.errors
        return ran.output

    async def refused(self, *arguments: str) -> str:
        """Run one that is refused; neither keys nor secrets change, and nothing is left of a trial."""
        before = self.city.files()
        ran = await self.keys(*arguments)
        assert (ran.code, ran.output) == (1, ""), ran
        assert ran.errors.count("\n") == 1, ran.errors
        assert self.city.files() == before
        assert not (self.city.store.directory / RESTORING).exists()
        return ran.errors.removeprefix("keys: ").rstrip()

    def officer(self, name: str) -> tuple[str, ...]:
        """The options by which one signs."""
        return ("--officer", f"{self.folder}/{name}.key", "--passphrase-file", f"{self.folder}/words")

    def key(self, name: str) -> OfficerKey:
        """The private half of one."""
        return open_officer_key(self.folder / f"{name}.key", read_private_line(self.folder / "words"))

    async def backup(self, name: str = "a.backup") -> Path:
        """A copy for ada."""
        await self.done("backup", "--to", str(self.folder / name), "--for", "ada")
        return self.folder / name

    def restore(self, source: Path, *more: str) -> tuple[str, ...]:
        """By ada."""
        return ("restore", "--from", str(source), *self.officer("ada"), *more)

    def opened(self, source: Path) -> dict[str, bytes]:
        """What ada finds in a copy."""
        return dict(open_backup(source.read_bytes(), self.key("ada")))

    def lose_everything(self) -> None:
        """But the root, the database, and the password by which `keys` signs in to it."""
        shutil.rmtree(self.city.store.directory)
        for process in self.city.secrets.iterdir():
            for key in process.glob("*.key"):
                key.unlink()


@pytest.fixture
async def office(ready: City, tmp_path: Path, settings: str, run_async: RunAsync) -> Office:
    """Two officers, added as the runbook says."""
    office = Office(ready, tmp_path, settings, run_async)
    write_private(tmp_path / "words", b"a passphrase of theirs", replace=False)
    for name in ("ada", "ben"):
        key = ("--key", f"{tmp_path}/{name}.key", "--key-passphrase-file", f"{tmp_path}/words")
        await office.done("officer", "add", name, *key)
    return office


def all_files(folder: Path) -> Mapping[str, bytes]:
    """By name."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- what goes in ---


async def test_what_is_lost_comes_back(office: Office) -> None:
    """Every key, the manifest that registered the copy, and the evidence; every data key opens afterwards."""
    write_private(
        office.city.store.directory / "ceremonies" / "20260314T150926-root.txt", b"who and when", replace=True
    )
    source, before, deks = await office.backup(), office.city.files(), await office.city.opened()
    office.lose_everything()
    assert await office.done(*office.restore(source)) == (
        f"The key store is back, at manifest {office.city.keys.manifest.version}. Now: `keys verify`.\n"
    )
    assert office.city.files() == before
    assert await office.city.opened() == deks
    assert office.city.keys.manifest.backups[0].id == read_header(source.read_bytes()).id
    assert (await office.done("verify")).startswith("6 records: 6 open, 0 do not.")


async def test_drafts_go_into_no_copy(office: Office) -> None:
    """What killed writers have left among requests and transcripts stops no backup, and is wiped; notes stay here."""
    store = office.city.store.directory
    write_private(store / "acts" / "notes.txt", b"somebody's", replace=False)
    drafts = [store / "acts" / f".act_{'0' * 32}.request.7", store / "ceremonies" / ".20260314T150926-root.txt.7"]
    for draft in drafts:
        write_private(draft, b"half", replace=False)
    source = await office.backup()
    assert not any(draft.exists() for draft in drafts)
    assert not any("/." in name or "notes" in name for name in office.opened(source))
    assert (store / "acts" / "notes.txt").exists()


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("x" * 256, "cannot be written (File name too long)"),
        ("nowhere/a.backup", "/nowhere is no folder: is the medium there?"),
        ("words", "exists already and is never replaced: move it away first"),
        ("keystore/a.backup", "lies in the key store itself: name a place on another medium"),
    ],
)
async def test_a_place_that_takes_no_copy(office: Office, place: str, line: str) -> None:
    """It is refused before anything is registered: a copy that is not there keeps keys alive for nobody."""
    told = await office.refused("backup", "--to", str(office.folder / place), "--for", "ada")
    assert told.endswith(line)


async def test_a_copy_that_cannot_be_sealed_is_not_registered(office: Office) -> None:
    """Everything is read and sealed before the manifest names the copy."""
    evidence = office.city.store.directory / "ceremonies" / "20260314T150926-root.txt"
    write_private(evidence, b"who and when", replace=False)
    evidence.chmod(0o644)
    told = await office.refused("backup", "--to", f"{office.folder}/a.backup", "--for", "ada")
    assert told == f"{evidence} is open to others: `chmod 0600 {evidence}`"
    assert not (office.folder / "a.backup").exists()


async def test_one_thing_at_a_time(office: Office) -> None:
    """A copy is made or forgotten: options of the other are not passed over in silence."""
    forget = ("backup", "--forget", "backup_1", *office.officer("ada"))
    for more in (("--to", f"{office.folder}/a.backup"), ("--for", "ada")):
        assert "--forget takes neither --to nor --for" in await office.refused(*forget, *more)


async def test_forgotten_copies_leave_the_list(office: Office) -> None:
    """With the next copy, so that the manifest does not grow for ever; the copies that exist stay."""
    for name in ("a.backup", "b.backup"):
        await office.backup(name)
    first, second = office.city.keys.manifest.backups
    async with office.city.changing() as rotation:
        await register(rotation, msgspec.structs.replace(first, forgotten=office.city.now), second)
    await office.backup("c.backup")

    kept = office.city.keys.manifest.backups
    assert [backup.id for backup in kept][:1] == [second.id]
    assert (len(kept), kept[1].roots) == (2, (1,))


# --- what may come out ---


def crafted(office: Office, source: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    """A copy that a recipient has opened, changed and sealed again."""
    files, header = office.opened(source), read_header(source.read_bytes())
    change(files)
    sealed = seal_backup(
        files,
        [officer_of("ada", office.key("ada"), header.created)],
        backup_id=header.id,
        environment=header.environment,
        manifest_version=header.manifest_version,
        created=header.created,
    )
    path = office.folder / "crafted.backup"
    write_private(path, sealed, replace=True)
    return path


@pytest.mark.parametrize(
    "name",
    [
        *("secrets/owner/database.password", "secrets/api/processor.credential", "secrets/api/api-digest-2.key"),
        *("store/evil/file", "store/root-1/kek-7-0123456789abcdef", "store/root-2/stranger", "other"),
        *("store/acts/notes.txt", "store/restoring/store/manifest", "store/ceremonies/deep/file.txt"),
    ],
)
async def test_what_no_copy_has_is_not_put_back(office: Office, name: str) -> None:
    """A recipient can seal anything: only what the manifest names comes back, and nothing at all of such a copy."""
    source = crafted(office, await office.backup(), lambda files: files.update({name: bytes(32)}))
    office.lose_everything()
    told = await office.refused(*office.restore(source))
    assert told == f"this backup holds {name}, which no key store has: `keys backup` did not make it"
    assert not office.city.store.exists()


@pytest.mark.parametrize("name", ["secrets/api/api-digest-1.key", "secrets/keys/audit-mac-1.key"])
async def test_a_key_that_was_swapped_is_not_put_back(office: Office, name: str) -> None:
    """The processes' own keys are those of the manifest, or nothing comes back."""
    source = crafted(office, await office.backup(), lambda files: files.update({name: bytes(32)}))
    office.lose_everything()
    assert "of the manifest: restore it from its backup" in await office.refused(*office.restore(source))
    assert not office.city.store.exists()


async def test_a_key_that_is_missing_is_missed(office: Office) -> None:
    """A copy that lacks a key is refused as long as the other ones are not in place."""
    name = "secrets/api/audit-mac-1.key"
    source = crafted(office, await office.backup(), lambda files: files.pop(name))
    office.lose_everything()
    told = await office.refused(*office.restore(source))
    assert told == f"this backup lacks {name}, which its manifest names: `keys backup` did not make it"


async def test_who_is_no_recipient(office: Office) -> None:
    """The refusal names everybody who can open it."""
    await office.done("backup", "--to", f"{office.folder}/a.backup", "--for", "ben")
    source = office.folder / "a.backup"
    office.lose_everything()
    told = await office.refused(*office.restore(source))
    assert told.endswith("does not open with this key: take the key that ben had when it was made")


# --- older than the database ---


async def test_going_on_from_an_older_copy(office: Office) -> None:
    """Asked for, and by an officer of that time: states come from the database; once more says the same."""
    source = await office.backup()
    await office.done("rotate", "--purpose", "manifest-signing")
    version = office.city.keys.manifest.version
    office.lose_everything()
    assert "which this database has seen" in await office.refused(*office.restore(source))

    for _ in range(2):
        told = await office.done(*office.restore(source, "--older"))
        assert told.startswith(f"The key store is back, at manifest {version + 1}.")
    assert (await office.done("verify")).startswith("6 records: 6 open, 0 do not.")
    assert office.city.keys.manifest.act == Act("catch-up", f"manifest-{version - 1}", "ada")
    assert "Generation 2 is active" in await office.done("rotate")


async def test_cut_off_before_the_database_knew(office: Office) -> None:
    """An older copy that was put back and gone on from, but not to the end: the same command finishes it."""
    source = await office.backup()
    await office.done("officer", "acknowledge", *office.officer("ben"))
    office.lose_everything()
    await office.done(*office.restore(source, "--older"))
    version = office.city.keys.manifest.version
    await office.city.owner.execute("UPDATE gateway.key_manifest SET version = version - 1")

    assert f"at manifest {version}." in await office.done(*office.restore(source, "--older"))
    assert await office.city.version_seen() == version


async def test_an_older_copy_that_lacks_a_key(office: Office) -> None:
    """It is refused before anything of it is in place, so that the newer one can be restored at once."""
    older = await office.backup()
    await office.done("rotate")
    newer = await office.backup("b.backup")
    office.lose_everything()
    told = await office.refused(*office.restore(older, "--older"))
    assert told == "this key store lacks kek 2, which is active: find a newer backup"
    assert not office.city.store.exists()
    await office.done(*office.restore(newer))


async def test_a_state_that_only_the_copy_has(office: Office) -> None:
    """Nor is one in place whose states the database contradicts."""
    await office.done("rotate")
    source = await office.backup()
    await office.done("officer", "acknowledge", *office.officer("ben"))
    await office.city.owner.execute("UPDATE gateway.key_generations SET state = 'pending' WHERE generation = 1")
    office.lose_everything()
    told = await office.refused(*office.restore(source, "--older"))
    assert told == "generation 1 is retired here and pending in the database: one of them is false"
    assert not office.city.store.exists()


async def test_older_is_no_way_around_anything(office: Office) -> None:
    """A key store that stands stays; no file and no officer are refusals with `--older`, too."""
    source = await office.backup()
    await office.done("rotate")
    stands = f"{office.city.store.directory} holds a key store: it is never overwritten; move it away first"
    assert await office.refused(*office.restore(source, "--older")) == stands
    nowhere = office.folder / "nowhere"
    assert await office.refused(*office.restore(nowhere, "--older")) == f"{nowhere} does not exist"
    assert "name the key file with --officer" in await office.refused("restore", "--from", str(source), "--older")


async def test_an_officer_who_was_none_then(office: Office) -> None:
    """Going on takes an officer whom the copy knows, and a removed one does not come back alone by it."""
    source = await office.backup()
    raw = office.opened(source)
    async with office.city.changing() as rotation:
        gone = tuple(
            msgspec.structs.replace(one, removed=office.city.now) if one.name == "ada" else one
            for one in rotation.manifest.officers
        )
        await rotation.change(
            msgspec.structs.replace(rotation.manifest, officers=gone), Act("x", "y"), office.city.now
        )
    without = crafted(office, source, lambda files: files.update(raw | {"store/manifest": manifest_of(office)}))
    await office.done("rotate", "--purpose", "hpke")
    office.lose_everything()
    assert "ada.key is no officer's key here" in await office.refused(*office.restore(without, "--older"))


def manifest_of(office: Office) -> bytes:
    """Its file."""
    return (office.city.store.directory / "manifest").read_bytes()


async def test_a_destroyed_key_does_not_come_back(office: Office) -> None:
    """What the database calls destroyed is wiped from the copy's keys as the copy goes on."""
    await office.done("rotate")
    await move_all(office.city)
    source = await office.backup()
    held = office.opened(source)
    async with office.city.changing() as rotation:
        key = rotation.manifest.key("kek", 1)
        following = rotation.manifest.moved(key, State.DESTROYED, office.city.now)
        await rotation.change(following, Act("destroy", key.id), office.city.now)
    office.lose_everything()
    await office.done(*office.restore(source, "--older"))
    assert f"store/root-1/{key.id}" in held
    assert not office.city.store.path(1, key.id).exists()
    assert held[f"store/root-1/{key.id}"] not in all_files(office.city.store.directory).values()
