"""The journal: what each movement that happened means in money, as entries between two accounts.

An entry takes an amount from one account and gives it to another, so its debit equals its credit by construction,
whatever is written: no set of entries can be out of balance. Entries are only ever added.

    receivable        what residents owe the city for services
    convenience_fees  what residents pay for paying by card
    processor_due     what the processor owes the city until it settles
    refunds           what the city gave back

What follows once the processor settles is in `postings`, with the accounts that only it knows.
"""

from dataclasses import dataclass
from enum import StrEnum

from gateway.rules.lifecycle import Kind


class Account(StrEnum):
    """Where money can stand."""

    RECEIVABLE = "receivable"
    CONVENIENCE_FEES = "convenience_fees"
    PROCESSOR_DUE = "processor_due"
    REFUNDS = "refunds"
    CLEARING = "clearing"
    BANK = "bank"
    FEES = "fees"
    CHARGEBACKS = "chargebacks"
    OVER_SHORT = "over_short"


@dataclass(frozen=True, slots=True)
class Entry:
    """`amount_minor`, above zero, is debited to one account and credited to another."""

    debit: Account
    credit: Account
    amount_minor: int


def entries(kind: Kind, amount_minor: int, fee_minor: int) -> tuple[Entry, ...]:
    """What a movement that was done adds to the journal. `fee_minor` is the part of the amount that is a fee.

    Of a partial capture the fee is the first part: it was earned by the payment, however much of it was captured.
    """
    match kind:
        case Kind.SALE | Kind.CAPTURE:
            fee = min(fee_minor, amount_minor)
            parts = (
                Entry(Account.PROCESSOR_DUE, Account.RECEIVABLE, amount_minor - fee),
                Entry(Account.PROCESSOR_DUE, Account.CONVENIENCE_FEES, fee),
            )
            return tuple(entry for entry in parts if entry.amount_minor)
        case Kind.REFUND:
            return (Entry(Account.REFUNDS, Account.PROCESSOR_DUE, amount_minor),)
        case _:
            return ()
