"""What a department took, what the processor says of it and what the bank has, written as rows by the owner."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256

import asyncpg
import msgspec

from gateway.rules.ids import new_id
from gateway.rules.settlement import FeeSchedule
from gateway.rules.statement import Statement
from tests.gateway.store.postgres import APPLICATION

EMPTY_RUN = tuple(
    msgspec.json.encode(part).decode()
    for part in (Statement("USD", knows_bank=True).counts(), Statement("USD", knows_bank=True).totals())
)
"""Counts and totals of a reconciliation that found nothing."""
FEES = FeeSchedule(290, 30)
STAFF = "st_of_the_till"


@dataclass(frozen=True)
class Charge:
    """One that was captured."""

    charge_id: str
    reference: str
    amount: int
    moment: datetime


@dataclass(frozen=True)
class Line:
    """One of a settlement file, about a charge or about nothing that is known."""

    reference: str
    gross: int
    about: Charge | None = None
    kind: str = "charge"
    fee: int | None = None
    batch: str = ""


@dataclass
class Till:
    """A department's. Amounts are minor units; `day` is the UTC date of what is captured and settled."""

    owner: asyncpg.Connection
    department: str
    day: date

    @property
    def batch(self) -> str:
        """What the processor pays the day under."""
        return f"{self.department}-{self.day}"

    async def capture(self, amount: int = 4_321, hour: int = 19, days: int = 0) -> Charge:
        """A sale, at noon in Los Angeles unless it is said otherwise (UTC)."""
        moment = datetime(self.day.year, self.day.month, self.day.day, tzinfo=UTC) + timedelta(days, hours=hour)
        charge, token = Charge(new_id("ch"), new_id("pr"), amount, moment), new_id("tok")
        await self.owner.execute(
            "INSERT INTO gateway.tokens (department_id, token_id, application_id, kind, usage, status, brand, last4,"
            " fingerprint_id, cvc_check, created_at, expires_at, sealed)"
            " VALUES ($1, $2, $3, 'card', 'multi', 'active', 'visa', '4242', 'fp', 'pass', now(), now(), '\\x00')",
            *(self.department, token, APPLICATION),
        )
        await self.owner.execute(
            "INSERT INTO gateway.charges (department_id, charge_id, application_id, token_id, amount_minor, currency,"
            " convenience_fee_minor, reference, processor_reference, kind, progress, captured_minor, cvc_check,"
            " created_at) VALUES ($1, $2, $3, $4, $5, 'USD', 0, 'R-1', $6, 'sale', 'done', $5, 'pass', $7)",
            *(self.department, charge.charge_id, APPLICATION, token, amount, charge.reference, moment),
        )
        await self._move(charge, "sale", amount, charge.reference, moment)
        return charge

    async def refund(self, charge: Charge, amount: int, days: int = 0) -> str:
        """Some of it back; gives the refund's own reference."""
        reference = new_id("pr")
        await self._move(charge, "refund", amount, reference, charge.moment + timedelta(days, hours=1))
        return reference

    async def settle(self, *lines: Line, kind: str = "settlement", dated: date | None = None) -> str:
        """A settlement file; gives its SHA-256 in hex."""
        import_id, digest = await self._import(kind)
        rows = [
            (
                *(self.department if line.about else "city", import_id, number, line.kind),
                *(line.about.charge_id if line.about else line.reference, line.reference),
                *(
                    line.gross,
                    fee,
                    line.gross - fee,
                    datetime(self.day.year, self.day.month, self.day.day, 12, tzinfo=UTC),
                ),
                *(self.day, line.batch or self.batch, dated or self.day),
            )
            for number, line in enumerate(lines, 2)
            for fee in [_fee(line)]
        ]
        await self.owner.executemany(
            "INSERT INTO gateway.settlement_lines (department_id, import_id, line, kind, subject, reference,"
            " gross_minor, fee_minor, net_minor, currency, created_at, settled_on, batch, business_date)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'USD', $10, $11, $12, $13)",
            rows,
        )
        return digest

    async def deposit(self, *amounts: int, batch: str | None = None, days: int = 1) -> str:
        """A bank statement; gives its SHA-256 in hex."""
        import_id, digest = await self._import("deposit")
        named = self.batch if batch is None else batch
        await self.owner.executemany(
            "INSERT INTO gateway.deposit_lines VALUES ('city', $1, $2, '142', $3, 'USD', $4, $5, $6)",
            [
                (import_id, number, amount, self.day + timedelta(days), named, f"{import_id}-{number}")
                for number, amount in enumerate(amounts, 2)
            ],
        )
        return digest

    async def _move(self, charge: Charge, kind: str, amount: int, reference: str, moment: datetime) -> None:
        movement = new_id("mv")
        await self.owner.execute(
            "INSERT INTO gateway.movements (department_id, movement_id, charge_id, kind, amount_minor, currency,"
            " reference, application_id, route, idempotency_key, progress, with_cvc, created_at, first_sent_at,"
            " not_after, lease_until)"
            " VALUES ($1, $2, $3, $4, $5, 'USD', $6, $7, 'r', $2, 'done', false, $8, $8, $8, $8)",
            *(self.department, movement, charge.charge_id, kind, amount, reference, APPLICATION, moment),
        )
        accounts = ("refunds", "processor_due") if kind == "refund" else ("processor_due", "receivable")
        await self.owner.execute(
            "INSERT INTO gateway.journal VALUES ($1, $2, 1, $3, $4, $5, 'USD', $6)",
            *(self.department, movement, *accounts, amount, moment),
        )

    async def _import(self, kind: str) -> tuple[str, str]:
        import_id = new_id("im")
        digest = sha256(import_id.encode())
        await self.owner.execute(
            "INSERT INTO gateway.imports (import_id, kind, format, sha256, lines, gross_minor, fee_minor, net_minor,"
            " currency, settled_on, staff_id, imported_at)"
            " VALUES ($1, $2, 'native', $3, 0, 0, 0, 0, 'USD', $4, $5, now())",
            *(import_id, kind, digest.digest(), [self.day], STAFF),
        )
        return import_id, digest.hexdigest()


def line(charge: Charge, off: int = 0, fee_off: int = 0, **change: object) -> Line:
    """What the processor says of a charge; `off` by so much."""
    fee = FEES.fee(charge.amount) + fee_off
    return Line(charge.reference, charge.amount + off, charge, fee=fee, **change)  # type: ignore[arg-type]


def net(*charges: Charge) -> int:
    """What the bank gets for them."""
    return sum(charge.amount - FEES.fee(charge.amount) for charge in charges)


def _fee(line: Line) -> int:
    if line.fee is not None:
        return line.fee
    return FEES.fee(line.gross) if line.kind == "charge" else 0
