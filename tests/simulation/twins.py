"""The same operations, drawn by chance, on the in-memory store and on PostgreSQL: what each of them answers.

Half of what is asked makes sense, the other half is what a bug or an attacker would ask: stale epochs, ended
movements, other departments' ids, used keys, keys that are not active. Both stores read one clock, so that leases,
ages and expiries are equal to the microsecond.
"""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from random import Random
from typing import Any

from gateway.errors import GatewayError
from gateway.rules.ids import new_id
from gateway.rules.lifecycle import UNDECIDED, Event, Kind, Progress
from gateway.services.approvals import WaitingRefund
from gateway.services.ports import (
    Answer,
    Approved,
    Asked,
    CardIndex,
    Case,
    Charge,
    Claim,
    Declined,
    Intent,
    KeysMoved,
    Movement,
    NewToken,
    Said,
    Token,
)
from gateway.store.approvals import ApprovalStore
from gateway.store.database import StatementRefused
from gateway.store.ledger import Ledger, NothingCommitted
from tests.gateway.store.postgres import (
    APPLICATION,
    GENERATION,
    RETIRED,
    ROUTE,
    SERVICE,
    asked,
    asking,
    audit,
    caller,
    first_movement,
    new_token,
    sealed,
)
from tests.simulation.desk import VERDICTS, Desk
from tests.simulation.memory import Memory

REFUSALS = (GatewayError, KeysMoved, NothingCommitted, StatementRefused)
EVENTS: Sequence[tuple[Event, Said]] = (
    (Event.DO, Approved("pass")),
    (Event.REFUSE, Declined("fail", "soft", "05")),
    (Event.FAIL, None),
    (Event.LOST, None),
    (Event.PARK, None),
)
CARDS = 12
KEYS = 400
STAFF = "st_of_the_tests"
NOBODYS = "ch_aaaaaaaaaaaaaaaaaaaaaaaaaa"

Result = tuple[str, object]
"""How an operation ended, and what it gave."""


