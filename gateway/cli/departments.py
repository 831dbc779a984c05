"""`gateway department`: which departments there are, and the contract of each: what it may send of a person, and why.

Nothing that a department has not given a reason for is taken from it. `*` takes everything.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from gateway.cli.options import OWNER, AsJson, ConfigFile, config_of
from gateway.cli.owner import Owner, as_owner, require_line
from gateway.config import Config
from gateway.errors import GrantRefused, NotFound
from gateway.rules.personal import EVERY_FIELD, NAME
from keys.cli.bench import tell
from keys.database import connection, query_errors
from keys.queries import load_queries

FIELD = re.compile(rf"\{EVERY_FIELD}|{NAME.pattern}(?:\.{NAME.pattern}){{0,3}}")

SERVICE = re.compile(r"[a-z][a-z0-9_-]{0,63}")

commands = typer.Typer(help="Departments, and the personal fields that each may send.", no_args_is_help=True)

DepartmentName = Annotated[str, typer.Argument(help="The department.")]
Field = Annotated[str, typer.Argument(help="A field of `details`, as `email` or `address.zip`; '*' is all of them.")]


@commands.command("list")
def department_list(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """List departments with what each may send of a person.

    Example: gateway department list --json
    """
    rows = asyncio.run(_list(config_of(config)))
    if as_json:
        tell(True, {"departments": rows})
        return
    table = Table("department", "state", "applications", "personal fields")
    for row in rows:
        fields = "\n".join(f"{field}: {why}" for field, why in row["fields"].items()) or "none"
        table.add_row(row["department"], row["state"], str(row["applications"]), fields)
    Console().print(table)


@commands.command("allow")
def department_allow(
    department: DepartmentName,
    field: Field,
    reason: Annotated[str, typer.Option(help="Why the department needs it: callers are told so.")],
    config: ConfigFile = None,
) -> None:
    """Take a personal field from a department, for a reason. Again, with another reason, it replaces the first.

    Example: gateway department allow parks email --reason "receipts are sent there"
    """
    _require_field(field)
    require_line("reason", reason)

    async def allow(owner: Owner) -> None:
        await owner.connection.execute(_sql().allow_field, department, field, reason)
        await owner.note("department.field_allowed", field, department=department)

    asyncio.run(change_department(config_of(config), department, allow))
    typer.echo(f"{department} may send {field}.")


@commands.command("forbid")
def department_forbid(department: DepartmentName, field: Field, config: ConfigFile = None) -> None:
    """Take a personal field from a department no longer. What it sent before stays sealed as it is.

    Example: gateway department forbid parks email
    """
    _require_field(field)

    async def forbid(owner: Owner) -> None:
        if await owner.connection.fetchval(_sql().forbid_field, department, field) is None:
            raise NotFound("this field is not allowed to it: `gateway department list` shows what is")
        await owner.note("department.field_forbidden", field, department=department)

    asyncio.run(change_department(config_of(config), department, forbid))
    typer.echo(f"{department} may no longer send {field}.")


@commands.command("service")
def department_service(
    department: DepartmentName,
    code: Annotated[str, typer.Argument(help="What charges name: lower-case letters, digits, underscores, hyphens.")],
    name: Annotated[str, typer.Argument(help="What people call it.")],
    gl_code: Annotated[str, typer.Argument(help="Its place in the general ledger.")],
    config: ConfigFile = None,
) -> None:
    """Register a service that a department's charges may name. Once registered it stays as it is.

    Example: gateway department service parks pool "Pool reservations" 101-2300
    """
    if not SERVICE.fullmatch(code):
        raise GrantRefused("a service's code has at most 64 of a-z, 0-9, `_` and `-`, and begins with a letter")
    require_line("name", name)
    require_line("gl_code", gl_code)

    async def register(owner: Owner) -> None:
        if await owner.connection.fetchval(_sql().add_service, department, code, name, gl_code) is None:
            raise GrantRefused(f"{department} has a service {code} already")
        await owner.note("department.service_added", code, department=department)

    asyncio.run(change_department(config_of(config), department, register))
    typer.echo(f"{department} may charge for {code}.")


@commands.command("disable")
def department_disable(department: DepartmentName, config: ConfigFile = None) -> None:
    """Refuse all of a department's applications, within two seconds; nothing is deleted.

    Example: gateway department disable parks
    """

    async def disable(owner: Owner) -> None:
        await owner.connection.execute(_sql().disable_department, department)
        await owner.note("department.disabled", department=department)

    asyncio.run(change_department(config_of(config), department, disable, disabled=False))
    typer.echo(f"{department} is disabled: its applications are refused.")


@commands.command("enable")
def department_enable(department: DepartmentName, config: ConfigFile = None) -> None:
    """Let a department's applications in again.

    Example: gateway department enable parks
    """

    async def enable(owner: Owner) -> None:
        await owner.connection.execute(_sql().enable_department, department)
        await owner.note("department.enabled", department=department)

    asyncio.run(change_department(config_of(config), department, enable, disabled=True))
    typer.echo(f"{department} is enabled.")


async def change_department(
    config: Config, department: str, change: Callable[[Owner], Awaitable[None]], *, disabled: bool | None = None
) -> None:
    """Change a department, held meanwhile, that is `disabled` or not; raises `NotFound` or `GrantRefused`."""
    async with as_owner(config) as owner:
        row = await owner.connection.fetchrow(_sql().hold_department, department)
        if row is None:
            raise NotFound("there is no such department: `gateway app add` makes it with its first application")
        if disabled is not None and (row["disabled_at"] is not None) != disabled:
            raise GrantRefused(f"{department} is {'enabled' if disabled else 'disabled'} already")
        await change(owner)


async def _list(config: Config) -> list[dict[str, Any]]:
    async with connection(config.database, OWNER, Path(config.keys.secrets)) as connected, query_errors():
        return await list_departments(connected)


async def list_departments(connected: Any) -> list[dict[str, Any]]:
    """Every department: its state, how many live applications it has, its personal fields with their reasons."""
    fields = await connected.fetch(_sql().list_fields)
    return [
        {
            "department": row["department_id"],
            "name": row["name"],
            "state": "active" if row["disabled_at"] is None else "disabled",
            "created": row["created_at"].isoformat(),
            "applications": row["applications"],
            "fields": {f["field"]: f["reason"] for f in fields if f["department_id"] == row["department_id"]},
        }
        for row in await connected.fetch(_sql().list_departments)
    ]


def _require_field(field: str) -> None:
    """Raises `GrantRefused` for what cannot be a field's name."""
    if not FIELD.fullmatch(field):
        raise GrantRefused("a field is lower-case words with dots between them, as `address.zip`, or '*' for all")


@cache
def _sql() -> Any:
    return load_queries("gateway.store", "applications.sql")
