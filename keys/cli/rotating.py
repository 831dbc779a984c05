"""Commands that move keys: `init`, `rotate`, `rewrap`, `retire`, `rotate-fingerprint`."""

import asyncio
import os
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Annotated, Any

import typer

from keys import roots
from keys.audit import CITY, AuditEvent, Outcome
from keys.cli.bench import AsJson, Bench, Config, DryRun, ask, now, run, tell
from keys.cli.pace import pace
from keys.deks import DekTable
from keys.errors import KeyRefused, KeystoreRefused
from keys.keystore import OpenKeystore
from keys.manifest import KEYSTORE, KeyEntry, Purpose, RootEntry
from keys.process_keys import HOLDERS
from keys.rewrap import Rewrap
from keys.ring import Ring, WrappedDek
from keys.root import RootKey
from keys.rotation import Rotation
from keys.states import State

PAGE_ROWS = 1000
STREAMS = 2
"""Pages under way at once in one command: while one is with the database, the other is computed."""
SAMPLE_ROWS = 1000
RENEWABLE = (
    *("kek", "hpke", "manifest-signing", "audit-mac", "audit-head", "api-digest", "staff-sealing", "close-pack"),
)

commands = typer.Typer()


@commands.command()
def init(
    root: Annotated[str | None, typer.Option("--root", help="The root's URI, where it is not keys.root.")] = None,
    config: Config = None,
) -> None:
    """Make the root key, the first KEK generation and the processes' own keys.

    Runs once for an environment; interrupted, it is finished by running it again. Roots: `file:`, `pkcs11:`,
    `awskms:`; a root of custodians' shares is made afterwards, by `keys ceremony split`.

    Example: keys init --root 'pkcs11:token=city;object=root?module-path=/usr/lib/hsm.so&pin-source=/etc/gateway/pin'
    """
    bench = Bench.of(config)
    uri = root or bench.settings.keys.root
    run(_init(bench, uri))
    typer.echo(f"The key store {bench.keystore.directory} is made. Back it up, and the root key apart from it.")
    if uri != bench.settings.keys.root:
        typer.echo(f"Now set this in the configuration, or nothing opens it: keys.root = '{uri}'")


