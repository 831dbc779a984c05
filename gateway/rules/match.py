"""The match: what the ledger says of a charge beside what the processor's files say of it, to the cent.

All movements of a charge and all settlement lines about it are judged together, whatever dates they are of: a line is
found wherever it stands, and moving it to another file changes nothing. Each movement and each line ends in exactly
one item, so the items' amounts are the ledger's and the files' amounts; the order in which anything was read decides
nothing.

    state           reason                 what it means
    matched                                movement and line agree in currency, sign, amount and fee
    amount_differs  currency_differs       they are about the same, and disagree; the first of these counts
                    sign_differs
                    amount_differs
    fee_differs     fee_differs            all but the fee agrees; of a refund the processor keeps nothing
    missing_there   not_settled            no line, though a file has lines settled on the movement's UTC date
    timing          not_settled_yet        no line, and no file of that date yet
    duplicate       repeated               one more line about what has its line; that which fits best is judged
    missing_here    unknown_reference      a line about nothing that the ledger knows
                    not_captured_here      about a charge that was not captured here
                    refund_unknown         a refund that the ledger has not
                    chargeback adjustment  what only the processor's files tell of

An item is of its movement's business date, or else of its line's. Deposits have the same states: `rules.deposits`.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from hashlib import sha256
from typing import NamedTuple

from gateway.rules.settlement import FeeSchedule, LineKind

DEPOSIT = "deposit"
"""The kind of an item that is about the bank; others have a line's."""
LETTERS = str.maketrans("0123456789", "ghijklmnop")
"""Makes hexadecimal digits letters: no id can be taken for a card number."""


class State(StrEnum):
    """Where an item ends; see above."""

    MATCHED = "matched"
    TIMING = "timing"
    AMOUNT_DIFFERS = "amount_differs"
    FEE_DIFFERS = "fee_differs"
    MISSING_HERE = "missing_here"
    MISSING_THERE = "missing_there"
    DUPLICATE = "duplicate"


class Moved(NamedTuple):
    """A movement that was done: `kind` is `charge` or `refund`, `amount_minor` signed as a settlement has it."""

    movement_id: str
    kind: str
    reference: str
    amount_minor: int
    currency: str
    moment: datetime
    business_date: date


class Settled(NamedTuple):
    """A settlement line. `file` and `line` are its place among all: files are counted as they were imported."""

    file: int
    line: int
    kind: str
    reference: str
    gross_minor: int
    fee_minor: int
    net_minor: int
    currency: str
    created_at: datetime
    batch: str
    business_date: date


class Item(NamedTuple):
    """One judgement. Amounts are signed minor units; None is what there is nothing of."""

    state: State
    reason: str
    kind: str
    charge_id: str | None
    movement_id: str | None
    reference: str
    ledger_minor: int | None
    settled_minor: int | None
    deposited_minor: int | None
    fee_minor: int | None
    expected_fee_minor: int | None
    batch: str
    currency: str
    business_date: date
    net_minor: int | None
    """Of the line."""
    place: tuple[int, int] | None
    """File and line of the line, or of the deposit."""

    @property
    def difference_minor(self) -> int:
        """What processor or bank has more than the ledger, fees told by what they cost more."""
        if self.state is State.FEE_DIFFERS:
            return (self.expected_fee_minor or 0) - (self.fee_minor or 0)
        if self.kind == DEPOSIT:
            return (self.deposited_minor or 0) - (self.settled_minor or 0)
        return (self.settled_minor or 0) - (self.ledger_minor or 0)


@dataclass(frozen=True, slots=True)
class Terms:
    """By what is judged: the fees agreed on, UTC dates that a file has settled, batches that are in the bank."""

    fees: FeeSchedule
    covered: Collection[date]
    banked: Collection[str]


def judge(charge_id: str | None, moved: Sequence[Moved], settled: Sequence[Settled], terms: Terms) -> list[Item]:
    """Every movement of a charge, and every line about it. `charge_id` is None for lines about none that is known."""
    if len(moved) == 1 and len(settled) == 1 and moved[0].kind == settled[0].kind:
        return [_pair(charge_id, moved[0], settled[0], terms)]
    items = []
    for kind in LineKind:
        movements = sorted((one for one in moved if one.kind == kind), key=lambda one: (one.moment, one.movement_id))
        lines = sorted(line for line in settled if line.kind == kind)
        items += _judge_kind(charge_id, movements, lines, terms)
    return items


def expected_net(item: Item, fees: FeeSchedule) -> int:
    """What the bank would get for an item if the ledger were right."""
    amount = item.ledger_minor or 0
    return amount - (fees.fee(amount) if amount > 0 else 0)


def exception_id(department: str, item: Item, source: str) -> str:
    """Of the difference that an item is; the same difference has the same id in every run.

    `source` names the line for good: its file's id and its number; empty where there is no line.
    """
    what = department, item.state, item.reason, item.movement_id or "", item.reference, source
    told = (*what, str(item.difference_minor))
    return "ex_" + sha256("\0".join(told).encode()).hexdigest()[:32].translate(LETTERS)


