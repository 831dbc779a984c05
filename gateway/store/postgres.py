"""The store on PostgreSQL: named queries on one side, the services' records on the other.

Each method is one transaction. It sees sealed bytes, keyed values and what is clear by design; a card number or
a name never reaches it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

import asyncpg

from gateway.errors import NotFound, ServiceUnknown, TokenInUse, TokenUnusable, Unavailable
from gateway.rules.access import Application, Credential
from gateway.rules.lifecycle import MEANINGS, Event, State, after, sources
from gateway.services.ports import (
    CHARGES_ROUTE,
    Answer,
    Approved,
    Begun,
    CardIndex,
    Charge,
    Claim,
    Claimed,
    CommitUnknown,
    Declined,
    Intent,
    KeysMoved,
    NewToken,
    SealedRecord,
    Token,
)
from gateway.store.database import Database
from gateway.store.mirror import Mirror
from keys.audit import CITY, AuditRow
from keys.database import Connection
from keys.queries import load_queries
from keys.ring import WrappedDek

LEASE = timedelta(seconds=15)
"""How long a request may hold a key or a charge; longer than the processor's deadline, shorter than patience."""


INDEX_STATES = ("active",)
OLDER_INDEX_STATES = ("active", "retired", "compromised")
"""In which states a version of the fingerprint key may index a card beside a newer one."""


class NothingCommitted(Exception):
    """A commit whose connection was lost did not happen."""


