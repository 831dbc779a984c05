"""`gateway close`: what an auditor does with the evidence of a close: anywhere, without network or database."""

import base64
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.options import AsJson
from gateway.rules.pack import FORMAT, Seal
from keys.cli.bench import tell
from keys.errors import BrokenSeal

KEY_BYTES = 32

commands = typer.Typer(help="Closed dates, and the packs that prove them.", no_args_is_help=True)


@commands.callback()
def close() -> None:
    """Closed dates, and the packs that prove them."""


@commands.command("verify")
def verify(
    pack: Annotated[Path, typer.Argument(help="The pack, as it was downloaded.", exists=True, dir_okay=False)],
    signature: Annotated[Path, typer.Option(help="Its signature file.", exists=True, dir_okay=False)],
    key: Annotated[str, typer.Option(help="The public key in base64, as the auditor was given it before.")],
    as_json: AsJson = False,
) -> None:
    """Check that a pack is the one that was signed when its dates were closed. Exit 1 when it is not.

    Public keys are listed at `/admin/v1/closes/keys`; write them down when they are made, not when you need them.

    Example: gateway close verify cl_….pack.json --signature cl_….pack.sig --key "$(cat close-pack-1.pub)"
    """
    seal = Seal.read(signature.read_bytes())
    seal.require(pack.read_bytes(), _public(key))
    told = {"format": FORMAT, "sha256": seal.sha256.hex(), "key": seal.key, "holds": True}
    tell(as_json, told, f"The pack is the one that close-pack key {seal.key} signed: {seal.sha256.hex()}")


def _public(text: str) -> bytes:
    """A public key as it is typed; raises `BrokenSeal` where it is none."""
    try:
        raw = base64.b64decode(text.strip(), validate=True)
    except ValueError:
        raw = b""
    if len(raw) != KEY_BYTES:
        raise BrokenSeal(f"--key is a public key of {KEY_BYTES} bytes in base64: `/admin/v1/closes/keys` lists them")
    return raw
