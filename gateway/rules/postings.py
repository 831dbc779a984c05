"""What settlements, deposits, chargebacks and corrections mean in money; it goes on where `journal` ends.

What the processor tells is believed, whole, at once: a line is posted whether it agrees with the ledger or not. So
a difference is never lost; it is what stays in an account that should be empty.

    line of a settlement      debit              credit
    charge                    clearing           processor_due
    refund                    processor_due      clearing
    fee                       fees               clearing
    chargeback                chargebacks        clearing
    adjustment                over_short         clearing         (of money that leaves; else the other way)

    chargeback of a charge    receivable,        chargebacks
      that is known           convenience_fees
    deposit                   bank               clearing

    processor_due   what was taken or given back, and not settled; else than it should be; or unknown here
    clearing        what was settled and has not reached the bank, or is there and was never settled
    chargebacks     what was taken back of charges that nobody here knows
    over_short      adjustments, and differences that somebody has settled
    fees            what the processor kept

The first three are empty after a month in which everything was settled, deposited and agrees; and then the bank has
what was captured, less refunds, fees and chargebacks, with adjustments. An amount below zero is the entry of what is
above it, the other way round. Corrections move what stays to over_short, and alter nothing that stands.
"""

from collections.abc import Mapping

from gateway.rules.chargebacks import Stage
from gateway.rules.journal import Account, Entry
from gateway.rules.settlement import LineKind

SIDES: Mapping[LineKind, tuple[Account, Account]] = {
    LineKind.CHARGE: (Account.CLEARING, Account.PROCESSOR_DUE),
    LineKind.REFUND: (Account.CLEARING, Account.PROCESSOR_DUE),
    LineKind.CHARGEBACK: (Account.CLEARING, Account.CHARGEBACKS),
    LineKind.ADJUSTMENT: (Account.CLEARING, Account.OVER_SHORT),
}
"""Debit and credit of gross amounts as they stand in the file: negative where money leaves."""

Entries = tuple[Entry, ...]


def settlement(gross_minor: Mapping[LineKind, int], fee_minor: int) -> Entries:
    """What a batch adds, or a department's part of it: the sum of gross by kind, signed, and of all fees."""
    gross = (entry for kind in LineKind for entry in _entry(*SIDES[kind], gross_minor.get(kind, 0)))
    return (*gross, *_entry(Account.FEES, Account.CLEARING, fee_minor))


def deposit(amount_minor: int) -> Entries:
    """What the bank credited, or took where it is below zero."""
    return _entry(Account.BANK, Account.CLEARING, amount_minor)


def chargeback(stage: Stage, amount_minor: int, captured_minor: int, convenience_fee_minor: int) -> Entries:
    """What a stage of a known charge adds: opened, the obligation stands again, the fee's part of it last; won, not.

    `amount_minor` is above zero. What is above the captured amount cannot be the charge's: it stays in chargebacks.
    """
    fee = min(convenience_fee_minor, captured_minor)
    owed = min(amount_minor, captured_minor - fee)
    sign = 1 if stage.voids_receipt else -1
    return (
        *_entry(Account.RECEIVABLE, Account.CHARGEBACKS, sign * owed),
        *_entry(Account.CONVENIENCE_FEES, Account.CHARGEBACKS, sign * min(amount_minor - owed, fee)),
    )


def correction(account: Account, difference_minor: int) -> Entries:
    """Settles a difference: what processor or bank has more than the ledger, negative where they have less.

    `account` is the one in which it stayed: processor_due for charges and refunds, chargebacks for those of no known
    charge, receivable to forgive what is owed again, clearing for deposits.
    """
    return _entry(account, Account.OVER_SHORT, difference_minor)


def forgiven(stage: Stage, amount_minor: int, captured_minor: int, convenience_fee_minor: int) -> Entries:
    """Settles a stage of a known charge that is left to itself: what it made owed, or not any more, is over_short's.

    Amounts are those of `chargeback`, and so is what stayed in chargebacks because it cannot be the charge's.
    """
    sign = -1 if stage.voids_receipt else 1
    moved = chargeback(stage, amount_minor, captured_minor, convenience_fee_minor)
    left = amount_minor - sum(entry.amount_minor for entry in moved)
    owed = [(entry.debit if stage.voids_receipt else entry.credit, entry.amount_minor) for entry in moved]
    return tuple(
        entry
        for account, part_minor in [*owed, (Account.CHARGEBACKS, left)]
        for entry in correction(account, sign * part_minor)
    )


def _entry(debit: Account, credit: Account, amount_minor: int) -> Entries:
    if amount_minor < 0:
        return (Entry(credit, debit, -amount_minor),)
    return (Entry(debit, credit, amount_minor),) if amount_minor else ()
