"""Rows like those that a token leaves, made by the thousand: to fill a table, and to COPY as a yardstick.

One real token is the pattern. Ids and bytes are drawn anew, as long and as random as the pattern's; times go on; all
else stays. They name keys that exist, and open with none.
"""

import os
import secrets
from base64 import b32encode
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from itertools import count, repeat
from typing import Any

import asyncpg

from gateway.bench.system import BenchFailed
from gateway.rules.ids import CHARACTERS
from keys.queries import load_queries

TABLES = {
    "gateway.deks": "like_deks",
    "gateway.fingerprints": "like_fingerprints",
    "gateway.tokens": "like_tokens",
    "audit.events": "like_events",
}
"""What a token is stored in, in the order of its foreign keys, and the query that finds a token's row there."""

FILL_ROWS = 20_000
"""A commit, when a table is filled."""
APART = timedelta(microseconds=200)
"""Between two rows, so that an index by time grows as it does in life."""

Rows = Mapping[str, Sequence[tuple[Any, ...]]]
"""Rows by table."""


class Pattern:
    """What one real token left, by table: its columns and their values."""

    def __init__(self, owner: asyncpg.Connection, like: Mapping[str, Mapping[str, Any]]) -> None:
        self._owner = owner
        self._like = like
        self._made = 0

    @classmethod
    async def of(cls, owner: asyncpg.Connection, token_id: str) -> "Pattern":
        """The pattern of one token; raises `BenchFailed` when it left no row in one of the tables."""
        sql = load_queries("gateway.bench", "bench.sql")
        like = {}
        for table, query in TABLES.items():
            row = await owner.fetchrow(getattr(sql, query), token_id)
            if row is None:
                raise BenchFailed(f"a token left no row in {table}")
            columns = [column["attname"] for column in await owner.fetch(sql.columns, table)]
            like[table] = {column: row[column] for column in columns}
        return cls(owner, like)

    def make(self, rows: int) -> Rows:
        """The rows of so many tokens."""
        tokens, fingerprints = ids("tok", rows), ids("fp", rows)
        first, self._made = self._made + 1, self._made + rows
        made: dict[str, Sequence[tuple[Any, ...]]] = {}
        for table, like in self._like.items():
            columns: list[Iterable[Any]] = []
            for column, value in like.items():
                if column in {"token_id", "record_id", "subject"}:
                    columns.append(tokens)
                elif column == "fingerprint_id":
                    columns.append(fingerprints)
                else:
                    columns.append(_column(column, value, rows, first))
            made[table] = list(zip(*columns, strict=False))  # what is the same everywhere repeats for ever
        return made

    async def copy(self, rows: Rows, chunk_rows: int) -> None:
        """COPY them, so many tokens a commit."""
        total = len(rows["gateway.tokens"])
        for first in range(0, total, chunk_rows):
            async with self._owner.transaction():
                for table, made in rows.items():
                    schema, name = table.split(".")
                    columns, records = list(self._like[table]), made[first : first + chunk_rows]
                    await self._owner.copy_records_to_table(
                        name, schema_name=schema, columns=columns, records=records
                    )

    async def fill(self, rows: int, moved: Callable[[int], Awaitable[None]]) -> None:
        """Add so many tokens, and leave the tables as after a quiet night: vacuumed, analyzed."""
        for done in range(0, rows, FILL_ROWS):
            part = min(FILL_ROWS, rows - done)
            await self.copy(self.make(part), part)
            await moved(part)
        await self._owner.execute(load_queries("gateway.bench", "bench.sql").vacuum)


def ids(prefix: str, rows: int) -> list[str]:
    """As `gateway.rules.ids.new_id` makes them, many at once: RFC 4648 has the same alphabet."""
    text = b32encode(os.urandom(-(-rows * CHARACTERS * 5 // 8) + 5)).decode().lower()
    return [f"{prefix}_{text[n : n + CHARACTERS]}" for n in range(0, rows * CHARACTERS, CHARACTERS)]


def _column(name: str, value: Any, rows: int, first: int) -> Iterable[Any]:
    """New values for one column, in the manner of the pattern's."""
    if isinstance(value, bytes):
        size, drawn = len(value), os.urandom(len(value) * rows)
        return [drawn[n : n + size] for n in range(0, size * rows, size)]
    if name in {"event_id", "request_id"}:
        prefix, _, rest = value.partition("_")
        drawn_hex = secrets.token_hex(len(rest) * rows // 2 + 1)
        return [f"{prefix}_{drawn_hex[n : n + len(rest)]}" for n in range(0, len(rest) * rows, len(rest))]
    if name == "last4":
        return (f"{number % 10_000:04d}" for number in count(first))
    if name in {"created_at", "occurred_at", "seen_at"}:
        return (value + APART * number for number in count(first))
    return repeat(value)
