"""Commands that change nothing: `status`, `inventory`, `verify`."""

import json
from dataclasses import asdict
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from keys.cli.bench import AsJson, Bench, Config, now, run
from keys.deks import Verification
from keys.inventory import Dependents, due, inventory
from keys.states import State

commands = typer.Typer()


@commands.command()
def status(config: Config = None, as_json: AsJson = False) -> None:
    """Say which generations exist, what depends on them, and what is due.

    Example: keys status --json
    """
    report = run(_status(Bench.of(config)))
    if as_json:
        typer.echo(json.dumps(report))
        return
    table = Table("generation", "state", "records", "created")
    for row in report["generations"]:
        table.add_row(str(row["id"]), row["state"], f"{row['records']:,}", row["created"][:10])
    Console().print(table)
    for line in report["due"] or ["Nothing is due within 30 days."]:
        typer.echo(line)


@commands.command(name="inventory")
def show_inventory(config: Config = None, as_json: AsJson = False) -> None:
    """List every key: algorithm, strength, purpose, dates, state, place, custodians, what depends on it. No secret.

    Example: keys inventory --json > inventory-2026-11.json
    """
    report = run(_inventory(Bench.of(config)))
    if as_json:
        typer.echo(json.dumps(report))
        return
    table = Table("key", "state", "algorithm", "protects until", "records", box=None, padding=(0, 1), pad_edge=False)
    for key in sorted(report["keys"], key=lambda key: (key["purpose"], key["holder"], key["number"])):
        records = "" if key["records"] is None else f"{key['records']:,}"
        table.add_row(key["title"], key["state"], key["algorithm"], key["originate_until"][:10], records)
    Console().print(table)
    for root in report["roots"]:
        held = ", ".join(custodian["name"] for custodian in root["custodians"])
        shares = f", {root['threshold']} of: {held}" if held else ""
        typer.echo(f"Root {root['number']}, {root['state']}: {root['location']}{shares}")
    for backup in report["backups"]:
        gone = f", destroyed {backup['forgotten'][:10]}" if backup["forgotten"] else ""
        names, roots = ", ".join(backup["recipients"]), ", ".join(map(str, backup["roots"])) or "?"
        typer.echo(f"Backup {backup['id']} of {backup['created'][:10]} for {names}, opened by root {roots}{gone}")


@commands.command()
def verify(config: Config = None, as_json: AsJson = False) -> None:
    """Open every data key in its place, and count; exit 1 when any fails. No record is opened.

    Example: keys verify --json
    """
    found = run(_verify(Bench.of(config)))
    if as_json:
        typer.echo(json.dumps(asdict(found)))
    else:
        for line in _told(found):
            typer.echo(line)
    if found.failed:
        raise typer.Exit(1)


def _told(found: Verification) -> list[str]:
    lines = [f"{found.records:,} records: {found.opened:,} open, {found.failed:,} do not."]
    lines += [f"  generation {number}: {count:,}" for number, count in sorted(found.generations.items())]
    if found.without_wrap:
        lines.append(
            f"{found.without_wrap:,} records have lost their data key: restore the DEK table from its backup."
        )
    if found.without_record > 0:
        lines.append(f"{found.without_record:,} data keys belong to no record: somebody put back what was erased.")
    broken = found.failed - found.without_wrap - max(found.without_record, 0)
    if broken > 0:
        lines.append(f"{broken:,} data keys were altered or stand in the wrong place: restore them from a backup.")
    return lines


async def _status(bench: Bench) -> dict[str, Any]:
    async with bench.reading() as (table, keys):
        dependents = await Dependents.count(table)
        unfinished = keys.manifest.version > (await table.seen()).version
    manifest = keys.manifest
    generations = manifest.of("kek")
    lines = list(due(manifest, dependents, now()))
    if unfinished:
        lines.insert(0, f"An interrupted `keys {manifest.act.name}` is not finished: run it again.")
    return {
        "active": next((key.number for key in generations if key.state is State.ACTIVE), None),
        "generations": [
            {
                "id": key.number,
                "state": key.state,
                "records": dependents.of(key),
                "created": key.created.isoformat(),
            }
            for key in generations
        ],
        "due": lines,
    }


async def _inventory(bench: Bench) -> dict[str, Any]:
    async with bench.reading() as (table, keys):
        return inventory(keys.manifest, await Dependents.count(table))


async def _verify(bench: Bench) -> Verification:
    async with bench.reading() as (table, keys):
        if keys.foreign() and await table.is_alone():  # else they are just being made
            bench.open().require_no_foreign()
        keys.require_intact(bench.secrets)
        return await table.verify(keys.ring(), now())
