"""Ceremonies around the root: `split` and `replace` it, `unlock` one of shares, `rehearse` any of it."""

import os
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from keys import roots
from keys.ceremony import CEREMONY_S, Transcript, collect, collect_secret, deal
from keys.cli.acting import ceremony_of, shown
from keys.cli.bench import AsJson, Bench, Config, ask, now, run, tell
from keys.cli.signing_in import (
    WITHOUT_REASON,
    OfficerFile,
    PassphraseFile,
    Reason,
    approved,
    ask_for,
    folder,
    sign_in,
)
from keys.errors import ActRefused, KeystoreRefused, RootRefused
from keys.files import write_private
from keys.keystore import CEREMONIES
from keys.manifest import Custodian, Manifest, RootEntry
from keys.officers import check_acknowledgement, find_officer
from keys.root import RootKey
from keys.root_agent import is_unlocked, lock, serve_unlocked
from keys.root_shares import SharesRoot, agent_path, descriptor_path, read_descriptor, write_descriptor
from keys.rotation import Rotation
from keys.states import State
from keys.terminal import Terminal

REHEARSAL = "a rehearsal, on a throw-away root: nothing of this is kept"
UNLOCKED_MINUTES = 15
UNLOCKED_MINUTES_MAX = 12 * 60

commands = typer.Typer()
ceremonies = typer.Typer(help="Ceremonies: several people, one terminal, one at a time.", no_args_is_help=True)
commands.add_typer(ceremonies, name="ceremony")

Root = Annotated[str | None, typer.Option("--root", help="The new root's URI.")]
Custodians = Annotated[
    list[str] | None, typer.Option("--custodian", help="Who gets a share: an officer's name; once for each.")
]
Threshold = Annotated[int, typer.Option(help="How many shares open the root.", min=2, max=16)]
Rehearse = Annotated[bool, typer.Option("--rehearse", help="On a throw-away root; nothing is asked for or changed.")]
Request = Annotated[str | None, typer.Option("--request", help="The approved request; now do it.")]


