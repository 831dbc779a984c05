"""Captures, voids and refunds: what is asked of a charge that stands. Committed, sent and answered as a charge is.

A refund above its application's limit is committed and answered, and not sent: an approver decides (`approvals`).
"""

from dataclasses import dataclass

from gateway.errors import NotFound
from gateway.rules.access import Application
from gateway.rules.idempotency import request_digest
from gateway.rules.ids import new_id
from gateway.rules.lifecycle import REQUESTED, Kind
from gateway.services.answers import movement_answer
from gateway.services.idempotency import answer_again, require_same_request
from gateway.services.points import Point, Points
from gateway.services.ports import Answer, Asked, ChargeStore, Claim, Claimed, Clock, Movement
from gateway.services.sending import HELD_S_MAX, Sender
from keys.audit import AuditEvent, AuditPen, AuditRow, Outcome

ROUTES = {
    Kind.CAPTURE: "POST /v1/charges/{id}/capture",
    Kind.VOID: "POST /v1/charges/{id}/void",
    Kind.REFUND: "POST /v1/charges/{id}/refunds",
}
PREFIXES = {Kind.REFUND: "re"}


@dataclass(frozen=True, slots=True)
class MovementRequest:
    """A well-formed request. `amount_minor` None means all that there is."""

    charge_id: str
    amount_minor: int | None
    request_id: str


class Movements:
    """Capture, void and refund the charges of a department."""

    def __init__(self, store: ChargeStore, sender: Sender, pen: AuditPen, clock: Clock, at: Points) -> None:
        self._store = store
        self._sender = sender
        self._pen = pen
        self._clock = clock
        self._at = at

    async def capture(self, caller: Application, request: MovementRequest, key: str) -> Answer:
        """Capture what was authorized, or a part of it: once; the rest is released."""
        return await self._move(Kind.CAPTURE, caller, request, key)

    async def void(self, caller: Application, request: MovementRequest, key: str) -> Answer:
        """Give an authorization up."""
        return await self._move(Kind.VOID, caller, request, key)

    async def refund(self, caller: Application, request: MovementRequest, key: str) -> Answer:
        """Give money back: all that is left, or a part of it; as often as something is left."""
        return await self._move(Kind.REFUND, caller, request, key)

    async def show_refund(self, caller: Application, refund_id: str) -> Movement:
        """A refund of the caller's department; raises `NotFound`."""
        _, movement = await self._store.movement(caller.department, refund_id)
        if movement.kind is not Kind.REFUND:
            raise NotFound
        return movement

    async def _move(self, kind: Kind, caller: Application, request: MovementRequest, key: str) -> Answer:
        asked = Asked(
            department=caller.department,
            charge_id=request.charge_id,
            kind=kind,
            amount_minor=request.amount_minor,
            movement_id=new_id(PREFIXES.get(kind, "mv")),
            reference=new_id("pr"),
            created_at=self._clock.now(),
            caller=caller,
        )
        digest = request_digest(request.charge_id, request.amount_minor)
        claim = Claim(ROUTES[kind], key, digest, None, asked.movement_id)
        await self._at(Point.RECEIVED)
        until_s = self._clock.monotonic() + HELD_S_MAX
        begun = await self._store.begin_movement(asked, claim, self._row(asked, request))
        if isinstance(begun, Claimed):
            require_same_request(claim, begun)
            return await answer_again(self._store, caller.department, claim, begun, begun.subject_id)
        if not begun.movement.running:  # it waits, or was decided while we asked whether it was committed
            return movement_answer(begun.charge, begun.movement)
        return await self._sender.send(begun, None, request.request_id, until_s)

    def _row(self, asked: Asked, request: MovementRequest) -> AuditRow:
        subject = asked.movement_id if asked.kind is Kind.REFUND else asked.charge_id
        told = AuditEvent(
            asked.department,
            REQUESTED[asked.kind],
            Outcome.DONE,
            asked.caller.application_id,
            subject,
            request_id=request.request_id,
        )
        return self._pen.row(told, self._clock.now())
