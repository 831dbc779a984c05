"""What the processor and the bank say of the city's money, as read from their files. Amounts are minor units.

No line has room for anything of a cardholder.
"""

from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import NamedTuple

FULL = 10_000
"""Basis points of a whole."""


class LineKind(StrEnum):
    """What a line of a settlement is about."""

    CHARGE = "charge"
    REFUND = "refund"
    CHARGEBACK = "chargeback"
    ADJUSTMENT = "adjustment"


class SettlementLine(NamedTuple):
    """One line of a settlement file: `gross_minor` is negative where money leaves, and net is gross less fee.

    `line` is counted in the file from 1, its header being line 1. `created_at` is UTC.
    """

    line: int
    kind: LineKind
    reference: str
    gross_minor: int
    fee_minor: int
    net_minor: int
    currency: str
    created_at: datetime
    settled_on: date
    batch: str


@dataclass(frozen=True, slots=True)
class DepositLine:
    """One line of a bank statement: `amount_minor` is negative where the bank took it.

    `batch` is the settlement batch that the line's text or reference names, empty where it names none.
    """

    line: int
    type_code: str
    amount_minor: int
    currency: str
    deposited_on: date
    batch: str
    bank_reference: str


@dataclass(frozen=True, slots=True)
class FeeSchedule:
    """What the processor takes of a charge: a part of it, and something of every one."""

    basis_points: int
    fixed_minor: int

    def fee(self, amount_minor: int) -> int:
        """Of a charge of this amount, rounded half up."""
        return (amount_minor * self.basis_points + FULL // 2) // FULL + self.fixed_minor
