"""The DEK table and the mirror of key states, as `keys` sees them: wraps and counts, never a sealed byte."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from keys.audit import AuditRow, audit_values
from keys.errors import DatabaseRefused, KeysError, KeysExhausted, KeystoreRefused
from keys.manifest import KEYSTORE, KeyEntry, Manifest
from keys.queries import load_queries
from keys.ring import WRAPS_MAX, Ring, WrappedDek
from keys.states import Seen, State

PAGE_ROWS = 1000
LOCK_TRIES_MAX = 40
LOCK_PAUSE_S = 0.5
ALONE_TRIES_MAX = 20
ALONE_PAUSE_S = 0.1
"""How long a command waits for another one to let the key store go."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What `keys verify` found. `records` counts the wraps, and the records that lost theirs."""

    records: int
    opened: int
    failed: int
    without_wrap: int
    without_record: int
    generations: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Wrap:
    """One row to be rewrapped: what stands there, and what is to stand there."""

    record_id: str
    was: bytes
    wrapped: bytes


class DekTable:
    """Named queries on one connection, which must belong to the role `gateway_keys`."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._sql = load_queries("keys", "deks.sql")

    # -- the mirror of the key store

    async def lock(self) -> None:
        """Be the only command that changes the key store, as long as the connection lives."""
        # Of one that has just ended, or was killed, PostgreSQL needs a moment to let go.
        for _ in range(ALONE_TRIES_MAX):
            if await self._connection.fetchval(self._sql.lock_key_store):
                return
            await asyncio.sleep(ALONE_PAUSE_S)
        raise KeystoreRefused("another `keys` command is changing the key store: wait until it has ended")

    async def is_alone(self) -> bool:
        """Whether no other command is changing the key store at this moment."""
        if not await self._connection.fetchval(self._sql.lock_key_store):
            return False
        await self._connection.execute(self._sql.unlock_key_store)
        return True

    async def seen(self) -> Seen:
        """The manifest that the database knows; version 0 when it knows none."""
        row = await self._connection.fetchrow(self._sql.seen)
        return Seen(*row) if row else Seen()

    async def announce(self, manifest: Manifest) -> None:
        """Let writers use what this manifest, not yet published, makes active; the older keys still count."""
        async with self._connection.transaction():
            await self._mirror(key for key in manifest.keys if key.state is State.ACTIVE)

    async def mirror(self, manifest: Manifest) -> None:
        """Every state as the published manifest has it: from the commit on, writers with older keys are refused."""
        async with self._connection.transaction():
            await self._mirror(manifest.keys)

    async def mirrored(self) -> dict[tuple[str, int], State]:
        """The state of each generation and each fingerprint version, as the database last heard of it."""
        rows = await self._connection.fetch(self._sql.mirrored)
        return {(row["purpose"], row["number"]): State(row["state"]) for row in rows}

    async def await_writers(self) -> None:
        """Wait until every transaction has ended that may have used what the mirror allowed before."""
        for _ in range(LOCK_TRIES_MAX):
            try:
                await self._connection.execute(self._sql.await_writers)
                return  # noqa: TRY300 - an else would only be further away
            except asyncpg.LockNotAvailableError:
                await asyncio.sleep(LOCK_PAUSE_S)
        raise DatabaseRefused("a transaction has been writing for a minute: end it, then run this command again")

    async def settle(self, stands: Seen, audit: AuditRow) -> None:
        """The act is complete: remember the manifest, and write its audit row."""
        async with self._connection.transaction():
            await self._connection.execute(self._sql.record_seen, *stands)
            await self.record(audit)

    async def record(self, audit: AuditRow) -> None:
        """An audit row."""
        await self._connection.execute(self._sql.insert_audit, *audit_values(audit))

    # -- counts

    async def counts(self) -> dict[int, int]:
        """How many records each generation wraps."""
        rows = await self._connection.fetch(self._sql.count_by_generation)
        return {row["generation"]: row["records"] for row in rows}

    async def exposed(self, generations: Sequence[int]) -> int:
        """How many records have a data key that one of these generations may ever have wrapped."""
        return await self._connection.fetchval(self._sql.count_exposed, list(generations)) or 0

    async def indexed(self) -> dict[int, int]:
        """How many cards each version of the fingerprint key indexes."""
        rows = await self._connection.fetch(self._sql.count_by_fingerprint_version)
        return {row["key_version"]: row["rows"] for row in rows}

    async def card_parts(self) -> dict[int, int]:
        """How many idempotency rows hold a card part under each version of the fingerprint key."""
        rows = await self._connection.fetch(self._sql.count_card_parts_by_version)
        return {row["key_version"]: row["rows"] for row in rows}

    async def api_keys(self) -> dict[int, int]:
        """How many API keys each digest key checks."""
        rows = await self._connection.fetch(self._sql.count_by_digest_key)
        return {row["digest_key"]: row["rows"] for row in rows}

    async def not_indexed_anew(self, old: int, new: int) -> int:
        """How many cards the newer index does not know yet."""
        return await self._connection.fetchval(self._sql.count_not_indexed_anew, old, new) or 0

    async def emptied_at(self, generation: int) -> datetime | None:
        """When the last wrap was seen to have left a generation; None while it still wraps records."""
        emptied: datetime | None = await self._connection.fetchval(self._sql.emptied_at, generation)
        return emptied

    async def wraps_reserved(self) -> dict[int, int]:
        """How many wraps each generation has made, at most."""
        rows = await self._connection.fetch(self._sql.wraps_reserved)
        return {row["generation"]: row["wraps_reserved"] for row in rows}

    # -- wraps

    async def departments(self) -> list[str]:
        """All of them: rewrapping goes department by department."""
        return [row["department_id"] for row in await self._connection.fetch(self._sql.departments)]

    async def reserve_wraps(self, generation: int, count: int) -> bool:
        """Count wraps ahead; false when the generation is not active any more."""
        if await self._connection.fetchval(self._sql.reserve_wraps, generation, count, WRAPS_MAX) is not None:
            return True
        if (await self.wraps_reserved()).get(generation, 0) + count > WRAPS_MAX:
            raise KeysExhausted(f"generation {generation} may wrap no more: rotate with `keys rotate`")
        return False

    async def take_page(self, department: str, generation: int, after: str, rows: int) -> list[tuple[str, bytes]]:
        """Wraps to move, locked until the transaction ends; must be called within `page`."""
        page = await self._connection.fetch(self._sql.take_page, department, generation, after, rows)
        return [(row["record_id"], row["wrapped"]) for row in page]

    async def move_page(self, department: str, generation: int, to: int, wraps: Sequence[Wrap]) -> int:
        """Put new wraps in the place of the old by compare-and-set; gives how many were moved."""
        columns = [w.record_id for w in wraps], [w.was for w in wraps], [w.wrapped for w in wraps]
        said = await self._connection.execute(self._sql.move_page, department, generation, to, *columns)
        return int(said.removeprefix("UPDATE "))

    def page(self) -> asyncpg.transaction.Transaction:
        """One page, one commit."""
        return self._connection.transaction()

    async def verify(self, ring: Ring, now: datetime) -> Verification:
        """Unwrap every data key at its place, and count, all of one moment. Opens no record: this role could not."""
        opened = broken = 0
        async with self._connection.transaction(isolation="repeatable_read", readonly=True):
            async for department, record, wrapped in self._wraps():
                try:
                    ring.unwrap(ring.place(department, record), wrapped, now)
                    opened += 1
                except KeysError:
                    broken += 1
            without_wrap = await self._connection.fetchval(self._sql.records_without_wrap)
            records = await self._connection.fetchval(self._sql.count_records)
            generations = await self.counts()
        # A wrap that no record has: somebody put an erased data key back, or took a record away.
        without_record = opened + broken + without_wrap - records
        failed = broken + without_wrap + without_record
        return Verification(opened + broken + without_wrap, opened, failed, without_wrap, without_record, generations)

    async def _mirror(self, keys: Iterable[KeyEntry]) -> None:
        statements = {"kek": self._sql.record_generation, "fingerprint": self._sql.record_fingerprint_version}
        for key in keys:
            if key.holder == KEYSTORE and key.purpose in statements:
                await self._connection.execute(statements[key.purpose], key.number, key.state)

    async def _wraps(self) -> AsyncIterator[tuple[str, str, WrappedDek]]:
        last = ("", "")
        while rows := await self._connection.fetch(self._sql.page_of_wraps, *last, PAGE_ROWS):
            for row in rows:
                yield row["department_id"], row["record_id"], WrappedDek(row["generation"], row["wrapped"])
            last = (rows[-1]["department_id"], rows[-1]["record_id"])
