"""`gateway department gl|cutoff|fee-cost|show`: how a department keeps its books, each from a business date on.

What is past stays as it was: a date must lie ahead of the department's present business date, but for the first entry
of its kind. The same date again replaces what was to hold from then on.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import date, time
from functools import cache
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from gateway.cli.departments import DepartmentName, change_department
from gateway.cli.options import AsJson, ConfigFile, config_of
from gateway.cli.owner import Owner, require_line
from gateway.clock import SystemClock
from gateway.config import Config, city_of
from gateway.errors import GrantRefused, PeriodRefused, ServiceUnknown
from gateway.rules.calendar import FIRST, LAST, Calendar
from gateway.rules.gl import NO_SERVICE, Share
from gateway.rules.settlement import FULL
from keys.cli.bench import tell
from keys.queries import load_queries

GL_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:/-]{0,63}")
SHARE = re.compile(r"[1-9][0-9]{0,5}")
TIME = re.compile(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]")
DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
FIXED_MINOR_MAX = 100_000
NONE = "-"

From = Annotated[str, typer.Option("--from", help="The first business date that it holds for, as 2027-01-01.")]


def add_to(group: typer.Typer) -> None:
    """Put these commands beside the others of a department."""
    for name, command in (("gl", gl), ("cutoff", cutoff), ("fee-cost", fee_cost), ("show", show)):
        group.command(name)(command)


def gl(
    department: DepartmentName,
    service: Annotated[str, typer.Argument(help="One of its services; '-' for what belongs to none.")],
    codes: Annotated[list[str], typer.Argument(help="General-ledger codes; several with shares, as CODE=SHARE.")],
    valid_from: From,
    config: ConfigFile = None,
) -> None:
    """Map a service to general-ledger codes from a date on; amounts are split by the shares, to the cent.

    Example: gateway department gl parks pool 101-2300=3 204-0100=1 --from 2027-01-01
    """
    since, shares = _date(valid_from), [_share(code) for code in codes]
    if len({share.gl_code for share in shares}) < len(shares):
        raise GrantRefused("name each code once")
    of = NO_SERVICE if service == NONE else service

    async def map_codes(owner: Owner) -> None:
        ask = owner.connection
        registered = {row["service"] for row in await ask.fetch(_sql().registered, [department])}
        if of and of not in registered:
            raise ServiceUnknown
        mapped = await ask.fetch(_sql().mapped, [department])
        await _require_ahead(owner, settings, department, since, [row for row in mapped if row["service"] == of])
        await ask.execute(_sql().drop_mapped, department, of, since)
        for share in shares:
            await ask.execute(_sql().put_mapped, department, of, since, share.gl_code, share.share)
        await owner.note("department.gl_set", of, department=department, reason=since.isoformat())

    settings = config_of(config)
    asyncio.run(change_department(settings, department, map_codes))
    typer.echo(f"{department}: {service} goes to {', '.join(codes)} from {since} on.")


def cutoff(
    department: DepartmentName,
    at: Annotated[str, typer.Argument(help="HH:MM in the city's time zone; 00:00 for midnight.")],
    valid_from: From,
    config: ConfigFile = None,
) -> None:
    """Set when a department's business date ends: from then on it is the next one.

    Example: gateway department cutoff parks 17:00 --from 2027-01-01
    """
    since = _date(valid_from)
    if not TIME.fullmatch(at):
        raise GrantRefused("a cut-off is a time of day, as 17:00")

    async def set_cutoff(owner: Owner, before: Sequence[Any]) -> None:
        await _require_ahead(owner, settings, department, since, before)
        await owner.connection.execute(_sql().put_cutoff, department, since, time.fromisoformat(at))
        await owner.note("department.cutoff_set", at, department=department, reason=since.isoformat())

    settings = config_of(config)
    asyncio.run(change_department(settings, department, _after(_sql().cutoffs, [department], set_cutoff)))
    typer.echo(f"{department}: its days end at {at} from {since} on.")


def fee_cost(
    department: DepartmentName,
    basis_points: Annotated[int, typer.Option(min=0, max=FULL, help="Hundredths of a per cent of the payment.")],
    fixed_minor: Annotated[int, typer.Option(min=0, max=FIXED_MINOR_MAX, help="Cents of every payment.")],
    valid_from: From,
    config: ConfigFile = None,
) -> None:
    """Document what taking a card costs the department: no convenience fee is above it (Gov. Code 6159).

    Example: gateway department fee-cost parks --basis-points 290 --fixed-minor 30 --from 2027-01-01
    """
    since = _date(valid_from)

    async def set_cost(owner: Owner, before: Sequence[Any]) -> None:
        await _require_ahead(owner, settings, department, since, before)
        await owner.connection.execute(_sql().put_fee_cost, department, since, basis_points, fixed_minor)
        told = f"{basis_points}+{fixed_minor}"
        await owner.note("department.fee_cost_set", told, department=department, reason=since.isoformat())

    settings = config_of(config)
    asyncio.run(change_department(settings, department, _after(_sql().fee_costs, department, set_cost)))
    typer.echo(
        f"{department}: taking a card costs {basis_points} basis points and {fixed_minor} cents from {since} on."
    )


def show(department: DepartmentName, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show how a department keeps its books, from which dates on.

    Example: gateway department show parks --json
    """
    told: list[tuple[date, str, str]] = []

    async def read(owner: Owner) -> None:
        ask, of = owner.connection, [department]
        mapped, costs = await ask.fetch(_sql().mapped, of), await ask.fetch(_sql().fee_costs, department)
        told.extend((day, "cutoff", f"{at:%H:%M}") for _, day, at in await ask.fetch(_sql().cutoffs, of))
        told.extend((day, "gl", f"{service or NONE}: {code}={share}") for _, service, day, code, share in mapped)
        told.extend((day, "fee-cost", f"{basis_points}+{fixed_minor}") for day, basis_points, fixed_minor in costs)

    asyncio.run(change_department(config_of(config), department, read))
    rows = [(day.isoformat(), what, how) for day, what, how in sorted(told)]
    if as_json:
        books = [dict(zip(("from", "what", "is"), row, strict=True)) for row in rows]
        tell(True, {"department": department, "books": books})
        return
    table = Table("from", "what", "is")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _after(
    query: str, value: Any, change: Callable[[Owner, Sequence[Any]], Awaitable[None]]
) -> Callable[[Owner], Awaitable[None]]:
    """The change, told what was set before."""

    async def told(owner: Owner) -> None:
        await change(owner, await owner.connection.fetch(query, value))

    return told


