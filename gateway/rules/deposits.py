"""The third side of the match: what the bank says it received, beside the batches that the processor settled.

A batch's deposits are those that name it, in several parts if the bank had it so; where none does, one single deposit
of exactly the batch's net, from its settlement on until so many days later. What is left over:

    state           reason                      what it means
    amount_differs  deposit_differs             the parts are not the batch's net, and nothing known explains it
    duplicate       repeated                    one part more, like an earlier one, and without it the sum is right
    missing_here    deposit_without_settlement  of no batch that a file has settled
    timing          not_settled_yet             the same, and no file yet of the days before it

A batch that is not in the bank yet is no item, its lines stay matched, and what it comes to is `awaiting_deposit`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import combinations
from typing import NamedTuple

from gateway.rules.match import DEPOSIT, Item, State

SEVERAL = 10
"""Of so many there are a thousand choices, and hardly a sum that is right by chance."""


class Batch(NamedTuple):
    """What the processor pays at once: the sum of its lines, and the last date on which one of them was settled."""

    batch: str
    settled_on: date
    net_minor: int
    currency: str


class Deposit(NamedTuple):
    """One line of a bank statement; `file` and `line` are its place among all, `batch` may be empty."""

    file: int
    line: int
    amount_minor: int
    currency: str
    deposited_on: date
    batch: str
    bank_reference: str


@dataclass(frozen=True, slots=True)
class Banked:
    """The deposits of each batch that has any, and those of none."""

    by_batch: Mapping[str, Sequence[Deposit]]
    loose: Sequence[Deposit]


def bank(batches: Sequence[Batch], deposits: Sequence[Deposit], days_max: int) -> Banked:
    """Give each deposit its batch, if there is one."""
    found: dict[str, list[Deposit]] = {}
    loose: list[Deposit] = []
    known = {batch.batch for batch in batches}
    for deposit in sorted(deposits, key=_in_order):
        named = deposit.batch in known
        (found.setdefault(deposit.batch, []) if named else loose).append(deposit)
    for batch in sorted(batches, key=lambda one: (one.settled_on, one.batch)):
        if batch.batch not in found and (single := _single(batch, loose, days_max)):
            found[batch.batch] = [single]
            loose.remove(single)
    return Banked(found, loose)


def judge_deposits(
    batches: Sequence[Batch],
    banked: Banked,
    flagged: Mapping[str, Sequence[int]],
    missing: Mapping[date, Sequence[int]],
    covered: Collection[date],
    days_max: int,
) -> list[Item]:
    """What does not agree between bank and batches.

    `flagged`: by batch, what its lines are off already, one sum a reason. `missing`: by date, the net of each
    movement that the files lack, whose batch nobody knows. A deposit that is off by the same, by some of these
    together, shows no difference of its own: the file was wrong, and the bank right.
    """
    items: list[Item] = []
    for batch in sorted(batches, key=lambda one: (one.settled_on, one.batch)):
        deposits = banked.by_batch.get(batch.batch)
        if deposits:
            items += _judge_batch(batch, deposits, flagged.get(batch.batch, ()), missing.get(batch.settled_on, ()))
    seen: set[tuple[object, ...]] = set()
    for deposit in banked.loose:
        settled = any(deposit.deposited_on - timedelta(days) in covered for days in range(days_max + 1))
        items.append(_loose(deposit, repeated=_likeness(deposit) in seen, settled=settled))
        seen.add(_likeness(deposit))
    return items


def _judge_batch(
    batch: Batch, deposits: Sequence[Deposit], flagged: Sequence[int], missing: Sequence[int]
) -> list[Item]:
    known = _sums(missing)

    def fits(parts: Iterable[Deposit]) -> bool:
        more = sum(part.amount_minor for part in parts) - batch.net_minor
        return more == 0 or not known.isdisjoint(more + off for off in _sums(flagged))

    if fits(deposits):
        return []
    first, repeated = _without_repeats(deposits)
    if repeated and fits(first):
        return [_item(State.DUPLICATE, "repeated", part, None, part.amount_minor) for part in repeated]
    whole = sum(part.amount_minor for part in deposits)
    item = _item(State.AMOUNT_DIFFERS, "deposit_differs", deposits[0], batch.net_minor, whole)
    return [item._replace(reference=batch.batch, business_date=batch.settled_on)]


def _loose(deposit: Deposit, *, repeated: bool, settled: bool) -> Item:
    if repeated:
        return _item(State.DUPLICATE, "repeated", deposit, None, deposit.amount_minor)
    if settled:
        return _item(State.MISSING_HERE, "deposit_without_settlement", deposit, None, deposit.amount_minor)
    return _item(State.TIMING, "not_settled_yet", deposit, None, deposit.amount_minor)


def _item(state: State, reason: str, deposit: Deposit, settled: int | None, deposited: int) -> Item:
    return Item(
        state=state,
        reason=reason,
        kind=DEPOSIT,
        charge_id=None,
        movement_id=None,
        reference=deposit.bank_reference or deposit.batch,
        ledger_minor=None,
        settled_minor=settled,
        deposited_minor=deposited,
        fee_minor=None,
        expected_fee_minor=None,
        net_minor=None,
        place=(deposit.file, deposit.line),
        batch=deposit.batch,
        currency=deposit.currency,
        business_date=deposit.deposited_on,
    )


def _single(batch: Batch, loose: Sequence[Deposit], days_max: int) -> Deposit | None:
    """The first deposit that names no batch and is just this one's."""
    for deposit in loose:
        days = (deposit.deposited_on - batch.settled_on).days
        same = (deposit.amount_minor, deposit.currency, deposit.batch) == (batch.net_minor, batch.currency, "")
        if same and 0 <= days <= days_max:
            return deposit
    return None


def _without_repeats(deposits: Sequence[Deposit]) -> tuple[list[Deposit], list[Deposit]]:
    seen: set[int] = set()
    first: list[Deposit] = []
    repeated: list[Deposit] = []
    for deposit in deposits:
        (repeated if deposit.amount_minor in seen else first).append(deposit)
        seen.add(deposit.amount_minor)
    return first, repeated


def _sums(parts: Sequence[int]) -> frozenset[int]:
    """Of every choice of them, the empty one among them; of many, of none, each one and all."""
    if len(parts) > SEVERAL:
        return frozenset((0, *parts, sum(parts)))
    return frozenset(sum(some) for count in range(len(parts) + 1) for some in combinations(parts, count))


def _in_order(deposit: Deposit) -> tuple[date, int, int]:
    return deposit.deposited_on, deposit.file, deposit.line


def _likeness(deposit: Deposit) -> tuple[object, ...]:
    return deposit.amount_minor, deposit.currency, deposit.deposited_on, deposit.batch, deposit.bank_reference
