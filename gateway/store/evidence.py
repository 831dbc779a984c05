"""What a close pack is made of, as the database holds it: figures, and digests of every row behind them.

All of it is of one moment, that of the approval: what was added later, for dates that were opened again, is left out,
so that the pack of then can be made again at any time.
"""

from collections.abc import Sequence
from datetime import date, datetime
from types import SimpleNamespace
from typing import Any

import asyncpg
import msgspec

from gateway.errors import PeriodRefused
from gateway.rules.pack import told
from gateway.services.closes import Close, Evidence, Intervals
from keys.audit import CITY
from keys.database import Connection

Sql = SimpleNamespace
"""The queries of `closes.sql`."""
LONG_S = 60.0
"""For what looks at every row of the dates."""
ROWS_MAX = 50_000
"""So many exceptions, and so many items to carry forward, a pack names at most."""


async def evidence_of(connection: Connection, sql: Sql, close: Close, at: datetime, intervals: Intervals) -> Evidence:
    """All that is stored of a close at a moment; raises `PeriodRefused` where it is more than a pack takes."""
    departments, dates = sorted(close.departments), (close.first, close.last)
    run = await connection.fetchrow(sql.reconciliation, close.reconciliation_id)
    content: dict[str, Any] = {
        "reconciliation": _run(run),
        "files": [_plain(row) for row in await connection.fetch(sql.files, departments, *dates, at, timeout=LONG_S)],
        "exceptions": await _exceptions(connection, sql, departments, dates, at),
        "carried_forward": [
            _plain(row)
            for row in _bounded(
                await connection.fetch(sql.carried, departments, close.reconciliation_id, ROWS_MAX + 1)
            )
        ],
        "books": {each: await _books(connection, sql, close, each, at, intervals[each]) for each in departments},
    }
    if CITY in departments:
        content["deposits"] = _plain(await connection.fetchrow(sql.deposits, CITY, *dates, at, timeout=LONG_S))
    return Evidence(at, content)


async def _books(
    connection: Connection,
    sql: Sql,
    close: Close,
    department: str,
    at: datetime,
    interval: tuple[datetime, datetime],
) -> dict[str, Any]:
    """What one department's books say of its dates."""
    dates = close.first, close.last, at
    journal = await connection.fetch(sql.journal, department, *interval, timeout=LONG_S)
    postings = await connection.fetch(sql.postings, department, *dates, timeout=LONG_S)
    return {
        "from": told(interval[0]),
        "until": told(interval[1]),
        "lines": _plain(await connection.fetchrow(sql.lines, department, *dates, timeout=LONG_S)),
        "items": _plain(await connection.fetchrow(sql.items, department, close.reconciliation_id, timeout=LONG_S)),
        "journal": {
            "accounts": [_plain(row) for row in journal],
            **_plain(await connection.fetchrow(sql.journal_digest, department, *interval, timeout=LONG_S)),
        },
        "postings": {
            "accounts": [_plain(row) for row in postings],
            **_plain(await connection.fetchrow(sql.postings_digest, department, *dates, timeout=LONG_S)),
        },
    }


async def _exceptions(
    connection: Connection, sql: Sql, departments: Sequence[str], dates: tuple[date, date], at: datetime
) -> list[dict[str, Any]]:
    """Each that stood in the way of the close, with all that was done about it."""
    found = _bounded(await connection.fetch(sql.exceptions, departments, *dates, at, ROWS_MAX + 1, timeout=LONG_S))
    acts: dict[tuple[str, str], list[dict[str, Any]]] = {}
    names = [[row[column] for row in found] for column in ("department_id", "exception_id")]
    for row in await connection.fetch(sql.exception_acts, *names, at, timeout=LONG_S):
        plain = _plain(row)
        acts.setdefault((plain.pop("department_id"), plain.pop("exception_id")), []).append(plain)
    return [{**_plain(row), "acts": acts.get((row["department_id"], row["exception_id"]), [])} for row in found]


def _run(row: Any) -> dict[str, Any]:
    return {**_plain(row), "counts": msgspec.json.decode(row["counts"]), "totals": msgspec.json.decode(row["totals"])}


def _bounded(rows: Sequence[asyncpg.Record]) -> Sequence[asyncpg.Record]:
    if len(rows) > ROWS_MAX:
        raise PeriodRefused("These dates have more open ends than one close takes. Close fewer days at once.")
    return rows


def _plain(row: Any) -> dict[str, Any]:
    """A record, its moments and dates as packs spell them."""
    return {name: _spelled(value) for name, value in row.items()}


def _spelled(value: Any) -> Any:
    match value:
        case datetime():
            return told(value)
        case date():
            return value.isoformat()
    return value
