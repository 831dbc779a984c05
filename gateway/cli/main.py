"""The command line: each process, and the work beside them."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import typer

from gateway import log as logs
from gateway.berth import number_of
from gateway.cli import access, accounts, applications, closes, departments, importing, staff
from gateway.cli.actors import ACTORS
from gateway.cli.bench import bench
from gateway.cli.options import OWNER, AsJson, ConfigFile, config_of
from gateway.config import WORKERS_MAX, Config
from gateway.daemon import forbid_dumps, stop_signal
from gateway.errors import GatewayError, Unavailable
from gateway.processor.stub import server as stub_server
from gateway.profile import require_tls_files
from gateway.rules import compare as comparison
from gateway.rules import lifecycle
from gateway.rules.lifecycle import Progress
from gateway.services.ports import CommitUnknown
from gateway.services.reseal import Reseal
from gateway.store.migrate import migrate as run_migrations
from gateway.supervisor import supervise
from gateway.web import openapi as openapi_document
from gateway.wiring import reseal_parts, serve_api, serve_worker
from gateway.wiring_admin import serve_admin
from keys.cli.actors import require_declared
from keys.cli.bench import ask, tell
from keys.cli.pace import pace
from keys.database import connection, driver_errors
from keys.errors import DatabaseRefused, KeysError, SettingsRefused
from keys.files import read_private_line
from keys.queries import load_queries
from keys.roots import open_root

RESEAL_PAGE_ROWS = 100

app = typer.Typer(
    help="The payment tokenization gateway: its processes, and the work beside them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(applications.commands, name="app")
app.add_typer(closes.commands, name="close")
app.add_typer(departments.commands, name="department")
accounts.add_to(departments.commands)
app.add_typer(staff.commands, name="staff")
app.add_typer(access.commands, name="access")
app.command()(bench)
app.command("import")(importing.import_cards)


class Movement(msgspec.Struct, frozen=True):
    """What a processor's list says of one movement, as far as it is compared."""

    reference: str
    amount: int
    effects: int


class Listing(msgspec.Struct, frozen=True):
    """A processor's own list."""

    data: list[Movement]


