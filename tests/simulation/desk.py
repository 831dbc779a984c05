"""The approver's desk: the store of the admin process in memory, and somebody who sits there.

What is decided, and when, is drawn from a stream of its own.
"""

import asyncio
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from gateway.rules.lifecycle import DECIDED, Kind, Verdict
from gateway.services.approvals import WaitingRefund
from keys.audit import AuditEvent, AuditPen, AuditRow, Outcome
from tests.simulation.memory import Memory

if TYPE_CHECKING:
    from tests.simulation.city import City
    from tests.simulation.rows import MovementRow

DECIDES_S = (0.5, 6.0)
VERDICTS: Sequence[Verdict] = ("approved", "approved", "rejected")


class Desk:
    """Does what `gateway.store.approvals` does, in steps that happen at once."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def waiting(self, departments: Collection[str], limit: int) -> Sequence[WaitingRefund]:
        """See `services.approvals.ApprovalStore`."""
        rows = [row for row in self._memory.waiting(departments) if row.id not in self._memory.verdicts]
        return [self._shown(row) for row in rows[:limit]]

    def refund(self, departments: Collection[str], refund_id: str) -> WaitingRefund | None:
        """See `services.approvals.ApprovalStore`."""
        for (of, movement_id), row in self._memory.movements.items():
            if of in departments and movement_id == refund_id and row.movement.kind is Kind.REFUND:
                return self._shown(row)
        return None

    def decide(self, refund: WaitingRefund, verdict: Verdict, audit: AuditRow) -> WaitingRefund | None:
        """See `services.approvals.ApprovalStore`."""
        place = refund.department, refund.refund_id
        row = self._memory.movements.get(place)
        if row is None or place in self._memory.verdicts or not row.awaiting:
            return None
        self._memory.verdicts[place] = verdict
        self._memory.audit.append(audit)
        return refund

    def _shown(self, row: "MovementRow") -> WaitingRefund:
        charge, movement = self._memory.movement(*row.id)
        token = self._memory.token(charge.department, charge.token_id)
        return WaitingRefund(
            department=movement.department,
            refund_id=movement.movement_id,
            charge_id=movement.charge_id,
            amount_minor=movement.amount_minor,
            currency=movement.currency,
            reference=charge.reference,
            application=movement.application_id,  # which is its name, too, here
            requested_at=movement.created_at,
            brand=token.brand,
            last4=token.last4,
            suspended=False,
        )


async def sit_at(city: "City") -> None:
    """Look at what waits, and decide about some of it, for ever; of three refunds one is rejected."""
    desk, chance = Desk(city.memory), city.desk_rng
    pen = AuditPen("admin", city.mac_keys)
    while True:
        await asyncio.sleep(chance.uniform(*DECIDES_S))
        for refund in desk.waiting(city.departments, len(city.memory.movements)):
            if city.database_down or chance.random() < 0.5:
                continue
            verdict = chance.choice(VERDICTS)
            told = AuditEvent(refund.department, DECIDED[verdict], Outcome.DONE, "staff", refund.refund_id)
            desk.decide(refund, verdict, pen.row(told, city.now()))
            city.note("decided", refund.refund_id, verdict)
            city.seen[verdict] += 1
