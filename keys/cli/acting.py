"""Acts for two: `destroy` and `compromise` ask, `approve` carries out. One officer signs each, and not the same."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Annotated

import msgspec
import typer

from keys import acts, roots
from keys.acts import ActName, ActRequest
from keys.cli.bench import AsJson, Bench, Config, DryRun, now, run, tell
from keys.cli.signing_in import (
    WITHOUT_REASON,
    OfficerFile,
    PassphraseFile,
    Reason,
    approved,
    ask_for,
    confirm,
    folder,
    require_by_two,
    sign_in,
)
from keys.errors import ActRefused, KeyRefused, KeystoreRefused, OfficerRefused, UnknownKey
from keys.manifest import Act, Manifest
from keys.officers import Officer, OfficerKey, find_officer
from keys.rotation import Approval, Rotation
from keys.states import State, require_move

Purposes = {"kek", "fingerprint", "hpke"}

commands = typer.Typer()


@commands.command()
def destroy(
    number: Annotated[int, typer.Argument(help="The generation, or the version of another key.", min=1)],
    purpose: Annotated[str, typer.Option(help="kek, fingerprint or hpke.")] = "kek",
    despite_backups: Annotated[
        bool, typer.Option("--despite-backups", help="Although a backup of the database or of keys may need it.")
    ] = False,
    reason: Reason = WITHOUT_REASON,
    officer: OfficerFile = None,
    passphrase_file: PassphraseFile = None,
    config: Config = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Ask for the destruction of a key on which nothing depends any more; another officer approves it.

    Refused while records or cards depend on it, while a database backup may be restored (keys.recovery_days after the
    last record left a generation, or after another key was retired), while a key backup holds it. What was erased
    before becomes unrecoverable from every backup. There is no way back.

    Example: keys destroy 1 --reason 'monthly' --officer ada.key && keys approve act_… --officer ben.key
    """
    if purpose not in Purposes:
        raise KeyRefused(f"--purpose is one of {', '.join(sorted(Purposes))}")

    async def work(bench: Bench) -> str:
        async with bench.changing(dry_run=dry_run) as rotation:
            key = rotation.manifest.key(purpose, number)  # type: ignore[arg-type] # looked at above
            require_move(key.title, key.state, State.DESTROYED)
            await rotation.require_unused(key)
            if not despite_backups:
                await rotation.require_unrecoverable(key, _recovery(bench), now())
            if dry_run:
                return ""
            signer = sign_in(rotation.manifest, officer, passphrase_file)
            payload: dict[str, str | int] = {
                "purpose": purpose,
                "number": number,
                "despite_backups": int(despite_backups),
                "recovery_days": _recovery(bench).days,
            }
            return ask_for(bench, rotation, "destroy", payload, reason, signer)

    _asked(run(work(Bench.of(config))), as_json)


