"""What the admin process reads of refunds that wait, and the one thing that it writes about them: a verdict."""

from collections.abc import Collection, Sequence

from gateway.rules.lifecycle import Verdict
from gateway.services.approvals import WaitingRefund
from gateway.store.database import Database
from gateway.store.mirror import Mirror
from keys.audit import CITY, AuditRow
from keys.queries import load_queries


class ApprovalStore(Mirror):
    """Implements `services.approvals.ApprovalStore`."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._sql = load_queries("gateway.store", "approvals.sql")

    async def departments(self) -> Sequence[str]:
        """See the port."""
        async with self._database.reading(CITY) as connection:
            return [row["department_id"] for row in await connection.fetch(self._sql.departments)]

    async def waiting(self, departments: Collection[str], limit: int) -> Sequence[WaitingRefund]:
        """See the port."""
        async with self._database.reading_departments(departments) as connection:
            rows = await connection.fetch(self._sql.waiting, list(departments), limit)
        return [WaitingRefund(**row) for row in rows]

    async def refund(self, departments: Collection[str], refund_id: str) -> WaitingRefund | None:
        """See the port."""
        async with self._database.reading_departments(departments) as connection:
            row = await connection.fetchrow(self._sql.refund, list(departments), refund_id)
        return WaitingRefund(**row) if row else None

    async def decide(
        self, refund: WaitingRefund, verdict: Verdict, staff_id: str, audit: AuditRow
    ) -> WaitingRefund | None:
        """See the port."""
        async with self._database.transaction(refund.department) as connection:
            where = refund.department, refund.refund_id
            if await connection.fetchval(self._sql.decide, *where, verdict, staff_id) is None:
                return None
            await self._audit(connection, audit)
        return refund
