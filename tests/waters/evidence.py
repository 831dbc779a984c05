"""What a seed left behind, read from the tables and the double's own list, in the shapes that the checker judges.

The checker is the simulation's. What its model processor knows of itself, how often it doubled a request, the double
does not tell; but we know how often each request has left us.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any, cast

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from gateway.rules.journal import Account as JournalAccount
from gateway.rules.journal import Entry
from gateway.rules.lifecycle import OPEN, Kind, Progress
from gateway.services.ports import Approved, Charge, Declined, Movement, NotFound, Token
from keys.audit import AuditEvent, AuditRow
from keys.audit import Outcome as AuditOutcome
from tests.simulation.book import Account, Book, Deed, Order
from tests.simulation.checker import judge
from tests.simulation.city import City as Simulated
from tests.simulation.memory import Memory
from tests.simulation.rows import MovementRow, TokenRow
from tests.simulation.swarm import Fault
from tests.waters.city import City
from tests.waters.tempo import SCALE

MOVEMENTS = """
SELECT m.*, c.processor_reference AS charge_reference, false AS running
FROM gateway.movements m JOIN gateway.charges c USING (department_id, charge_id)
WHERE m.department_id = ANY($1) ORDER BY m.first_sent_at
"""
OF_DEPARTMENTS = "SELECT * FROM {} WHERE department_id = ANY($1)"
UNBALANCED = """
SELECT account, sum(amount) FROM (
  SELECT debit AS account, amount_minor AS amount FROM gateway.journal WHERE department_id = ANY($1)
  UNION ALL SELECT credit, -amount_minor FROM gateway.journal WHERE department_id = ANY($1)) entries
GROUP BY account
"""
Id = tuple[str, str]


@dataclass
class Judged:
    """What the checker asks of a simulated city."""

    city: City
    memory: Memory
    book: Book

    def __getattr__(self, name: str) -> Any:
        return getattr(self.city, name)

    @property
    def swarm(self) -> Any:
        """The options of the seed, in the measures that were in force."""
        least_s, most_s = self.city.swarm.pause_s
        pause_s = least_s * SCALE, most_s * SCALE
        return replace(self.city.swarm, window_s=self.book.window_s, pause_s=pause_s)

    def could_be_known(self, movement: Movement) -> bool:
        """Whether a movement is open and should not stay so."""
        if movement.progress is not Progress.IN_REVIEW:
            return movement.progress in OPEN
        far = self.city.now() + timedelta(seconds=self.book.lag_s)
        return not isinstance(self.book.inquire(movement.reference, far), NotFound)


async def collect(city: City, terms: Mapping[str, Any]) -> Judged:
    """Read everything."""
    async with city.harbour.owner.acquire() as owner:
        memory = await _memory(city, owner)
    truth = await city.far.movements()
    sent = Counter(each.movement.reference for each in city.sent)
    window_s = terms["dedupe_window_s"]
    book = Book(terms["capability"], window_s=window_s, lag_s=terms["inquiry_lag_s"])
    book.deeds = {row["reference"]: _deed(row, sent[row["reference"]]) for row in truth}
    if Fault.DUPLICATE not in city.swarm:
        for deed in book.deeds.values():
            deed.copies = 0
    for row in await city.far.charges():
        captured = row["amount"] * row["effects"]
        book.accounts[row["reference"]] = Account(row["authorized"], captured, row["refunded"])
    return Judged(city, memory, book)


async def verdict(judged: Judged) -> list[str]:
    """Everything that is wrong with a run, each with its invariant's name."""
    found = judge(cast("Simulated", judged), judged.city.logs)
    async with judged.city.harbour.owner.acquire() as owner:
        rows = await owner.fetch(UNBALANCED, judged.city.departments)
    balance = {row["account"]: int(row["sum"]) for row in rows}
    charges = judged.memory.charges_.values()
    due = sum(charge.captured_minor - charge.refunded_minor for charge in charges)
    for call in judged.city.history.calls:
        if call.end is not None and call.end.name == "NotFound":
            found.append(f"I9: call {call.number}, {call.act}, was told that there is no such thing")
    if sum(balance.values()):
        found.append(f"I7: debits and credits differ by {sum(balance.values())}")
    if balance.get(JournalAccount.PROCESSOR_DUE, 0) != due:
        found.append(f"I7: the charges say {due}, the journal {balance.get(JournalAccount.PROCESSOR_DUE, 0)}")
    return found


async def _memory(city: City, owner: PoolConnectionProxy) -> Memory:
    """The tables of a seed's departments."""

    async def rows(table: str) -> Sequence[asyncpg.Record]:
        return list(await owner.fetch(OF_DEPARTMENTS.format(table), city.departments))

    memory = Memory(city.now, city.departments)
    for row in await owner.fetch(MOVEMENTS, city.departments):
        movement: Movement = _record(Movement, row)
        held = MovementRow(movement, row["first_sent_at"], row["lease_until"], row["looks"], row["resend_until"])
        memory.movements[movement.department, movement.movement_id] = held
    for row in await rows("gateway.charges"):
        charge: Charge = _record(Charge, row)
        memory.charges_[charge.department, charge.charge_id] = charge
    for row in await rows("gateway.tokens"):
        values = dict(row) | {"department": row["department_id"]}
        token = Token(**{field.name: values[field.name] for field in fields(Token)})
        memory.tokens[token.department, token.token_id] = TokenRow(token, row["sealed"])
    entries: dict[Id, list[Entry]] = defaultdict(list)
    for row in await rows("gateway.journal"):
        entry = Entry(JournalAccount(row["debit"]), JournalAccount(row["credit"]), row["amount_minor"])
        entries[row["department_id"], row["movement_id"]].append(entry)
    memory.journal = {of: tuple(posted) for of, posted in entries.items()}
    memory.audit = [_audit_row(row) for row in await rows("audit.events")]
    return memory


def _record(kind: Any, row: asyncpg.Record) -> Any:
    values = dict(row) | {"department": row["department_id"]}
    typed = {"kind": Kind(row["kind"]), "progress": Progress(row["progress"])}
    return kind(**{field.name: (values | typed)[field.name] for field in fields(kind)})


def _audit_row(row: asyncpg.Record) -> AuditRow:
    told = AuditEvent(
        row["department_id"],
        row["event"],
        AuditOutcome(row["outcome"]),
        row["actor"],
        row["subject"],
        row["reason"],
        row["request_id"],
    )
    return AuditRow(row["event_id"], row["occurred_at"], row["process"], told, row["mac_key"], row["mac"])


def _deed(row: Mapping[str, Any], sends: int) -> Deed:
    """A row of the double's list. What it did more often than it was asked to, it doubled by itself."""
    at = datetime.fromisoformat(row["created"])
    order = Order(
        Kind(row["kind"]), row["reference"], row["charge"], row["amount"], row["currency"], at, row["last4"] or None
    )
    decline, checked = row["decline"], row["checks"]["cvc"]
    said = Declined(checked, decline["class"], decline["code"]) if decline else Approved(checked)
    return Deed(order, said, at, row["effects"], max(0, row["effects"] - max(1, sends)))
