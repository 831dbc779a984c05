"""Differences that somebody plants in the processor's files; its own truth stays as it is.

`PUT /v1/discrepancies`, every field of it optional, `{}` for none:

    date           the settlement date in whose files all of this stands; without it, in those of every date
    drop           references whose lines are left out
    repeat         references whose lines stand a second time, at the end
    amount_off     reference to minor units by which its gross is off; its fee stays
    fee_off        reference to minor units by which its fee is off
    wrong_sign     references whose gross has the wrong sign
    unknown        how many charges stand there that nobody made
    chargeback     references of charges that are taken back in full; of any day, where `date` is set
    adjustment     minor units that the processor adds, or takes
    split_deposit  the bank tells of each payment in two
    deposit_off    minor units by which a payment is off

The bank pays what the settlement file says, with all of this in it: a difference between the two is `deposit_off`.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time
from typing import Annotated, Final

import msgspec

from gateway.processor.stub.deposits import Deposit
from gateway.processor.stub.protocol import Reference
from gateway.processor.stub.settlement import Line, batch_of, fee_of

UNKNOWN_MINOR: Final = 1000
Off = Annotated[int, msgspec.Meta(ge=-1_000_000_000, le=1_000_000_000)]
Several = Annotated[int, msgspec.Meta(ge=0, le=1000)]


class Discrepancies(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is planted; see above."""

    day: date | None = msgspec.field(name="date", default=None)
    drop: Sequence[Reference] = ()
    repeat: Sequence[Reference] = ()
    amount_off: Mapping[Reference, Off] = msgspec.field(default_factory=dict)
    fee_off: Mapping[Reference, Off] = msgspec.field(default_factory=dict)
    wrong_sign: Sequence[Reference] = ()
    unknown: Several = 0
    chargeback: Sequence[Reference] = ()
    adjustment: Off = 0
    split_deposit: bool = False
    deposit_off: Off = 0

    def on(self, day: date) -> "Discrepancies":
        """What of this stands in the files of a date: all or nothing."""
        return self if self.day in {None, day} else NONE

    def plant(self, lines: Sequence[Line], day: date, charged_back: Iterable[Line] = ()) -> list[Line]:
        """The lines of a day with all of this in them; `charged_back` are those of charges that are taken back."""
        dropped, repeated = set(self.drop), set(self.repeat)
        kept = [self._bent(line) for line in lines if line.reference not in dropped]
        return [
            *kept,
            *(line for line in kept if line.reference in repeated),
            *(_unknown(number, day) for number in range(1, self.unknown + 1)),
            *(_charged_back(line, day) for line in charged_back),
            *([_adjustment(self.adjustment, day)] if self.adjustment else []),
        ]

    def deposits(self, lines: Sequence[Line], day: date) -> list[Deposit]:
        """What the bank tells of a day whose settlement has these lines."""
        if not lines:
            return []
        paid = sum(line.net for line in lines) + self.deposit_off
        parts = [paid // 2, paid - paid // 2] if self.split_deposit else [paid]
        return [Deposit(part, batch_of(day), f"ACH{day:%Y%m%d}{number}") for number, part in enumerate(parts, 1)]

    def _bent(self, line: Line) -> Line:
        sign = -1 if line.reference in self.wrong_sign else 1
        return msgspec.structs.replace(
            line,
            gross=sign * line.gross + self.amount_off.get(line.reference, 0),
            fee=line.fee + self.fee_off.get(line.reference, 0),
        )


NONE: Final = Discrepancies()


def _unknown(number: int, day: date) -> Line:
    amount = UNKNOWN_MINOR + number
    reference = f"unknown-{day:%Y%m%d}-{number}"
    return Line(reference, "charge", reference, amount, fee_of(amount), "USD", _noon(day), day)


def _charged_back(line: Line, day: date) -> Line:
    return Line(line.reference, "chargeback", line.charge, -line.gross, 0, line.currency, _noon(day), day)


def _adjustment(amount: int, day: date) -> Line:
    reference = f"adjustment-{day:%Y%m%d}"
    return Line(reference, "adjustment", reference, amount, 0, "USD", _noon(day), day)


def _noon(day: date) -> datetime:
    return datetime.combine(day, time(12), UTC)
