"""Charges, their movements and the journal, on PostgreSQL.

Each method is one transaction. What begins holds the key first, then the charge; what ends holds the movement first,
then the charge, the token, the key: a movement that begins is nobody else's yet, so nobody waits in a ring.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from asyncpg import Record

from gateway.errors import NotFound, ServiceUnknown, TokenUnusable, Unavailable
from gateway.rules.journal import entries
from gateway.rules.lifecycle import ENDS, UNDECIDED, VERDICTS, Event, Kind, Progress, after, sources
from gateway.rules.recovery import FIRST_LOOK_S
from gateway.services.intents import movement_of
from gateway.services.ports import (
    Answer,
    Asked,
    Begun,
    Case,
    Charge,
    Claim,
    Claimed,
    CommitUnknown,
    Declined,
    Finished,
    Intent,
    Movement,
    Render,
    Resend,
    Said,
    SealedRecord,
)
from gateway.store.batch import Ask, Steps, ask
from gateway.store.database import Database
from gateway.store.postgres import LEASE, Store, conclude, fields_of, names
from keys.audit import AuditRow
from keys.queries import load_queries
from keys.ring import WrappedDek

REQUEST_LIFE = timedelta(seconds=10)
"""Until when a processor that heeds it may carry a movement out; longer than our own call may take."""


class NothingCommitted(Exception):
    """A commit whose connection was lost did not happen."""


class Ledger(Store):
    """Implements `ports.ChargeStore` for the api, and `ports.RecoveryStore` for the worker."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._ledger = load_queries("gateway.store", "ledger.sql")

    # -- what begins

    async def begin_charge(self, intent: Intent, audit: AuditRow) -> Begun | Claimed:
        """See `ports.ChargeStore`."""
        department, claim = intent.charge.department, intent.claim
        named = *names(claim), intent.charge.token_id
        return await _surely(
            self._batches.do(department, lambda: self._begin_charge(intent, audit), *named),
            lambda: self._begun_after_all(claim, intent.movement, with_card=intent.new_token is None),
        )

    async def begin_movement(self, asked: Asked, claim: Claim, audit: AuditRow) -> Begun | Claimed:
        """See `ports.ChargeStore`."""
        named = *names(claim), asked.charge_id
        return await _surely(
            self._batches.do(asked.department, lambda: self._begin_movement(asked, claim, audit), *named),
            lambda: self._begun_after_all(claim, asked, with_card=False),
        )

    async def take_marked(self, department: str, audit: Callable[[Movement], AuditRow]) -> Resend | None:
        """See `ports.ChargeStore`."""
        async with self._database.transaction(department) as connection:
            row = await connection.fetchrow(self._ledger.take_marked, department, LEASE)
            if row is None:
                return None
            steps = self._begun(row["movement_id"], with_card=True)
            begun = await self._batches.alone(connection, department, steps)
            await self._audit(connection, audit(begun.movement))
        return Resend(begun, row["left_s"])

    async def take_decided(
        self, department: str, render: Render, audit: Callable[[Movement, Event], AuditRow]
    ) -> Begun | Finished | None:
        """See `ports.ChargeStore`."""
        async with self._database.transaction(department) as connection:
            row = await connection.fetchrow(self._ledger.lock_decided, department)
            if row is None:
                return None
            movement_id, event = row["movement_id"], VERDICTS[row["verdict"]]
            _, movement = await self._batches.alone(connection, department, self._both(movement_id))
            if event in ENDS:
                steps = self._finish(movement, event, None, render, audit(movement, event))
                return await self._batches.alone(connection, department, steps)
            becomes = after(movement.progress, event)
            await connection.execute(self._ledger.release, department, movement_id, becomes, REQUEST_LIFE, LEASE)
            await self._audit(connection, audit(movement, event))
            begun = self._begun(movement_id, with_card=False)
            return await self._batches.alone(connection, department, begun)

    # -- what ends

    async def finish(self, movement: Movement, event: Event, said: Said, render: Render, audit: AuditRow) -> Finished:
        """See `ports.MovementStore`."""
        try:
            return await self._batches.do(
                movement.department,
                lambda: self._finish(movement, event, said, render, audit),
                movement.charge_id,
            )
        except CommitUnknown:
            raise Unavailable from None

    async def take(self, department: str, limit: int) -> Sequence[Case]:
        """See `ports.RecoveryStore`."""
        async with self._database.transaction(department) as connection:
            rows = await connection.fetch(self._ledger.take, department, limit, LEASE)
            steps = self._movements([row["movement_id"] for row in rows])
            movements = await self._batches.alone(connection, department, steps)
        return [
            Case(movements[row["movement_id"]], row["age_s"], row["overdue_s"], row["looks"], row["may_resend"])
            for row in rows
        ]

    async def postpone(self, movement: Movement, delay_s: float, *, resend_within_s: float | None = None) -> None:
        """See `ports.RecoveryStore`."""
        mark = None if resend_within_s is None else timedelta(seconds=resend_within_s)
        given = movement.movement_id, movement.epoch, timedelta(seconds=delay_s), mark
        await self._batches.do(movement.department, lambda: ask("postpone", *given), movement.charge_id)

    # -- what there is

    async def charge(self, department: str, charge_id: str) -> Charge:
        """See `ports.ChargeStore`."""
        return await self._look(department, self._charge(charge_id))

    async def movement(self, department: str, movement_id: str) -> tuple[Charge, Movement]:
        """See `ports.ChargeStore`."""
        return await self._look(department, self._both(movement_id))

    async def charges(
        self, department: str, reference: str | None, limit: int, starting_after: str | None
    ) -> Sequence[Charge]:
        """See `ports.ChargeStore`."""
        async with self._database.reading(department) as connection:
            since = None
            if starting_after is not None:
                since = (await self._batches.alone(connection, department, self._charge(starting_after))).created_at
            rows = await connection.fetch(self._ledger.charges, department, reference, since, starting_after, limit)
        return [_charge(dict(row)) for row in rows]

    async def unresolved(self) -> dict[str, int]:
        """How many movements of all departments stand in each place that is not final; who waits is one of them."""
        counts = {progress.value: 0 for progress in UNDECIDED}
        for department in await self.departments():
            async with self._database.reading(department) as connection:
                for row in await connection.fetch(self._ledger.unresolved, department):
                    counts[row["state"]] += row["charges"]
        return counts

    # -- what these are made of, each inside a transaction

    def _begin_charge(self, intent: Intent, audit: AuditRow) -> Steps[Begun | Claimed]:
        charge = intent.charge
        # The key comes first: who loses it must find it, not the token that its winner has just spent.
        if earlier := (yield from self._take(intent.claim)):
            return earlier
        yield from self._require_service(charge)
        record = None
        if intent.new_token is None:
            record = yield from self._spend(charge.token_id)
        else:
            yield from self._insert_token(intent.new_token)
        if intent.details is not None:
            yield from self._insert_dek(intent.details)
        yield from self._insert_charge(charge, intent.details)
        movement = yield from self._insert_movement(intent.movement)
        yield from conclude(audit)
        return Begun(charge, movement, record)

    def _begin_movement(self, asked: Asked, claim: Claim, audit: AuditRow) -> Steps[Begun | Claimed]:
        if earlier := (yield from self._take(claim)):
            return earlier
        charge = yield from self._charge(asked.charge_id, "lock_charge")
        movement = yield from self._insert_movement(movement_of(charge, asked, claim))
        refund = movement.kind is Kind.REFUND
        begins = (None, None, movement.amount_minor) if refund else (movement.kind, movement.progress, 0)
        row = yield from ask("begin_movement", charge.charge_id, *begins)
        assert row is not None, "internal error: the charge is locked"
        yield from conclude(audit)
        return Begun(_charge(fields_of(row)), movement)

    async def _begun_after_all(self, claim: Claim, mine: Movement | Asked, *, with_card: bool) -> Begun | Claimed:
        """After a lost commit: what the primary holds under the key decides."""

        def steps() -> Steps[Begun | Claimed]:
            # Taken, not read: that waits for a commit which is still under way, and would be passed by.
            # Without its card part, which a rotation could refuse before it has waited.
            earlier = yield from self._take(replace(claim, card_part=None))
            if earlier is None:
                raise NothingCommitted  # and so undo the claim just taken
            if earlier.subject_id not in {mine.movement_id, mine.charge_id}:
                return earlier
            return (yield from self._begun(mine.movement_id, with_card=with_card))

        async with self._database.transaction(mine.department) as connection:
            return await self._batches.alone(connection, mine.department, steps())

    def _begun(self, movement_id: str, *, with_card: bool) -> Steps[Begun]:
        charge, movement = yield from self._both(movement_id)
        record = None
        if with_card and movement.kind in {Kind.SALE, Kind.AUTHORIZATION}:
            record = yield from self._record(charge.token_id)
        return Begun(charge, movement, record)

    def _require_service(self, charge: Charge) -> Steps[None]:
        if charge.service is not None and (yield from ask("service", charge.service)) is None:
            raise ServiceUnknown(pointers=["/service"])

    def _spend(self, token_id: str) -> Steps[SealedRecord]:
        """Lock the token, spend it if it is for one use, and give what it seals."""
        locked = yield from ask("lock_token", token_id)
        if locked is None:
            raise NotFound(pointers=["/token"])
        if locked["status"] != "active" or not locked["fresh"]:
            raise TokenUnusable(pointers=["/token"])
        if locked["usage"] == "single":
            yield from ask("spend_token", token_id)
        return (yield from self._record(token_id))

    def _record(self, token_id: str) -> Steps[SealedRecord]:
        row = yield from ask("sealed_token", token_id)
        assert row is not None, "internal error: a charge's token is never deleted"
        # A record whose data key is missing cannot be opened; the empty wrap fails as tampering does.
        return SealedRecord(token_id, row["sealed"] or b"", WrappedDek(row["generation"] or 0, row["wrapped"] or b""))

    def _insert_charge(self, charge: Charge, details: SealedRecord | None) -> Steps[Record | None]:
        return ask(
            "insert_charge",
            charge.charge_id,
            charge.application_id,
            charge.token_id,
            charge.amount_minor,
            charge.currency,
            charge.convenience_fee_minor,
            charge.service,
            charge.reference,
            charge.processor_reference,
            charge.kind,
            charge.progress,
            charge.cvc_check,
            charge.created_at,
            details.sealed if details else None,
        )

    def _insert_movement(self, movement: Movement) -> Steps[Movement]:
        row = yield from ask(
            "insert_movement",
            movement.movement_id,
            movement.charge_id,
            movement.kind,
            movement.amount_minor,
            movement.currency,
            movement.reference,
            movement.application_id,
            movement.route,
            movement.idempotency_key,
            movement.progress,
            movement.with_cvc,
            movement.created_at,
            REQUEST_LIFE,
            LEASE,
            movement.sends,
        )
        assert row is not None, "internal error: what is inserted is returned"
        return replace(movement, not_after=row["not_after"])

    def _finish(
        self, movement: Movement, event: Event, said: Said, render: Render, audit: AuditRow
    ) -> Steps[Finished]:
        moved = yield from self._move(movement, event, said)
        if moved is None:
            charge, now = yield from self._both(movement.movement_id)
            row = yield from ask("answered", now.idempotency_key, now.route)
            answer = Answer(row["status"], row["body"]) if row else render(charge, now)
            return Finished(charge, now, answer, moved=False)
        charge = yield from self._follow(moved, event, said)
        answer = render(charge, moved)
        yield from conclude(audit, moved if event in ENDS else None, answer)
        return Finished(charge, moved, answer, moved=True)

    def _move(self, movement: Movement, event: Event, said: Said) -> Steps[Movement | None]:
        """The movement as it is now, if it has moved."""
        progress = after(sources(event)[0], event)
        declined = (said.decline_class, said.decline_code) if isinstance(said, Declined) else (None, None)
        look, whence = timedelta(seconds=FIRST_LOOK_S), " ".join(sources(event))
        row = yield from ask("move", movement.movement_id, movement.epoch, progress, *declined, look, whence)
        if row is None:
            return None
        return Movement(**_typed(fields_of(row)), charge_reference=movement.charge_reference, running=False)

    def _follow(self, movement: Movement, event: Event, said: Said) -> Steps[Charge]:
        """What a movement that has moved changes beside itself: charge, journal, token."""
        kind, progress, done = movement.kind, movement.progress, movement.progress is Progress.DONE
        first = kind in {Kind.SALE, Kind.AUTHORIZATION}
        moves: tuple[object, ...]
        if kind is Kind.REFUND:
            ended, given_back = movement.amount_minor if event in ENDS else 0, movement.amount_minor if done else 0
            moves = None, None, 0, ended, given_back, None, None, None
        else:
            captured = movement.amount_minor if done and kind in {Kind.SALE, Kind.CAPTURE} else 0
            check = said.cvc_check if first and said is not None else None
            declined = (movement.decline_class, movement.decline_code) if first else (None, None)
            moves = kind, progress, captured, 0, 0, check, *declined
        row = yield from ask("move_charge", movement.charge_id, *moves)
        assert row is not None, "internal error: a movement has its charge"
        charge = _charge(fields_of(row))
        if done:
            yield from self._post(charge, movement)
        if first and progress is Progress.FAILED:
            # It never happened: a token for one use is as good as new.
            yield from ask("renew_token", charge.token_id)
        return charge

    def _post(self, charge: Charge, movement: Movement) -> Steps[None]:
        posted = entries(movement.kind, movement.amount_minor, charge.convenience_fee_minor)
        if rows := [
            (movement.movement_id, line, entry.debit, entry.credit, entry.amount_minor, movement.currency)
            for line, entry in enumerate(posted, start=1)
        ]:
            yield Ask("insert_entry", rows)

    def _charge(self, charge_id: str, query: str = "charge") -> Steps[Charge]:
        row = yield from ask(query, charge_id)
        if row is None:
            raise NotFound
        return _charge(fields_of(row))

    def _movements(self, movement_ids: Sequence[str]) -> Steps[dict[str, Movement]]:
        rows = (yield Ask("movement", [(each,) for each in movement_ids])) if movement_ids else []
        return {row["movement_id"]: Movement(**_typed(fields_of(row))) for row in rows}

    def _both(self, movement_id: str) -> Steps[tuple[Charge, Movement]]:
        found = yield from self._movements([movement_id])
        if movement_id not in found:
            raise NotFound
        charge = yield from self._charge(found[movement_id].charge_id)
        return charge, found[movement_id]


async def _surely(
    begin: Awaitable[Begun | Claimed], after_all: Callable[[], Awaitable[Begun | Claimed]]
) -> Begun | Claimed:
    """Begin; where the commit was lost, look at what is there. Raises `CommitUnknown` where nobody can tell."""
    try:
        return await begin
    except CommitUnknown:
        try:
            return await after_all()
        except NothingCommitted:
            raise Unavailable from None
        except Unavailable:
            raise CommitUnknown from None


def _charge(fields: dict[str, Any]) -> Charge:
    return Charge(**_typed(fields))


def _typed(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {"kind": Kind(fields["kind"]), "progress": Progress(fields["progress"])}