async def _require_ahead(owner: Owner, config: Config, department: str, since: date, before: Sequence[Any]) -> None:
    """Raises `PeriodRefused` for a date that is not ahead, where something holds already."""
    cutoffs = [(row["valid_from"], row["at"]) for row in await owner.connection.fetch(_sql().cutoffs, [department])]
    today = Calendar(city_of(config), {department: cutoffs}).business_date(department, SystemClock().now())
    if before and since <= today:
        raise PeriodRefused(f"what held until now stays: it is {today} there, name a later date")


def _date(text: str) -> date:
    """Raises `PeriodRefused`."""
    try:
        found = date.fromisoformat(text) if DATE.fullmatch(text) else None
    except ValueError:
        found = None
    if found is None or not FIRST <= found <= LAST:
        raise PeriodRefused("write a date as 2027-01-01")
    return found


def _share(text: str) -> Share:
    """`CODE` or `CODE=SHARE`; raises `GrantRefused`."""
    gl_code, equals, share = text.partition("=")
    if not GL_CODE.fullmatch(gl_code) or (equals and not SHARE.fullmatch(share)):
        raise GrantRefused("a code has at most 64 of letters, digits, blanks and ._:/- ; a share is a whole number")
    require_line("gl_code", gl_code)
    return Share(gl_code, int(share or 1))


@cache
def _sql() -> Any:
    return load_queries("gateway.store", "books.sql")
