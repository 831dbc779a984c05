"""Recovery: what became of movements that nobody has an answer for, found out and written down.

The worker takes them by lease, asks the processor, and does what `rules.recovery` says about those that the
processor does not know. It holds no card key, so it never sends: what is to be sent again it marks, and an api
process (`Resender`) takes that, opens the card under a new audit row, and sends the same bytes. Nor does the admin
process send: what its approvers have released is taken by the `Resender`, too.

Any number of both may run. A lease keeps them apart, which saves work; what keeps money right is the epoch, without
which nothing is written, and the one reference of each movement.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

from gateway.errors import Unavailable
from gateway.rules.lifecycle import AUDIT, REQUESTED, Event, Progress
from gateway.rules.recovery import Cancel, Expired, Park, SendAgain, delay_s, next_step
from gateway.services.answers import movement_answer
from gateway.services.points import Point, Points
from gateway.services.ports import (
    Absent,
    Approved,
    Begun,
    Cancellation,
    Case,
    ChargeStore,
    Clock,
    CommitUnknown,
    Declined,
    Inquiry,
    Movement,
    NotFound,
    Processor,
    RecoveryStore,
    Said,
)
from gateway.services.sending import HELD_S_MAX, Sender, audit_row, outcome_of
from keys.audit import AuditPen, AuditRow, Outcome

CASES_A_TURN = 16
HOLD_S_MAX = 8.0
"""How long a worker may hold a case before it touches the processor again: well within the lease."""
POISON_LOOKS = 5
"""A case whose look fails for a reason of ours, and not its first ones, is parked: the others go on."""
TURN_EVERY_S = 0.5
TURNS_MAX = 8

log = structlog.get_logger()


class Recovery:
    """Finds out what became of unresolved movements."""

    def __init__(self, store: RecoveryStore, processor: Processor, pen: AuditPen, clock: Clock, at: Points) -> None:
        self._store = store
        self._processor = processor
        self._pen = pen
        self._clock = clock
        self._at = at

    async def run(self) -> None:
        """Turn after turn, for ever."""
        await _for_ever(self.turn)

    async def turn(self) -> int:
        """Look at what waits, in every department; gives how many cases there were."""
        cases = 0
        for department in await self._store.departments():
            until_s = self._clock.monotonic() + HOLD_S_MAX  # from before it was taken, as the lease counts
            taken = await self._store.take(department, CASES_A_TURN)
            cases += len(taken)
            await asyncio.gather(*(self._handle(case, until_s) for case in taken))
        return cases

    async def _handle(self, case: Case, until_s: float) -> None:
        """One case. Whatever goes wrong with it, the others go on."""
        try:
            await self._at(Point.TAKEN)
            await self._resolve(case, until_s)
            await self._at(Point.GIVEN_BACK)
        except (Unavailable, CommitUnknown):
            pass  # its lease ends by itself, and whoever takes it next looks at what is there
        except Exception as error:  # noqa: BLE001 - a case that always fails must not stop the others
            log.error("recovery.case_failed", error=type(error).__name__)  # noqa: TRY400
            if case.looks >= POISON_LOOKS:
                with suppress(Unavailable):
                    await self._park(case.movement, "worker_failed")

    async def _resolve(self, case: Case, until_s: float) -> None:
        found = await self._processor.inquire(case.movement)
        await self._at(Point.INQUIRED)
        if self._clock.monotonic() >= until_s:
            return  # the lease may be over: somebody else has it, or will
        if isinstance(found, NotFound):
            await self._make_sure(case, found)
        else:
            await self._settle(case, found)

    async def _make_sure(self, case: Case, found: NotFound) -> None:
        movement = case.movement
        match next_step(
            found.offers,
            age_s=case.age_s,
            overdue_s=case.overdue_s,
            sends=movement.sends,
            may_resend=case.may_resend,
        ):
            case SendAgain(within_s):
                log.info("recovery.marked")
                await self._store.postpone(movement, delay_s(case.looks), resend_within_s=within_s)
            case Cancel():
                cancelled = await self._processor.cancel(movement)
                await self._at(Point.CANCELLED)
                await self._settle(case, cancelled)
            case Expired():
                await self._finish(movement, Event.FAIL, None, "expired")
            case Park(reason) if movement.progress is not Progress.IN_REVIEW:
                await self._park(movement, reason)
            case _:
                await self._store.postpone(movement, delay_s(case.looks))

    async def _settle(self, case: Case, found: Inquiry | Cancellation) -> None:
        match found:
            case Approved():
                await self._finish(case.movement, Event.DO, found, "inquiry")
            case Declined():
                await self._finish(case.movement, Event.REFUSE, found, "inquiry")
            case Absent():
                await self._finish(case.movement, Event.FAIL, None, "cancelled")
            case _:
                await self._store.postpone(case.movement, delay_s(case.looks))

    async def _park(self, movement: Movement, reason: str) -> None:
        log.warning("recovery.parked", reason=reason)
        await self._finish(movement, Event.PARK, None, reason)

    async def _finish(self, movement: Movement, event: Event, said: Said, reason: str) -> None:
        event_name = AUDIT[movement.kind, event]
        row = audit_row(self._pen, self._clock, movement, event_name, outcome_of(event), reason=reason)
        await self._store.finish(movement, event, said, movement_answer, row)


class Resender:
    """Sends again what a worker has marked, and for the first time what an approver has released.

    Belongs to the api process, which alone opens cards.
    """

    def __init__(self, store: ChargeStore, sender: Sender, pen: AuditPen, clock: Clock, at: Points) -> None:
        self._store = store
        self._sender = sender
        self._pen = pen
        self._clock = clock
        self._at = at

    async def run(self) -> None:
        """Turn after turn, for ever."""
        await _for_ever(self.turn)

    async def turn(self) -> int:
        """Send what is marked, and do what was decided, in every department; gives how many there were.

        What goes wrong in one department is raised after the others have had their turn.
        """
        taken, wrong = 0, []
        for department in await self._store.departments():
            try:
                while await self._send_again(department) or await self._obey(department):
                    taken += 1
            except Exception as error:  # noqa: BLE001 - raised below
                wrong.append(error)
        if wrong:
            raise wrong[0]
        return taken

    async def _send_again(self, department: str) -> bool:
        taken_s = self._clock.monotonic()
        resend = await self._store.take_marked(department, self._row)
        if resend is None:
            return False
        await self._at(Point.TAKEN_AGAIN)
        # From before it was taken: half of the window, and the lease, count from then.
        until_s = taken_s + min(resend.left_s, HELD_S_MAX)
        await self._sender.send(resend.begun, None, "", until_s)
        return True

    async def _obey(self, department: str) -> bool:
        """Do what an approver said of one refund; who dies with it leaves a movement like any other."""
        until_s = self._clock.monotonic() + HELD_S_MAX
        taken = await self._store.take_decided(department, movement_answer, self._decided)
        if isinstance(taken, Begun):
            await self._sender.send(taken, None, "", until_s)
        return taken is not None

    def _decided(self, movement: Movement, event: Event) -> AuditRow:
        return audit_row(self._pen, self._clock, movement, AUDIT[movement.kind, event], outcome_of(event))

    def _row(self, movement: Movement) -> AuditRow:
        event = REQUESTED.get(movement.kind, "card.opened")
        return audit_row(self._pen, self._clock, movement, event, Outcome.DONE, reason="sent_again")


async def _for_ever(turn: Callable[[], Awaitable[int]]) -> None:
    """Begin a turn twice a second, also while one or two before it wait for a processor that is slow."""
    free = asyncio.Semaphore(TURNS_MAX)

    async def once() -> None:
        try:
            await turn()
        except Exception as error:  # noqa: BLE001 - whatever it was, the next turn may succeed
            log.warning("recovery.turn_failed", error=type(error).__name__)
        finally:
            free.release()

    async with asyncio.TaskGroup() as turns:
        while True:
            await free.acquire()
            turns.create_task(once())
            await asyncio.sleep(TURN_EVERY_S)
