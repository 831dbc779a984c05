"""Between a replica and the database: connections that break, commits of which nobody knows, and long waits.

Implements the store ports of api and worker over one `Memory`, with the errors that `gateway.store` lets out. What
follows a lost commit is the product's own `_surely`.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from gateway.errors import Unavailable
from gateway.rules.lifecycle import Event
from gateway.services.ports import (
    Asked,
    Begun,
    Case,
    Charge,
    Claim,
    Claimed,
    CommitUnknown,
    Finished,
    Intent,
    KeysMoved,
    Movement,
    Render,
    Resend,
    Said,
)
from gateway.store.ledger import _surely
from keys.audit import AuditRow
from keys.states import Seen
from tests.simulation.swarm import Fault

if TYPE_CHECKING:
    from tests.simulation.replica import Replica

QUICK_S = (0.0005, 0.006)
SLOW_S = (0.3, 4.5)
TIMEOUT_S = 5.0
"""How long the driver waits for a statement before it gives the connection up."""

T = TypeVar("T")


class Frail:
    """The database, as one replica reaches it."""

    def __init__(self, replica: "Replica") -> None:
        self._replica = replica
        self._city = replica.city
        self._memory = replica.city.memory

    # -- what services ask

    async def departments(self) -> Sequence[str]:
        """See `ports.ChargeStore`. Without delay: it is asked at every turn."""
        await self._replica.gate()
        if self._city.database_down:
            raise Unavailable
        return self._memory.departments

    async def claimed(self, department: str, route: str, key: str) -> Claimed | None:
        """See `ports.ChargeStore`."""
        return await self._read(lambda: self._memory.claimed(department, route, key))

    async def charge(self, department: str, charge_id: str) -> Charge:
        """See `ports.ChargeStore`."""
        return await self._read(lambda: self._memory.charge(department, charge_id))

    async def movement(self, department: str, movement_id: str) -> tuple[Charge, Movement]:
        """See `ports.ChargeStore`."""
        return await self._read(lambda: self._memory.movement(department, movement_id))

    async def charges(
        self, department: str, reference: str | None, limit: int, starting_after: str | None
    ) -> Sequence[Charge]:
        """See `ports.ChargeStore`."""
        return await self._read(lambda: self._memory.charges(department, reference, limit, starting_after))

    async def begin_charge(self, intent: Intent, audit: AuditRow) -> Begun | Claimed:
        """See `ports.ChargeStore`."""
        with_card = intent.new_token is None

        async def after_all() -> Begun | Claimed:
            return await self._look_again(intent.claim, intent.movement, with_card=with_card)

        begun = await _surely(self._commit(lambda: self._memory.begin_charge(intent, audit)), after_all)
        return self._held(begun)

    async def begin_movement(self, asked: Asked, claim: Claim, audit: AuditRow) -> Begun | Claimed:
        """See `ports.ChargeStore`."""

        async def after_all() -> Begun | Claimed:
            return await self._look_again(claim, asked, with_card=False)

        begun = await _surely(self._commit(lambda: self._memory.begin_movement(asked, claim, audit)), after_all)
        return self._held(begun)

    async def finish(self, movement: Movement, event: Event, said: Said, render: Render, audit: AuditRow) -> Finished:
        """See `ports.MovementStore`."""

        def finish() -> Finished:
            finished = self._memory.finish(movement, event, said, render, audit)
            self._city.finished(self._replica, movement, event, finished)
            return finished

        try:
            return await self._commit(finish)
        except CommitUnknown:
            raise Unavailable from None

    async def take(self, department: str, limit: int) -> Sequence[Case]:
        """See `ports.RecoveryStore`."""

        def take() -> Sequence[Case]:
            cases = self._memory.take(department, limit)
            for case in cases:
                self._city.taken(self._replica, case.movement)
            return cases

        return await self._commit(take)

    async def postpone(self, movement: Movement, delay_s: float, *, resend_within_s: float | None = None) -> None:
        """See `ports.RecoveryStore`."""

        def postpone() -> None:
            self._city.given_back(movement, marked=resend_within_s is not None)
            self._memory.postpone(movement, delay_s, resend_within_s=resend_within_s)

        await self._commit(postpone)

    async def take_marked(self, department: str, audit: Callable[[Movement], AuditRow]) -> Resend | None:
        """See `ports.ChargeStore`."""

        def take_marked() -> Resend | None:
            resend = self._memory.take_marked(department, audit)
            if resend is not None:
                self._city.taken(self._replica, resend.begun.movement)
            return resend

        return await self._commit(take_marked)

    async def take_decided(
        self, department: str, render: Render, audit: Callable[[Movement, Event], AuditRow]
    ) -> Begun | Finished | None:
        """See `ports.ChargeStore`."""

        def take_decided() -> Begun | Finished | None:
            taken = self._memory.take_decided(department, render, audit)
            if taken is not None:
                self._city.obeyed(self._replica, taken)
            return taken

        return await self._commit(take_decided)

    async def record(self, audit: AuditRow) -> None:
        """See `ports.MovementStore`."""
        await self._commit(lambda: self._memory.record(audit))

    # -- what the vault asks

    async def manifest_seen(self) -> Seen:
        """See `ports.KeyStore`."""
        return Seen(1, 1)

    async def reserve_wraps(self, generation: int, _count: int) -> None:
        """See `ports.KeyStore`."""

        def reserve() -> None:
            if self._memory.generations.get(generation) != "active":
                raise KeysMoved

        await self._commit(reserve)

    # -- how it goes wrong

    async def _read(self, work: Callable[[], T]) -> T:
        await self._replica.gate()
        await self._city.pause(*QUICK_S)
        if self._city.database_down or self._city.strikes(Fault.DB_REFUSES):
            raise Unavailable
        result = work()
        await self._replica.gate()
        return result

    async def _commit(self, work: Callable[[], T]) -> T:
        """One commit. Raises `Unavailable` where it cannot have happened, `CommitUnknown` where it may have."""
        city = self._city
        await self._replica.gate()
        await city.pause(*QUICK_S)
        if city.database_down or city.strikes(Fault.DB_REFUSES):
            raise Unavailable
        slow = city.strikes(Fault.DB_SLOW)
        stuck = slow and city.rng.random() < 0.3
        lost = stuck or city.strikes(Fault.DB_LOSES_COMMIT)
        if lost and city.rng.random() < 0.5:
            city.seen["commit lost before it was made"] += 1
            await city.pause(*((TIMEOUT_S, TIMEOUT_S) if stuck else QUICK_S))
            await self._replica.gate()
            raise CommitUnknown
        if slow:
            await city.pause(*SLOW_S)
        result = work()
        await city.pause(*((TIMEOUT_S, TIMEOUT_S) if stuck else QUICK_S))
        await self._replica.gate()
        if lost:
            city.seen["commit made and lost"] += 1
            raise CommitUnknown
        return result

    async def _look_again(self, claim: Claim, mine: Movement | Asked, *, with_card: bool) -> Begun | Claimed:
        # The look is a transaction like others, and may be lost like others; who looks cannot tell more then.
        begun = await self._read(lambda: self._memory.begun_after_all(claim, mine, with_card=with_card))
        self._city.seen["begun after all"] += 1
        return begun

    def _held(self, begun: Begun | Claimed) -> Begun | Claimed:
        if isinstance(begun, Begun):
            self._city.at_work_on(begun.movement)
            self._city.held[begun.movement.movement_id] = self._replica.name
        return begun