class Twins:
    """Two stores that are asked the same."""

    def __init__(self, rng: Random, memory: Memory, api: Ledger, worker: Ledger, admin: ApprovalStore) -> None:
        self._rng = rng
        self._desk = Desk(memory)
        self._admin = admin
        self._memory = memory
        self._api = api
        self._worker = worker
        self._seen: list[Movement] = []
        """Movements as they once stood, to be ended by who believes that they still stand so."""
        self._moves: Sequence[tuple[int, Callable[[], Awaitable[tuple[Result, Result]]]]] = (
            (6, self._create_token),
            (10, self._begin_charge),
            (14, self._begin_movement),
            (22, self._finish),
            (12, self._take),
            (8, self._postpone),
            (8, self._take_marked),
            (6, self._take_decided),
            (6, self._decide),
            (1, self._waiting),
            (3, self._begun_after_all),
            (1, self._erase_token),
            (3, self._claimed),
            (3, self._charge),
            (4, self._movement),
            (3, self._charges),
        )

    async def step(self) -> tuple[str, Result, Result]:
        """One operation on both; gives its name, and what memory and PostgreSQL made of it."""
        weights, moves = zip(*self._moves, strict=True)
        (move,) = self._rng.choices(moves, weights)
        mine, theirs = await move()
        return move.__name__.removeprefix("_"), mine, theirs

    async def _both(
        self, mine: Callable[[], Any], theirs: Awaitable[Any], normal: Callable[[Any], object] = lambda given: given
    ) -> tuple[Result, Result]:
        try:
            one: Result = "gave", normal(mine())
        except REFUSALS as refusal:
            one = _named(refusal)
        try:
            other: Result = "gave", normal(await theirs)
        except REFUSALS as refusal:
            other = _named(refusal)
        return one, other

    # -- tokens

    async def _create_token(self) -> tuple[Result, Result]:
        new, row = self._new_token(self._department()), audit()
        row = audit(new.token.department)
        return await self._both(
            lambda: self._memory.create_token(new, row),
            self._api.create_token(new, None, held=False, render=_shown, audit=row),
        )

    async def _erase_token(self) -> tuple[Result, Result]:
        department, token_id = self._token()
        row = audit(department)
        return await self._both(
            lambda: self._memory.erase_token(department, token_id, _shown, row),
            self._api.erase_token(department, token_id, _shown, row),
        )

    def _new_token(self, department: str) -> NewToken:
        rng = self._rng
        usage = rng.choice(("single", "multi"))
        generation = RETIRED if rng.random() < 0.05 else GENERATION
        new = new_token(usage, generation=generation, department=department)
        (versions,) = rng.choices(((1,), (4, 5), (3, 5), (2, 5), (4,)), (20, 6, 2, 1, 1))
        card = rng.randrange(CARDS)
        indexes = tuple(CardIndex(version, bytes([version, card]) * 16) for version in versions)
        created, life = self._memory.now(), timedelta(minutes=rng.choice((5, 60, 600)))
        return replace(
            new, token=replace(new.token, created_at=created, expires_at=created + life), card_indexes=indexes
        )

    # -- what begins

    async def _begin_charge(self) -> tuple[Result, Result]:
        intent = self._intent()
        row = audit(intent.charge.department)
        ends = await self._both(lambda: self._memory.begin_charge(intent, row), self._api.begin_charge(intent, row))
        self._remember(intent.movement)
        return ends

    async def _begin_movement(self) -> tuple[Result, Result]:
        what, claim = self._asked()
        row = audit(what.department)
        return await self._both(
            lambda: self._memory.begin_movement(what, claim, row), self._api.begin_movement(what, claim, row)
        )

    async def _begun_after_all(self) -> tuple[Result, Result]:
        mine: Movement | Asked
        if self._rng.random() < 0.5 and self._memory.movements:
            mine, with_card = self._some_movement(), self._rng.random() < 0.5
            claim = self._memory.keys[mine.department, mine.route, mine.idempotency_key].claim
        else:
            (mine, claim), with_card = self._asked(), False
        return await self._both(
            lambda: self._memory.begun_after_all(claim, mine, with_card=with_card),
            self._api._begun_after_all(claim, mine, with_card=with_card),
        )

    def _intent(self) -> Intent:
        rng, department = self._rng, self._department()
        new = self._new_token(department) if rng.random() < 0.3 else None
        if new is not None:
            new = replace(new, token=replace(new.token, usage="single", status="spent"))
        amount = rng.randint(1, 9_999)
        charge = Charge(
            department=department,
            charge_id=new_id("ch"),
            application_id=APPLICATION,
            token_id=new.token.token_id if new else self._token(department)[1],
            amount_minor=amount,
            currency="USD",
            convenience_fee_minor=rng.choice((0, amount, rng.randint(0, amount))),
            service=rng.choices((None, SERVICE, "GOLF"), (5, 10, 1))[0],
            reference=f"R-{rng.randint(1, 5)}",
            processor_reference=new_id("pr"),
            kind=rng.choice((Kind.SALE, Kind.AUTHORIZATION)),
            progress=Progress.SENDING,
            captured_minor=0,
            refunded_minor=0,
            refunding_minor=0,
            cvc_check="unchecked",
            decline_class=None,
            decline_code=None,
            created_at=self._memory.now(),
        )
        (version,) = rng.choices((None, 1, 4), (5, 10, 1))
        part = None if version is None else CardIndex(version, bytes(32))
        claim = Claim(ROUTE, self._key(), secrets.token_bytes(32), part, charge.charge_id)
        details = (
            sealed(charge.charge_id, RETIRED if rng.random() < 0.05 else GENERATION) if rng.random() < 0.3 else None
        )
        return Intent(charge, first_movement(charge, claim, with_cvc=rng.random() < 0.3), claim, new, details)

    def _asked(self) -> tuple[Asked, Claim]:
        rng = self._rng
        kind = rng.choice((Kind.CAPTURE, Kind.VOID, Kind.REFUND, Kind.REFUND))
        charges = list(self._memory.charges_.values())
        fitting = [each for each in charges if each.status == {Kind.REFUND: "succeeded"}.get(kind, "authorized")]
        if not charges:
            return self._asked_of(replace(self._intent().charge, charge_id=NOBODYS), kind)
        return self._asked_of(rng.choice(fitting if fitting and rng.random() < 0.8 else charges), kind)

    def _asked_of(self, charge: Charge, kind: Kind) -> tuple[Asked, Claim]:
        rng, left = self._rng, max(1, charge.left_minor if kind is Kind.REFUND else charge.amount_minor)
        amount = rng.choice((None, rng.randint(1, left), rng.randint(1, left), left, left + 1, 0))
        limit = rng.choice((None, rng.randint(1, left), left, 0))
        what = replace(
            asked(charge, kind, amount), created_at=self._memory.now(), caller=caller(charge.department, limit)
        )
        if rng.random() < 0.05:
            what = replace(what, charge_id=NOBODYS)
        if rng.random() < 0.05:
            what = replace(what, department=self._department())
        return what, asking(what, self._key())

    # -- what ends

    async def _finish(self) -> tuple[Result, Result]:
        if not self._memory.movements:
            return await self._take()
        movement = self._some_movement()
        event, said = self._rng.choice(EVENTS)
        row, store = audit(movement.department), self._rng.choice((self._api, self._worker))
        ends = await self._both(
            lambda: self._memory.finish(movement, event, said, _told, row),
            store.finish(movement, event, said, _told, row),
        )
        self._remember(movement)
        return ends

    async def _take(self) -> tuple[Result, Result]:
        department = self._department()
        limit = self._rng.choice((3, 100))
        waiting = sorted(
            row.lease_until
            for (of, _), row in self._memory.movements.items()
            if of == department and row.open and row.lease_until <= self._memory.now()
        )
        if len(waiting) > limit and waiting[limit - 1] == waiting[limit]:
            limit = 10_000  # which of two that wait equally long comes first is nobody's promise
        return await self._both(
            lambda: self._memory.take(department, limit), self._worker.take(department, limit), self._cases
        )

    async def _postpone(self) -> tuple[Result, Result]:
        if not self._memory.movements:
            return await self._take()
        movement = self._some_movement()
        delay_s, mark_s = self._rng.uniform(0.1, 20.0), self._rng.choice((None, self._rng.uniform(1.0, 60.0)))
        delay_s, mark_s = round(delay_s, 3), mark_s and round(mark_s, 3)
        return await self._both(
            lambda: self._memory.postpone(movement, delay_s, resend_within_s=mark_s),
            self._worker.postpone(movement, delay_s, resend_within_s=mark_s),
        )

    async def _take_marked(self) -> tuple[Result, Result]:
        department = self._department()
        row = audit(department)
        return await self._both(
            lambda: self._memory.take_marked(department, lambda _: row),
            self._api.take_marked(department, lambda _: row),
        )

    # -- what an approver says

    async def _take_decided(self) -> tuple[Result, Result]:
        department = self._department()
        row = audit(department)
        return await self._both(
            lambda: self._memory.take_decided(department, _told, lambda _, __: row),
            self._api.take_decided(department, _told, lambda _, __: row),
        )

    async def _decide(self) -> tuple[Result, Result]:
        """About what is found and what is not; mostly what waits, in a department that is reached or not."""
        rng, reach = self._rng, self._reach()
        waiting = [row.id for row in self._memory.waiting(self._memory.departments)]
        ids = waiting if waiting and rng.random() < 0.8 else list(self._memory.movements)
        _, refund_id = rng.choice(ids or [("", "re_none")])
        found = await self._both(lambda: self._desk.refund(reach, refund_id), self._admin.refund(reach, refund_id))
        (_, mine), (_, theirs) = found
        if mine is None or mine != theirs:
            return found
        assert isinstance(mine, WaitingRefund)
        verdict, row = rng.choice(VERDICTS), audit(mine.department)
        return await self._both(
            lambda: self._desk.decide(mine, verdict, row), self._admin.decide(mine, verdict, STAFF, row)
        )

    async def _waiting(self) -> tuple[Result, Result]:
        reach, limit = self._reach(), self._rng.choice((1, 200))
        return await self._both(lambda: self._desk.waiting(reach, limit), self._admin.waiting(reach, limit))

    def _reach(self) -> frozenset[str]:
        departments = self._memory.departments
        return frozenset(self._rng.choice((departments, departments, departments[:1], ())))

    # -- what there is

    async def _claimed(self) -> tuple[Result, Result]:
        department, route, key = self._department(), ROUTE, self._key()
        if self._memory.keys and self._rng.random() < 0.8:
            department, route, key = self._rng.choice(list(self._memory.keys))
        return await self._both(
            lambda: self._memory.claimed(department, route, key), self._api.claimed(department, route, key)
        )

    async def _charge(self) -> tuple[Result, Result]:
        department, charge_id = self._department(), NOBODYS
        if self._memory.charges_:
            _, charge_id = self._rng.choice(list(self._memory.charges_))
        return await self._both(
            lambda: self._memory.charge(department, charge_id), self._api.charge(department, charge_id)
        )

    async def _movement(self) -> tuple[Result, Result]:
        department, movement_id = self._department(), "mv_none"
        if self._memory.movements and self._rng.random() < 0.9:
            department, movement_id = self._rng.choice(list(self._memory.movements))
        return await self._both(
            lambda: self._memory.movement(department, movement_id), self._api.movement(department, movement_id)
        )

    async def _charges(self) -> tuple[Result, Result]:
        rng, department = self._rng, self._department()
        ids = [charge_id for _, charge_id in self._memory.charges_] or [NOBODYS]
        reference, after_id = rng.choice((None, f"R-{rng.randint(1, 6)}")), rng.choice((None, rng.choice(ids)))
        limit = rng.choice((1, 5, 100))
        return await self._both(
            lambda: self._memory.charges(department, reference, limit, after_id),
            self._api.charges(department, reference, limit, after_id),
        )

    # -- whom to ask about

    def _department(self) -> str:
        return self._rng.choice(self._memory.departments)

    def _token(self, department: str | None = None) -> tuple[str, str]:
        mine = [id_ for id_ in self._memory.tokens if department in {None, id_[0]}]
        if not mine or self._rng.random() < 0.05:
            return department or self._department(), "tok_none"
        return self._rng.choice(mine)

    def _key(self) -> str:
        return f"key-{self._rng.randrange(KEYS)}" if self._rng.random() < 0.3 else new_id("key")

    def _some_movement(self) -> Movement:
        """As it stands, or as it once stood; open ones more often than not."""
        rows = list(self._memory.movements.values())
        still = [row for row in rows if row.movement.progress in UNDECIDED]
        row = self._rng.choice(still if still and self._rng.random() < 0.8 else rows)
        known = [each for each in self._seen if (each.department, each.movement_id) in self._memory.movements]
        return self._rng.choice(known) if known and self._rng.random() < 0.2 else row.movement

    def _remember(self, movement: Movement) -> None:
        self._seen = [*self._seen[-40:], movement]

    def _cases(self, cases: Sequence[Case]) -> object:
        for case in cases:
            self._remember(case.movement)
        return sorted(cases, key=lambda case: case.movement.movement_id)


