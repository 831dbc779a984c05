"""One department of a town that many tests share. It sees no other: what waits elsewhere is not its business."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import asyncpg

from gateway.store.database import Database
from gateway.store.ledger import Ledger
from tests.gateway.store.city import City
from tests.gateway.store.postgres import APPLICATION


class OwnLedger(Ledger):
    """The store of a process to which this is all the departments that there are."""

    def __init__(self, database: Database, department: str) -> None:
        super().__init__(database)
        self._department = department

    async def departments(self) -> Sequence[str]:
        return [self._department]


@dataclass
class Quarter(City):
    """A city of one department, on the database and with the keys of a larger one."""

    def store(self, database: Database) -> Ledger:
        return OwnLedger(database, self.department)

    async def expire(self, older_s: float = 0.0) -> None:
        await self.owner.execute(
            "UPDATE gateway.movements SET lease_until = now(), not_after = not_after - make_interval(secs => $1),"
            " first_sent_at = first_sent_at - make_interval(secs => $1) WHERE department_id = $2",
            older_s,
            self.department,
        )
        await self.owner.execute(
            "UPDATE gateway.idempotency SET lease_until = now() WHERE department_id = $1", self.department
        )

    async def movements(self) -> dict[str, asyncpg.Record]:
        return self._own(await super().movements())

    async def rows(self, table: str) -> dict[str, asyncpg.Record]:
        return self._own(await super().rows(table))

    async def events(self, event: str, process: str = "reseal") -> list[asyncpg.Record]:
        return [row for row in await super().events(event, process) if row["department_id"] == self.department]

    def _own(self, rows: dict[str, asyncpg.Record]) -> dict[str, asyncpg.Record]:
        return {name: row for name, row in rows.items() if row["department_id"] == self.department}


async def quarter_of(town: City, department: str) -> Quarter:
    """A new department of a town, with an application."""
    await town.owner.execute("INSERT INTO gateway.departments VALUES ($1, $1, now())", department)
    await town.owner.execute(
        "INSERT INTO gateway.applications (department_id, application_id, name, amount_minor_max, scopes,"
        " requests_per_s_max, created_at) VALUES ($1, $2, $2, 1000000, '{}', 100, now())",
        department,
        APPLICATION,
    )
    shared = {field.name: getattr(town, field.name) for field in fields(town)}
    return Quarter(**shared | {"department": department})
