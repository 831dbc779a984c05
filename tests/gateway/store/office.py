"""The finance office of one department and of the city: who reconciles, who settles differences, who closes."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from zoneinfo import ZoneInfo

import asyncpg

from gateway.clock import SystemClock
from gateway.rules.card import Brands
from gateway.rules.staff import Role, Staff
from gateway.services.closes import Close, Closes
from gateway.services.exceptions import Difference, Exceptions, Sought
from gateway.services.reach import Reach
from gateway.services.reconciliations import Reconciliations
from gateway.store.closes import CloseStore
from gateway.store.database import Database
from gateway.store.exceptions import ExceptionStore
from gateway.store.reconciliations import ReconciliationStore
from keys.audit import AuditPen
from keys.primitives import new_key
from keys.secret import Secret
from tests.gateway.store.postgres import employ
from tests.gateway.store.till import FEES, Charge, Till, line

ZONE = ZoneInfo("America/Los_Angeles")
DAY = timedelta(days=1)
ALONE = 1_000
"""Minor units that one person settles alone."""
BRANDS = Brands.load()


@dataclass
class Office:
    """A department's, with its till. Whoever works here has an account, for all departments unless it is said."""

    owner: asyncpg.Connection
    till: Till
    matching: Reconciliations
    exceptions: Exceptions
    closes: Closes
    keys: dict[int, Secret[bytes]]
    finance: Staff = field(init=False)
    approver: Staff = field(init=False)

    async def staffed(self) -> "Office":
        """With one of each whom it takes."""
        self.finance = await self.hire(Role.FINANCE)
        self.approver = await self.hire(Role.APPROVER)
        return self

    async def hire(self, role: Role, *departments: str) -> Staff:
        """Somebody new."""
        staff_id = f"st_{secrets.token_hex(6)}"
        await employ(self.owner, staff_id, *departments, role=role)
        return Staff(staff_id, staff_id.replace("_", "."), frozenset({role}), frozenset(departments or {"*"}))

    async def reconcile(self, staff: Staff | None = None) -> None:
        """The till's day."""
        await self.matching.make(staff or self.finance, self.till.day, self.till.day, None, "req_1")

    async def differing(self, *off: int) -> list[Difference]:
        """Charges about which the processor says so much else, as exceptions, in order of the difference."""
        charges = [await self.till.capture() for _ in off]
        await self.till.settle(*(line(charge, by) for charge, by in zip(charges, off, strict=True)))
        await self.reconcile()
        found, _ = await self.exceptions.page(self.finance, Sought(department=self.till.department), 200)
        return sorted(found, key=lambda each: each.difference_minor)

    async def agreeing(self, *amounts: int) -> None:
        """Charges about which all agree."""
        await self.till.settle(*[line(await self.till.capture(amount)) for amount in amounts or (4_321,)])

    async def propose(self, staff: Staff | None = None, department: str | None = None, days: int = 0) -> Close:
        """The till's day, and so many more."""
        dates = self.till.day, self.till.day + days * DAY
        return await self.closes.propose(staff or self.finance, *dates, department, "req_1")

    async def closed(self, days: int = 0) -> Close:
        """Proposed and approved."""
        proposed = await self.propose(days=days)
        return await self.closes.approve(self.approver, proposed.close_id, "req_1")

    async def staged(self, charge: Charge, convenience_fee: int = 0) -> None:
        """Its chargeback was opened, as an import writes that."""
        await self.owner.execute(
            "UPDATE gateway.charges SET convenience_fee_minor = $3 WHERE department_id = $1 AND charge_id = $2",
            *(self.till.department, charge.charge_id, convenience_fee),
        )
        await self.owner.execute(
            "INSERT INTO gateway.chargebacks VALUES ($1, $2, 1, 'opened', $3, 'USD', 'im_1', 1, now())",
            *(self.till.department, charge.charge_id, charge.amount),
        )

    async def postings(self) -> list[tuple[str, str, int, date, str]]:
        """Debit, credit, amount, date and source of what the department's exceptions posted, in order."""
        rows = await self.owner.fetch(
            "SELECT debit, credit, amount_minor, business_date, source_id FROM gateway.postings"
            " WHERE department_id = $1 ORDER BY recorded_at, line",
            self.till.department,
        )
        return [tuple(row) for row in rows]

    async def audited(self, subject: str) -> list[tuple[str, str, str]]:
        """Event, actor and reason of what the department's log says of something, oldest first."""
        rows = await self.owner.fetch(
            "SELECT event, actor, reason FROM audit.events WHERE subject = $1 AND department_id = $2"
            " ORDER BY occurred_at, event_id",
            *(subject, self.till.department),
        )
        return [tuple(row) for row in rows]


async def office_of(owner: asyncpg.Connection, database: Database, department: str, day: date) -> Office:
    """A department's office, on the admin process' pool."""

    async def departments() -> list[str]:
        return [department]

    keys: dict[int, Secret[bytes]] = {1: new_key()}

    def signing() -> Mapping[int, Secret[bytes]]:
        return keys

    base = Reach(departments), AuditPen("admin", {1: new_key()}), SystemClock()
    matching = Reconciliations(ReconciliationStore(database), *base, zone=ZONE, fees=FEES, deposit_days_max=5)
    exceptions = Exceptions(ExceptionStore(database), *base, brands=BRANDS, city=ZONE, alone_minor_max=ALONE)
    reach, pen, clock = base
    closes = Closes(CloseStore(database), reach, matching, pen, clock, brands=BRANDS, city=ZONE, keys=signing)
    return await Office(owner, Till(owner, department, day), matching, exceptions, closes, keys).staffed()
