"""The store of `gateway reseal`: pages of records, of index rows and of card parts, each one commit.

What a page takes is locked, and what somebody else holds is passed by, so that several may run at once, beside a
rewrap and beside traffic. What the page becomes is asked of the caller while the locks are held; it goes back by
compare-and-set, with the caller's audit rows, and only if its keys are active at that moment.
"""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress

import asyncpg

from gateway.errors import Unavailable
from gateway.services.ports import CardIndex, KeysMoved, SealedRecord
from gateway.services.resealing import (
    CardPart,
    Cursor,
    IndexedCard,
    NewIndex,
    NewPart,
    Reindex,
    Remake,
    Renew,
    Resealed,
    Stretch,
)
from gateway.store.database import Database
from gateway.store.mirror import Mirror
from keys.audit import CITY, AuditRow, audit_values
from keys.database import Connection
from keys.deks import LOCK_PAUSE_S, LOCK_TRIES_MAX
from keys.queries import load_queries
from keys.ring import WrappedDek


class _Busy(Exception):
    """The barrier was not reached in time; writers may go on meanwhile."""


class ResealStore(Mirror):
    """Implements `ports.ResealStore`."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._sql = load_queries("gateway.store", "reseal.sql")

    async def await_writers(self) -> None:
        """See `ports.ResealStore`; raises `Unavailable` when a transaction does not end."""
        for _ in range(LOCK_TRIES_MAX):
            with suppress(_Busy):
                async with self._database.transaction(CITY) as connection:
                    await self._reach_barrier(connection)
                return
            await asyncio.sleep(LOCK_PAUSE_S)
        raise Unavailable("A transaction has been writing for a minute: end it, then run this command again.")

    async def departments(self) -> Sequence[str]:
        """See `ports.ResealStore`."""
        async with self._database.reading(CITY) as connection:
            return [row["department_id"] for row in await connection.fetch(self._sql.departments)]

    # -- records

    async def exposed(self, table: str, department: str, generations: Sequence[int], broken: Sequence[str]) -> int:
        """See `ports.ResealStore`."""
        return await self._count(f"count_exposed_{table}", department, list(generations), list(broken))

    async def exposed_without_record(self, department: str, generations: Sequence[int]) -> int:
        """See `ports.ResealStore`."""
        return await self._count("count_exposed_without_record", department, list(generations))

    async def reseal(self, table: str, stretch: Stretch, generations: Sequence[int], remake: Remake) -> Cursor | None:
        """See `ports.ResealStore`."""
        department, lock = stretch.department, getattr(self._sql, f"lock_exposed_{table}")
        async with self._database.transaction(department) as connection:
            held = await connection.fetch(
                lock, department, list(generations), stretch.after[1], stretch.rows, list(stretch.broken)
            )
            # Somebody else may have resealed a record between the page's snapshot and its lock.
            exposed = [
                r for r, first in await self._records(connection, department, held) if _spans(r, first, generations)
            ]
            resealed, audit = await remake(exposed)
            await self._replace(connection, table, department, resealed)
            await self._audit_all(connection, audit)
        return ("", held[-1]["record_id"]) if held else None

    # -- the card index

    async def not_indexed(self, department: str, older: Sequence[int], newest: int, broken: Sequence[str]) -> int:
        """See `ports.ResealStore`."""
        return await self._count("count_not_indexed", department, list(older), newest, list(broken))

    async def index(
        self, stretch: Stretch, older: Sequence[int], newest: int, reindex: Reindex
    ) -> tuple[Cursor | None, Sequence[str]]:
        """See `ports.ResealStore`."""
        department, broken = stretch.department, list(stretch.broken)
        async with self._database.transaction(department) as connection:
            page = await connection.fetch(
                self._sql.not_indexed, department, list(older), newest, stretch.after[1], stretch.rows, broken
            )
            known = {row["fingerprint_id"]: CardIndex(row["key_version"], row["card_index"]) for row in page}
            held = await connection.fetch(self._sql.lock_token_of_each, department, list(known), broken)
            card_of = {row["record_id"]: row["fingerprint_id"] for row in held}
            cards = [
                IndexedCard(card_of[record.record_id], known[card_of[record.record_id]], record)
                for record, _ in await self._records(connection, department, held)
            ]
            made, audit = await reindex(cards)
            others = await self._insert_indexes(connection, department, made)
            await self._audit_all(connection, audit)
        return ("", page[-1]["fingerprint_id"]) if page else None, others

    async def forget_strays(self, department: str, older: Sequence[int], rows: int) -> int:
        """See `ports.ResealStore`."""
        async with self._database.transaction(department) as connection:
            found = await connection.fetch(self._sql.strays, department, list(older), rows)
            ids = [row["fingerprint_id"] for row in found]
            await connection.execute(self._sql.lock_fingerprints, department, ids)
            gone = await connection.fetch(self._sql.forget_fingerprints, department, ids)
        return len({row["fingerprint_id"] for row in gone})

    async def destroyed_indexes(self, department: str) -> int:
        """See `ports.ResealStore`."""
        return await self._count("count_destroyed_indexes", department)

    async def forget_indexes(self, department: str, rows: int) -> int:
        """See `ports.ResealStore`."""
        async with self._database.transaction(department) as connection:
            return len(await connection.fetch(self._sql.forget_indexes, department, rows))

    # -- card parts

    async def card_parts(self, department: str, older: Sequence[int], broken: Sequence[str]) -> int:
        """See `ports.ResealStore`."""
        return await self._count("count_parts", department, list(older), list(broken))

    async def renew_parts(self, stretch: Stretch, older: Sequence[int], renew: Renew) -> Cursor | None:
        """See `ports.ResealStore`."""
        department = stretch.department
        async with self._database.transaction(department) as connection:
            page = await connection.fetch(
                self._sql.parts, department, list(older), *stretch.after, stretch.rows, list(stretch.broken)
            )
            ids = list({row["token_id"] for row in page})
            held = await connection.fetch(self._sql.lock_tokens, department, ids)
            records = {r.record_id: r for r, _ in await self._records(connection, department, held)}
            living = {row["token_id"] for row in await connection.fetch(self._sql.living_tokens, department, ids)}
            mine = [row for row in page if row["token_id"] in records or row["token_id"] not in living]
            made, audit = await renew([_card_part(row, records.get(row["token_id"])) for row in mine])
            await self._replace_parts(connection, department, made)
            await self._audit_all(connection, audit)
        return (page[-1]["route"], page[-1]["idempotency_key"]) if page else None

    # -- what these are made of, each inside a transaction

    async def _reach_barrier(self, connection: Connection) -> None:
        try:
            await connection.execute(self._sql.await_writers)
        except asyncpg.LockNotAvailableError:
            raise _Busy from None

    async def _count(self, query: str, department: str, *values: object) -> int:
        async with self._database.reading(department) as connection:
            counted: int = await connection.fetchval(getattr(self._sql, query), department, *values)
        return counted

    async def _records(
        self, connection: Connection, department: str, held: Sequence[asyncpg.Record]
    ) -> list[tuple[SealedRecord, int]]:
        """Records whose row is held, each with the generation that first wrapped its data key."""
        ids = [row["record_id"] for row in held]
        deks = {row["record_id"]: row for row in await connection.fetch(self._sql.lock_deks, department, ids)}
        records = []
        for row in held:
            record_id, dek = row["record_id"], deks.get(row["record_id"])
            # A record whose data key is missing cannot be opened; the empty wrap fails as tampering does.
            wrapped = WrappedDek(dek["generation"], dek["wrapped"]) if dek else WrappedDek(0, b"")
            records.append((SealedRecord(record_id, row["sealed"], wrapped), dek["first_generation"] if dek else 0))
        return records

    async def _replace(
        self, connection: Connection, table: str, department: str, resealed: Sequence[Resealed]
    ) -> None:
        columns = (
            [each.was.record_id for each in resealed],
            [each.was.dek.generation for each in resealed],
            [each.was.dek.wrapped for each in resealed],
            [each.becomes.dek.generation for each in resealed],
            [each.becomes.dek.wrapped for each in resealed],
        )
        replaced = await connection.fetch(self._sql.replace_deks, department, *columns)
        if len(replaced) < len(resealed):  # the rows are locked and as they were: it is the generation
            raise KeysMoved
        sealed = [each.becomes.sealed for each in resealed]
        await connection.execute(getattr(self._sql, f"replace_{table}"), department, columns[0], sealed)

    async def _insert_indexes(
        self, connection: Connection, department: str, made: Sequence[NewIndex]
    ) -> Sequence[str]:
        columns = (
            [each.index.key_version for each in made],
            [each.index.value for each in made],
            [each.fingerprint_id for each in made],
        )
        await connection.execute(self._sql.insert_indexes, department, *columns)
        stand = await connection.fetch(self._sql.inserted_indexes, department, *columns)
        if any(row["stands"] is None for row in stand):
            raise KeysMoved
        return [row["fingerprint_id"] for row in stand if row["stands"] != row["fingerprint_id"]]

    async def _replace_parts(self, connection: Connection, department: str, made: Sequence[NewPart]) -> None:
        columns = (
            [each.was.route for each in made],
            [each.was.key for each in made],
            [each.was.part.value for each in made],
            [each.becomes.value if each.becomes else None for each in made],
            [each.becomes.key_version if each.becomes else None for each in made],
        )
        await connection.execute(self._sql.replace_parts, department, *columns)
        for version in {version for version in columns[4] if version is not None}:
            if not await connection.fetchval(self._sql.version_is_active, version):
                raise KeysMoved

    async def _audit_all(self, connection: Connection, rows: Iterable[AuditRow]) -> None:
        await connection.executemany(self._mirror.insert_audit, [audit_values(row) for row in rows])


def _spans(record: SealedRecord, first: int, generations: Sequence[int]) -> bool:
    return any(first <= generation <= record.dek.generation for generation in generations)


def _card_part(row: asyncpg.Record, record: SealedRecord | None) -> CardPart:
    part = CardIndex(row["card_key_version"], row["card_part"])
    return CardPart(row["route"], row["idempotency_key"], part, record)
