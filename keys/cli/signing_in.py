"""An officer at the keyboard: whose key file this is, and acts for two, asked for by one and approved by another."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from keys import acts
from keys.acts import ActFolder, ActName, ActRequest
from keys.cli.bench import Bench, ask, now
from keys.errors import ActRefused, OfficerRefused
from keys.files import read_private_line
from keys.keystore import ACTS
from keys.manifest import Manifest
from keys.officers import Officer, OfficerKey, open_officer_key
from keys.rotation import Approval, Rotation
from keys.secret import Secret

OfficerFile = Annotated[str | None, typer.Option("--officer", help="Your officer's key file.")]
PassphraseFile = Annotated[
    str | None, typer.Option("--passphrase-file", help="A file with its passphrase; without it you are asked.")
]
Reason = Annotated[str, typer.Option("--reason", help="Why, in a line: it is signed and kept.")]
WITHOUT_REASON = "not given"


def sign_in(manifest: Manifest, key_file: str | None, passphrase_file: str | None) -> tuple[OfficerKey, Officer]:
    """The officer whose key file this is; raises `OfficerRefused` or `PassphraseRefused`."""
    if key_file is None:
        raise OfficerRefused("this takes an officer: name your key file with --officer")
    key = open_officer_key(Path(key_file), passphrase(key_file, passphrase_file))
    return key, who_has(manifest, key, key_file)


def who_has(manifest: Manifest, key: OfficerKey, key_file: str) -> Officer:
    """The officer whose key this is; raises `OfficerRefused`."""
    for officer in manifest.officers:
        if officer.verify == key.verify and officer.removed is None:
            return officer
    raise OfficerRefused(f"{key_file} is no officer's key here: `keys officer list` shows who there is")


def passphrase(key_file: str, passphrase_file: str | None, option: str = "--passphrase-file") -> Secret[str]:
    """From its file, else from the person; raises `OfficerRefused` where there is neither."""
    if passphrase_file:
        return read_private_line(Path(passphrase_file))
    require_somebody(f"passphrase of {key_file}", option)
    return ask(f"passphrase of {key_file}")


def require_somebody(what: str, option: str) -> None:
    """Raises `OfficerRefused` where nobody is there to be asked; `option` is what helps."""
    if not sys.stdin.isatty():
        raise OfficerRefused(f"the {what} is needed: name a file for it with {option}, or run this at a terminal")


def folder(bench: Bench) -> ActFolder:
    """Where requests, approvals and the evidence of what was done lie."""
    return ActFolder(bench.keystore.directory / ACTS)


def ask_for(
    bench: Bench,
    rotation: Rotation,
    act: ActName,
    payload: Mapping[str, str | int],
    reason: str,
    signer: tuple[OfficerKey, Officer],
) -> str:
    """Sign and keep a request for an act for two; gives its id."""
    manifest = rotation.manifest
    present = [officer for officer in manifest.officers if officer.removed is None]
    if len(present) < 2:  # noqa: PLR2004 - it takes two
        raise OfficerRefused("this takes two officers, and there are fewer: `keys officer add` the second one first")
    key, officer = signer
    note = acts.request(
        key,
        officer.name,
        act=act,
        payload=payload,
        reason=reason,
        environment=manifest.environment,
        manifest_version=manifest.version,
        now=now(),
    )
    return folder(bench).put_request(note)


def approved(bench: Bench, rotation: Rotation, act_id: str, act: ActName) -> tuple[ActRequest, Approval]:
    """A request that two officers stand behind now, and what the manifest is to say of it; raises `ActRefused`."""
    stored = folder(bench).find(act_id)
    if stored.approval is None:
        raise ActRefused(f"{act_id} is not approved yet: another officer runs `keys approve {act_id}`")
    asked = require_by_two(bench, rotation, stored.request, stored.approval, act)
    both = f"{asked.officer}+{acts.approver_of(stored.approval)}"
    return asked, Approval(both, asked.id, despite=bool(asked.payload.get("despite_backups")))


def require_by_two(bench: Bench, rotation: Rotation, request: str, approval: str, act: ActName) -> ActRequest:
    """The request in these two notes, when it may be carried out at this moment; raises `ActRefused`."""
    manifest = rotation.manifest
    return acts.require_approved(
        request,
        approval,
        manifest.officers,
        now(),
        environment=manifest.environment,
        act=act,
        payload=acts.open_request(request, manifest.officers, now()).payload,
        manifest_version=manifest.version,
        done=folder(bench).done(),
    )


def confirm(question: str, *, yes: bool) -> None:
    """At a terminal, ask; elsewhere the command line has said it all. Raises `ActRefused` on anything but yes."""
    if yes or not sys.stdin.isatty():
        return
    if not typer.confirm(question):
        raise ActRefused("not approved; nothing was changed")
