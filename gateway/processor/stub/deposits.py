"""What the bank says of the processor's payments: one BAI2 file a day, whole, with its control totals.

    01 file · 02 group · 03 account · 16 detail · 49, 98, 99 the trailers of account, group and file

Amounts are minor units without a point or a sign: the type says whether the bank took it (451, ACH debit) or gave it
(142, ACH credit). A control total is the sum of all amounts of its level as they stand in the 03 and 16 records; a
record count takes in the header and the trailer of its level.
"""

from collections.abc import Sequence
from datetime import date
from typing import Final

import msgspec

SENDER: Final = "CITYBANK"
RECEIVER: Final = "CITY"
ACCOUNT: Final = "4100200300"
CREDIT: Final = "142"
DEBIT: Final = "451"


class Deposit(msgspec.Struct, frozen=True):
    """A payment of the processor: minor units, negative where the bank took it. `batch` may be empty."""

    amount: int
    batch: str
    bank_reference: str


def bai2(deposits: Sequence[Deposit], day: date) -> str:
    """The statement of a day, of one account in US dollars."""
    details = [_detail(deposit) for deposit in deposits]
    given = [deposit.amount for deposit in deposits if deposit.amount >= 0]
    taken = [-deposit.amount for deposit in deposits if deposit.amount < 0]
    # 100 and 400 are all credits and all debits, with how many they were.
    account = f"03,{ACCOUNT},USD,100,{sum(given)},{len(given)},,400,{sum(taken)},{len(taken)},/"
    total = 2 * (sum(given) + sum(taken))
    return "".join(
        f"{record}\n"
        for record in (
            f"01,{SENDER},{RECEIVER},{day:%y%m%d},2359,1,,,2/",
            f"02,{RECEIVER},{SENDER},1,{day:%y%m%d},2359,USD,2/",
            account,
            *details,
            f"49,{total},{len(details) + 2}/",
            f"98,{total},1,{len(details) + 4}/",
            f"99,{total},1,{len(details) + 6}/",
        )
    )


def _detail(deposit: Deposit) -> str:
    """A 16 record; its text, the last field, ends with the line."""
    code = DEBIT if deposit.amount < 0 else CREDIT
    text = f"CARD SETTLEMENT BATCH {deposit.batch}" if deposit.batch else "CARD SETTLEMENT"
    return f"16,{code},{abs(deposit.amount)},,{deposit.bank_reference},{deposit.batch},{text}"