@commands.command()
def rotate(
    purpose: Annotated[str, typer.Option(help=f"Which key: {', '.join(RENEWABLE)}.")] = "kek",
    process: Annotated[str | None, typer.Option(help="Whose, for a key that several processes have.")] = None,
    prepare: Annotated[bool, typer.Option("--prepare", help="Make the next generation only, pending.")] = False,
    config: Config = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Make a new generation, which protects what is new, and retire the old one. No record is touched.

    The fleet follows within two seconds, under traffic. Then `keys rewrap` moves what exists. An interrupted
    rotation is finished, not repeated, by running it again.

    Example: keys rotate && keys rewrap
    """
    bench = Bench.of(config)
    if purpose not in RENEWABLE:
        raise KeyRefused(f"--purpose is one of {', '.join(RENEWABLE)}; the card index has `keys rotate-fingerprint`")
    if prepare and (dry_run or purpose != "kek"):
        raise KeyRefused("--prepare makes a generation ahead: it goes with no other purpose, nor with --dry-run")
    if purpose == "kek" and process is not None:
        raise KeyRefused("--process is for a key that several processes have: generations are in the key store")
    if dry_run:
        run(_show_rotation(bench, purpose, as_json))  # type: ignore[arg-type] # looked at above
    elif prepare:
        run(_prepare(bench, as_json))
    elif purpose == "kek":
        run(_rotate(bench, as_json))
    else:
        run(_renew(bench, purpose, process, as_json))  # type: ignore[arg-type] # looked at above


@commands.command("rotate-fingerprint")
def rotate_fingerprint(config: Config = None, as_json: AsJson = False) -> None:
    """Start a new version of the card index; `gateway reseal` then builds it. Cards keep their fingerprint ids.

    Example: keys rotate-fingerprint && gateway reseal
    """

    async def work(bench: Bench) -> KeyEntry:
        async with bench.changing() as rotation:
            if _finishes(rotation, "rotate-fingerprint"):
                return rotation.manifest.active("fingerprint")
            return await rotation.rotate_fingerprint(now())

    new = run(work(Bench.of(config)))
    told = {"active": new.number, "manifest": "published"}
    tell(as_json, told, f"Fingerprint key {new.number} is active. Now build its index: `gateway reseal`.")


@commands.command()
def retire(
    generation: Annotated[int, typer.Argument(help="Its number.", min=1)],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Take a generation out of use for what is new; a prepared one takes its place. It still opens what it wrapped.

    Example: keys rotate --prepare && keys backup --to /media/a/keys.backup --for ada && keys retire 1
    """

    async def work(bench: Bench) -> KeyEntry:
        async with bench.changing() as rotation:
            return await rotation.retire(generation, now())

    key = run(work(Bench.of(config)))
    tell(as_json, {"id": key.number, "state": key.state}, f"{key.title.capitalize()} is {key.state}.")


@commands.command()
def rewrap(
    config: Config = None,
    rate: Annotated[float, typer.Option(help="At most so many rows a second; 0 is as fast as it goes.", min=0)] = 0,
    page: Annotated[int, typer.Option(help="Rows a commit.", min=1, max=10_000)] = PAGE_ROWS,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Move every data key under a retired generation to the active one. No record is opened.

    May be killed and started again, and run several times at once. Exit 1 when a data key does not open.

    Example: keys rewrap --rate 20000
    """
    bench = Bench.of(config)
    if dry_run:
        report = run(_rewrap_estimate(bench, rate))
        about = timedelta(seconds=round(report["seconds"]))
        tell(
            as_json,
            report,
            f"{report['rows']:,} data keys would move to generation {report['to']}, in about {about}.",
        )
        return
    report = run(_rewrap(bench, page, rate))
    line = f"{report['rows']:,} data keys moved to generation {report['to']} in {report['seconds']:.1f} s"
    tell(as_json, report, f"{line} ({report['rows_per_s']:,.0f} rows/s).")
    if report["broken"]:
        typer.echo(f"keys: {report['broken']:,} data keys do not open: `keys verify` counts them", err=True)
        raise typer.Exit(1)


async def _init(bench: Bench, uri: str) -> None:
    keystore = bench.keystore
    async with bench.table() as table:
        await table.lock()
        seen = (await table.seen()).version
        if seen and keystore.exists():
            raise KeystoreRefused(f"this environment is initialised already (manifest {seen}); see `keys status`")
        if seen:
            raise KeystoreRefused(
                f"this database belongs to a key store that is not here (manifest {seen}):"
                " restore that key store from its backup, or name an empty database"
            )
        opened = _root_for_init(uri)
        entry = RootEntry(1, roots.scheme(uri), roots.location(uri), State.ACTIVE, now())
        # An earlier run may have ended between the key store and its mirror: then only the mirror is missing.
        keys = (
            keystore.open(opened) if keystore.exists() else keystore.initialise(opened, entry, bench.secrets, now())
        )
        rotation = Rotation(keys, table, bench.pen, bench.secrets)
        await rotation.begin(now())


def _root_for_init(uri: str) -> RootKey:
    try:
        return roots.create_root(uri, ask)
    except KeystoreRefused:
        return roots.open_root(uri, ask)


async def _prepare(bench: Bench, as_json: bool) -> None:
    async with bench.changing() as rotation:
        key = await rotation.prepare(now())
    line = f"Generation {key.number} is pending: back it up, then `keys rotate` makes it active."
    tell(as_json, {"pending": key.number}, line)


async def _rotate(bench: Bench, as_json: bool) -> None:
    async with bench.changing() as rotation:
        finished = _finishes(rotation, "rotate")
        key = rotation.manifest.active("kek") if finished else await rotation.rotate(now())
    told = {"active": key.number, "manifest": rotation.manifest.version, "finished_interrupted": finished}
    line = f"Generation {key.number} is active. Now move what exists: `keys rewrap`."
    tell(as_json, told, *(["An interrupted rotation was finished."] if finished else []), line)


async def _renew(bench: Bench, purpose: Purpose, process: str | None, as_json: bool) -> None:
    async with bench.changing() as rotation:
        holders = [holder for holder, wanted in HOLDERS if wanted == purpose] or [KEYSTORE]
        if process is not None and process not in holders:
            raise KeyRefused(f"{process} has no {purpose} key; --process is one of {', '.join(holders)}")
        wanted = [process] if process else holders
        if _finishes(rotation, "renew", f"{purpose} of {', '.join(wanted)}"):
            renewed = [rotation.manifest.active(purpose, holder) for holder in wanted]
        else:
            renewed = list(await rotation.renew(purpose, wanted, now()))
    told = {"renewed": [{"id": key.id, "number": key.number, "holder": key.holder} for key in renewed]}
    tell(as_json, told, *(f"The {key.title} is active." for key in renewed))


async def _show_rotation(bench: Bench, purpose: Purpose, as_json: bool) -> None:
    async with bench.reading() as (table, keys):
        old, count = keys.manifest.of(purpose), sum((await table.counts()).values())
    active = next((key for key in old if key.state is State.ACTIVE), None)
    if active is None:
        tell(as_json, {"retires": None, "records": 0}, f"The first {purpose} key would be made.")
        return
    what = f"{active.title} would be retired and a new one made" + (
        f"; {count:,} records would then be moved by `keys rewrap`." if purpose == "kek" else "."
    )
    tell(as_json, {"retires": active.number, "records": count}, what)


async def _rewrap(bench: Bench, page_rows: int, rate: float) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        first, keys = await stack.enter_async_context(bench.reading())
        await _require_settled(first, keys)
        tables = [first] + [await stack.enter_async_context(bench.table()) for _ in range(STREAMS - 1)]
        os.nice(10)  # requests go first
        counts = await first.counts()

        def read_ring() -> Ring:
            return bench.keystore.open(keys.root).ring()

        ring = keys.ring()
        rows = sum(counts.get(n, 0) for n, key in ring.generations.items() if key.state is State.RETIRED)
        with pace("Rewrapping", rows, rate) as keeping:
            work = Rewrap(read_ring, now, keeping.moved, page_rows)
            tally = await work.run(tables)
            seconds = keeping.seconds
        for generation in work.retired:
            await first.emptied_at(generation)
        outcome = Outcome.FAILED if tally.broken else Outcome.DONE
        subject = f"generation-{work.active}"
        await first.record(bench.pen.row(AuditEvent(CITY, "keys.rewrap", outcome, "keys", subject), now()))
    return {
        "rows": tally.rows,
        "to": work.active,
        "broken": len(tally.broken),
        "seconds": round(seconds, 3),
        "rows_per_s": round(tally.rows / seconds, 1) if seconds else 0.0,
    }


async def _require_settled(table: DekTable, keys: OpenKeystore) -> None:
    if keys.manifest.version > (await table.seen()).version:
        raise KeyRefused(f"an interrupted `keys {keys.manifest.act.name}` is not finished: run it again first")


async def _rewrap_estimate(bench: Bench, rate: float) -> dict[str, Any]:
    async with bench.reading() as (table, keys):
        ring, counts = keys.ring(), await table.counts()
        retired = [number for number, key in ring.generations.items() if key.state is State.RETIRED]
        rows = sum(counts.get(number, 0) for number in retired)
        started = asyncio.get_running_loop().time()
        sampled = 0
        for department in await table.departments():
            for generation in retired:
                for record, was in await table.take_page(department, generation, "", SAMPLE_ROWS):
                    place = ring.place(department, record)
                    ring.wrap(place, ring.unwrap(place, WrappedDek(generation, was), now()), now())
                    sampled += 1
        spent_s = asyncio.get_running_loop().time() - started
    # Writing takes about as long as reading and wrapping did.
    seconds = 2 * spent_s / sampled * rows if sampled else 0.0
    return {"rows": rows, "to": ring.active.number, "seconds": max(seconds, rows / rate if rate else 0.0)}


def _finishes(rotation: Rotation, act: str, subject: str | None = None) -> bool:
    """Whether what was asked for is what an interrupted command had begun, and `begin` has finished."""
    finished = rotation.finished
    return finished is not None and finished.name == act and subject in {None, finished.subject}