@ceremonies.command("split")
def split_root(
    root: Root = None,
    threshold: Threshold = 2,
    custodian: Custodians = None,
    rehearse: Rehearse = False,
    request: Request = None,
    reason: Reason = WITHOUT_REASON,
    officer: OfficerFile = None,
    passphrase_file: PassphraseFile = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Make a new root that nobody holds: custodians get a share each, any so many of which open it.

    In three steps: ask (an officer), approve (another), hold the ceremony (--request, at a terminal). Processes
    with the old root go on until they are restarted with the new one; then `keys ceremony replace --finish`.

    Example: keys ceremony split --root 'shares:/etc/gateway/root.shares?agent=/run/gateway/unlock.sock'
    --custodian ada --custodian ben --custodian cy --officer ada.key
    """
    if rehearse:
        _rehearse(threshold, custodian or ["ada", "ben", "cy"])
        return
    if request is None and roots.scheme(root or "") != "shares":
        raise RootRefused(
            "a root that is split has a URI like `shares:/etc/gateway/root.shares?agent=/run/…/unlock.sock`"
        )
    _ask_or_hold(config, root, threshold, custodian, request, reason, officer, passphrase_file, as_json)


@ceremonies.command("replace")
def replace_root(
    root: Root = None,
    threshold: Threshold = 2,
    custodian: Custodians = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="Every process has the new root: let the old one go.")
    ] = False,
    rehearse: Rehearse = False,
    request: Request = None,
    reason: Reason = WITHOUT_REASON,
    officer: OfficerFile = None,
    passphrase_file: PassphraseFile = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Move to another root of any kind, without touching a record: a new HSM, new custodians, a new passphrase.

    Ask, approve, --request as with `split`; then set keys.root, restart every process, and --finish.

    Example: keys ceremony replace --root 'pkcs11:token=new;object=root?module-path=/usr/lib/hsm.so' --officer ada.key
    """
    if rehearse:
        _rehearse(threshold, custodian or ["ada", "ben", "cy"])
    elif finish:
        gone = run(_finish(Bench.of(config)))
        tell(
            as_json,
            {"dropped": gone},
            f"Root {', '.join(map(str, gone))} opens nothing any more, but for older key backups. Now `keys backup`;"
            " then destroy what held it.",
        )
    else:
        _ask_or_hold(config, root, threshold, custodian, request, reason, officer, passphrase_file, as_json)


@ceremonies.command("unlock")
def unlock(
    minutes: Annotated[
        int, typer.Option(help="How long processes of this user may fetch it.", min=1, max=UNLOCKED_MINUTES_MAX)
    ] = UNLOCKED_MINUTES,
    rehearse: Rehearse = False,
    stop: Annotated[bool, typer.Option("--lock", help="Lock it again at once.")] = False,
    config: Config = None,
) -> None:
    """Open a root of shares for a while: custodians type theirs, and processes of this user can start.

    It stays in this process's memory only and is gone when the time is up, on Ctrl-C, and with `--lock`.

    Example: keys ceremony unlock --minutes 10
    """
    if rehearse:
        _rehearse(2, ["ada", "ben", "cy"])
        return
    bench = Bench.of(config)
    uri = bench.settings.keys.root
    if roots.scheme(uri) != "shares":
        raise RootRefused(f"keys.root is of `{roots.scheme(uri)}:`; only a root of `shares:` is unlocked")
    agent = agent_path(uri)
    if agent is None:
        raise RootRefused("keys.root names no agent to hold the root: append `?agent=/run/gateway/unlock.sock`")
    if stop:
        typer.echo("Locked." if lock(agent) else "It was locked already.")
        return
    if is_unlocked(agent):  # before anybody types a share
        raise RootRefused("the root is unlocked already: `keys ceremony unlock --lock` locks it")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the socket goes, too
    transcript = Transcript(now)
    descriptor = read_descriptor(descriptor_path(uri))
    try:
        with Terminal(time.monotonic) as terminal:
            secret = collect_secret(terminal, descriptor, transcript=transcript)
        if bench.keystore.exists():  # before `keys restore` there is none
            bench.keystore.open(SharesRoot(secret))  # the right root for this store, or nobody gets it
        transcript.note("unlocked", f"for {minutes} minutes")
    finally:
        _keep(bench, "unlock", transcript)

    def ready() -> None:
        typer.echo(f"Unlocked for {minutes} minutes. Start or restart the processes now; Ctrl-C locks it again.")

    serve_unlocked(secret, agent, minutes * 60, clock=time.monotonic, ready=ready)
    typer.echo("Locked.")


def _ask_or_hold(
    config: str | None,
    root: str | None,
    threshold: int,
    custodians: Sequence[str] | None,
    request: str | None,
    reason: str,
    officer: str | None,
    passphrase_file: str | None,
    as_json: bool,
) -> None:
    bench = Bench.of(config)
    if request is not None:
        entry = run(_hold(bench, request))
        tell(
            as_json,
            {"root": entry.number, "location": entry.location},
            f"Every key is wrapped by root {entry.number} as well. Set keys.root to it, restart every process, then:",
            "  keys ceremony replace --finish",
        )
        return
    if root is None:
        raise RootRefused("name the new root: --root URI")
    roots.provider(root)  # of a kind that there is, before two people agree on it

    async def work() -> str:
        async with bench.changing() as rotation:
            rotation.keys.require_one_root()
            payload: dict[str, str | int] = {"root": root}
            if roots.scheme(root) == "shares":
                _require_new_descriptor(rotation.manifest, descriptor_path(root))
                names = _require_custodians(rotation.manifest, custodians or [], threshold)
                payload |= {"threshold": threshold, "custodians": ",".join(names)}
            signer = sign_in(rotation.manifest, officer, passphrase_file)
            return ask_for(bench, rotation, "replace-root", payload, reason, signer)

    act_id, ceremony = run(work()), ceremony_of({"root": root})
    tell(
        as_json,
        {"act": act_id},
        f"Asked for. Another officer runs: keys approve {act_id} --officer THEIR.key",
        f"Then, within 15 minutes from now, at a terminal: keys ceremony {ceremony} --request {act_id}",
    )


async def _hold(bench: Bench, act_id: str) -> RootEntry:
    async with bench.changing() as rotation:
        if rotation.manifest.act.request == act_id and not folder(bench).find(act_id).is_done:
            folder(bench).mark_done(act_id, now())  # an interrupted run carried it out, and could not say so
            return rotation.manifest.root
        asked, approval = approved(bench, rotation, act_id, "replace-root")
        for line in shown(asked):
            typer.echo(line, err=True)
        uri, transcript = str(asked.payload["root"]), Transcript(now)
        transcript.note("request", f"{asked.id} by {asked.officer}")
        names = str(asked.payload.get("custodians", "")).split(",") if "custodians" in asked.payload else []
        threshold = int(asked.payload.get("threshold", 0))
        try:
            root = _new_root(rotation, uri, threshold, names, transcript)
            number = max(entry.number for entry in rotation.manifest.roots) + 1
            people = tuple(Custodian(name) for name in names)
            entry = RootEntry(number, roots.scheme(uri), roots.location(uri), State.ACTIVE, now(), threshold, people)
            await rotation.add_root(root, entry, approval, now())
            transcript.note("keys wrapped", f"by root {number}, manifest {rotation.manifest.version}")
        finally:
            _keep(bench, "root", transcript)
        folder(bench).mark_done(act_id, now())
        return entry


def _new_root(rotation: Rotation, uri: str, threshold: int, names: Sequence[str], transcript: Transcript) -> RootKey:
    if roots.scheme(uri) != "shares":
        try:
            root = roots.create_root(uri, ask)
        except KeystoreRefused:  # made by an interrupted run, or by the HSM's own tools
            root = roots.open_root(uri, ask)
        transcript.note("root made", roots.location(uri))
        return root
    _require_custodians(rotation.manifest, names, threshold)
    path = descriptor_path(uri)
    _require_new_descriptor(rotation.manifest, path)
    with Terminal(time.monotonic) as terminal:
        dealt = deal(terminal, threshold, names, transcript=transcript)
    write_descriptor(path, dealt.descriptor)
    return SharesRoot(dealt.secret)


async def _finish(bench: Bench) -> Sequence[int]:
    async with bench.changing() as rotation:
        if rotation.finished is not None and rotation.finished.name == "drop-root":
            dropped, when = State.DESTROYED, rotation.manifest.written
            return [root.number for root in rotation.manifest.roots if (root.state, root.since) == (dropped, when)]
        return await rotation.drop_old_roots(now())


def _require_new_descriptor(manifest: Manifest, path: Path) -> None:
    """No file stands there, nor is it where a root of this key store has its own, by whatever name."""
    own = [descriptor_path(entry.location) for entry in manifest.roots if _stands_on_shares(entry)]
    if path.resolve() in {other.resolve() for other in own}:
        raise KeystoreRefused(f"{path} describes a root of this key store: name another file for the new one")
    if os.path.lexists(path):  # it may describe the root of another store: it is left to people
        raise KeystoreRefused(
            f"{path} exists already and is never replaced: name another file, or move it away if an interrupted"
            " ceremony left it"
        )


def _stands_on_shares(root: RootEntry) -> bool:
    return root.scheme == "shares" and root.state is not State.DESTROYED


def _require_custodians(manifest: Manifest, names: Sequence[str], threshold: int) -> Sequence[str]:
    """Officers with a current acknowledgement, each once, and enough of them."""
    if len(set(names)) < len(names) or not threshold <= len(names):
        raise ActRefused(f"name at least {threshold} different custodians: --custodian NAME, once for each")
    for name in names:
        check_acknowledgement(find_officer(manifest.officers, name), now())
    return names


def _rehearse(threshold: int, names: Sequence[str]) -> None:
    """Deal and collect for practice."""
    transcript = Transcript(now)
    transcript.note("rehearsal", REHEARSAL)
    with Terminal(time.monotonic) as terminal, tempfile.TemporaryDirectory() as practice:
        terminal.say(f"This is {REHEARSAL}.")
        dealt = deal(terminal, threshold, names, transcript=transcript, deadline_s=CEREMONY_S)
        path = Path(practice) / "root.shares"
        write_descriptor(path, dealt.descriptor)
        collect(terminal, read_descriptor(path), transcript=transcript, deadline_s=CEREMONY_S)
        terminal.say("The shares open the root. It is forgotten now; burn the papers.")
    typer.echo(transcript.text(), nl=False)


def _keep(bench: Bench, kind: str, transcript: Transcript) -> None:
    """The transcript stays in the key store; it holds no secret."""
    path = bench.keystore.directory / CEREMONIES / f"{now():%Y%m%dT%H%M%S}-{kind}.txt"
    write_private(path, transcript.text().encode(), replace=True)
    typer.echo(f"The transcript is kept: {path}", err=True)
