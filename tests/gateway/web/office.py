"""A department of a test's own at the site, what it was paid, and who may look at it."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from secrets import token_hex
from typing import Any
from urllib.parse import urlencode

from gateway.rules.ids import new_id
from tests.gateway.store.charged import Charged, charged
from tests.gateway.store.conftest import settle
from tests.gateway.store.till import EMPTY_RUN
from tests.gateway.web.site import Person, Site
from tests.system import Reply

NOON = datetime(2026, 10, 5, 19, 0, tzinfo=UTC)
"""In Los Angeles."""


@dataclass
class Office:
    """A department, and somebody who sees it and no other."""

    site: Site
    department: str
    person: Person
    token: str

    async def paid(self, amount: int = 2_000, days: int = 0, refunded: int = 0, **change: Any) -> Charged:
        """A captured charge, `days` after that noon, with other values in its columns where they are named."""
        made = await charged(self.site.owner, self.department, amount, refunded=refunded, when=NOON + timedelta(days))
        if change:
            columns = ", ".join(f"{column} = ${place}" for place, column in enumerate(change, 3))
            await self.site.owner.execute(
                f"UPDATE gateway.charges SET {columns} WHERE department_id = $1 AND charge_id = $2",
                *(self.department, made.charge_id, *change.values()),
            )
        return made

    async def card_of(self, made: Charged, last4: str) -> None:
        """The charge was of this card."""
        await self.site.owner.execute(
            "UPDATE gateway.tokens t SET last4 = $3 FROM gateway.charges c WHERE c.department_id = $1"
            " AND c.charge_id = $2 AND t.department_id = c.department_id AND t.token_id = c.token_id",
            *(self.department, made.charge_id, last4),
        )

    async def reconciled(self, reference: str) -> str:
        """A reconciliation of the department with one item; gives its id."""
        made = new_id("rec")
        await self.site.owner.execute(
            "INSERT INTO gateway.reconciliations VALUES ($1, $2, $3, $3, $5, $6, '{}', $4, now())",
            *(made, [self.department], NOON.date(), self.person.staff_id, *EMPTY_RUN),
        )
        await self.site.owner.execute(
            "INSERT INTO gateway.reconciliation_items (department_id, reconciliation_id, item, state, reason,"
            " reference, kind, settled_minor, fee_minor, difference_minor, currency, batch, business_date)"
            " VALUES ($1, $2, 1, 'missing_here', 'unknown', $3, 'charge', -1250, 30, -1250, 'USD', 'B1', $4)",
            *(self.department, made, reference, NOON.date()),
        )
        return made

    async def get(self, path: str, token: str | None = None, **asked: str) -> Reply:
        """What a script gets; `from_` is `from`."""
        query = urlencode({name.rstrip("_"): value for name, value in asked.items()})
        return await self.site.call("GET", f"{path}?{query}" if query else path, token=token or self.token)

    async def page(self, path: str, **asked: str) -> Reply:
        """What a browser gets."""
        query = urlencode({name.rstrip("_"): value for name, value in asked.items()})
        return await self.site.browse("GET", f"{path}?{query}" if query else path, token=self.token)


async def office_of(site: Site, *roles: str) -> Office:
    """A new department, with a service and somebody of these roles."""
    department = f"office_{token_hex(4)}"
    await settle(site.owner, department)
    person = await site.person(*roles, departments=[department])
    return Office(site, department, person, await site.token(person))


def day(moment: datetime) -> str:
    """Its date, as a query has it."""
    return date(moment.year, moment.month, moment.day).isoformat()
