"""What every `keys` command works with: settings, key store, root, database, pen; and how it speaks to people."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from getpass import getpass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from keys import database, roots
from keys.audit import CITY, AuditEvent, AuditPen, Outcome
from keys.deks import DekTable
from keys.errors import KeysError, KeystoreRefused, RootRefused
from keys.keystore import Keystore, OpenKeystore, open_keystore
from keys.manifest import require_current
from keys.process_keys import read_process_keys
from keys.rotation import Rotation
from keys.secret import Secret
from keys.settings import Settings, load, settings_path

PROCESS = "keys"

T = TypeVar("T")

Config = Annotated[str | None, typer.Option("--config", help="The TOML file; else $GATEWAY_CONFIG, else the demo's.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and change nothing.")]


@dataclass(frozen=True, slots=True)
class Bench:
    """One command's settings and key store."""

    settings: Settings
    keystore: Keystore

    @classmethod
    def of(cls, config: str | None) -> "Bench":
        """From `--config`, `GATEWAY_CONFIG` or the demo's file."""
        settings = load(settings_path(config), Settings, os.environ)
        return cls(settings, open_keystore(settings.keys, settings.database, settings.environment))

    @property
    def secrets(self) -> Path:
        """Where the processes' own keys lie."""
        return Path(self.settings.keys.secrets)

    @property
    def pen(self) -> AuditPen:
        """What the audit rows of these commands are written with."""
        return AuditPen(PROCESS, read_process_keys(self.secrets, PROCESS, "audit-mac"))

    def open(self) -> OpenKeystore:
        """The key store, opened with the root that the configuration names."""
        return self.keystore.open(roots.open_root(self.settings.keys.root, ask))

    @asynccontextmanager
    async def table(self) -> AsyncIterator[DekTable]:
        """The DEK table; a refusal that may be an attack is audited on its way out."""
        async with (
            database.connection(self.settings.database, PROCESS, self.secrets) as connected,
            database.query_errors(),
        ):
            table = DekTable(connected)
            try:
                yield table
            except KeysError as error:
                if error.event is not None:
                    await self._record_refusal(table, error.event)
                raise

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[tuple[DekTable, OpenKeystore]]:
        """To look at things: the key store, checked against what the database has seen."""
        async with self.table() as table:
            seen = await table.seen()  # first: what is published meanwhile is newer
            keys = self.open()
            require_current(keys.manifest.stands, keys.manifest.written, seen, now())
            yield table, keys

    @asynccontextmanager
    async def changing(self, *, dry_run: bool = False) -> AsyncIterator[Rotation]:
        """To change things: alone, after finishing what an interrupted command left. A dry run finishes nothing."""
        if dry_run:
            async with self.reading() as (table, keys):
                yield Rotation(keys, table, self.pen, self.secrets)
            return
        async with self.table() as table:
            yield await Rotation(self.open(), table, self.pen, self.secrets).begin(now())

    async def _record_refusal(self, table: DekTable, name: str) -> None:
        # Before `keys init`, and before a restore, there is nothing to sign the row with: the refusal itself counts.
        with suppress(KeystoreRefused):
            await table.record(self.pen.row(AuditEvent(CITY, name, Outcome.REFUSED, PROCESS), now()))


def ask(what: str) -> Secret[str]:
    """Ask a person at a terminal, without echo; raises `RootRefused` where there is none."""
    if not sys.stdin.isatty():
        raise RootRefused(f"the {what} is needed: name a file for it in keys.root, or run this at a terminal")
    return Secret(getpass(f"{what}: "))


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work."""
    return asyncio.run(work)


def now() -> datetime:
    """Wall time, UTC."""
    return datetime.now(UTC)


def tell(as_json: bool, told: dict[str, Any], *lines: str) -> None:
    """One JSON object for a program, or lines for a person."""
    for line in [json.dumps(told, default=str)] if as_json else lines:
        typer.echo(line)
