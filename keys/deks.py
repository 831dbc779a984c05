"""The DEK table as `keys` sees it: wraps and where they belong, never a sealed byte."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from keys.audit import AuditRow
from keys.errors import KeysError
from keys.manifest import Manifest
from keys.queries import load_queries
from keys.ring import Ring, WrappedDek

PAGE_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Verification:
    """What `keys verify` found. `records` counts the wraps, and the records that lost theirs."""

    records: int
    opened: int
    failed: int


class DekTable:
    """Named queries on one connection, which must belong to the role `gateway_keys`."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._sql = load_queries("keys", "deks.sql")

    async def version_seen(self) -> int:
        """The highest manifest version that the database knows, 0 when it knows none."""
        return await self._connection.fetchval(self._sql.version_seen) or 0

    async def publish(self, manifest: Manifest, audit: AuditRow) -> None:
        """Mirror a manifest's generations and version, with the audit row of the act that made it."""
        async with self._connection.transaction():
            for entry in manifest.of("kek"):
                await self._connection.execute(self._sql.record_generation, entry.number, entry.state)
            await self._connection.execute(self._sql.record_version, manifest.version)
            await self._connection.execute(self._sql.insert_audit, *audit_values(audit))

    async def counts(self) -> dict[int, int]:
        """How many records each generation wraps."""
        rows = await self._connection.fetch(self._sql.count_by_generation)
        return {row["generation"]: row["records"] for row in rows}

    async def verify(self, ring: Ring, now: datetime) -> Verification:
        """Unwrap every data key at its place. Opens no record: this role could not read one."""
        opened = failed = 0
        async for department, record, wrapped in self._wraps():
            try:
                ring.unwrap(ring.place(department, record), wrapped, now)
                opened += 1
            except KeysError:
                failed += 1
        failed += await self._connection.fetchval(self._sql.records_without_wrap)
        return Verification(opened + failed, opened, failed)

    async def _wraps(self) -> AsyncIterator[tuple[str, str, WrappedDek]]:
        last = ("", "")
        while rows := await self._connection.fetch(self._sql.page_of_wraps, *last, PAGE_ROWS):
            for row in rows:
                yield row["department_id"], row["record_id"], WrappedDek(row["generation"], row["wrapped"])
            last = (rows[-1]["department_id"], rows[-1]["record_id"])


def audit_values(row: AuditRow) -> tuple[object, ...]:
    """A row's values in the order of `insert_audit`."""
    event = row.event
    return (
        event.department,
        row.event_id,
        row.occurred_at,
        row.process,
        event.event,
        event.outcome,
        event.actor,
        event.subject,
        event.reason,
        event.request_id,
        row.mac,
    )
