"""The command line: each process, and what administrators do beside them."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from gateway import log as logs
from gateway.config import Config
from gateway.errors import GatewayError, Unavailable
from gateway.processor.stub import server as stub_server
from gateway.rules import compare as comparison
from gateway.rules import lifecycle
from gateway.rules.access import new_api_key
from gateway.rules.ids import new_id
from gateway.rules.lifecycle import Progress
from gateway.services.ports import CommitUnknown
from gateway.services.reseal import Reseal
from gateway.store.migrate import migrate as run_migrations
from gateway.web import openapi as openapi_document
from gateway.wiring import forbid_dumps, reseal_parts, serve_api, serve_worker, stop_signal
from keys.cli.bench import ask, tell
from keys.cli.pace import pace
from keys.database import connection, driver_errors
from keys.errors import DatabaseRefused, KeysError, SettingsRefused
from keys.files import read_private_line
from keys.process_keys import read_process_keys
from keys.queries import load_queries
from keys.roots import open_root
from keys.settings import Department, load, settings_path

OWNER = "owner"
RESEAL_PAGE_ROWS = 100

app = typer.Typer(
    help="The payment tokenization gateway: its processes, and the work beside them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
applications = typer.Typer(help="Applications of departments, and their API keys.", no_args_is_help=True)
app.add_typer(applications, name="app")


class Movement(msgspec.Struct, frozen=True):
    """What a processor's list says of one movement, as far as it is compared."""

    reference: str
    amount: int
    effects: int


class Listing(msgspec.Struct, frozen=True):
    """A processor's own list."""

    data: list[Movement]


ConfigFile = Annotated[
    str | None, typer.Option("--config", help="The TOML file; else $GATEWAY_CONFIG, else the demo's.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@app.command()
def api(config: ConfigFile = None) -> None:
    """Run the public API until it is told to stop.

    Example: gateway api --config /etc/gateway/gateway.toml
    """
    settings = _config(config)
    asyncio.run(serve_api(settings, ask, logs.configure("api")))


@app.command()
def worker(config: ConfigFile = None) -> None:
    """Run a worker until it is told to stop: it finds out what became of charges without an answer.

    As many as one likes may run. It holds no card key and sends nothing.

    Example: gateway worker --config /etc/gateway/gateway.toml
    """
    settings = _config(config)
    asyncio.run(serve_worker(settings, logs.configure("worker")))


@app.command()
def stub(config: ConfigFile = None) -> None:
    """Run the processor's double, for demos and tests.

    Example: gateway stub
    """
    settings = _config(config)
    if settings.stub is None:
        raise SettingsRefused("the file has no [stub] section: the stub belongs to demos and tests")
    logs.configure("stub")
    asyncio.run(_stub(settings))


@app.command()
def migrate(config: ConfigFile = None) -> None:
    """Bring the database's schema up to this release; forward only, safe to repeat.

    Example: gateway migrate
    """
    steps = asyncio.run(_migrate(_config(config)))
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
    settings = _config(config)
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
    found = asyncio.run(_compare(_config(config), _listed(listing)))
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


@applications.command("add")
def app_add(
    department: Annotated[str, typer.Argument(help="Its department: lower-case letters, digits, underscores.")],
    name: Annotated[str, typer.Argument(help="What people call it.")],
    amount_max: Annotated[int, typer.Option(help="The largest charge, in minor units.", min=1)] = 1_000_000,
    certificate_san: Annotated[str | None, typer.Option(help="The URI in its client certificate.")] = None,
    config: ConfigFile = None,
) -> None:
    """Register an application and print its API key, which is shown this once.

    Example: gateway app add parks "Pool reservations" --amount-max 50000
    """
    added = asyncio.run(_app_add(_config(config), department, name, amount_max, certificate_san))
    typer.echo(json.dumps(added))


@applications.command("list")
def app_list(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """List applications.

    Example: gateway app list --json
    """
    rows = asyncio.run(_app_list(_config(config)))
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = Table("department", "application", "name", "largest charge", "live keys")
    for row in rows:
        limit = f"{Decimal(row['amount_minor_max']).scaleb(-2):,.2f}"
        table.add_row(row["department_id"], row["application_id"], row["name"], limit, str(row["live_keys"]))
    Console().print(table)


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 refused or failed, 2 wrong usage."""
    try:
        app(prog_name="gateway")
    except (KeysError, GatewayError) as error:
        typer.echo(f"gateway: {error}", err=True)
        sys.exit(1)


def _config(given: str | None) -> Config:
    if not __debug__:
        raise SettingsRefused("assertions guard this program: do not run it with python -O")
    return load(settings_path(given), Config, os.environ)


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


async def _app_add(
    config: Config, department: str, name: str, amount_minor_max: int, certificate_san: str | None
) -> dict[str, str]:
    try:
        msgspec.convert(department, Department)
    except msgspec.ValidationError:
        raise SettingsRefused("a department is lower-case letters, digits and underscores, at most 31") from None
    secrets = Path(config.keys.secrets)
    key = new_api_key(read_process_keys(secrets, "api", "api-digest"))
    application_id = new_id("app")
    sql = load_queries("gateway.store", "applications.sql")
    async with connection(config.database, OWNER, secrets) as connected, driver_errors(), connected.transaction():
        await connected.execute(sql.add_department, department, department.title())
        await connected.execute(
            sql.add_application, department, application_id, name, certificate_san, amount_minor_max
        )
        await connected.execute(sql.add_key, department, key.key_id, application_id, key.digest_key, key.digest)
    return {"department": department, "application": application_id, "api_key": key.secret.reveal()}


async def _app_list(config: Config) -> list[dict[str, Any]]:
    sql = load_queries("gateway.store", "applications.sql")
    async with connection(config.database, OWNER, Path(config.keys.secrets)) as connected, driver_errors():
        rows = await connected.fetch(sql.list_applications)
    return [dict(row) | {"revoked_at": row["revoked_at"] and row["revoked_at"].isoformat()} for row in rows]