def _judge_kind(charge_id: str | None, moved: list[Moved], lines: list[Settled], terms: Terms) -> list[Item]:
    pairs, unsettled, left = _pairs(moved, lines, terms.fees)
    items = [_pair(charge_id, one, line, terms) for one, line in pairs]
    items += [_unsettled(charge_id, one, terms) for one in unsettled]
    same = _sameness({one.reference for one in moved})
    seen = {same(line) for _, line in pairs}
    for line in left:
        if same(line) in seen:
            items.append(_item(line, State.DUPLICATE, "repeated", charge_id, terms))
        else:
            items.append(_item(line, State.MISSING_HERE, _unknown(charge_id, line.kind), charge_id, terms))
        seen.add(same(line))
    return items


def _pairs(
    moved: list[Moved], lines: list[Settled], fees: FeeSchedule
) -> tuple[list[tuple[Moved, Settled]], list[Moved], list[Settled]]:
    """Who belongs together, movements left, lines left: by the own reference first, then by amount, then in order.

    A refund may be told under its own reference or its charge's. A line with a refund's own is about that one alone.
    """
    own = {one.reference for one in moved}

    def free(line: Settled, *key: Hashable) -> Hashable:
        return None if line.reference in own else key

    stages: list[tuple[Callable[[Moved], Hashable], Callable[[Settled], Hashable]]] = [
        (
            lambda one: (one.reference, one.amount_minor, one.currency, _fee(one, fees)),
            lambda line: (line.reference, line.gross_minor, line.currency, line.fee_minor),
        ),
        (lambda one: one.reference, lambda line: line.reference),
        (
            lambda one: (one.amount_minor, one.currency, _fee(one, fees)),
            lambda line: free(line, line.gross_minor, line.currency, line.fee_minor),
        ),
        (lambda one: (one.amount_minor, one.currency), lambda line: free(line, line.gross_minor, line.currency)),
        (lambda _: (), free),
    ]
    pairs: list[tuple[Moved, Settled]] = []
    for of_moved, of_line in stages:
        waiting: dict[Hashable, deque[Settled]] = defaultdict(deque)
        for line in lines:
            waiting[of_line(line)].append(line)
        found = [(one, waiting[key].popleft()) for one in moved if waiting.get(key := of_moved(one))]
        paired, taken = {one.movement_id for one, _ in found}, {line[:2] for _, line in found}
        moved = [one for one in moved if one.movement_id not in paired]
        lines = [line for line in lines if line[:2] not in taken]
        pairs += found
    return pairs, moved, lines


def _sameness(own: Collection[str]) -> Callable[[Settled], Hashable]:
    """What two lines of a kind about one charge must have in common for the later to be a repetition.

    A charge is settled once, and so is a refund that is told under its own reference. Other refunds, and what only
    the files know of, may come several times: there the lines must be alike.
    """

    def same(line: Settled) -> Hashable:
        match line.kind:
            case LineKind.CHARGE:
                return ()
            case LineKind.REFUND if line.reference in own:
                return line.reference
            case LineKind.REFUND:
                return line.reference, line.gross_minor, line.currency
        return line.reference, line.gross_minor, line.fee_minor, line.currency, line.created_at

    return same


def _pair(charge_id: str | None, one: Moved, line: Settled, terms: Terms) -> Item:
    expected = _fee(one, terms.fees)
    state, reason = _agreement(one, line, expected)
    return _item(line, state, reason, charge_id, terms, one, expected)


def _agreement(one: Moved, line: Settled, expected_fee: int) -> tuple[State, str]:
    if line.currency != one.currency:
        return State.AMOUNT_DIFFERS, "currency_differs"
    if line.gross_minor != one.amount_minor:
        return State.AMOUNT_DIFFERS, "sign_differs" if line.gross_minor == -one.amount_minor else "amount_differs"
    if line.fee_minor != expected_fee:
        return State.FEE_DIFFERS, "fee_differs"
    return State.MATCHED, ""


def _unsettled(charge_id: str | None, one: Moved, terms: Terms) -> Item:
    settled = one.moment.date() in terms.covered
    return Item(
        state=State.MISSING_THERE if settled else State.TIMING,
        reason="not_settled" if settled else "not_settled_yet",
        kind=one.kind,
        charge_id=charge_id,
        movement_id=one.movement_id,
        reference=one.reference,
        ledger_minor=one.amount_minor,
        settled_minor=None,
        deposited_minor=None,
        fee_minor=None,
        expected_fee_minor=_fee(one, terms.fees),
        net_minor=None,
        place=None,
        batch="",
        currency=one.currency,
        business_date=one.business_date,
    )


def _item(
    line: Settled,
    state: State,
    reason: str,
    charge_id: str | None,
    terms: Terms,
    one: Moved | None = None,
    expected_fee: int | None = None,
) -> Item:
    """Of a line, with its movement or alone. What was deposited is its net, once its batch is in the bank."""
    return Item(
        state,
        reason,
        line.kind,
        charge_id,
        one.movement_id if one else None,
        line.reference,
        one.amount_minor if one else None,
        line.gross_minor,
        line.net_minor if line.batch in terms.banked else None,
        line.fee_minor,
        expected_fee,
        line.batch,
        line.currency,
        one.business_date if one else line.business_date,
        line.net_minor,
        (line.file, line.line),
    )


def _fee(one: Moved, fees: FeeSchedule) -> int:
    return fees.fee(one.amount_minor) if one.kind == LineKind.CHARGE else 0


def _unknown(charge_id: str | None, kind: str) -> str:
    if kind in {LineKind.CHARGEBACK, LineKind.ADJUSTMENT}:
        return str(kind)
    if charge_id is None:
        return "unknown_reference"
    return "refund_unknown" if kind == LineKind.REFUND else "not_captured_here"
