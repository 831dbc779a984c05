"""Copies of the key store: `backup` for named officers only, each copy registered; `restore` on an empty host."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from keys import roots
from keys.backup import BYTES_MAX, new_backup_id, open_backup, require_recipients, seal_backup
from keys.cli.acting import require_backup
from keys.cli.bench import AsJson, Bench, Config, ask, now, run, tell
from keys.cli.signing_in import (
    WITHOUT_REASON,
    OfficerFile,
    PassphraseFile,
    Reason,
    ask_for,
    passphrase,
    sign_in,
    who_has,
)
from keys.errors import BackupRefused, KeystoreRefused, RootRefused, RootUnavailable
from keys.files import read_private, remove_tree, write_private
from keys.keystore import ACTS, CEREMONIES, MANIFEST, RESTORING, Keystore, OpenKeystore
from keys.manifest import KEYSTORE, Act, Backup, Manifest, claim_of, require_current, sign_manifest
from keys.officers import find_officer, open_officer_key
from keys.process_keys import process_key_path
from keys.root import RootKey
from keys.root_shares import descriptor_path
from keys.rotation import CATCH_UP, Rotation, caught_up
from keys.states import Seen, State

STORE, SECRETS = "store", "secrets"
MANIFEST_NAME = f"{STORE}/{MANIFEST}"
DESCRIPTOR = "root.shares"
"""What describes the shares of the root in use. It is no secret, and without it shares open nothing."""
EVIDENCE = re.compile(rf"{STORE}/({ACTS}/act_[0-9a-f]{{32}}\.(request|approval|done)|{CEREMONIES}/[\w-]+\.txt)")
"""What belongs to a key store and is no key; a draft that a killed command has left is none of it."""

commands = typer.Typer()


@commands.command()
def backup(
    to: Annotated[str | None, typer.Option("--to", help="The file to write; it must not exist.")] = None,
    recipients: Annotated[
        list[str] | None, typer.Option("--for", help="An officer who can open it; once for each.")
    ] = None,
    forget: Annotated[str | None, typer.Option("--forget", help="Ask to count this copy as destroyed.")] = None,
    reason: Reason = WITHOUT_REASON,
    officer: OfficerFile = None,
    passphrase_file: PassphraseFile = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Copy the key store for named officers only. The copy is registered: while it exists, it keeps keys alive.

    It holds wrapped keys, and the processes' own: whoever opens it still needs the root. Keep it apart from both.

    Example: keys backup --to /media/usb/keys-2026-11.backup --for ada --for ben
    """
    bench = Bench.of(config)
    if forget is not None:
        if to is not None or recipients:
            raise BackupRefused("one copy is made, or one is forgotten: --forget takes neither --to nor --for")
        act_id = run(_ask_to_forget(bench, forget, reason, officer, passphrase_file))
        tell(as_json, {"act": act_id}, f"Asked for. Another officer runs: keys approve {act_id} --officer THEIR.key")
        return
    if to is None or not recipients:
        raise BackupRefused("say where and for whom: keys backup --to FILE --for OFFICER")
    copy = run(_backup(bench, Path(to).absolute(), recipients))
    told = {"id": copy.id, "file": to, "generations": copy.generations, "recipients": copy.recipients}
    tell(as_json, told, f"{copy.id} is written to {to}, for {', '.join(copy.recipients)}.")