def contents(memory: Memory) -> dict[str, list[tuple[object, ...]]]:
    """The tables of memory, as rows to be compared with those of PostgreSQL."""
    return {
        "movements": sorted(
            (*_movement(row.movement), row.looks, row.lease_until, row.resend_until, row.first_sent_at)
            for row in memory.movements.values()
        ),
        "charges": sorted(
            (c.charge_id, str(c.kind), str(c.progress), c.captured_minor, c.refunded_minor, c.refunding_minor)
            for c in memory.charges_.values()
        ),
        "keys": sorted(
            (key, route, row.claim.subject_id, row.claim.card_part is None, row.answer and row.answer.body)
            for (_, route, key), row in memory.keys.items()
        ),
        "tokens": sorted((t.token.token_id, t.token.status, t.token.fingerprint_id) for t in memory.tokens.values()),
        "approvals": sorted((movement_id, verdict) for (_, movement_id), verdict in memory.verdicts.items()),
        "journal": sorted(
            (movement_id, line, str(entry.debit), str(entry.credit), entry.amount_minor)
            for (_, movement_id), posted in memory.journal.items()
            for line, entry in enumerate(posted, start=1)
        ),
        "fingerprints": sorted((version, value, known) for (_, version, value), known in memory.fingerprints.items()),
        "deks": sorted((record_id, dek.generation) for (_, record_id), dek in memory.deks.items()),
        "audit": sorted((row.event_id,) for row in memory.audit),
    }


