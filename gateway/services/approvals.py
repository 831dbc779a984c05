"""Approvals: a refund above its application's limit is sent only after somebody of the city has said so.

    application asks    ->  committed, answered 202 awaiting_approval, its money held back; nothing is sent
    approver decides    ->  one verdict, for ever, in one commit with its audit row
    an api process      ->  released: sent like any other (`recovery.Resender`); rejected: ended, 502 to who asks

The maker is an application and the checker a person (maker-checker, standards part E): the admin process that takes
the verdict can send nothing and move nothing, and the api process that sends cannot write a verdict.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from gateway.errors import AlreadyDecided, NotFound, NotPermitted, Unavailable
from gateway.rules.lifecycle import DECIDED, Verdict
from gateway.rules.staff import Permission, Staff
from gateway.services.ports import Clock, CommitUnknown
from keys.audit import AuditEvent, AuditPen, AuditRow, Outcome

SHOWN_MAX = 200
"""How many waiting refunds are listed at once, those that wait longest first; one more says that there are more."""


@dataclass(frozen=True, slots=True)
class WaitingRefund:
    """What an approver is shown of a refund. An erased card has neither brand nor last4."""

    department: str
    refund_id: str
    charge_id: str
    amount_minor: int
    currency: str
    reference: str
    """The application's, of the charge."""
    application: str
    """Its name."""
    requested_at: datetime
    brand: str | None
    last4: str | None
    suspended: bool
    """Its application is revoked, or its department disabled."""


class ApprovalStore(Protocol):
    """What the admin process needs of the ledger."""

    async def departments(self) -> Sequence[str]:
        """All of them."""

    async def waiting(self, departments: Collection[str], limit: int) -> Sequence[WaitingRefund]:
        """The refunds of these departments about which nobody has decided, oldest first."""

    async def refund(self, departments: Collection[str], refund_id: str) -> WaitingRefund | None:
        """A refund of one of these departments, wherever it stands; None for any other."""

    async def decide(
        self, refund: WaitingRefund, verdict: Verdict, staff_id: str, audit: AuditRow
    ) -> WaitingRefund | None:
        """Commit a verdict and its audit row; None, and neither, where there is one already or nothing waits."""


class Approvals:
    """Shows staff the refunds that wait, and takes an approver's word."""

    def __init__(self, store: ApprovalStore, pen: AuditPen, clock: Clock) -> None:
        self._store = store
        self._pen = pen
        self._clock = clock

    async def waiting(self, staff: Staff) -> Sequence[WaitingRefund]:
        """At most `SHOWN_MAX` and one refunds of the departments of a grant, oldest first. Raises `NotPermitted`."""
        staff.require(Permission.REFUNDS_READ)
        return await self._store.waiting(await self._reach(staff), SHOWN_MAX + 1)

    async def decide(self, staff: Staff, refund_id: str, verdict: Verdict, request_id: str) -> WaitingRefund:
        """Release a refund or reject it, once and for ever; gives what was decided about.

        Raises:
            NotPermitted: this is nothing for the roles of the account, or to be rejected only.
            NotFound: no such refund, or one of a department that the grant does not reach.
            AlreadyDecided: somebody has, or it never had to wait.
            Unavailable: also where the commit was lost, and nobody knows.
        """
        staff.require(Permission.REFUNDS_DECIDE)
        refund = await self._store.refund(await self._reach(staff), refund_id)
        if refund is None:
            raise NotFound
        if refund.suspended and verdict == "approved":
            raise NotPermitted("Who asked for this is revoked or disabled: it can be rejected only.")
        told = AuditEvent(
            refund.department, DECIDED[verdict], Outcome.DONE, staff.staff_id, refund_id, request_id=request_id
        )
        row = self._pen.row(told, self._clock.now())
        try:
            decided = await self._store.decide(refund, verdict, staff.staff_id, row)
        except CommitUnknown:
            raise Unavailable("It is not known whether this was written down: look whether it still waits.") from None
        if decided is None:
            raise AlreadyDecided
        return decided

    async def _reach(self, staff: Staff) -> Collection[str]:
        return staff.among(await self._store.departments())
