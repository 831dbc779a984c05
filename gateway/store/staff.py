"""The staff store on PostgreSQL: an act and its audit row are one commit; the database's clock says what is late."""

from collections.abc import Callable
from datetime import datetime, timedelta

import asyncpg

from gateway.rules.staff import (
    DORMANT,
    IDLE,
    LOCKED,
    SESSION_MAX,
    TRIES_MAX,
    Account,
    Proof,
    Role,
    Session,
    SessionKind,
    Staff,
)
from gateway.store.database import Database
from keys.audit import CITY, AuditRow, audit_values
from keys.database import Connection
from keys.queries import load_queries

FORGOTTEN_AFTER = timedelta(days=1)
FORGOTTEN_AT_ONCE = 100_000
"""Fewer than two threads can hash in an hour, and well within a statement's time."""


class StaffStore:
    """Implements `services.staff.StaffStore`, as the role of the admin process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = load_queries("gateway.store", "staff.sql")
        self._mirror = load_queries("gateway.store", "mirror.sql")

    # -- signing in

    async def account(self, username: str) -> tuple[Account | None, datetime]:
        """See the port."""
        async with self._database.reading(CITY) as connection:
            now: datetime = await connection.fetchval(self._sql.time)
            row = await connection.fetchrow(self._sql.account, username, DORMANT)
        if row is None:
            return None, now
        earlier = tuple(row["earlier_hashes"])
        return Account(row["staff_id"], row["usable"], row["password_hash"], earlier, row["totp_sealed"]), now

    async def reserve_try(self, name_digest: bytes) -> int | None:
        """See the port."""
        async with self._database.transaction(CITY) as connection:
            number: int | None = await connection.fetchval(self._sql.reserve_try, name_digest, TRIES_MAX, LOCKED)
        return number

    async def refuse(self, name_digest: bytes, refused: AuditRow | None) -> None:
        """See the port."""
        async with self._database.transaction(CITY) as connection:
            await self._refused(connection, name_digest, refused)

    async def lock(self, name_digest: bytes, refused: AuditRow | None, locked: AuditRow | None) -> None:
        """See the port."""
        async with self._database.transaction(CITY) as connection:
            await self._refused(connection, name_digest, refused)
            if await connection.fetchval(self._sql.lock, name_digest, TRIES_MAX, LOCKED) and locked is not None:
                await self._audit(connection, locked)

    async def clear_tries(self, name_digest: bytes) -> None:
        """See the port."""
        async with self._database.transaction(CITY) as connection:
            await connection.execute(self._sql.clear_tries, name_digest)

    async def sign_in(
        self, proof: Proof, kind: SessionKind, session: bytes, name_digest: bytes, audit: AuditRow
    ) -> Session | None:
        """See the port."""
        async with self._database.transaction(CITY) as connection:
            row = await connection.fetchrow(
                self._sql.use_factors, proof.staff_id, proof.judged, proof.step, proof.kept, proof.sealed, DORMANT
            )
            if row is None:
                return None
            await connection.execute(self._sql.clear_tries, name_digest)
            opened = await self._open(connection, row, session, kind)
            await self._audit(connection, audit)
        return opened

    async def sign_in_by_subject(
        self, subject: str, session: bytes, audit: Callable[[str], AuditRow]
    ) -> Session | None:
        """See the port."""
        async with self._database.transaction(CITY) as connection:
            row = await connection.fetchrow(self._sql.use_subject, subject, DORMANT)
            if row is None:
                return None
            opened = await self._open(connection, row, session, "browser")
            await self._audit(connection, audit(row["staff_id"]))
        return opened

    # -- being signed in

    async def identify(self, sessions: list[bytes]) -> Session | None:
        """See the port."""
        async with self._database.transaction(CITY) as connection:
            row = await connection.fetchrow(self._sql.identify, sessions, IDLE, SESSION_MAX, DORMANT)
        if row is None:
            return None
        return Session(_staff(row, row["session_digest"]), row["must_change"], row["expires"])

    async def end(self, sessions: list[bytes], audit: Callable[[str], AuditRow]) -> None:
        """See the port."""
        async with self._database.transaction(CITY) as connection:
            staff_id = await connection.fetchval(self._sql.end_session, sessions)
            if staff_id is not None:
                await self._audit(connection, audit(staff_id))

    async def change_password(
        self, staff: Staff, was: str, becomes: str, earlier: tuple[str, ...], name_digest: bytes, audit: AuditRow
    ) -> bool:
        """See the port."""
        async with self._database.transaction(CITY) as connection:
            changed = await connection.fetchval(
                self._sql.change_password, staff.staff_id, was, becomes, list(earlier)
            )
            if changed is None:
                return False
            await connection.execute(self._sql.end_others, staff.staff_id, staff.session)
            await connection.execute(self._sql.clear_tries, name_digest)
            await self._audit(connection, audit)
        return True

    async def record(self, audit: AuditRow) -> None:
        """See the port."""
        async with self._database.transaction(CITY) as connection:
            await self._audit(connection, audit)

    async def tidy(self) -> None:
        """See the port."""
        async with self._database.transaction(CITY) as connection:
            await connection.execute(self._sql.forget_tries, FORGOTTEN_AFTER, FORGOTTEN_AT_ONCE)

    # -- what these are made of, each inside a transaction

    async def _refused(self, connection: Connection, name_digest: bytes, refused: AuditRow | None) -> None:
        if refused is None:
            await connection.execute(self._sql.touch_tries, name_digest)
        else:
            await self._audit(connection, refused)

    async def _open(self, connection: Connection, row: asyncpg.Record, session: bytes, kind: SessionKind) -> Session:
        expires: datetime = await connection.fetchval(
            self._sql.open_session, session, row["staff_id"], kind, SESSION_MAX
        )
        return Session(_staff(row, session), row["must_change"], expires)

    async def _audit(self, connection: Connection, audit: AuditRow) -> None:
        await connection.execute(self._mirror.insert_audit, *audit_values(audit))


def _staff(row: asyncpg.Record, session: bytes) -> Staff:
    roles = frozenset(Role(role) for role in row["roles"])
    return Staff(row["staff_id"], row["username"], roles, frozenset(row["departments"]), session)
