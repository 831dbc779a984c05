"""`gateway app`: the applications of departments, and their API keys."""

import asyncio
import json
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from gateway.cli.options import OWNER, AsJson, ConfigFile, config_of
from gateway.config import Config
from gateway.rules.access import new_api_key
from gateway.rules.ids import new_id
from keys.database import connection, driver_errors
from keys.errors import SettingsRefused
from keys.process_keys import read_process_keys
from keys.queries import load_queries
from keys.settings import Department

commands = typer.Typer(help="Applications of departments, and their API keys.", no_args_is_help=True)


@commands.command("add")
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
    added = asyncio.run(_app_add(config_of(config), department, name, amount_max, certificate_san))
    typer.echo(json.dumps(added))


@commands.command("list")
def app_list(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """List applications.

    Example: gateway app list --json
    """
    rows = asyncio.run(_app_list(config_of(config)))
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = Table("department", "application", "name", "largest charge", "live keys")
    for row in rows:
        limit = f"{Decimal(row['amount_minor_max']).scaleb(-2):,.2f}"
        table.add_row(row["department_id"], row["application_id"], row["name"], limit, str(row["live_keys"]))
    Console().print(table)


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