@commands.command()
def compromise(
    generation: Annotated[int, typer.Argument(help="Its number.", min=1)],
    reason: Reason = WITHOUT_REASON,
    officer: OfficerFile = None,
    passphrase_file: PassphraseFile = None,
    config: Config = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Ask to declare a generation compromised; approved, it protects nothing new from that moment on.

    Then `gateway reseal` gives every record that it could open a new data key and a new ciphertext.

    Example: keys compromise 3 --reason 'backup tape lost' --officer ada.key && keys approve act_… --officer ben.key
    """

    async def work(bench: Bench) -> str:
        async with bench.changing(dry_run=dry_run) as rotation:
            key = rotation.manifest.key("kek", generation)
            require_move(key.title, key.state, State.COMPROMISED)
            if key.state is State.ACTIVE:  # then another one has to be made
                rotation.keys.require_one_root()
            exposed = await rotation.table.exposed([generation])
            typer.echo(f"{exposed:,} records would need new data keys.", err=True)
            if dry_run:
                return ""
            signer = sign_in(rotation.manifest, officer, passphrase_file)
            return ask_for(bench, rotation, "compromise", {"number": generation}, reason, signer)

    _asked(run(work(Bench.of(config))), as_json)


@commands.command()
def approve(
    act_id: Annotated[
        str | None, typer.Argument(help="The request's id; without it, those that wait are listed.")
    ] = None,
    officer: OfficerFile = None,
    passphrase_file: PassphraseFile = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask once more at a terminal.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Approve another officer's request, within 15 minutes, and carry it out.

    Example: keys approve act_0f4c… --officer ben.key
    """
    bench = Bench.of(config)
    if act_id is None:
        run(_list_waiting(bench, as_json))
        return
    asked, told = run(_approve(bench, act_id, officer, passphrase_file, yes=yes))
    tell(as_json, {"act": asked.id, "name": asked.act, "done": told is not None}, told or _next_step(asked))


async def _approve(
    bench: Bench, act_id: str, key_file: str | None, passphrase_file: str | None, *, yes: bool
) -> tuple[ActRequest, str | None]:
    async with bench.changing() as rotation:
        kept, officers = folder(bench), rotation.manifest.officers
        stored = kept.find(act_id)
        asked = acts.open_request(stored.request, officers, now())
        key, officer = sign_in(rotation.manifest, key_file, passphrase_file)
        if rotation.manifest.act.request == act_id and not stored.is_done:
            kept.mark_done(act_id, now())  # an interrupted run carried it out, and could not say so
            return asked, f"{act_id} was carried out by a run that was interrupted then. It is complete."
        if stored.approval is None:
            # Tried before anybody is asked: what is void already is not worth an answer.
            trial = _approval(stored.request, officers, key, officer)
            require_by_two(bench, rotation, stored.request, trial, asked.act)
            for line in shown(asked):
                typer.echo(line, err=True)
            confirm(f"Approve as {officer.name}?", yes=yes)
            kept.put_approval(_approval(stored.request, officers, key, officer))
        checked, approval = approved(bench, rotation, act_id, asked.act)
        if asked.act not in CARRY_OUT:
            return asked, None
        told = await CARRY_OUT[asked.act](bench, rotation, checked, approval)
        kept.mark_done(act_id, now())
        return asked, told


def _approval(request: str, officers: Sequence[Officer], key: OfficerKey, officer: Officer) -> str:
    return acts.approve(request, officers, key, officer.name, now())


def shown(asked: ActRequest) -> list[str]:
    """A request in words."""
    what = ", ".join(f"{name} {value}" for name, value in asked.payload.items())
    return [
        f"{asked.officer} asks to {asked.act} in {asked.environment}: {what}",
        f"  reason: {asked.reason}",
        f"  asked {asked.requested:%Y-%m-%d %H:%M:%S} UTC, ends {asked.expires:%H:%M:%S}",
    ]


async def _list_waiting(bench: Bench, as_json: bool) -> None:
    async with bench.reading() as (_, keys):
        manifest, kept, waiting, void = keys.manifest, folder(bench), [], []
        for act_id in kept.pending(now()):
            try:
                asked = acts.open_request(kept.find(act_id).request, manifest.officers, now())
                acts.require_unchanged(asked, manifest.version)
                waiting.append(asked)
            except (ActRefused, KeystoreRefused) as refused:  # one bad file hides no good one
                void.append(f"{act_id} is void: {refused}")
    for line in void:
        typer.echo(line, err=True)
    told = [
        {"id": asked.id, "act": asked.act, "payload": asked.payload, "officer": asked.officer} for asked in waiting
    ]
    lines = [line for asked in waiting for line in (asked.id, *shown(asked))]
    tell(as_json, {"waiting": told}, *(lines or ["Nothing waits for approval."]))


# --- what each act does once it is approved ---

CarryOut = Callable[[Bench, Rotation, ActRequest, Approval], Awaitable[str]]


async def _destroy(bench: Bench, rotation: Rotation, asked: ActRequest, approval: Approval) -> str:
    purpose, number = str(asked.payload["purpose"]), int(asked.payload["number"])
    # The longer of what the first officer signed and what is configured here: nobody shortens it alone.
    recovery = max(_recovery(bench), timedelta(days=int(asked.payload["recovery_days"])))
    key = await rotation.destroy(purpose, number, approval, recovery, now())  # type: ignore[arg-type]
    return f"{key.title.capitalize()} is destroyed. The request and its approval are kept as {asked.id}."


async def _compromise(_bench: Bench, rotation: Rotation, asked: ActRequest, approval: Approval) -> str:
    key = await rotation.compromise(int(asked.payload["number"]), approval, now())
    active = rotation.manifest.active("kek").number
    return f"{key.title.capitalize()} is compromised; generation {active} is active. Now: `gateway reseal`."


async def _add_officer(_bench: Bench, rotation: Rotation, asked: ActRequest, approval: Approval) -> str:
    given = {name: str(value) for name, value in asked.payload.items()}
    added = Officer(name=given["name"], verify=given["verify"], receive=given["receive"], added=now())
    await rotation.change(with_officer(rotation.manifest, added), _act("add-officer", added.name, approval), now())
    return f"{added.name} is an officer."


async def _remove_officer(_bench: Bench, rotation: Rotation, asked: ActRequest, approval: Approval) -> str:
    name, when = str(asked.payload["name"]), now()
    require_two_left(rotation.manifest, name)
    gone = msgspec.structs.replace(find_officer(rotation.manifest.officers, name), removed=when)
    officers = tuple(gone if o.name == name and o.removed is None else o for o in rotation.manifest.officers)
    # Whoever leaves takes along what they know: each root of which they hold a share says so until it is replaced.
    roots = tuple(
        msgspec.structs.replace(
            root,
            custodians=tuple(
                msgspec.structs.replace(c, left=c.left or when) if c.name == name else c for c in root.custodians
            ),
        )
        for root in rotation.manifest.roots
    )
    following = msgspec.structs.replace(rotation.manifest, officers=officers, roots=roots)
    await rotation.change(following, _act("remove-officer", name, approval), when)
    held = [
        root.number for root in roots if root.state is not State.DESTROYED and any(c.left for c in root.custodians)
    ]
    more = f" They hold a share of root {held[-1]}: `keys ceremony replace`." if held else ""
    return f"{name} is no officer any more.{more}"


async def _forget_backup(_bench: Bench, rotation: Rotation, asked: ActRequest, approval: Approval) -> str:
    backup_id, when = str(asked.payload["backup"]), now()
    require_backup(rotation.manifest, backup_id)
    backups = tuple(
        msgspec.structs.replace(b, forgotten=when) if b.id == backup_id else b for b in rotation.manifest.backups
    )
    following = msgspec.structs.replace(rotation.manifest, backups=backups)
    await rotation.change(following, _act("forget-backup", backup_id, approval), when)
    return f"{backup_id} counts as destroyed."


CARRY_OUT: Mapping[ActName, CarryOut] = {
    "destroy": _destroy,
    "compromise": _compromise,
    "add-officer": _add_officer,
    "remove-officer": _remove_officer,
    "forget-backup": _forget_backup,
}
"""A change of the root is carried out by its ceremony; a grant to staff by `gateway staff add`, in the database."""


def with_officer(manifest: Manifest, added: Officer) -> Manifest:
    """The next manifest, with one more officer; raises `KeyRefused` where the name or the key is known."""
    require_unknown(manifest, added.name, added.verify)
    return msgspec.structs.replace(manifest, officers=(*manifest.officers, added))


def require_unknown(manifest: Manifest, name: str, verify: str = "") -> None:
    """Raises `KeyRefused` where an officer has this name or this public key."""
    for officer in manifest.officers:
        if officer.removed is None and (officer.name == name or officer.verify == verify):
            raise KeyRefused(f"{officer.name} is an officer already")


def require_two_left(manifest: Manifest, name: str) -> None:
    """Refuse to remove an officer after whom nobody could ask and have it approved; raises `OfficerRefused`."""
    leaving = find_officer(manifest.officers, name)
    if len([officer for officer in manifest.officers if officer.removed is None and officer != leaving]) < 2:  # noqa: PLR2004
        raise OfficerRefused(
            f"without {name} there are fewer than two officers: `keys officer add` another one first"
        )


def require_backup(manifest: Manifest, backup_id: str) -> None:
    """Raises `UnknownKey` unless this backup is registered."""
    if not any(backup.id == backup_id and backup.forgotten is None for backup in manifest.backups):
        raise UnknownKey(f"no backup {backup_id} is registered: `keys inventory` lists them")


def _asked(act_id: str, as_json: bool) -> None:
    if not act_id:
        tell(as_json, {"act": None}, "Nothing stands in the way. Nothing was asked for.")
        return
    line = f"Asked for. Another officer approves it within 15 minutes: keys approve {act_id} --officer THEIR.key"
    tell(as_json, {"act": act_id}, line)


def _next_step(asked: ActRequest) -> str:
    if asked.act == "grant-staff":
        return f"Approved. Now the account: gateway staff add --request {asked.id}"
    return f"Approved. Now the ceremony: keys ceremony {ceremony_of(asked.payload)} --request {asked.id}"


def ceremony_of(payload: Mapping[str, str | int]) -> str:
    """Which command holds the ceremony of a new root."""
    return "split" if roots.scheme(str(payload["root"])) == "shares" else "replace"


def _act(name: str, subject: str, approval: Approval) -> Act:
    return Act(name, subject, approval.actor, approval.request)


def _recovery(bench: Bench) -> timedelta:
    return timedelta(days=bench.settings.keys.recovery_days)