TABLES = {
    "movements": "SELECT movement_id, progress, epoch, sends, decline_code, not_after, looks, lease_until, "
    "resend_until, first_sent_at FROM gateway.movements",
    "charges": "SELECT charge_id, kind, progress, captured_minor, refunded_minor, refunding_minor "
    "FROM gateway.charges",
    "keys": "SELECT idempotency_key, route, subject_id, card_part IS NULL, body FROM gateway.idempotency",
    "tokens": "SELECT token_id, status, fingerprint_id FROM gateway.tokens",
    "approvals": "SELECT movement_id, verdict FROM gateway.refund_approvals",
    "journal": "SELECT movement_id, line, debit, credit, amount_minor FROM gateway.journal",
    "fingerprints": "SELECT key_version, card_index, fingerprint_id FROM gateway.fingerprints",
    "deks": "SELECT record_id, generation FROM gateway.deks",
    "audit": "SELECT event_id FROM audit.events",
}
"""The same of PostgreSQL."""


def _movement(movement: Movement) -> tuple[object, ...]:
    progress = str(movement.progress)
    sent = movement.epoch, movement.sends, movement.decline_code, movement.not_after
    return movement.movement_id, progress, *sent


def _named(refusal: Exception) -> Result:
    return type(refusal).__name__, getattr(refusal, "pointers", ())


def _shown(token: Token) -> Answer:
    return Answer(201, f"{token.department} {token.status}".encode())


def _told(charge: Charge, movement: Movement) -> Answer:
    money = f"{charge.captured_minor} {charge.refunded_minor} {charge.refunding_minor}"
    stands = f"{movement.kind} {movement.progress} {charge.status} {movement.epoch} {money}"
    return Answer(201, stands.encode(), f"/v1/charges/{charge.charge_id}")


def later(now: datetime, rng: Random) -> datetime:
    """A moment that is surely another one: mostly a little later, sometimes after a lease, seldom after a token."""
    (most_s,) = rng.choices((0.3, 4.0, 40.0, 1_800.0), (60, 30, 10, 0.3))
    return now + timedelta(seconds=rng.uniform(0.0, most_s), microseconds=rng.randint(1, 999))
