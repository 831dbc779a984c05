"""Copies of the key store: `backup` for named officers only, each copy registered; `restore` on an empty host."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from keys import roots
from keys.backup import BYTES_MAX, new_backup_id, open_backup, read_header, require_recipients, seal_backup
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
)
from keys.errors import BackupRefused, KeystoreRefused
from keys.files import make_private_directory, read_private, write_private
from keys.keystore import MANIFEST, Keystore
from keys.manifest import Act, Backup, require_current
from keys.officers import OfficerKey, find_officer, open_officer_key
from keys.process_keys import HOLDERS, process_key_path, read_process_keys
from keys.rotation import Rotation
from keys.states import Seen, State

STORE, SECRETS = "store", "secrets"
TRIAL = "restoring"
"""A folder in the key store, where a copy is tried before it takes its place."""

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

    Example: keys restore --from /media/usb/keys-2026-11.backup --officer ada.key
    """
    bench = Bench.of(config)
    version = run(_restore(bench, Path(source), officer, passphrase_file, older=older))
    tell(as_json, {"manifest": version}, f"The key store is back, at manifest {version}. Now: `keys verify`.")


async def _backup(bench: Bench, to: Path, names: list[str]) -> Backup:
    async with bench.changing() as rotation:
        _require_elsewhere(to, bench)
        people = [find_officer(rotation.manifest.officers, name) for name in names]
        when = now()
        held = tuple(key.number for key in rotation.manifest.of("kek") if key.state is not State.DESTROYED)
        copy = Backup(new_backup_id(), when, tuple(names), held)
        require_recipients(people)
        # Registered first: a copy that nobody knows of would be worse than one that was never written.
        following = msgspec.structs.replace(rotation.manifest, backups=(*rotation.manifest.backups, copy))
        await rotation.change(following, Act("backup", copy.id), when)
        sealed = seal_backup(
            _files(bench),
            people,
            backup_id=copy.id,
            environment=rotation.manifest.environment,
            manifest_version=rotation.manifest.version,
            created=when,
        )
        try:
            write_private(to, sealed, replace=False)
        except KeystoreRefused as refused:
            line = f"{copy.id} is registered and keeps keys alive until two officers run `keys backup --forget`"
            raise BackupRefused(f"{refused}; {line}") from None
        return copy


def _require_elsewhere(to: Path, bench: Bench) -> None:
    if to.exists():
        raise KeystoreRefused(f"{to} exists already and is never replaced: name another file")
    if not os.access(to.parent, os.W_OK | os.X_OK):
        raise KeystoreRefused(f"{to.parent} is no folder in which this user can write: name another place")
    if to.resolve().is_relative_to(bench.keystore.directory.resolve()):
        raise BackupRefused(f"{to} lies in the key store itself: name a place on another medium")


def _files(bench: Bench) -> Mapping[str, bytes]:
    store = bench.keystore.directory
    wanted = [path for folder in ("root-*", "acts", "ceremonies") for path in store.glob(f"{folder}/*")]
    files = {f"{STORE}/{path.relative_to(store)}": read_private(path) for path in (store / MANIFEST, *wanted)}
    for process, purpose in HOLDERS:
        for number in read_process_keys(bench.secrets, process, purpose):
            path = process_key_path(bench.secrets, process, purpose, number)
            files[f"{SECRETS}/{path.relative_to(bench.secrets)}"] = read_private(path)
    return files


async def _restore(
    bench: Bench, source: Path, officer: str | None, passphrase_file: str | None, *, older: bool
) -> int:
    if bench.keystore.exists() and older:
        return await _catch_up(bench, officer, passphrase_file)
    if officer is None:
        raise BackupRefused("a backup is opened by an officer for whom it was made: name the key file with --officer")
    files = _open_for(
        read_private(source, BYTES_MAX), open_officer_key(Path(officer), passphrase(officer, passphrase_file))
    )
    async with bench.table() as table:
        await table.lock()
        _put_back(bench, files, await table.seen(), older=older)
    if older:
        return await _catch_up(bench, officer, passphrase_file)
    async with bench.changing() as rotation:
        if rotation.finished is None:
            await rotation.settle(now())
        return rotation.manifest.version


def _put_back(bench: Bench, files: Mapping[str, bytes], seen: Seen, *, older: bool) -> None:
    """Try the copy with the root and against the database, in a folder of its own; only then put it in its place."""
    store = bench.keystore.directory
    trial = Keystore(store / TRIAL, bench.keystore.environment)
    # Where this very copy stands already, an interrupted run has put it there.
    if bench.keystore.exists() and read_private(store / MANIFEST) != files.get(f"{STORE}/{MANIFEST}"):
        raise KeystoreRefused(f"{store} holds a key store: it is never overwritten; move it away first")
    if not seen.version:
        raise KeystoreRefused("this database knows of no key store: restore the database from its backup first")
    make_private_directory(store)
    _write(files, {STORE: trial.directory})
    manifest = trial.open(roots.open_root(bench.settings.keys.root, ask)).manifest
    require_current(manifest.stands, manifest.written, Seen() if older else seen, now())
    _write(files, {STORE: store, SECRETS: bench.secrets})
    shutil.rmtree(trial.directory)


def _write(files: Mapping[str, bytes], places: Mapping[str, Path]) -> None:
    for place in places.values():
        make_private_directory(place)
    # The manifest last: until then there is no key store here, and running this again starts over.
    for name in sorted(files, key=lambda name: name == f"{STORE}/{MANIFEST}"):
        top, _, rest = name.partition("/")
        if top not in {STORE, SECRETS}:
            raise BackupRefused("this backup holds what no key store has: it was not made by `keys backup`")
        if top in places:
            write_private(places[top] / rest, files[name], replace=True)


async def _catch_up(bench: Bench, officer: str | None, passphrase_file: str | None) -> int:
    async with bench.table() as table:
        rotation = Rotation(bench.open(), table, bench.pen, bench.secrets)
        if rotation.manifest.version < (await table.seen()).version:
            _, known = sign_in(rotation.manifest, officer, passphrase_file)
            await rotation.catch_up(known.name, now())
        return rotation.manifest.version


def _open_for(raw: bytes, key: OfficerKey) -> Mapping[str, bytes]:
    refused = BackupRefused("this backup has no recipient")
    for recipient in read_header(raw).recipients:
        try:
            return open_backup(raw, recipient.name, key)
        except BackupRefused as error:
            refused = error
    raise refused


async def _ask_to_forget(
    bench: Bench, backup_id: str, reason: str, officer: str | None, passphrase_file: str | None
) -> str:
    async with bench.changing() as rotation:
        require_backup(rotation.manifest, backup_id)
        signer = sign_in(rotation.manifest, officer, passphrase_file)
        return ask_for(bench, rotation, "forget-backup", {"backup": backup_id}, reason, signer)