class Store(Mirror):
    """Implements every store port of the api process."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._sql = load_queries("gateway.store", "queries.sql")

    # -- callers

    async def credentials(self) -> dict[str, Credential]:
        """Every valid API key by its id, with the application that it belongs to."""
        async with self._database.reading(CITY) as connection:
            rows = await connection.fetch(self._sql.applications)
        return {
            row["key_id"]: Credential(
                row["digest_key"],
                row["digest"],
                Application(
                    row["department_id"], row["application_id"], row["amount_minor_max"], row["certificate_san"]
                ),
            )
            for row in rows
        }

    async def require_audit(self) -> None:
        """Raises `Unavailable` when no audit row could be written."""
        async with self._database.reading(CITY) as connection:
            if not await connection.fetchval(self._sql.may_audit):
                raise Unavailable

    async def charges_unresolved(self) -> dict[str, int]:
        """How many charges of all departments are in each state that is not final."""
        counts = {state.value: 0 for state, meaning in MEANINGS.items() if not meaning.final}
        async with self._database.reading(CITY) as connection:
            departments = [row["department_id"] for row in await connection.fetch(self._sql.departments)]
        for department in departments:
            async with self._database.reading(department) as connection:
                for row in await connection.fetch(self._sql.charges_unresolved, department):
                    counts[row["state"]] += row["charges"]
        return counts

    # -- idempotency

    async def claimed(self, department: str, route: str, key: str) -> Claimed | None:
        """See `ports.TokenStore`."""
        async with self._database.reading(department) as connection:
            return await self._claimed(connection, department, route, key)

    async def claim(self, department: str, claim: Claim | None, audit: AuditRow) -> Claimed | None:
        """See `ports.TokenStore`."""
        async with self._database.transaction(department) as connection:
            if claim is not None and (earlier := await self._take(connection, department, claim)):
                return earlier
            await self._audit(connection, audit)
        return None

    async def take_over(self, department: str, claim: Claim) -> bool:
        """See `ports.TokenStore`."""
        async with self._database.transaction(department) as connection:
            taken = await connection.fetchval(self._sql.take_over, department, claim.route, claim.key, LEASE)
        return taken is not None

    async def answer_claim(
        self, department: str, claim: Claim | None, answer: Answer, audit: AuditRow
    ) -> Claimed | None:
        """See `ports.TokenStore`."""
        async with self._database.transaction(department) as connection:
            if claim is not None:
                if earlier := await self._answered(connection, department, claim):
                    return earlier
                await self._answer(connection, department, claim.route, claim.key, answer)
            await self._audit(connection, audit)
        return None

    # -- tokens

    async def create_token(
        self, new: NewToken, claim: Claim | None, held: bool, render: Callable[[Token], Answer], audit: AuditRow
    ) -> Token | Claimed:
        """See `ports.TokenStore`."""
        department = new.token.department
        async with self._database.transaction(department) as connection:
            take = self._answered if held else self._take
            if claim is not None and (earlier := await take(connection, department, claim)):
                return earlier
            token = await self._insert_token(connection, new)
            if claim is not None:
                await self._answer(connection, department, claim.route, claim.key, render(token))
            await self._audit(connection, audit)
        return token

    async def token(self, department: str, token_id: str) -> Token:
        """See `ports.TokenStore`."""
        async with self._database.reading(department) as connection:
            return await self._token(connection, department, token_id)

    async def erase_token(
        self, department: str, token_id: str, render: Callable[[Token], Answer], audit: AuditRow
    ) -> Token:
        """See `ports.TokenStore`. Erasing what is erased changes nothing."""
        async with self._database.transaction(department) as connection:
            locked = await connection.fetchrow(self._sql.lock_token, department, token_id)
            if locked is None:
                raise NotFound
            if await connection.fetchval(self._sql.unresolved_of_token, department, token_id):
                raise TokenInUse
            if locked["status"] != "erased":
                await self._erase(connection, department, token_id, locked["fingerprint_id"])
                await self._audit(connection, audit)
            token = await self._token(connection, department, token_id)
            await connection.execute(self._sql.forget_answer, department, token_id, render(token).body)
        return token

    # -- charges

    async def begin_charge(self, intent: Intent, audit: AuditRow) -> Begun | Claimed:
        """See `ports.ChargeStore`."""
        try:
            return await self._begin_charge(intent, audit)
        except CommitUnknown:
            try:
                return await self._begun_after_all(intent)
            except NothingCommitted:
                raise Unavailable from None
            except Unavailable:
                raise CommitUnknown from None

    async def finish_charge(
        self,
        charge: Charge,
        event: Event,
        outcome: Approved | Declined | None,
        render: Callable[[Charge], Answer],
        audit: AuditRow,
    ) -> tuple[Charge, Answer]:
        """See `ports.ChargeStore`."""
        try:
            async with self._database.transaction(charge.department) as connection:
                moved = await self._move(connection, charge, event, outcome)
                now = await self._charge(connection, charge.department, charge.charge_id)
                if moved:
                    if MEANINGS[now.state].final:
                        await self._answer(
                            connection, now.department, CHARGES_ROUTE, now.idempotency_key, render(now)
                        )
                    await self._audit(connection, audit)
        except CommitUnknown:
            raise Unavailable from None
        return now, render(now)

    async def charge(self, department: str, charge_id: str) -> Charge:
        """See `ports.ChargeStore`."""
        async with self._database.reading(department) as connection:
            return await self._charge(connection, department, charge_id)

    async def charges(
        self, department: str, reference: str | None, limit: int, starting_after: str | None
    ) -> Sequence[Charge]:
        """See `ports.ChargeStore`."""
        async with self._database.reading(department) as connection:
            since = None
            if starting_after is not None:
                since = (await self._charge(connection, department, starting_after)).created_at
            rows = await connection.fetch(self._sql.charges, department, reference, since, starting_after, limit)
        return [_charge(row) for row in rows]

    # -- what these are made of, each inside a transaction

    async def _claimed(self, connection: Connection, department: str, route: str, key: str) -> Claimed | None:
        row = await connection.fetchrow(self._sql.claimed, department, route, key)
        if row is None:
            return None
        part = None if row["card_part"] is None else CardIndex(row["card_key_version"], row["card_part"])
        return Claimed(
            row["request_digest"], part, row["subject_id"], row["status"], row["body"], running=row["running"]
        )

    async def _take(self, connection: Connection, department: str, claim: Claim) -> Claimed | None:
        """Hold the key, or give what another transaction has put there.

        Neither happens only when the card part's key is not active: keys are never given up again.
        """
        part = claim.card_part
        taken = await connection.fetchval(
            self._sql.claim,
            department,
            claim.route,
            claim.key,
            claim.request_digest,
            part.value if part else None,
            part.key_version if part else None,
            claim.subject_id,
            LEASE,
        )
        if taken:
            return None
        earlier = await self._claimed(connection, department, claim.route, claim.key)
        if earlier is None:
            raise KeysMoved
        return earlier

    async def _answered(self, connection: Connection, department: str, claim: Claim) -> Claimed | None:
        """Lock a key that is held already; gives what another run answered under it meanwhile, if any did."""
        if await connection.fetchval(self._sql.hold, department, claim.route, claim.key):
            return None
        return await self._claimed(connection, department, claim.route, claim.key)

    async def _answer(self, connection: Connection, department: str, route: str, key: str, answer: Answer) -> None:
        await connection.execute(self._sql.answer, department, route, key, answer.status, answer.body)

    async def _insert_dek(self, connection: Connection, department: str, record: SealedRecord) -> None:
        dek = record.dek
        inserted = await connection.fetchval(
            self._sql.insert_dek, department, record.record_id, dek.generation, dek.wrapped
        )
        if inserted is None:
            raise KeysMoved

    async def _insert_token(self, connection: Connection, new: NewToken) -> Token:
        token = new.token
        await self._insert_dek(connection, token.department, new.record)
        fingerprint_id = await self._fingerprint(connection, new)
        stored = Token(**{name: getattr(token, name) for name in TOKEN_FIELDS} | {"fingerprint_id": fingerprint_id})
        await connection.execute(
            self._sql.insert_token, *(getattr(stored, name) for name in TOKEN_FIELDS), new.record.sealed
        )
        return stored

    async def _fingerprint(self, connection: Connection, new: NewToken) -> str:
        """The id of the card: each version of the index proposes what it gives to the next; the last one decides."""
        # When a rotation of the fingerprint key begins, some writers know the old version only, and all write its
        # row: its unique key decides, and who knows both carries that id on. When it ends some write the new row
        # only, but then every card of the old version has its new row, with the same id; a new card's id is decided
        # by the new row's unique key, and `reseal` deletes what the old version, destroyed by then, holds of it.
        token, fingerprint_id = new.token, new.token.fingerprint_id
        for index in new.card_indexes:
            allowed = INDEX_STATES if index is new.card_indexes[-1] else OLDER_INDEX_STATES
            given = token.department, index.key_version, index.value, fingerprint_id, token.created_at, allowed
            fingerprint_id = await connection.fetchval(self._sql.fingerprint, *given)
            if fingerprint_id is None:
                raise KeysMoved
        assert fingerprint_id is not None, "internal error: a card is indexed by one version at least"
        return fingerprint_id

    async def _token(self, connection: Connection, department: str, token_id: str) -> Token:
        row = await connection.fetchrow(self._sql.token, department, token_id)
        if row is None:
            raise NotFound
        return Token(**row)

    async def _erase(self, connection: Connection, department: str, token_id: str, fingerprint_id: str) -> None:
        # The fingerprint's rows first: whoever stores another token of this card waits for one, or is seen.
        await connection.execute(self._sql.lock_fingerprint, department, fingerprint_id)
        await connection.execute(self._sql.erase_token, department, token_id)
        await connection.execute(self._sql.delete_dek, department, token_id)
        await connection.execute(self._sql.forget_fingerprint, department, fingerprint_id)
        await connection.execute(self._sql.forget_card_parts, department, token_id)

    async def _begin_charge(self, intent: Intent, audit: AuditRow) -> Begun | Claimed:
        charge = intent.charge
        async with self._database.transaction(charge.department) as connection:
            # The key comes first: who loses it must find it, not the token that its winner has just spent.
            if earlier := await self._take(connection, charge.department, intent.claim):
                return earlier
            await self._require_service(connection, charge)
            record = None
            if intent.new_token is None:
                record = await self._spend(connection, charge)
            else:
                await self._insert_token(connection, intent.new_token)
            if intent.details is not None:
                await self._insert_dek(connection, charge.department, intent.details)
            await self._insert_charge(connection, intent)
            await self._audit(connection, audit)
        return Begun(charge, record)

    async def _begun_after_all(self, intent: Intent) -> Begun | Claimed:
        """After a lost commit: what the primary holds under the key decides."""
        charge = intent.charge
        async with self._database.transaction(charge.department) as connection:
            # Taken, not read: that waits for a commit which is still under way, and would be passed by.
            # Without its card part, which a rotation could refuse before it has waited.
            earlier = await self._take(connection, charge.department, replace(intent.claim, card_part=None))
            if earlier is None:
                raise NothingCommitted  # and so undo the claim just taken
            if earlier.subject_id != charge.charge_id:
                return earlier
            record = None
            if intent.new_token is None:
                record = await self._record(connection, charge.department, charge.token_id)
        return Begun(charge, record)

    async def _require_service(self, connection: Connection, charge: Charge) -> None:
        if charge.service is None:
            return
        if not await connection.fetchval(self._sql.service_exists, charge.department, charge.service):
            raise ServiceUnknown(pointers=["/service"])

    async def _spend(self, connection: Connection, charge: Charge) -> SealedRecord:
        """Lock the token, spend it if it is for one use, and give what it seals."""
        locked = await connection.fetchrow(self._sql.lock_token, charge.department, charge.token_id)
        if locked is None:
            raise NotFound(pointers=["/token"])
        if locked["status"] != "active" or not locked["fresh"]:
            raise TokenUnusable(pointers=["/token"])
        if locked["usage"] == "single":
            await connection.execute(
                self._sql.set_token_status, charge.department, charge.token_id, "spent", "active"
            )
        return await self._record(connection, charge.department, charge.token_id)

    async def _record(self, connection: Connection, department: str, token_id: str) -> SealedRecord:
        row = await connection.fetchrow(self._sql.sealed_token, department, token_id)
        assert row is not None, "internal error: the token was locked a moment ago"
        # A record whose data key is missing cannot be opened; the empty wrap fails as tampering does.
        return SealedRecord(token_id, row["sealed"], WrappedDek(row["generation"] or 0, row["wrapped"] or b""))

    async def _insert_charge(self, connection: Connection, intent: Intent) -> None:
        charge = intent.charge
        await connection.execute(
            self._sql.insert_charge,
            charge.department,
            charge.charge_id,
            charge.application_id,
            charge.token_id,
            charge.idempotency_key,
            charge.amount_minor,
            charge.currency,
            charge.convenience_fee_minor,
            charge.service,
            charge.reference,
            charge.processor_reference,
            charge.state,
            charge.cvc_check,
            charge.with_cvc,
            charge.created_at,
            LEASE,
            intent.details.sealed if intent.details else None,
        )

    async def _charge(self, connection: Connection, department: str, charge_id: str) -> Charge:
        row = await connection.fetchrow(self._sql.charge, department, charge_id)
        if row is None:
            raise NotFound
        return _charge(row)

    async def _move(
        self, connection: Connection, charge: Charge, event: Event, outcome: Approved | Declined | None
    ) -> bool:
        target = after(sources(event)[0], event)
        moved = await connection.fetchval(
            self._sql.move_charge,
            charge.department,
            charge.charge_id,
            target,
            charge.amount_minor if target is State.CAPTURED else 0,
            outcome.cvc_check if outcome else charge.cvc_check,
            outcome.decline_class if isinstance(outcome, Declined) else None,
            outcome.decline_code if isinstance(outcome, Declined) else None,
            sources(event),
        )
        if moved and target is State.REJECTED:
            # Nothing was sent: a token for one use is as good as new.
            await connection.execute(
                self._sql.set_token_status, charge.department, charge.token_id, "active", "spent"
            )
        return moved is not None


TOKEN_FIELDS = (
    "department",
    "token_id",
    "application_id",
    "kind",
    "usage",
    "status",
    "brand",
    "last4",
    "fingerprint_id",
    "cvc_check",
    "created_at",
    "expires_at",
)


def _charge(row: asyncpg.Record) -> Charge:
    fields = dict(row)
    fields["state"] = State(fields["state"])
    return Charge(**fields)