@app.command()
def api(
    config: ConfigFile = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes on the one port; else api.workers.", min=1, max=WORKERS_MAX)
    ] = None,
    berth: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run the public API until it is told to stop.

    With several workers this is their parent: it alone holds the root key, starts again who dies, and replaces them
    one by one at SIGHUP, by ones that have read the file anew, without a request that fails.

    Example: gateway api --workers 4
    """
    settings = config_of(config)
    require_tls_files("api", settings.api)
    count = workers or settings.api.workers
    if berth is not None:
        asyncio.run(serve_api(settings, ask, logs.configure("api", worker=number_of(berth)), inherited=berth))
    elif count == 1:
        asyncio.run(serve_api(settings, ask, logs.configure("api")))
    elif not asyncio.run(supervise(settings, count, ask, logs.configure("api"))):
        raise typer.Exit(1)


@app.command()
def worker(config: ConfigFile = None) -> None:
    """Run a worker until it is told to stop: it finds out what became of charges without an answer.

    As many as one likes may run. It holds no card key and sends nothing.

    Example: gateway worker --config /etc/gateway/gateway.toml
    """
    settings = config_of(config)
    asyncio.run(serve_worker(settings, logs.configure("worker")))


@app.command()
def admin(config: ConfigFile = None) -> None:
    """Run the site of the city's staff until it is told to stop. It holds no card key.

    Example: gateway admin --config /etc/gateway/gateway.toml
    """
    settings = config_of(config)
    if settings.admin is not None:
        require_tls_files("admin", settings.admin)
    asyncio.run(serve_admin(settings, logs.configure("admin")))


@app.command()
def stub(config: ConfigFile = None) -> None:
    """Run the processor's double, for demos and tests.

    Example: gateway stub
    """
    settings = config_of(config)
    if settings.profile == "production":
        raise SettingsRefused("profile is production: the stub belongs to demos and tests")
    if settings.stub is None:
        raise SettingsRefused("the file has no [stub] section: the stub belongs to demos and tests")
    require_tls_files("stub", settings.stub)
    logs.configure("stub")
    asyncio.run(_stub(settings))


@app.command()
def migrate(config: ConfigFile = None) -> None:
    """Bring the database's schema up to this release; forward only, safe to repeat.

    Example: gateway migrate
    """
    steps = asyncio.run(_migrate(config_of(config)))
    typer.echo(f"{steps} migration{'' if steps == 1 else 's'} applied." if steps else "The schema is up to date.")


@app.command()
def reseal(
    config: ConfigFile = None,
    rate: Annotated[float, typer.Option(help="At most so many rows a second; 0 is as fast as it goes.", min=0)] = 0,
    page: Annotated[int, typer.Option(help="Records a commit.", min=1, max=1_000)] = RESEAL_PAGE_ROWS,
    as_json: AsJson = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and change nothing.")] = False,
) -> None:
    """Do in the data what `keys compromise` and `keys rotate-fingerprint` ask for: new data keys, a new card index.

    May be killed and started again, and run several times at once, under traffic. Exit 1 when a record does not open.

    Example: keys rotate-fingerprint && gateway reseal --rate 500
    """
    settings = config_of(config)
    logs.configure("reseal", sys.stderr)
    if dry_run:
        report = asyncio.run(_reseal_estimate(settings, page))
        about = timedelta(seconds=round(report["seconds"]))
        tell(as_json, report, f"{_resealed(report)} would be done, in about {about}.")
        return
    report = asyncio.run(_reseal(settings, page, rate))
    speed = f"{report['seconds']:.1f} s ({report['rows_per_s']:,.0f} rows/s)"
    tell(as_json, report, f"{_resealed(report)} done in {speed}.")
    if report["broken"]:
        told = "records do not open, or are not of their card: the audit log names them"
        typer.echo(f"gateway: {report['broken']:,} {told}; restore them from a backup, or erase them", err=True)
    if report["keys_without_record"]:
        told = "compromised data keys belong to no record: somebody put back what was erased; see `keys verify`"
        typer.echo(f"gateway: {report['keys_without_record']:,} {told}", err=True)
    if report["broken"] or report["keys_without_record"]:
        raise typer.Exit(1)


@app.command()
def openapi() -> None:
    """Print the OpenAPI 3.1 document of the public API.

    Example: gateway openapi > openapi.json
    """
    typer.echo(msgspec.json.format(msgspec.json.encode(openapi_document.document())).decode())


@app.command()
def compare(
    listing: Annotated[Path, typer.Argument(help="The processor's own list of movements, as JSON.", exists=True)],
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Compare our movements with the processor's own list: what was done twice, is missing or differs. Exit 1 if any.

    The list is `{"data": [{"reference", "amount", "effects"}, …]}`, as the processor's double gives it at
    `/v1/movements`; `effects` is how often the processor carried a movement out.

    Example: gateway compare movements.json
    """
    found = asyncio.run(_compare(config_of(config), _listed(listing)))
    lines = [f"{difference.reference}: {difference.what}" for difference in found]
    told = [{"reference": difference.reference, "what": difference.what} for difference in found]
    tell(as_json, {"differences": told}, *(lines or ["Nothing differs."]))
    if found:
        raise typer.Exit(1)


