"""`gateway department gl|cutoff|fee-cost|show`: set from a date on, what is past stays, and it is written down."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from typer.testing import CliRunner

from gateway.cli.main import app
from gateway.errors import GrantRefused, NotFound, PeriodRefused, ServiceUnknown
from keys.files import write_private
from keys.process_keys import make_process_key
from tests.gateway.store.postgres import SERVICE, Postgres

pytestmark = pytest.mark.server

Run = Callable[..., Any]
FIRST = date(2026, 1, 1)
AHEAD = date(2099, 1, 1)


@pytest.fixture
def run(postgres: Postgres, tmp_path: Path) -> Run:
    """A command of the owner's: what it answers, or why it refused."""
    secrets, place = tmp_path / "secrets", postgres.address
    (secrets / "owner").mkdir(parents=True, mode=0o700)
    password = postgres.passwords["owner"].reveal().encode()
    write_private(secrets / "owner" / "database.password", password, replace=False)
    make_process_key(secrets, "owner", "audit-mac", 1)
    settings = tmp_path / "gateway.toml"
    settings.write_text(
        f'environment = "test"\n[keys]\nroot = "file:/none"\nstore = "file:/none"\nsecrets = "{secrets}"\n'
        f'[database]\ndsn = "postgresql://{place.host}:{place.port}/{place.database}"\n'
        '[api]\ncert = "/none"\nkey = "/none"\n[processor]\nurl = "https://processor.test"\n'
    )

    async def command(*arguments: str) -> Any:
        given = ["department", *arguments, "--config", str(settings)]
        return await asyncio.to_thread(CliRunner().invoke, app, given)

    return command


async def refused(run: Run, *arguments: str) -> type[BaseException] | None:
    """With which error."""
    done = await run(*arguments)
    return type(done.exception) if done.exception else None


async def test_everything_is_set_shown_and_audited(run: Run, borough: str, owner: asyncpg.Connection) -> None:
    """One entry of each kind, from the first day on; shown in order, as JSON; each with an audit row."""
    since = ("--from", FIRST.isoformat())
    for arguments in (
        ("gl", borough, SERVICE, "101-2300=3", "204-0100=1"),
        ("gl", borough, "-", "999 general"),
        ("cutoff", borough, "17:00"),
        ("fee-cost", borough, "--basis-points", "290", "--fixed-minor", "30"),
    ):
        done = await run(*arguments, *since)
        assert done.exception is None, done.output

    shown = json.loads((await run("show", borough, "--json")).stdout)["books"]
    assert [(row["what"], row["is"]) for row in shown] == [
        *(("cutoff", "17:00"), ("fee-cost", "290+30")),
        *(("gl", "-: 999 general=1"), ("gl", f"{SERVICE}: 101-2300=3"), ("gl", f"{SERVICE}: 204-0100=1")),
    ]
    assert {row["from"] for row in shown} == {"2026-01-01"}
    told = await owner.fetch(
        "SELECT event, reason FROM audit.events WHERE department_id = $1 ORDER BY occurred_at", borough
    )
    assert [tuple(row) for row in told] == [
        (f"department.{what}_set", "2026-01-01") for what in ("gl", "gl", "cutoff", "fee_cost")
    ]


async def test_what_is_past_stays_and_what_lies_ahead_may_be_replaced(
    run: Run, borough: str, owner: asyncpg.Connection
) -> None:
    """Once something holds, a date of today or before is refused; the same later date again replaces the whole."""
    yesterday, later = (datetime.now(UTC).date() - timedelta(1)).isoformat(), AHEAD
    for arguments in (
        ("gl", borough, SERVICE, "101"),
        ("cutoff", borough, "00:00"),
        ("fee-cost", borough, "--basis-points", "1", "--fixed-minor", "1"),
    ):
        assert await refused(run, *arguments, "--from", FIRST.isoformat()) is None
        assert await refused(run, *arguments, "--from", FIRST.isoformat()) is PeriodRefused
        assert await refused(run, *arguments, "--from", yesterday) is PeriodRefused
        assert await refused(run, *arguments, "--from", later.isoformat()) is None
        assert await refused(run, *arguments, "--from", later.isoformat()) is None
    assert await refused(run, "gl", borough, SERVICE, "102", "103", "--from", later.isoformat()) is None

    codes = await owner.fetch(
        "SELECT gl_code FROM gateway.gl_codes WHERE department_id = $1 AND valid_from = $2 ORDER BY 1", borough, later
    )
    assert [row["gl_code"] for row in codes] == ["102", "103"]


@pytest.mark.parametrize(
    ("why", "arguments"),
    [
        (ServiceUnknown, ("gl", "{}", "sauna", "101")),
        (GrantRefused, ("gl", "{}", SERVICE, "=1")),
        (GrantRefused, ("gl", "{}", SERVICE, "101=0")),
        (GrantRefused, ("gl", "{}", SERVICE, "101", "101=2")),
        (GrantRefused, ("gl", "{}", SERVICE, "101\n102")),
        (GrantRefused, ("cutoff", "{}", "24:00")),
        (GrantRefused, ("cutoff", "{}", "5pm")),
        (NotFound, ("cutoff", "nowhere", "17:00")),
    ],
)
async def test_what_cannot_be_set_is_refused(
    run: Run, borough: str, why: type[BaseException], arguments: tuple[str, ...]
) -> None:
    """Services and departments that there are not, codes, shares and times that are none: nothing is set."""
    given = [argument.replace("{}", borough) for argument in arguments]

    assert await refused(run, *given, "--from", AHEAD.isoformat()) is why
    assert json.loads((await run("show", borough, "--json")).stdout)["books"] == []


@pytest.mark.parametrize("text", ["2027-1-1", "10000-01-01", "2027-02-30", "2027-01-01T00:00:00+14:00", "soon"])
async def test_104_a_date_that_is_none_is_refused(run: Run, borough: str, text: str) -> None:
    """A year of five digits, an offset, a day that there is not."""
    assert await refused(run, "cutoff", borough, "17:00", "--from", text) is PeriodRefused
