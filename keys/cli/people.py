"""Officers: `officer add`, `list`, `remove`, `acknowledge`."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from keys.cli.acting import require_two_left, require_unknown, with_officer
from keys.cli.bench import AsJson, Bench, Config, ask, now, run, tell
from keys.cli.signing_in import (
    WITHOUT_REASON,
    OfficerFile,
    PassphraseFile,
    Reason,
    ask_for,
    passphrase,
    require_somebody,
    sign_in,
)
from keys.errors import OfficerRefused
from keys.files import read_private_line
from keys.manifest import Act
from keys.officers import (
    Officer,
    OfficerKey,
    acknowledge,
    create_officer_key,
    find_officer,
    officer_of,
    open_officer_key,
    require_name,
    with_acknowledgement,
)
from keys.passphrase import new_passphrase

FOUNDERS = 2
"""So many officers are ever added by whoever holds the root; each one after them takes two officers."""

commands = typer.Typer()
officers = typer.Typer(help="Officers: who may ask for, and approve, what takes two.", no_args_is_help=True)
commands.add_typer(officers, name="officer")


@officers.command("add")
def add(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits, `.`, `_`, `-`.")],
    key: Annotated[str, typer.Option("--key", help="Their key file; made where there is none.")],
    new_passphrase_file: Annotated[
        str | None, typer.Option("--key-passphrase-file", help="A file with its passphrase; else they are asked.")
    ] = None,
    acknowledged: Annotated[
        bool, typer.Option("--acknowledge", help="The first two acknowledge their duties right now, with this key.")
    ] = False,
    reason: Reason = WITHOUT_REASON,
    officer: OfficerFile = None,
    passphrase_file: PassphraseFile = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Register an officer's public key. The first two are simply added; each later one takes two officers.

    With it they sign requests and approvals, hold shares of a root, and open backups made for them.

    Example: keys officer add ada --key /media/ada/ada.key --acknowledge
    """

    async def work(bench: Bench) -> tuple[Officer, str]:
        async with bench.changing() as rotation:
            known, finished = rotation.manifest.officers, rotation.finished
            if finished is not None and (finished.name, finished.subject) == ("add-officer", name):
                return find_officer(known, name), ""
            # All that can be refused is, before a key file is made, which would stay.
            require_name(name)
            require_unknown(rotation.manifest, name)
            # Whoever was removed counts as a founder, too.
            signer = sign_in(rotation.manifest, officer, passphrase_file) if len(known) >= FOUNDERS else None
            opened = _key_of(key, new_passphrase_file)
            added = officer_of(name, opened, now())
            if acknowledged:
                added = with_acknowledgement(added, acknowledge(opened, name, now()), now())
            following = with_officer(rotation.manifest, added)
            if signer is not None:
                payload = {"name": name, "verify": added.verify, "receive": added.receive}
                return added, ask_for(bench, rotation, "add-officer", payload, reason, signer)
            await rotation.change(following, Act("add-officer", name), now())
            return added, ""

    added, act_id = run(work(Bench.of(config)))
    told = {"name": added.name, "act": act_id or None, "verify": added.verify}
    lines = [f"{added.name} is an officer; public key {added.verify[:16]}…"]
    if act_id:
        lines = [f"Asked for. Another officer runs: keys approve {act_id} --officer THEIR.key"]
        lines.append(f"Then {added.name} acknowledges: keys officer acknowledge --officer {key}")
    tell(as_json, told, *lines)


@officers.command("list")
def show(config: Config = None, as_json: AsJson = False) -> None:
    """List officers, present and past.

    Example: keys officer list
    """

    async def work(bench: Bench) -> tuple[Officer, ...]:
        async with bench.reading() as (_, keys):
            return keys.manifest.officers

    known = run(work(Bench.of(config)))
    if as_json:
        tell(True, {"officers": msgspec.to_builtins(known)})
        return
    table = Table("officer", "added", "acknowledged", "removed", "key")
    for o in known:
        dates = (f"{day:%Y-%m-%d}" if day else "" for day in (o.added, o.acknowledged, o.removed))
        table.add_row(o.name, *dates, o.verify[:16])
    Console().print(table)


@officers.command("remove")
def remove(
    name: Annotated[str, typer.Argument(help="Who leaves.")],
    reason: Reason = WITHOUT_REASON,
    officer: OfficerFile = None,
    passphrase_file: PassphraseFile = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Ask to remove an officer; each root of which they hold a share is marked until it is replaced.

    Example: keys officer remove cy --reason 'left the city' --officer ada.key
    """

    async def work(bench: Bench) -> str:
        async with bench.changing() as rotation:
            require_two_left(rotation.manifest, name)
            signer = sign_in(rotation.manifest, officer, passphrase_file)
            return ask_for(bench, rotation, "remove-officer", {"name": name}, reason, signer)

    act_id = run(work(Bench.of(config)))
    tell(as_json, {"act": act_id}, f"Asked for. Another officer runs: keys approve {act_id} --officer THEIR.key")


@officers.command("acknowledge")
def acknowledge_duties(
    officer: OfficerFile = None,
    passphrase_file: PassphraseFile = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Acknowledge the duties of an officer, once a year, with a signature. Ceremonies ask for it.

    Example: keys officer acknowledge --officer ada.key
    """

    async def work(bench: Bench) -> Officer:
        async with bench.changing() as rotation:
            key, known = sign_in(rotation.manifest, officer, passphrase_file)
            renewed = with_acknowledgement(known, acknowledge(key, known.name, now()), now())
            changed = tuple(renewed if o == known else o for o in rotation.manifest.officers)
            following = msgspec.structs.replace(rotation.manifest, officers=changed)
            await rotation.change(following, Act("acknowledge", known.name, known.name), now())
            return renewed

    renewed = run(work(Bench.of(config)))
    told = {"name": renewed.name, "acknowledged": f"{renewed.acknowledged:%Y-%m-%d}"}
    tell(as_json, told, f"{renewed.name} has acknowledged the duties, for a year.")


def _key_of(path: str, passphrase_file: str | None) -> OfficerKey:
    """The officer's private key: opened where it exists, made where it does not."""
    if Path(path).exists():
        return open_officer_key(Path(path), passphrase(path, passphrase_file, "--key-passphrase-file"))
    if not Path(path).is_absolute() and not Path(path).parent.is_dir():
        raise OfficerRefused(f"{path} lies in no folder: name where the key file is to be made")
    if passphrase_file:
        return create_officer_key(Path(path), read_private_line(Path(passphrase_file)))
    require_somebody(f"passphrase of {path}", "--key-passphrase-file")
    return create_officer_key(Path(path), new_passphrase(ask, path))