@app.command()
def states() -> None:
    """Print the life of charges and refunds as a Mermaid diagram: every state, its meaning, every edge's audit event.

    Example: gateway states > states.mmd
    """
    typer.echo(lifecycle.diagram())


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 refused or failed, 2 wrong usage."""
    try:
        require_declared(app, ACTORS)
        app(prog_name="gateway")
    except (KeysError, GatewayError) as error:
        _fail(str(error))
    except OSError as error:  # of a full disk behind our own output, say; the database's have a line of their own
        about = f"{error.filename}: " if error.filename else ""
        _fail(
            f"{about}{error.strerror or type(error).__name__}; what was shown once and did not get out is made anew"
        )


def _fail(line: str) -> NoReturn:
    typer.echo(f"gateway: {line}", err=True)
    with suppress(OSError, ValueError):
        # What is left in the buffer goes nowhere either: Python 3.11.2 would complain of it once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)


async def _stub(config: Config) -> None:
    assert config.stub is not None, "internal error: the caller has looked"
    key = read_private_line(Path(config.keys.secrets) / "stub" / "processor.credential")
    stub = stub_server.ProcessorStub(
        stub_server.StubConfig(
            host=config.stub.host,
            control_port=config.stub.port,
            wire_port=config.stub.wire_port,
            cert=Path(config.stub.cert),
            key=Path(config.stub.key),
            processor_key=key.reveal(),
            memory=Path(config.stub.memory),
        )
    )
    try:
        await stub.start()
    except OSError as error:
        raise SettingsRefused(f"stub.port: cannot listen ({error.strerror}); choose other ports") from None
    try:
        await stop_signal()
    finally:
        await stub.stop()


def _resealed(report: dict[str, Any]) -> str:
    """What was done, or would be, in words."""
    return (
        f"{report['tokens'] + report['charges']:,} records sealed anew, {report['cards']:,} cards indexed anew,"
        f" {report['claims']:,} idempotency rows renewed or cleared,"
        f" {report['rows_deleted']:,} old index rows deleted"
    )


async def _reseal(config: Config, page_rows: int, rate: float) -> dict[str, Any]:
    async with _resealing(config, page_rows) as work:
        os.nice(10)  # requests go first
        left = await work.left()
        with pace("Resealing", left.total, rate) as keeping:
            done = await work.run(keeping.moved)
            seconds = keeping.seconds
    return {
        "tokens": done.tokens,
        "charges": done.charges,
        "cards": done.cards,
        "claims": done.claims + done.claims_cleared,
        "rows_deleted": done.rows_deleted,
        "broken": len(done.broken),
        "keys_without_record": done.keys_without_record,
        "seconds": round(seconds, 3),
        "rows_per_s": round(done.moved / seconds, 1) if seconds else 0.0,
    }


async def _reseal_estimate(config: Config, page_rows: int) -> dict[str, Any]:
    async with _resealing(config, page_rows) as work:
        left = await work.left()
        seconds = work.estimated_s(left.total)
    return {
        "tokens": left.tokens,
        "charges": left.charges,
        "cards": left.cards,
        "claims": left.claims,
        "rows_deleted": left.rows,
        "seconds": round(seconds, 3),
    }


@asynccontextmanager
async def _resealing(config: Config, page_rows: int) -> AsyncIterator[Reseal]:
    forbid_dumps()
    try:
        async with reseal_parts(config, open_root(config.keys.root, ask), page_rows) as work:
            yield work
    except CommitUnknown:
        raise DatabaseRefused("the connection to the database was lost: run this again, it goes on") from None
    except Unavailable as error:
        if error.detail != Unavailable.default:
            raise
        raise DatabaseRefused("the database cannot be used now: run this again, it goes on") from None


async def _migrate(config: Config) -> int:
    async with connection(config.database, OWNER, Path(config.keys.secrets)) as connected, driver_errors():
        return await run_migrations(connected)


def _listed(path: Path) -> list[comparison.Theirs]:
    try:
        rows = msgspec.json.decode(path.read_bytes(), type=Listing).data
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError):
        raise SettingsRefused(
            f"{path} is no list of movements: a JSON object whose `data` has `reference`, `amount` and `effects`"
        ) from None
    return [comparison.Theirs(row.reference, row.amount, row.effects) for row in rows]


async def _compare(config: Config, theirs: list[comparison.Theirs]) -> list[comparison.Difference]:
    sql = load_queries("gateway.store", "ledger.sql")
    async with connection(config.database, OWNER, Path(config.keys.secrets)) as connected, driver_errors():
        rows = await connected.fetch(sql.all_movements)
    ours = [comparison.Ours(row["reference"], row["amount_minor"], Progress(row["progress"])) for row in rows]
    return comparison.compare(ours, theirs)