@commands.command()
def restore(
    source: Annotated[str, typer.Option("--from", help="The backup file.")],
    older: Annotated[
        bool, typer.Option("--older", help="Go on although the database has seen a newer key store.")
    ] = False,
    officer: OfficerFile = None,
    passphrase_file: PassphraseFile = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Put a key store back on a host that has none, then check it with the root and bring the database up to it.

    Restore the database first, and have the root at hand: with one of the three missing nothing opens. A backup older
    than the database is refused; where no newer one is left, run this again with `--older`: it goes on if the backup
    lacks no key that the database needs, and takes their states from there. Then look through `keys officer list`.
    The shares of a split root are asked for here, or the root is unlocked before; its description is in the backup.

    Example: keys restore --from /media/usb/keys-2026-11.backup --officer ada.key
    """
    bench = Bench.of(config)
    version = run(_restore(bench, Path(source), officer, passphrase_file, older=older))
    tell(as_json, {"manifest": version}, f"The key store is back, at manifest {version}. Now: `keys verify`.")


async def _backup(bench: Bench, to: Path, names: list[str]) -> Backup:
    async with bench.changing() as rotation:
        _require_place(to, bench)
        people = [find_officer(rotation.manifest.officers, name) for name in names]
        require_recipients(people)
        when, manifest = now(), rotation.manifest
        held = tuple(key.number for key in manifest.of("kek") if key.state is not State.DESTROYED)
        standing = tuple(root.number for root in manifest.roots if root.state is not State.DESTROYED)
        copy = Backup(new_backup_id(), when, tuple(names), held, roots=standing)
        # What was said to be destroyed leaves the list here: its evidence is the act for two.
        kept = (backup for backup in manifest.backups if backup.forgotten is None)
        following, act = msgspec.structs.replace(manifest, backups=(*kept, copy)), Act("backup", copy.id)
        published = rotation.keys.next(following, act, when)
        sealed = seal_backup(
            _files(bench, rotation.keys) | {MANIFEST_NAME: sign_manifest(published, rotation.keys.signing)},
            people,
            backup_id=copy.id,
            environment=manifest.environment,
            manifest_version=published.version,
            created=when,
        )
        # Registered when only the writing is left, and before it: a copy that nobody knows of would be worse.
        await rotation.change(following, act, when)
        try:
            write_private(to, sealed, replace=False)
        except KeystoreRefused as refused:
            line = f"{copy.id} is registered and keeps keys alive until two officers run `keys backup --forget`"
            raise BackupRefused(f"{refused}; {line}") from None
        return copy


def _require_place(to: Path, bench: Bench) -> None:
    """Try the place before anything is registered."""
    if to.resolve().is_relative_to(bench.keystore.directory.resolve()):
        raise BackupRefused(f"{to} lies in the key store itself: name a place on another medium")
    if not to.parent.is_dir():
        raise BackupRefused(f"{to.parent} is no folder: is the medium there?")
    write_private(to, b"", replace=False)
    to.unlink()


def _files(bench: Bench, keys: OpenKeystore) -> dict[str, bytes]:
    """What goes into a copy, by its name there."""
    store, root = bench.keystore.directory, keys.manifest.root
    around = {
        f"{STORE}/{path.relative_to(store)}": path for at in (ACTS, CEREMONIES) for path in store.glob(f"{at}/*")
    }
    paths = _named(keys, bench.secrets) | {name: path for name, path in around.items() if EVIDENCE.fullmatch(name)}
    uri = bench.settings.keys.root if keys.root_number == root.number else root.location
    if roots.scheme(uri) == "shares":
        paths[DESCRIPTOR] = descriptor_path(uri)
    return {name: read_private(path) for name, path in paths.items()}


def _named(keys: OpenKeystore, secrets: Path) -> dict[str, Path]:
    """The manifest and every key that it names, in the store and of the processes, by their names in a copy."""
    store = keys.store.directory
    own = [
        process_key_path(secrets, key.holder, key.purpose, key.number)
        for key in keys.manifest.keys
        if key.holder != KEYSTORE and key.state is not State.DESTROYED
    ]
    named = {f"{STORE}/{path.relative_to(store)}": path for path in (store / MANIFEST, *keys.named())}
    return named | {f"{SECRETS}/{path.relative_to(secrets)}": path for path in own}


async def _restore(
    bench: Bench, source: Path, officer: str | None, passphrase_file: str | None, *, older: bool
) -> int:
    if officer is None:
        raise BackupRefused("a backup is opened by an officer for whom it was made: name the key file with --officer")
    key = open_officer_key(Path(officer), passphrase(officer, passphrase_file))
    files = open_backup(read_private(source, BYTES_MAX), key)
    if older and _is_caught_up(bench, files):
        async with bench.changing() as rotation:
            return rotation.manifest.version
    async with bench.table() as table:
        await table.lock()
        seen = await table.seen()
        _require_room(bench, files, seen)
        root = _open_root(bench, files)
        with _trying(bench, files) as (trial, secrets):
            manifest = _require_whole(trial.open(root), secrets, files)
            require_current(manifest.stands, manifest.written, Seen() if older else seen, now())
            behind = manifest.version < seen.version or manifest.stands.signing_key < seen.signing_key
            if behind:
                actor = who_has(manifest, key, officer).name
                caught_up(manifest, await table.mirrored(), now())
        _put_back(bench, files)
        rotation = Rotation(bench.keystore.open(root), table, bench.pen, bench.secrets)
        if behind:
            await rotation.catch_up(actor, now())
        elif (await rotation.begin(now())).finished is None:
            await rotation.settle(now())
        return rotation.manifest.version


def _is_caught_up(bench: Bench, files: Mapping[str, bytes]) -> bool:
    """Whether an earlier run has put this copy here and gone on from it; cut off then, any command finishes it."""
    if not bench.keystore.exists():
        return False
    here, copy = (
        claim_of(raw) for raw in (read_private(bench.keystore.directory / MANIFEST), files.get(MANIFEST_NAME, b""))
    )
    return (here.act.name, here.act.subject) == (CATCH_UP, f"manifest-{copy.version}")


def _require_room(bench: Bench, files: Mapping[str, bytes], seen: Seen) -> None:
    store = bench.keystore.directory
    # Where this very copy stands already, an interrupted run has put it there.
    if bench.keystore.exists() and read_private(store / MANIFEST) != files.get(MANIFEST_NAME):
        raise KeystoreRefused(f"{store} holds a key store: it is never overwritten; move it away first")
    if not seen.version:
        raise KeystoreRefused("this database knows of no key store: restore the database from its backup first")


def _open_root(bench: Bench, files: Mapping[str, bytes]) -> RootKey:
    """The root, after what describes its shares was put where keys.root says, if nothing lies there."""
    uri, laid = bench.settings.keys.root, None
    if roots.scheme(uri) == "shares" and DESCRIPTOR in files and not os.path.lexists(descriptor_path(uri)):
        laid = descriptor_path(uri)
        write_private(laid, files[DESCRIPTOR], replace=False)
    try:
        return roots.open_root(uri, ask)
    except RootUnavailable:  # it is needed to unlock the root
        raise
    except RootRefused:
        if laid:
            laid.unlink()
        raise


@contextmanager
def _trying(bench: Bench, files: Mapping[str, bytes]) -> Iterator[tuple[Keystore, Path]]:
    """A copy in a folder of its own, where it is tried; whatever comes of it, nothing of it stays there."""
    folder = bench.keystore.directory / RESTORING
    remove_tree(folder)
    try:
        for name, content in files.items():
            write_private(folder / name, content, replace=False)
        yield Keystore(folder / STORE, bench.keystore.environment), folder / SECRETS
    finally:
        remove_tree(folder)


def _require_whole(keys: OpenKeystore, secrets: Path, files: Mapping[str, bytes]) -> Manifest:
    """The manifest of a copy that holds every key that it names, as it names it, and nothing that is none of ours."""
    named = _named(keys, secrets).keys()
    for name in sorted(named - files.keys()):
        raise BackupRefused(f"this backup lacks {name}, which its manifest names: `keys backup` did not make it")
    for name in sorted(files.keys() - named):
        if name != DESCRIPTOR and not EVIDENCE.fullmatch(name):
            raise BackupRefused(f"this backup holds {name}, which no key store has: `keys backup` did not make it")
    keys.require_intact(secrets)
    return keys.manifest


def _put_back(bench: Bench, files: Mapping[str, bytes]) -> None:
    places = {STORE: bench.keystore.directory, SECRETS: bench.secrets}
    # The manifest last: until then there is no key store here, and running this again starts over.
    for name in sorted(files, key=lambda name: name == MANIFEST_NAME):
        top, _, rest = name.partition("/")
        if top in places:
            write_private(places[top] / rest, files[name], replace=True)


async def _ask_to_forget(
    bench: Bench, backup_id: str, reason: str, officer: str | None, passphrase_file: str | None
) -> str:
    async with bench.changing() as rotation:
        require_backup(rotation.manifest, backup_id)
        signer = sign_in(rotation.manifest, officer, passphrase_file)
        return ask_for(bench, rotation, "forget-backup", {"backup": backup_id}, reason, signer)
