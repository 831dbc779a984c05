"""Sending a committed movement, once: what came of it is committed before anybody is told.

    one commit: claim of the key, intent, audit row   ->   open the card, if it takes one   ->   send
    one commit: outcome, journal, answer under the key, audit row   ->   answer

No transaction is open during the call. What the processor did not clearly say is *unknown*: answered 202, and left to
the worker. Who has held a movement for so long that a worker may have taken it over sends nothing any more.
"""

import msgspec
import structlog

from gateway.errors import GatewayError
from gateway.rules.lifecycle import AUDIT, Event, Progress
from gateway.rules.recovery import FIRST_LOOK_S
from gateway.services.answers import movement_answer
from gateway.services.points import Point, Points
from gateway.services.ports import (
    Absent,
    Answer,
    Approved,
    Begun,
    Clock,
    Declined,
    Movement,
    MovementStore,
    NotSent,
    Outcome,
    Payment,
    Processor,
    Said,
)
from gateway.services.vault import Vault
from keys.audit import AuditEvent, AuditPen, AuditRow
from keys.audit import Outcome as AuditOutcome
from keys.errors import KeysError

HELD_S_MAX = 6.0
"""How long after its commit a movement may still be sent: together with the call, well within the lease."""

log = structlog.get_logger()


class Sender:
    """Sends movements that are committed, and commits what came of them."""

    def __init__(
        self, store: MovementStore, vault: Vault, processor: Processor, pen: AuditPen, clock: Clock, at: Points
    ) -> None:
        self._store = store
        self._vault = vault
        self._processor = processor
        self._pen = pen
        self._clock = clock
        self._at = at

    async def send(self, begun: Begun, payment: Payment | None, request_id: str, until_s: float) -> Answer:
        """Send a movement and answer for it. `until_s`, on the monotonic clock, is until when it may be sent.

        `payment` is what came in the request itself; a sealed record is opened here.
        """
        movement = begun.movement
        await self._at(Point.COMMITTED)
        try:
            payment = await self._payment(begun, payment)
        except (KeysError, GatewayError, msgspec.MsgspecError):
            return await self._unreadable(begun, request_id)
        await self._at(Point.OPENED)
        outcome: Outcome = NotSent()
        if self._clock.monotonic() < until_s:
            outcome = await self._processor.send(movement, payment)
        del payment
        await self._at(Point.SENT)
        answer = await self._finish(begun, outcome, request_id)
        await self._at(Point.STORED)
        return answer

    async def _payment(self, begun: Begun, payment: Payment | None) -> Payment | None:
        if begun.record is None:
            return payment
        card, name = await self._vault.open_card(begun.movement.department, begun.record)
        return Payment(card, name, None)

    async def _unreadable(self, begun: Begun, request_id: str) -> Answer:
        """Nothing is sent of a card that does not open; but an earlier sending may have been carried out."""
        row = audit_row(self._pen, self._clock, begun.movement, "decrypt.failed", AuditOutcome.FAILED, request_id)
        return await self._end(begun, Event.FAIL if begun.movement.sends == 1 else Event.LOST, None, row)

    async def _finish(self, begun: Begun, outcome: Outcome, request_id: str) -> Answer:
        movement, event = begun.movement, event_of(outcome, begun.movement)
        said = outcome if isinstance(outcome, Approved | Declined) else None
        row = audit_row(self._pen, self._clock, movement, AUDIT[movement.kind, event], outcome_of(event), request_id)
        return await self._end(begun, event, said, row)

    async def _end(self, begun: Begun, event: Event, said: Said, row: AuditRow) -> Answer:
        movement = begun.movement
        try:
            if event is not Event.LOST or movement.progress is Progress.SENDING:
                return (await self._store.finish(movement, event, said, movement_answer, row)).answer
            await self._store.record(row)  # unclear before, and still
            await self._store.postpone(movement, FIRST_LOOK_S)
        except Exception as error:  # noqa: BLE001 - whatever it is, the intent is committed
            # We cannot write down what we know: to the caller that is unknown, never lost and never failed.
            name, request_id = type(error).__name__, row.event.request_id
            log.error("movement.outcome_not_stored", error=name, request_id=request_id)  # noqa: TRY400
        return movement_answer(begun.charge, movement)


def event_of(outcome: Outcome, movement: Movement) -> Event:
    """What the outcome of a request means for a movement that was sent `movement.sends` times."""
    match outcome:
        case Approved():
            return Event.DO
        case Declined():
            return Event.REFUSE
        case Absent():
            return Event.FAIL
        case NotSent() if movement.sends == 1:
            return Event.FAIL
        case _:
            return Event.LOST


def outcome_of(event: Event) -> AuditOutcome:
    """How an audit row calls it."""
    match event:
        case Event.DO | Event.RELEASE:
            return AuditOutcome.DONE
        case Event.REFUSE | Event.REJECT:
            return AuditOutcome.REFUSED
        case _:
            return AuditOutcome.FAILED


def audit_row(
    pen: AuditPen,
    clock: Clock,
    movement: Movement,
    event: str,
    outcome: AuditOutcome,
    request_id: str = "",
    reason: str = "",
) -> AuditRow:
    """The audit row of a step of a movement. Its subject is the charge, or the refund."""
    subject = movement.movement_id if movement.movement_id.startswith("re_") else movement.charge_id
    told = AuditEvent(movement.department, event, outcome, movement.application_id, subject, reason, request_id)
    return pen.row(told, clock.now())
