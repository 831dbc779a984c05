"""Charges, their movements and the journal, on PostgreSQL.

Each method is one transaction. What begins holds the key first, then the charge; what ends holds the movement first,
then the charge, the token, the key: a movement that begins is nobody else's yet, so nobody waits in a ring.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

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
from gateway.store.database import Database
from gateway.store.postgres import LEASE, Store
from keys.audit import AuditRow
from keys.database import Connection
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
        again = self._begun_after_all
        return await _surely(
            self._begin_charge(intent, audit), lambda: again(intent.claim, intent.movement, intent.new_token is None)
        )

    async def begin_movement(self, asked: Asked, claim: Claim, audit: AuditRow) -> Begun | Claimed:
        """See `ports.ChargeStore`."""
        return await _surely(
            self._begin_movement(asked, claim, audit), lambda: self._begun_after_all(claim, asked, with_card=False)
        )

    async def take_marked(self, department: str, audit: Callable[[Movement], AuditRow]) -> Resend | None:
        """See `ports.ChargeStore`."""
        async with self._database.transaction(department) as connection:
            row = await connection.fetchrow(self._ledger.take_marked, department, LEASE)
            if row is None:
                return None
            begun = await self._begun(connection, department, row["movement_id"], with_card=True)
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
            _, movement = await self._both(connection, department, movement_id)
            if event in ENDS:
                return await self._finish(connection, movement, event, None, render, audit(movement, event))
            becomes = after(movement.progress, event)
            await connection.execute(self._ledger.release, department, movement_id, becomes, REQUEST_LIFE, LEASE)
            await self._audit(connection, audit(movement, event))
            return await self._begun(connection, department, movement_id, with_card=False)

    # -- what ends

    async def finish(self, movement: Movement, event: Event, said: Said, render: Render, audit: AuditRow) -> Finished:
        """See `ports.MovementStore`."""
        try:
            async with self._database.transaction(movement.department) as connection:
                return await self._finish(connection, movement, event, said, render, audit)
        except CommitUnknown:
            raise Unavailable from None

    async def take(self, department: str, limit: int) -> Sequence[Case]:
        """See `ports.RecoveryStore`."""
        async with self._database.transaction(department) as connection:
            rows = await connection.fetch(self._ledger.take, department, limit, LEASE)
            movements = await self._movements(connection, department, [row["movement_id"] for row in rows])
        return [
            Case(movements[row["movement_id"]], row["age_s"], row["overdue_s"], row["looks"], row["may_resend"])
            for row in rows
        ]

    async def postpone(self, movement: Movement, delay_s: float, *, resend_within_s: float | None = None) -> None:
        """See `ports.RecoveryStore`."""
        mark = None if resend_within_s is None else timedelta(seconds=resend_within_s)
        async with self._database.transaction(movement.department) as connection:
            await connection.execute(
                self._ledger.postpone,
                movement.department,
                movement.movement_id,
                movement.epoch,
                timedelta(seconds=delay_s),
                mark,
            )

    # -- what there is

    async def charge(self, department: str, charge_id: str) -> Charge:
        """See `ports.ChargeStore`."""
        async with self._database.reading(department) as connection:
            return await self._charge(connection, department, charge_id)

    async def movement(self, department: str, movement_id: str) -> tuple[Charge, Movement]:
        """See `ports.ChargeStore`."""
        async with self._database.reading(department) as connection:
            return await self._both(connection, department, movement_id)

    async def charges(
        self, department: str, reference: str | None, limit: int, starting_after: str | None
    ) -> Sequence[Charge]:
        """See `ports.ChargeStore`."""
        async with self._database.reading(department) as connection:
            since = None
            if starting_after is not None:
                since = (await self._charge(connection, department, starting_after)).created_at
            rows = await connection.fetch(self._ledger.charges, department, reference, since, starting_after, limit)
        return [_charge(row) for row in rows]

    async def unresolved(self) -> dict[str, int]:
        """How many movements of all departments stand in each place that is not final; who waits is one of them."""
        counts = {progress.value: 0 for progress in UNDECIDED}
        for department in await self.departments():
            async with self._database.reading(department) as connection:
                for row in await connection.fetch(self._ledger.unresolved, department):
                    counts[row["state"]] += row["charges"]
        return counts

    # -- what these are made of, each inside a transaction

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
            await self._insert_charge(connection, charge, intent.details)
            movement = await self._insert_movement(connection, intent.movement)
            await self._audit(connection, audit)
        return Begun(charge, movement, record)

    async def _begin_movement(self, asked: Asked, claim: Claim, audit: AuditRow) -> Begun | Claimed:
        department, charge_id = asked.department, asked.charge_id
        async with self._database.transaction(department) as connection:
            if earlier := await self._take(connection, department, claim):
                return earlier
            await connection.execute(self._ledger.lock_charge, department, charge_id)
            charge = await self._charge(connection, department, charge_id)
            movement = await self._insert_movement(connection, movement_of(charge, asked, claim))
            if movement.kind is Kind.REFUND:
                await connection.execute(self._ledger.begin_refund, department, charge_id, movement.amount_minor)
            else:
                begun = self._ledger.begin_movement
                await connection.execute(begun, department, charge_id, movement.kind, movement.progress)
            await self._audit(connection, audit)
            charge = await self._charge(connection, department, charge_id)
        return Begun(charge, movement)

    async def _begun_after_all(self, claim: Claim, mine: Movement | Asked, with_card: bool) -> Begun | Claimed:
        """After a lost commit: what the primary holds under the key decides."""
        async with self._database.transaction(mine.department) as connection:
            # Taken, not read: that waits for a commit which is still under way, and would be passed by.
            # Without its card part, which a rotation could refuse before it has waited.
            earlier = await self._take(connection, mine.department, replace(claim, card_part=None))
            if earlier is None:
                raise NothingCommitted  # and so undo the claim just taken
            if earlier.subject_id not in {mine.movement_id, mine.charge_id}:
                return earlier
            return await self._begun(connection, mine.department, mine.movement_id, with_card=with_card)

    async def _begun(self, connection: Connection, department: str, movement_id: str, *, with_card: bool) -> Begun:
        charge, movement = await self._both(connection, department, movement_id)
        record = None
        if with_card and movement.kind in {Kind.SALE, Kind.AUTHORIZATION}:
            record = await self._record(connection, department, charge.token_id)
        return Begun(charge, movement, record)

    async def _require_service(self, connection: Connection, charge: Charge) -> None:
        if charge.service is None:
            return
        if not await connection.fetchval(self._ledger.service_exists, charge.department, charge.service):
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
        assert row is not None, "internal error: a charge's token is never deleted"
        # A record whose data key is missing cannot be opened; the empty wrap fails as tampering does.
        return SealedRecord(token_id, row["sealed"] or b"", WrappedDek(row["generation"] or 0, row["wrapped"] or b""))

    async def _insert_charge(self, connection: Connection, charge: Charge, details: SealedRecord | None) -> None:
        await connection.execute(
            self._ledger.insert_charge,
            charge.department,
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

    async def _insert_movement(self, connection: Connection, movement: Movement) -> Movement:
        not_after = await connection.fetchval(
            self._ledger.insert_movement,
            movement.department,
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
        return replace(movement, not_after=not_after)

    async def _finish(
        self, connection: Connection, movement: Movement, event: Event, said: Said, render: Render, audit: AuditRow
    ) -> Finished:
        department, movement_id = movement.department, movement.movement_id
        moved = await self._move(connection, movement, event, said)
        if moved:
            await self._follow(connection, movement, event, said)
            await self._audit(connection, audit)
        charge, now = await self._both(connection, department, movement_id)
        answer = render(charge, now)
        if moved and event in ENDS:
            await self._answer(connection, department, now.route, now.idempotency_key, answer)
        elif not moved:
            answer = await self._stored(connection, now) or answer
        return Finished(charge, now, answer, moved)

    async def _move(self, connection: Connection, movement: Movement, event: Event, said: Said) -> bool:
        declined = said if isinstance(said, Declined) else None
        moved = await connection.fetchval(
            self._ledger.move,
            movement.department,
            movement.movement_id,
            movement.epoch,
            after(sources(event)[0], event),
            declined.decline_class if declined else None,
            declined.decline_code if declined else None,
            timedelta(seconds=FIRST_LOOK_S),
            sources(event),
        )
        return moved is not None

    async def _follow(self, connection: Connection, movement: Movement, event: Event, said: Said) -> None:
        """What a movement that has moved changes beside itself: charge, journal, token."""
        department, progress = movement.department, after(sources(event)[0], event)
        charge = await self._charge(connection, department, movement.charge_id)
        done = progress is Progress.DONE
        if movement.kind is Kind.REFUND:
            if event in ENDS:
                amount = movement.amount_minor
                given_back = amount if done else 0
                await connection.execute(self._ledger.move_refund, department, movement.charge_id, amount, given_back)
        else:
            await self._move_charge(connection, charge, movement, progress, said)
        if done:
            await self._post(connection, charge, movement)
        if progress is Progress.FAILED and movement.kind in {Kind.SALE, Kind.AUTHORIZATION}:
            # It never happened: a token for one use is as good as new.
            await connection.execute(self._sql.set_token_status, department, charge.token_id, "active", "spent")

    async def _move_charge(
        self, connection: Connection, charge: Charge, movement: Movement, progress: Progress, said: Said
    ) -> None:
        first = movement.kind in {Kind.SALE, Kind.AUTHORIZATION}
        captured = movement.kind in {Kind.SALE, Kind.CAPTURE} and progress is Progress.DONE
        declined = said if first and isinstance(said, Declined) else None
        await connection.execute(
            self._ledger.move_charge,
            charge.department,
            charge.charge_id,
            movement.kind,
            progress,
            movement.amount_minor if captured else 0,
            said.cvc_check if first and said is not None else charge.cvc_check,
            declined.decline_class if declined else None,
            declined.decline_code if declined else None,
        )

    async def _post(self, connection: Connection, charge: Charge, movement: Movement) -> None:
        posted = entries(movement.kind, movement.amount_minor, charge.convenience_fee_minor)
        for line, entry in enumerate(posted, start=1):
            await connection.execute(
                self._ledger.insert_entry,
                movement.department,
                movement.movement_id,
                line,
                entry.debit,
                entry.credit,
                entry.amount_minor,
                movement.currency,
            )

    async def _stored(self, connection: Connection, movement: Movement) -> Answer | None:
        where = movement.department, movement.route, movement.idempotency_key
        row = await connection.fetchrow(self._sql.stored_answer, *where)
        return Answer(row["status"], row["body"]) if row else None

    async def _charge(self, connection: Connection, department: str, charge_id: str) -> Charge:
        row = await connection.fetchrow(self._ledger.charge, department, charge_id)
        if row is None:
            raise NotFound
        return _charge(row)

    async def _movements(
        self, connection: Connection, department: str, movement_ids: Sequence[str]
    ) -> dict[str, Movement]:
        rows = await connection.fetch(self._ledger.movements, department, movement_ids)
        return {row["movement_id"]: Movement(**_typed(row)) for row in rows}

    async def _both(self, connection: Connection, department: str, movement_id: str) -> tuple[Charge, Movement]:
        found = await self._movements(connection, department, [movement_id])
        if movement_id not in found:
            raise NotFound
        return await self._charge(connection, department, found[movement_id].charge_id), found[movement_id]


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


def _charge(row: Any) -> Charge:
    return Charge(**_typed(row))


def _typed(row: Any) -> dict[str, Any]:
    return dict(row) | {"kind": Kind(row["kind"]), "progress": Progress(row["progress"])}
