"""What is posted of settlements, deposits and chargebacks: always in balance, and a difference stays to be seen."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rules.chargebacks import Stage
from gateway.rules.journal import Account, Entry, entries
from gateway.rules.lifecycle import Kind
from gateway.rules.postings import chargeback, correction, deposit, forgiven, settlement
from gateway.rules.settlement import LineKind

DUE, CLEARING, BANK, FEES = Account.PROCESSOR_DUE, Account.CLEARING, Account.BANK, Account.FEES
OWED, COSTS, TAKEN, OVER = Account.RECEIVABLE, Account.CONVENIENCE_FEES, Account.CHARGEBACKS, Account.OVER_SHORT


def _balances(posted: Iterable[Entry]) -> Counter[Account]:
    """Debits less credits; entries are of something, between two accounts."""
    balances: Counter[Account] = Counter()
    for entry in posted:
        assert entry.amount_minor > 0
        assert entry.debit is not entry.credit
        balances[entry.debit] += entry.amount_minor
        balances[entry.credit] -= entry.amount_minor
    return balances


def _plain(posted: Sequence[Entry]) -> list[tuple[Account, Account, int]]:
    return [(entry.debit, entry.credit, entry.amount_minor) for entry in posted]


def test_a_settlement_moves_what_was_due_into_clearing() -> None:
    """Charges in, refunds, chargebacks and fees out, each an entry of its own."""
    gross = {LineKind.CHARGE: 10_000, LineKind.REFUND: -500, LineKind.CHARGEBACK: -2_000, LineKind.ADJUSTMENT: -7}

    assert _plain(settlement(gross, 320)) == [
        (CLEARING, DUE, 10_000),
        (DUE, CLEARING, 500),
        (TAKEN, CLEARING, 2_000),
        (OVER, CLEARING, 7),
        (FEES, CLEARING, 320),
    ]


def test_what_goes_the_other_way_is_posted_the_other_way() -> None:
    """A negative sum of charges, a chargeback won and a fee given back turn debit and credit."""
    gross = {LineKind.CHARGE: -100, LineKind.CHARGEBACK: 2_000, LineKind.ADJUSTMENT: 7}

    assert _plain(settlement(gross, -30)) == [
        (DUE, CLEARING, 100),
        (CLEARING, TAKEN, 2_000),
        (CLEARING, OVER, 7),
        (CLEARING, FEES, 30),
    ]


def test_nothing_posts_nothing() -> None:
    """Sums of zero are no entries."""
    assert settlement({}, 0) == settlement({LineKind.CHARGE: 0}, 0) == deposit(0) == correction(DUE, 0) == ()


def test_a_deposit_empties_clearing_into_the_bank() -> None:
    """Or the other way, where the bank took it."""
    assert _plain(deposit(9_173)) == [(BANK, CLEARING, 9_173)]
    assert _plain(deposit(-9_173)) == [(CLEARING, BANK, 9_173)]


@pytest.mark.parametrize(
    ("amount", "captured", "fee", "posted"),
    [
        (2_000, 2_000, 0, [(OWED, TAKEN, 2_000)]),
        (2_000, 2_000, 50, [(OWED, TAKEN, 1_950), (COSTS, TAKEN, 50)]),
        (1_950, 2_000, 50, [(OWED, TAKEN, 1_950)]),
        (1_960, 2_000, 50, [(OWED, TAKEN, 1_950), (COSTS, TAKEN, 10)]),
        # Only the fee was captured; more was taken back than was captured.
        (40, 40, 50, [(COSTS, TAKEN, 40)]),
        (2_500, 2_000, 50, [(OWED, TAKEN, 1_950), (COSTS, TAKEN, 50)]),
    ],
)
def test_a_chargeback_reopens_what_was_owed(
    amount: int, captured: int, fee: int, posted: list[tuple[Account, Account, int]]
) -> None:
    """The obligation first, then the fee, and no more than the charge; winning it turns each entry round."""
    assert _plain(chargeback(Stage.OPENED, amount, captured, fee)) == posted
    assert _plain(chargeback(Stage.WON, amount, captured, fee)) == [(to, by, part) for by, to, part in posted]


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize(("amount", "captured", "fee"), [(2_000, 2_000, 50), (2_500, 2_000, 50), (40, 40, 50)])
def test_what_is_forgiven_leaves_nothing_behind(stage: Stage, amount: int, captured: int, fee: int) -> None:
    """A stage's line, what it made owed and its write-off: every account but clearing and over_short is empty."""
    sign = -1 if stage.voids_receipt else 1
    posted = [
        *settlement({LineKind.CHARGEBACK: sign * amount}, 0),
        *chargeback(stage, amount, captured, fee),
        *forgiven(stage, amount, captured, fee),
    ]
    left: Counter[Account] = Counter()
    for entry in posted:
        left[entry.debit] += entry.amount_minor
        left[entry.credit] -= entry.amount_minor
    assert {account for account, amount_minor in left.items() if amount_minor} == {
        Account.CLEARING,
        Account.OVER_SHORT,
    }


