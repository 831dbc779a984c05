"""The command line of security staff: `keys init`, `keys status`, `keys verify`."""

import asyncio
import json
import os
import sys
from collections.abc import Coroutine
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from getpass import getpass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from keys import database, root
from keys.audit import CITY, AuditEvent, AuditPen, Outcome
from keys.deks import DekTable
from keys.errors import KeysError, KeystoreRefused, RootRefused
from keys.keystore import Keystore, open_keystore, read_process_key
from keys.manifest import Manifest, require_current
from keys.ring import State
from keys.root import RootKey
from keys.secret import Secret
from keys.settings import Settings, load, settings_path

PROCESS = "keys"
DUE_DAYS = 30

app = typer.Typer(
    help="Run the key hierarchy: root key, KEK generations, the data keys they wrap.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
Config = Annotated[str | None, typer.Option("--config", help="The TOML file; else $GATEWAY_CONFIG, else the demo's.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]


@dataclass(frozen=True, slots=True)
class Bench:
    """What every command works with."""

    settings: Settings
    keystore: Keystore

    @property
    def secrets_directory(self) -> Path:
        """Where the processes' own secrets lie."""
        return Path(self.settings.keys.secrets)

    def open_root(self) -> RootKey:
        """The root that the configuration names."""
        return root.open_root(self.settings.keys.root, ask)

    def connection(self) -> Any:
        """A database connection as the role of this process."""
        return database.connection(self.settings.database, PROCESS, self.secrets_directory)


@app.command()
def init(config: Config = None) -> None:
    """Make the root key, the first KEK generation and the processes' own keys.

    Runs once for an environment; interrupted, it is finished by running it again.

    Example: keys init --config /etc/gateway/gateway.toml
    """
    bench = _bench(config)
    _run(_init(bench))
    typer.echo(f"The key store {bench.keystore.directory} is made. Back it up, and the root key apart from it.")


@app.command()
def status(config: Config = None, as_json: AsJson = False) -> None:
    """Say which generations exist, what depends on them, and what is due.

    Example: keys status --json
    """
    report = _run(_status(_bench(config)))
    if as_json:
        typer.echo(json.dumps(report))
        return
    table = Table("generation", "state", "records", "created")
    for row in report["generations"]:
        table.add_row(str(row["id"]), row["state"], f"{row['records']:,}", row["created"][:10])
    Console().print(table)
    for line in report["due"] or ["Nothing is due within 30 days."]:
        typer.echo(line)


@app.command()
def verify(config: Config = None, as_json: AsJson = False) -> None:
    """Open every data key in its place; exit 1 when any fails. No record is opened.

    Example: keys verify --json
    """
    report = asdict(_run(_verify(_bench(config))))
    if as_json:
        typer.echo(json.dumps(report))
    else:
        typer.echo(f"{report['records']:,} records: {report['opened']:,} open, {report['failed']:,} do not.")
    if report["failed"]:
        raise typer.Exit(1)


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 refused or failed, 2 wrong usage."""
    try:
        app(prog_name="keys")
    except KeysError as error:
        typer.echo(f"keys: {error}", err=True)
        sys.exit(1)


def ask(what: str) -> Secret[str]:
    """Ask a person at a terminal, without echo; raises `RootRefused` where there is none."""
    if not sys.stdin.isatty():
        raise RootRefused(f"the {what} is needed: name a passphrase_file in keys.root, or run this at a terminal")
    return Secret(getpass(f"{what}: "))


async def _init(bench: Bench) -> None:
    keystore, now = bench.keystore, _now()
    async with bench.connection() as connected, database.driver_errors():
        table = DekTable(connected)
        seen = await table.version_seen()
        if seen and keystore.exists():
            raise KeystoreRefused(f"this environment is initialised already (manifest {seen}); see `keys status`")
        if seen:
            raise KeystoreRefused(
                f"this database belongs to a key store that is not here (manifest {seen}):"
                " restore that key store from its backup, or name an empty database"
            )
        opened = _root_for_init(bench)
        # An earlier run may have ended between the key store and its mirror: then only the mirror is missing.
        manifest = (
            keystore.manifest(opened)
            if keystore.exists()
            else keystore.initialise(opened, root.scheme(bench.settings.keys.root), bench.secrets_directory, now)
        )
        pen = AuditPen(PROCESS, read_process_key(bench.secrets_directory, PROCESS, "audit-mac"))
        event = AuditEvent(
            CITY, "keys.initialised", Outcome.DONE, actor="keys", subject=f"manifest-{manifest.version}"
        )
        await table.publish(manifest, pen.row(event, now))


def _root_for_init(bench: Bench) -> RootKey:
    uri = bench.settings.keys.root
    try:
        return root.create_root(uri, ask)
    except KeystoreRefused:
        return root.open_root(uri, ask)


async def _status(bench: Bench) -> dict[str, Any]:
    manifest = bench.keystore.manifest(bench.open_root())
    async with bench.connection() as connected, database.driver_errors():
        table = DekTable(connected)
        require_current(manifest, await table.version_seen())
        counts = await table.counts()
    generations = manifest.of("kek")
    return {
        "active": next((key.number for key in generations if key.state is State.ACTIVE), None),
        "generations": [
            {
                "id": key.number,
                "state": key.state,
                "records": counts.get(key.number, 0),
                "created": key.created.isoformat(),
            }
            for key in generations
        ],
        "due": _due(manifest, _now()),
    }


async def _verify(bench: Bench) -> Any:
    opened = bench.open_root()
    manifest, ring = bench.keystore.manifest(opened), bench.keystore.ring(opened)
    async with bench.connection() as connected, database.driver_errors():
        table = DekTable(connected)
        require_current(manifest, await table.version_seen())
        return await table.verify(ring, _now())


def _due(manifest: Manifest, now: datetime) -> list[str]:
    soon = now + timedelta(days=DUE_DAYS)
    return [
        f"{key.id} ({key.purpose} {key.number}) protects nothing new after {key.originate_until:%Y-%m-%d}."
        for key in manifest.keys
        if key.state is State.ACTIVE and key.originate_until <= soon
    ]


def _bench(config: str | None) -> Bench:
    settings = load(settings_path(config), Settings, os.environ)
    return Bench(settings, open_keystore(settings.keys, settings.database, settings.environment))


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def _now() -> datetime:
    return datetime.now(UTC)
