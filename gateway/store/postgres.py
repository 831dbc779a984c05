"""The store on PostgreSQL: named queries on one side, the services' records on the other.

Each method is one transaction. It sees sealed bytes, keyed values and what is clear by design; a card number or
a name never reaches it.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta
from typing import Any, TypeVar

from asyncpg import Record

from gateway.errors import NotFound, TokenInUse
from gateway.rules.access import Application, Credential, Scope
from gateway.rules.fees import FeeCosts
from gateway.rules.settlement import FeeSchedule
from gateway.services.ports import (
    Answer,
    CardIndex,
    Claim,
    Claimed,
    KeysMoved,
    Movement,
    NewToken,
    SealedRecord,
    Token,
)
from gateway.store.batch import Batches, Steps, ask
from gateway.store.database import Database
from gateway.store.mirror import Mirror
from keys.audit import CITY, AuditRow, audit_values
from keys.database import Connection
from keys.queries import load_queries

T = TypeVar("T")

LEASE = timedelta(seconds=15)
"""How long a request may hold a key or a charge; longer than the processor's deadline, shorter than patience."""

NO_AUDIT_ROW = (None,) * 11
"""Where a later step of the same transaction writes it."""


class Store(Mirror):
    """Implements every store port of the api process."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._sql = load_queries("gateway.store", "queries.sql")
        self._steps = load_queries("gateway.store", "steps.sql")
        self._batches = Batches(database, self._steps)

    # -- callers

    async def credentials(self) -> dict[str, Credential]:
        """Every valid API key by its id, with the application that it belongs to."""
        async with self._database.reading(CITY) as connection:
            contracts: dict[str, dict[str, str]] = defaultdict(dict)
            for row in await connection.fetch(self._sql.personal_fields):
                contracts[row["department_id"]][row["field"]] = row["reason"]
            costs: dict[str, list[tuple[date, FeeSchedule]]] = defaultdict(list)
            for row in await connection.fetch(self._sql.fee_costs):
                schedule = FeeSchedule(row["basis_points"], row["fixed_minor"])
                costs[row["department_id"]].append((row["valid_from"], schedule))
            rows = await connection.fetch(self._sql.applications)
        return {
            row["key_id"]: Credential(
                row["digest_key"],
                row["digest"],
                Application(
                    department=row["department_id"],
                    application_id=row["application_id"],
                    amount_minor_max=row["amount_minor_max"],
                    certificate_san=row["certificate_san"],
                    scopes=frozenset(map(Scope, row["scopes"])),
                    services=None if row["services"] is None else frozenset(row["services"]),
                    refund_minor_max=row["refund_minor_max"],
                    requests_per_s_max=row["requests_per_s_max"],
                    personal_fields=contracts[row["department_id"]],
                    fee_costs=FeeCosts(tuple(costs[row["department_id"]])),
                ),
                row["expires_at"],
            )
            for row in rows
        }

    async def denied_certificates(self) -> Collection[bytes]:
        """See `callers.CredentialStore`."""
        async with self._database.reading(CITY) as connection:
            rows = await connection.fetch(self._sql.denied_certificates)
        return frozenset(row["fingerprint"] for row in rows)

    async def note_use(self, key_ids: Mapping[str, Collection[str]]) -> None:
        """See `callers.CredentialStore`; a use within the hour after a noted one is not noted."""
        for department, used in key_ids.items():
            async with self._database.transaction(department) as connection:
                await connection.execute(self._sql.note_use, department, list(used))

    async def departments(self) -> Sequence[str]:
        """All of them; see `ports.ChargeStore`."""
        async with self._database.reading(CITY) as connection:
            return [row["department_id"] for row in await connection.fetch(self._sql.departments)]

    # -- idempotency

    async def claimed(self, department: str, route: str, key: str) -> Claimed | None:
        """See `ports.TokenStore`."""
        return await self._look(department, self._claimed(route, key))

    async def claim(self, department: str, claim: Claim | None, audit: AuditRow) -> Claimed | None:
        """See `ports.TokenStore`."""
        return await self._batches.do(department, lambda: self._claim(claim, audit), *names(claim))

    async def take_over(self, department: str, claim: Claim) -> bool:
        """See `ports.TokenStore`."""
        async with self._database.transaction(department) as connection:
            taken = await connection.fetchval(self._sql.take_over, department, claim.route, claim.key, LEASE)
        return taken is not None

    async def answer_claim(
        self, department: str, claim: Claim | None, answer: Answer, audit: AuditRow
    ) -> Claimed | None:
        """See `ports.TokenStore`."""
        return await self._batches.do(department, lambda: self._answer_claim(claim, answer, audit), *names(claim))

    async def record(self, audit: AuditRow) -> None:
        """See `ports.MovementStore`."""
        await self._batches.do(audit.event.department, lambda: conclude(audit))

    # -- tokens

    async def create_token(
        self, new: NewToken, claim: Claim | None, held: bool, render: Callable[[Token], Answer], audit: AuditRow
    ) -> Token | Claimed:
        """See `ports.TokenStore`."""
        return await self._batches.do(
            new.token.department,
            lambda: self._create_token(new, claim, held, render, audit),
            *names(claim),
            asks_once=claim is None and len(new.card_indexes) == 1,
        )

    async def token(self, department: str, token_id: str) -> Token:
        """See `ports.TokenStore`."""
        return await self._look(department, self._token(token_id))

    async def erase_token(
        self, department: str, token_id: str, render: Callable[[Token], Answer], audit: AuditRow
    ) -> Token:
        """See `ports.TokenStore`. Erasing what is erased changes nothing."""
        async with self._database.transaction(department) as connection:
            locked = await self._batches.alone(connection, department, ask("lock_token", token_id))
            if locked is None:
                raise NotFound
            if await connection.fetchval(self._sql.unresolved_of_token, department, token_id):
                raise TokenInUse
            if locked["status"] != "erased":
                await self._erase(connection, department, token_id, locked["fingerprint_id"])
                await self._audit(connection, audit)
            token = await self._batches.alone(connection, department, self._token(token_id))
            await connection.execute(self._sql.forget_answer, department, token_id, render(token).body)
        return token

    # -- what these are made of, each inside a transaction

    async def _look(self, department: str, steps: Steps[T]) -> T:
        """Steps that write nothing."""
        async with self._database.reading(department) as connection:
            return await self._batches.alone(connection, department, steps)

    def _claim(self, claim: Claim | None, audit: AuditRow) -> Steps[Claimed | None]:
        if claim is not None and (earlier := (yield from self._take(claim))):
            return earlier
        yield from conclude(audit)
        return None

    def _answer_claim(self, claim: Claim | None, answer: Answer, audit: AuditRow) -> Steps[Claimed | None]:
        if claim is not None and (earlier := (yield from self._answered(claim))):
            return earlier
        yield from conclude(audit, claim, answer)
        return None

    def _create_token(
        self, new: NewToken, claim: Claim | None, held: bool, render: Callable[[Token], Answer], audit: AuditRow
    ) -> Steps[Token | Claimed]:
        if claim is None:
            return (yield from self._insert_token(new, audit_values(audit)[1:]))
        take = self._answered if held else self._take
        if earlier := (yield from take(claim)):
            return earlier
        token = yield from self._insert_token(new)
        yield from conclude(audit, claim, render(token))
        return token

    def _claimed(self, route: str, key: str) -> Steps[Claimed | None]:
        row = yield from ask("claimed", key, route)
        if row is None:
            return None
        part = None if row["card_part"] is None else CardIndex(row["card_key_version"], row["card_part"])
        return Claimed(
            row["request_digest"], part, row["subject_id"], row["status"], row["body"], running=row["running"]
        )

    def _take(self, claim: Claim) -> Steps[Claimed | None]:
        """Hold the key, or give what another transaction has put there.

        Neither happens only when the card part's key is not active: keys are never given up again.
        """
        part = claim.card_part
        taken = yield from ask(
            "claim",
            claim.key,
            claim.route,
            claim.request_digest,
            part.value if part else None,
            part.key_version if part else None,
            claim.subject_id,
            LEASE,
        )
        if taken is not None:
            return None
        earlier = yield from self._claimed(claim.route, claim.key)
        if earlier is None:
            raise KeysMoved
        return earlier

    def _answered(self, claim: Claim) -> Steps[Claimed | None]:
        """Lock a key that is held already; gives what another run answered under it meanwhile, if any did."""
        if (yield from ask("hold", claim.key, claim.route)) is not None:
            return None
        return (yield from self._claimed(claim.route, claim.key))

    def _insert_dek(self, record: SealedRecord) -> Steps[None]:
        dek = record.dek
        if (yield from ask("insert_dek", record.record_id, dek.generation, dek.wrapped)) is None:
            raise KeysMoved

    def _insert_token(self, new: NewToken, told: Sequence[object] = NO_AUDIT_ROW) -> Steps[Token]:
        """The token as it is stored, with the id of its card: the last version of the index decides on that."""
        # While two versions stand, each proposes what it gives to the next. When a rotation of the fingerprint key
        # begins, some writers know the old version only, and all write its row: its unique key decides, and who knows
        # both carries that id on. When it ends some write the new row only, but then every card of the old version
        # has its new row, with the same id; a new card's id is decided by the new row's unique key, and `reseal`
        # deletes what the old version, destroyed by then, holds of it.
        token, dek, fingerprint_id = new.token, new.record.dek, new.token.fingerprint_id
        *older, index = new.card_indexes
        for each in older:
            row = yield from ask("fingerprint", each.value, each.key_version, fingerprint_id, token.created_at)
            if row is None:
                raise KeysMoved
            fingerprint_id = row["fingerprint_id"]
        row = yield from ask(
            "store_token",
            *(getattr(token, name) for name in TOKEN_FIELDS),
            new.record.sealed,
            dek.generation,
            dek.wrapped,
            index.value,
            index.key_version,
            fingerprint_id,
            *told,
        )
        if row is None:
            raise KeysMoved
        return replace(token, fingerprint_id=row["fingerprint_id"])

    def _token(self, token_id: str) -> Steps[Token]:
        row = yield from ask("token", token_id)
        if row is None:
            raise NotFound
        return Token(**fields_of(row))

    async def _erase(self, connection: Connection, department: str, token_id: str, fingerprint_id: str) -> None:
        # The fingerprint's rows first: whoever stores another token of this card waits for one, or is seen.
        await connection.execute(self._sql.lock_fingerprint, department, fingerprint_id)
        await connection.execute(self._sql.erase_token, department, token_id)
        await connection.execute(self._sql.delete_dek, department, token_id)
        await connection.execute(self._sql.forget_fingerprint, department, fingerprint_id)
        await connection.execute(self._sql.forget_card_parts, department, token_id)


def conclude(
    audit: AuditRow, key: Claim | Movement | None = None, answer: Answer | None = None
) -> Steps[Record | None]:
    """The last step: the audit row, and the answer that from now on stands under the key, if there is one."""
    told: tuple[object, ...] = (None, None, None, None)
    if key is not None and answer is not None:
        name = key.key if isinstance(key, Claim) else key.idempotency_key
        told = name, key.route, answer.status, answer.body
    return ask("conclude", *audit_values(audit)[1:], *told)


def names(claim: Claim | None) -> tuple[str, ...]:
    """What a claim names: of two requests under one key, the second comes a batch later."""
    return () if claim is None else (f"{claim.route} {claim.key}",)


def fields_of(row: Record) -> dict[str, Any]:
    """A record as it was found, without whose it is."""
    fields = dict(row)
    del fields["n"]
    return fields


TOKEN_FIELDS = (
    "token_id",
    "application_id",
    "kind",
    "usage",
    "status",
    "brand",
    "last4",
    "cvc_check",
    "created_at",
    "expires_at",
)