MONEY = st.integers(-(10**12), 10**12)


@given(st.dictionaries(st.sampled_from(LineKind), MONEY), MONEY, MONEY, st.sampled_from(Account), MONEY)
def test_whatever_is_told_is_in_balance(
    gross: dict[LineKind, int], fee: int, amount: int, account: Account, difference: int
) -> None:
    """Debits equal credits, and clearing holds what the batch comes to until the bank has it."""
    settled = _balances(settlement(gross, fee))
    banked = _balances(deposit(amount))

    assert sum(settled.values()) == sum(banked.values()) == 0
    assert settled[CLEARING] == sum(gross.values()) - fee
    assert banked[BANK] == -banked[CLEARING] == amount
    if account is not OVER:
        assert _balances(correction(account, difference))[OVER] == -difference


@dataclass(frozen=True)
class Paid:
    """A charge as the month knows it: what it was, what was given back, and whether it was charged back, and won."""

    captured: int
    convenience_fee: int
    processor_fee: int
    refunded: int
    stages: tuple[Stage, ...]


@st.composite
def paid(draw: st.DrawFn) -> Paid:
    """Any charge."""
    captured = draw(st.integers(1, 10**9))
    part = st.integers(0, captured)
    stages = draw(st.sampled_from([(), (Stage.OPENED,), (Stage.OPENED, Stage.WON)]))
    return Paid(captured, draw(part), draw(part), draw(part), stages)


def _month(charges: Sequence[Paid], adjustment: int) -> tuple[list[Entry], int]:
    """What api and admin processes post of it when everything is settled and deposited, and the deposit."""
    posted: list[Entry] = []
    gross: Counter[LineKind] = Counter({LineKind.ADJUSTMENT: adjustment})
    for one in charges:
        posted += entries(Kind.SALE, one.captured, one.convenience_fee)
        gross[LineKind.CHARGE] += one.captured
        if one.refunded:
            posted += entries(Kind.REFUND, one.refunded, 0)
            gross[LineKind.REFUND] -= one.refunded
        for stage in one.stages:
            posted += chargeback(stage, one.captured, one.captured, one.convenience_fee)
            gross[LineKind.CHARGEBACK] += one.captured * (-1 if stage is Stage.OPENED else 1)
    fees = sum(one.processor_fee for one in charges)
    net = sum(gross.values()) - fees
    return [*posted, *settlement(gross, fees), *deposit(net)], net


@given(st.lists(paid(), max_size=6), st.integers(-(10**6), 10**6))
def test_a_month_that_agrees_leaves_nothing_open(charges: list[Paid], adjustment: int) -> None:
    """Due, clearing and chargebacks are empty; the bank has receipts less refunds, fees and chargebacks."""
    posted, _ = _month(charges, adjustment)
    balances = _balances(posted)
    lost = [one for one in charges if one.stages == (Stage.OPENED,)]

    assert sum(balances.values()) == 0
    assert balances[DUE] == balances[CLEARING] == balances[TAKEN] == 0
    assert balances[BANK] == (
        sum(one.captured - one.refunded - one.processor_fee for one in charges)
        - sum(one.captured for one in lost)
        + adjustment
    )
    assert balances[FEES] == sum(one.processor_fee for one in charges)
    assert balances[OVER] == -adjustment
    kept = [one for one in charges if one not in lost]
    assert -balances[OWED] - balances[COSTS] == sum(one.captured for one in kept)


@given(st.lists(paid(), max_size=4), st.integers(-500, 500), st.sampled_from([DUE, CLEARING]))
def test_a_difference_stays_until_it_is_corrected(charges: list[Paid], more: int, account: Account) -> None:
    """What processor or bank has more stays in its account, and a correction moves all of it to over and short."""
    posted, _ = _month(charges, 0)
    posted += settlement({LineKind.CHARGE: more}, 0) if account is DUE else ()
    posted += deposit(more)

    assert _balances(posted)[account] == -more
    corrected = _balances([*posted, *correction(account, more)])
    assert corrected[DUE] == corrected[CLEARING] == 0
    assert corrected[OVER] == -more
