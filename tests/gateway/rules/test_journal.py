"""What movements mean in money: every entry in balance, every minor unit accounted for, fees where they belong."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rules.journal import Account, Entry, entries
from gateway.rules.lifecycle import Kind

DUE, OWED, FEES, REFUNDS = Account.PROCESSOR_DUE, Account.RECEIVABLE, Account.CONVENIENCE_FEES, Account.REFUNDS


@pytest.mark.parametrize("kind", [Kind.SALE, Kind.CAPTURE])
@pytest.mark.parametrize(
    ("amount", "fee", "posted"),
    [
        (1_999, 0, [(DUE, OWED, 1_999)]),
        (1_999, 99, [(DUE, OWED, 1_900), (DUE, FEES, 99)]),
        (1_999, 1_998, [(DUE, OWED, 1), (DUE, FEES, 1_998)]),
        (1_999, 1_999, [(DUE, FEES, 1_999)]),
        (1, 0, [(DUE, OWED, 1)]),
        # A capture of less than was authorized: the fee is its first part.
        (50, 99, [(DUE, FEES, 50)]),
        (100, 99, [(DUE, OWED, 1), (DUE, FEES, 99)]),
    ],
)
def test_what_is_captured_is_owed_by_the_processor(
    kind: Kind, amount: int, fee: int, posted: list[tuple[Account, Account, int]]
) -> None:
    """The processor owes all of it: for services, and for the fee of paying by card; no entry is of nothing."""
    assert entries(kind, amount, fee) == tuple(Entry(*entry) for entry in posted)


@pytest.mark.parametrize("fee", [0, 99])
def test_a_refund_is_one_entry(fee: int) -> None:
    """What is given back is no fee given back: it stands in an account of its own."""
    assert entries(Kind.REFUND, 1_999, fee) == (Entry(REFUNDS, DUE, 1_999),)


@pytest.mark.parametrize("kind", [Kind.AUTHORIZATION, Kind.VOID])
def test_what_moves_no_money_is_no_entry(kind: Kind) -> None:
    """Held is not owed, and released is not given back."""
    assert entries(kind, 1_999, 99) == ()


MONEY = st.integers(1, 10**12)


@given(MONEY, st.integers(0, 10**12), st.lists(MONEY, max_size=5))
def test_accounts_add_up(captured: int, fee: int, refunds: list[int]) -> None:
    """Over any captures and refunds all accounts sum to zero; the processor owes what it took less what it gave."""
    posted = list(entries(Kind.CAPTURE, captured, fee))
    for refund in refunds:
        posted += entries(Kind.REFUND, refund, fee)
    balances: Counter[Account] = Counter()
    for entry in posted:
        assert entry.amount_minor > 0
        assert entry.debit is not entry.credit
        balances[entry.debit] += entry.amount_minor
        balances[entry.credit] -= entry.amount_minor

    assert sum(balances.values()) == 0
    assert balances[DUE] == captured - sum(refunds)
    assert -balances[FEES] == min(fee, captured)
    assert -balances[OWED] - balances[FEES] == captured
    assert balances[REFUNDS] == sum(refunds)
