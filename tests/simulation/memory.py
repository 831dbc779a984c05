"""The database as the services see it, in memory: tables, and the ports' methods as steps that happen at once.

It promises what `gateway.store.ledger` promises, errors included, and `test_store_equals_postgres` holds both to the
same answers. There are no faults here (`frail` has them): a step is one commit, all of it or nothing.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from gateway.errors import NotFound, ServiceUnknown, TokenInUse, TokenUnusable
from gateway.rules.journal import Entry, entries
from gateway.rules.lifecycle import ENDS, OPEN, VERDICTS, Event, Kind, Progress, Verdict, after, sources
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
    Declined,
    Finished,
    Intent,
    KeysMoved,
    Movement,
    NewToken,
    Render,
    Resend,
    Said,
    SealedRecord,
    Token,
)
from gateway.store.database import StatementRefused
from gateway.store.ledger import REQUEST_LIFE, NothingCommitted
from gateway.store.postgres import LEASE
from keys.audit import AuditRow
from keys.ring import WrappedDek
from tests.simulation.rows import KeyRow, MovementRow, TokenRow

INDEX_STATES = ("active",)
OLDER_INDEX_STATES = ("active", "retired", "compromised")
FIRST = frozenset({Kind.SALE, Kind.AUTHORIZATION})
CAPTURING = frozenset({Kind.SALE, Kind.CAPTURE})

Id = tuple[str, str]  # department and id


@dataclass
class Memory:
    """Tables and their clock."""

    now: Callable[[], datetime]
    departments: Sequence[str] = ()
    services: frozenset[Id] = frozenset()
    generations: dict[int, str] = field(default_factory=lambda: {1: "active"})
    fingerprint_versions: dict[int, str] = field(default_factory=lambda: {1: "active"})
    keys: dict[tuple[str, str, str], KeyRow] = field(default_factory=dict)
    tokens: dict[Id, TokenRow] = field(default_factory=dict)
    deks: dict[Id, WrappedDek] = field(default_factory=dict)
    fingerprints: dict[tuple[str, int, bytes], str] = field(default_factory=dict)
    charges_: dict[Id, Charge] = field(default_factory=dict)
    movements: dict[Id, MovementRow] = field(default_factory=dict)
    verdicts: dict[Id, Verdict] = field(default_factory=dict)
    journal: dict[Id, tuple[Entry, ...]] = field(default_factory=dict)
    audit: list[AuditRow] = field(default_factory=list)

    # -- idempotency

    def claimed(self, department: str, route: str, key: str) -> Claimed | None:
        """See `ports.ChargeStore`."""
        row = self.keys.get((department, route, key))
        if row is None:
            return None
        claim, answer = row.claim, row.answer
        status, body = (answer.status, answer.body) if answer else (None, None)
        running = row.lease_until > self.now()
        return Claimed(claim.request_digest, claim.card_part, claim.subject_id, status, body, running)

    def _earlier(self, department: str, claim: Claim) -> Claimed | None:
        """What stands under the key; raises `KeysMoved` where it could not be taken."""
        earlier = self.claimed(department, claim.route, claim.key)
        part = claim.card_part
        if earlier is None and part and self.fingerprint_versions.get(part.key_version) != "active":
            raise KeysMoved
        return earlier

    def _hold(self, department: str, claim: Claim) -> None:
        self.keys[department, claim.route, claim.key] = KeyRow(claim, self.now() + LEASE)

    # -- tokens

    def create_token(self, new: NewToken, audit: AuditRow) -> Token:
        """A token that was asked for without a key."""
        self._require_keys(new.record)
        token = self._insert_token(new)
        self.audit.append(audit)
        return token

    def token(self, department: str, token_id: str) -> Token:
        """See `ports.TokenStore`."""
        row = self.tokens.get((department, token_id))
        if row is None:
            raise NotFound
        return row.token

    def erase_token(
        self, department: str, token_id: str, render: Callable[[Token], Answer], audit: AuditRow
    ) -> Token:
        """See `ports.TokenStore`."""
        token = self.token(department, token_id)
        mine = [each for (of, _), each in self.charges_.items() if (of, each.token_id) == (department, token_id)]
        if any(charge.progress in OPEN for charge in mine):
            raise TokenInUse
        if token.status != "erased":
            gone = replace(token, status="erased", brand=None, last4=None, fingerprint_id=None)
            self.tokens[department, token_id] = TokenRow(gone, None)
            self.deks.pop((department, token_id), None)
            self._forget_card(department, token.fingerprint_id)
            self._clear_parts(department, {charge.charge_id for charge in mine})
            self.audit.append(audit)
        token = self.token(department, token_id)
        for (of, _, _), row in self.keys.items():
            if (of, row.claim.subject_id) == (department, token_id):
                row.claim = replace(row.claim, card_part=None)
                row.answer = row.answer and replace(row.answer, body=render(token).body)
        return token

    def _forget_card(self, department: str, fingerprint_id: str | None) -> None:
        if any(
            row.token.fingerprint_id == fingerprint_id for (of, _), row in self.tokens.items() if of == department
        ):
            return
        self.fingerprints = {
            index: known
            for index, known in self.fingerprints.items()
            if (index[0], known) != (department, fingerprint_id)
        }

    def _clear_parts(self, department: str, subjects: set[str]) -> None:
        for (of, _, _), row in self.keys.items():
            if of == department and row.claim.subject_id in subjects:
                row.claim = replace(row.claim, card_part=None)

    def _require_keys(self, *records: SealedRecord | None) -> None:
        for record in records:
            if record is not None and self.generations.get(record.dek.generation) != "active":
                raise KeysMoved

    def _require_indexes(self, new: NewToken) -> None:
        for index in new.card_indexes:
            allowed = INDEX_STATES if index is new.card_indexes[-1] else OLDER_INDEX_STATES
            if self.fingerprint_versions.get(index.key_version) not in allowed:
                raise KeysMoved

    def _insert_token(self, new: NewToken) -> Token:
        self._require_indexes(new)
        department, fingerprint_id = new.token.department, new.token.fingerprint_id or ""
        for index in new.card_indexes:
            place = department, index.key_version, index.value
            fingerprint_id = self.fingerprints.setdefault(place, fingerprint_id)
        token = replace(new.token, fingerprint_id=fingerprint_id)
        self.tokens[department, token.token_id] = TokenRow(token, new.record.sealed)
        self.deks[department, token.token_id] = new.record.dek
        return token

    def _set_token_status(self, department: str, token_id: str, status: str, only_if: str) -> None:
        row = self.tokens[department, token_id]
        if row.token.status == only_if:
            row.token = replace(row.token, status=status)

    def _record(self, department: str, token_id: str) -> SealedRecord:
        dek = self.deks.get((department, token_id), WrappedDek(0, b""))
        return SealedRecord(token_id, self.tokens[department, token_id].sealed or b"", dek)

    # -- what begins

    def begin_charge(self, intent: Intent, audit: AuditRow) -> Begun | Claimed:
        """See `ports.ChargeStore`."""
        charge, new, department = intent.charge, intent.new_token, intent.charge.department
        if earlier := self._earlier(department, intent.claim):
            return earlier
        if charge.service is not None and (department, charge.service) not in self.services:
            raise ServiceUnknown(pointers=["/service"])
        if new is None:
            self._require_usable(department, charge.token_id)
        self._require_keys(new.record if new else None, intent.details)
        record = None
        if new is not None:
            self._insert_token(new)
        else:
            if self.tokens[department, charge.token_id].token.usage == "single":
                self._set_token_status(department, charge.token_id, "spent", "active")
            record = self._record(department, charge.token_id)
        if intent.details is not None:
            self.deks[department, intent.details.record_id] = intent.details.dek
        self._hold(department, intent.claim)
        self._put(charge, intent.movement)
        movement = self._insert_movement(intent.movement)
        self.audit.append(audit)
        return Begun(charge, movement, record)

    def begin_movement(self, asked: Asked, claim: Claim, audit: AuditRow) -> Begun | Claimed:
        """See `ports.ChargeStore`."""
        department = asked.department
        if earlier := self._earlier(department, claim):
            return earlier
        charge = self.charge(department, asked.charge_id)
        wanted = movement_of(charge, asked, claim)
        if wanted.kind is Kind.REFUND:
            charge = replace(charge, refunding_minor=charge.refunding_minor + wanted.amount_minor)
        else:
            charge = replace(charge, kind=wanted.kind, progress=wanted.progress)
        self._put(charge, wanted)
        movement = self._insert_movement(wanted)
        self._hold(department, claim)
        self.audit.append(audit)
        return Begun(charge, movement)

    def begun_after_all(self, claim: Claim, mine: Movement | Asked, *, with_card: bool) -> Begun | Claimed:
        """What a lost commit has left; raises `NothingCommitted`."""
        earlier = self.claimed(mine.department, claim.route, claim.key)
        if earlier is None:
            raise NothingCommitted
        if earlier.subject_id not in {mine.movement_id, mine.charge_id}:
            return earlier
        return self._begun(mine.department, mine.movement_id, with_card=with_card)

    def _require_usable(self, department: str, token_id: str) -> None:
        row = self.tokens.get((department, token_id))
        if row is None:
            raise NotFound(pointers=["/token"])
        if row.token.status != "active" or row.token.expires_at <= self.now():
            raise TokenUnusable(pointers=["/token"])

    def _insert_movement(self, movement: Movement) -> Movement:
        now = self.now()
        movement = replace(movement, not_after=now + REQUEST_LIFE)
        self.movements[movement.department, movement.movement_id] = MovementRow(movement, now, now + LEASE)
        return movement

    def _begun(self, department: str, movement_id: str, *, with_card: bool) -> Begun:
        charge, movement = self.movement(department, movement_id)
        record = self._record(department, charge.token_id) if with_card and movement.kind in FIRST else None
        return Begun(charge, movement, record)

    # -- what ends

    def finish(self, movement: Movement, event: Event, said: Said, render: Render, audit: AuditRow) -> Finished:
        """See `ports.MovementStore`."""
        department, movement_id = movement.department, movement.movement_id
        row = self.movements.get((department, movement_id))
        moved = row is not None and self._move(row, movement, event, said)
        if moved:
            self.audit.append(audit)
        charge, now = self.movement(department, movement_id)
        answer, key = render(charge, now), self.keys[department, now.route, now.idempotency_key]
        if moved and event in ENDS:
            key.answer = key.answer or Answer(answer.status, answer.body)
        elif not moved:
            answer = key.answer or answer
        return Finished(charge, now, answer, moved)

    def _put(self, charge: Charge, movement: Movement) -> None:
        """Store a charge with what one of its movements becomes; raises `StatementRefused` where a CHECK would."""
        mine = [movement] + [
            row.movement
            for row in self.movements.values()
            if (row.movement.department, row.movement.charge_id) == (charge.department, charge.charge_id)
            and row.movement.movement_id != movement.movement_id
        ]
        captured = charge.kind in CAPTURING and charge.progress is Progress.DONE
        sound = (
            sum(each.kind in FIRST for each in mine) == 1
            and sum(each.kind is not Kind.REFUND and each.progress in OPEN for each in mine) <= 1
            and sum(each.kind in CAPTURING and each.progress is Progress.DONE for each in mine) <= 1
            and charge.refunding_minor >= 0
            and charge.refunded_minor >= 0
            and charge.refunded_minor + charge.refunding_minor <= charge.captured_minor <= charge.amount_minor
            and (charge.captured_minor > 0) == captured
        )
        if not sound:
            raise StatementRefused("internal error: SQLSTATE 23514")
        self.charges_[charge.department, charge.charge_id] = charge

    def _move(self, row: MovementRow, movement: Movement, event: Event, said: Said) -> bool:
        if row.movement.epoch != movement.epoch or row.movement.progress not in sources(event):
            return False
        declined = said if isinstance(said, Declined) else None
        becomes = replace(
            row.movement,
            progress=after(row.movement.progress, event),
            decline_class=declined.decline_class if declined else None,
            decline_code=declined.decline_code if declined else None,
        )
        self._follow(becomes, event, said)
        row.movement = becomes
        row.lease_until, row.resend_until = self.now() + timedelta(seconds=FIRST_LOOK_S), None
        return True

    def _follow(self, movement: Movement, event: Event, said: Said) -> None:
        department, amount = movement.department, movement.amount_minor
        charge, progress = self.charge(department, movement.charge_id), movement.progress
        done, first = progress is Progress.DONE, movement.kind in FIRST
        if movement.kind is not Kind.REFUND:
            declined = said if first and isinstance(said, Declined) else None
            captured = amount if done and movement.kind in CAPTURING else 0
            charge = replace(
                charge,
                kind=movement.kind,
                progress=progress,
                captured_minor=charge.captured_minor + captured,
                cvc_check=said.cvc_check if first and said is not None else charge.cvc_check,
                decline_class=declined.decline_class if declined else None,
                decline_code=declined.decline_code if declined else None,
            )
        elif event in ENDS:
            given_back = amount if done else 0
            charge = replace(
                charge,
                refunding_minor=charge.refunding_minor - amount,
                refunded_minor=charge.refunded_minor + given_back,
            )
        self._put(charge, movement)
        if done and (posted := entries(movement.kind, amount, charge.convenience_fee_minor)):
            self.journal[department, movement.movement_id] = posted
        if first and progress is Progress.FAILED:
            self._set_token_status(department, charge.token_id, "active", "spent")

    def record(self, audit: AuditRow) -> None:
        """See `ports.MovementStore`."""
        self.audit.append(audit)

    # -- recovery

    def take(self, department: str, limit: int) -> Sequence[Case]:
        """See `ports.RecoveryStore`."""
        now = self.now()
        waiting = [
            row for (of, _), row in self.movements.items() if of == department and row.open and row.lease_until <= now
        ]
        return [self._case(row, now) for row in sorted(waiting, key=lambda row: row.lease_until)[:limit]]

    def _case(self, row: MovementRow, now: datetime) -> Case:
        row.movement = replace(row.movement, epoch=row.movement.epoch + 1)
        row.looks, row.lease_until, row.resend_until = row.looks + 1, now + LEASE, None
        age_s = (now - row.first_sent_at).total_seconds()
        overdue_s = (now - row.movement.not_after).total_seconds()
        return Case(self._shown(row), age_s, overdue_s, row.looks, self._may_resend(row.movement))

    def _may_resend(self, movement: Movement) -> bool:
        if movement.kind not in FIRST:
            return True
        charge = self.charges_[movement.department, movement.charge_id]
        return not movement.with_cvc and self.tokens[charge.department, charge.token_id].sealed is not None

    def postpone(self, movement: Movement, delay_s: float, *, resend_within_s: float | None = None) -> None:
        """See `ports.RecoveryStore`."""
        row, now = self.movements[movement.department, movement.movement_id], self.now()
        if row.open and row.movement.epoch == movement.epoch:
            row.lease_until = now + timedelta(seconds=delay_s)
            row.resend_until = None if resend_within_s is None else now + timedelta(seconds=resend_within_s)

    def take_marked(self, department: str, audit: Callable[[Movement], AuditRow]) -> Resend | None:
        """See `ports.ChargeStore`."""
        now = self.now()
        marked = [
            (row.resend_until, row)
            for (of, _), row in self.movements.items()
            if of == department and row.open and row.resend_until is not None and row.resend_until > now
        ]
        if not marked:
            return None
        until, row = min(marked, key=lambda each: each[0])
        row.movement = replace(row.movement, epoch=row.movement.epoch + 1, sends=row.movement.sends + 1)
        row.lease_until, row.resend_until = now + LEASE, None
        begun = self._begun(department, row.movement.movement_id, with_card=True)
        self.audit.append(audit(begun.movement))
        return Resend(begun, (until - now).total_seconds())

    # -- what an approver says

    def take_decided(
        self, department: str, render: Render, audit: Callable[[Movement, Event], AuditRow]
    ) -> Begun | Finished | None:
        """See `ports.ChargeStore`."""
        decided = [row for row in self.waiting((department,)) if row.id in self.verdicts]
        if not decided:
            return None
        row, now = decided[0], self.now()
        event = VERDICTS[self.verdicts[row.id]]
        told = audit(row.movement, event)
        if event in ENDS:
            return self.finish(row.movement, event, None, render, told)
        row.movement = replace(
            row.movement,
            progress=after(row.movement.progress, event),
            epoch=row.movement.epoch + 1,
            sends=row.movement.sends + 1,
            not_after=now + REQUEST_LIFE,
        )
        row.first_sent_at, row.lease_until = now, now + LEASE
        self.audit.append(told)
        return self._begun(department, row.movement.movement_id, with_card=False)

    def waiting(self, departments: Collection[str]) -> Sequence[MovementRow]:
        """Refunds that wait for an approver, or for an api process to hear what was said; oldest first."""
        rows = [row for (of, _), row in self.movements.items() if of in departments and row.awaiting]
        return sorted(rows, key=lambda row: (row.movement.created_at, row.movement.movement_id))

    # -- what there is

    def charge(self, department: str, charge_id: str) -> Charge:
        """See `ports.ChargeStore`."""
        charge = self.charges_.get((department, charge_id))
        if charge is None:
            raise NotFound
        return charge

    def movement(self, department: str, movement_id: str) -> tuple[Charge, Movement]:
        """See `ports.ChargeStore`."""
        row = self.movements.get((department, movement_id))
        if row is None:
            raise NotFound
        return self.charge(department, row.movement.charge_id), self._shown(row)

    def _shown(self, row: MovementRow) -> Movement:
        movement = row.movement
        fresh = movement.progress is Progress.SENDING and movement.epoch == 0
        return replace(movement, running=fresh and row.lease_until > self.now())

    def charges(
        self, department: str, reference: str | None, limit: int, starting_after: str | None
    ) -> Sequence[Charge]:
        """See `ports.ChargeStore`."""
        since = self.charge(department, starting_after) if starting_after is not None else None
        found = [
            charge
            for (of, _), charge in self.charges_.items()
            if of == department
            and reference in {None, charge.reference}
            and (since is None or _place(charge) < _place(since))
        ]
        return sorted(found, key=_place, reverse=True)[:limit]


def _place(charge: Charge) -> tuple[datetime, str]:
    return charge.created_at, charge.charge_id
