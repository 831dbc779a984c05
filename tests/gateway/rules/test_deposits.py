"""The bank's side: which deposit is of which batch, and what is said of the others."""

from collections.abc import Sequence
from datetime import date, timedelta
from itertools import permutations

import pytest

from gateway.rules.deposits import Batch, Deposit, bank, judge_deposits
from gateway.rules.match import Item

DAY = date(2026, 11, 2)
DAYS_MAX = 5
BATCH = Batch("B1", DAY, 10_000, "USD")


def paid(amount: int = 10_000, days: int = 1, batch: str = "B1", n: int = 1, file: int = 0) -> Deposit:
    """A credit at the bank so many days after the settlement."""
    return Deposit(file, n, amount, "USD", DAY + timedelta(days), batch, f"{n}")


def judged(
    *deposits: Deposit, flagged: tuple[int, ...] = (), missing: Sequence[int] = (), covered: bool = True
) -> list[Item]:
    """What is said of these, beside the one batch."""
    banked = bank([BATCH], deposits, DAYS_MAX)
    lacks = {DAY: missing}
    return judge_deposits([BATCH], banked, {"B1": flagged}, lacks, {DAY} if covered else set(), DAYS_MAX)


CASES = [
    ((), []),
    ((paid(),), []),
    ((paid(batch=""),), []),
    ((paid(4_000), paid(6_000, n=2)), []),
    ((paid(5_000), paid(5_000, n=2)), []),
    ((paid(), paid(n=2)), [("duplicate", "repeated", None, 10_000)]),
    ((paid(4_000), paid(6_000, n=2), paid(4_000, n=3)), [("duplicate", "repeated", None, 4_000)]),
    ((paid(9_999),), [("amount_differs", "deposit_differs", 10_000, 9_999)]),
    ((paid(4_000), paid(7_000, n=2)), [("amount_differs", "deposit_differs", 10_000, 11_000)]),
    ((paid(batch="B9"),), [("missing_here", "deposit_without_settlement", None, 10_000)]),
    ((paid(77, batch=""),), [("missing_here", "deposit_without_settlement", None, 77)]),
    ((paid(days=DAYS_MAX, batch=""),), []),
    ((paid(days=DAYS_MAX + 1, batch=""),), [("timing", "not_settled_yet", None, 10_000)]),
    ((paid(days=-1, batch=""),), [("timing", "not_settled_yet", None, 10_000)]),
    ((paid(batch=""), paid(batch="", n=2)), [("missing_here", "deposit_without_settlement", None, 10_000)]),
    ((paid(), paid(batch="", n=2)), [("missing_here", "deposit_without_settlement", None, 10_000)]),
    (
        (paid(77, batch=""), paid(77, batch="", file=1)),
        [("missing_here", "deposit_without_settlement", None, 77), ("duplicate", "repeated", None, 77)],
    ),
]


@pytest.mark.parametrize(("deposits", "expected"), CASES)
def test_each_state(deposits: tuple[Deposit, ...], expected: list[tuple[str, str, int | None, int]]) -> None:
    """The table of states, in whatever order the deposits come."""
    for order in permutations(deposits):
        items = judged(*order)
        assert [(item.state, item.reason, item.settled_minor, item.deposited_minor) for item in items] == expected


def test_before_any_settlement_it_is_early() -> None:
    """While no file has lines of the days before it, a deposit of nothing that is known waits."""
    (item,) = judged(paid(batch="B9"), covered=False)
    assert (item.state, item.reason) == ("timing", "not_settled_yet")


@pytest.mark.parametrize(("amount", "differs"), [(9_990, False), (9_900, False), (9_890, False), (9_899, True)])
def test_what_is_known_already_is_no_second_difference(amount: int, differs: bool) -> None:
    """Lines are 10 and 100 too much: a bank that knew better about one, or both, is right; by 101 it is not."""
    items = judged(paid(amount), flagged=(10, 100))
    assert [item.reason for item in items] == (["deposit_differs"] if differs else [])


@pytest.mark.parametrize("amount", [10_000, 10_030, 10_500, 10_530, 10_520, 9_990])
def test_which_batch_was_paid_for_what_is_missing(amount: int) -> None:
    """Of two movements that the files lack, the bank may have paid any with this batch, whatever else is off."""
    assert judged(paid(amount), flagged=(10,), missing=(30, 500)) == []


def test_of_many_that_are_missing() -> None:
    """Not every choice of them is tried: one, or all."""
    missing = [2**n for n in range(3, 20)]
    assert judged(paid(10_008), missing=missing) == judged(paid(10_000 + sum(missing)), missing=missing) == []
    assert [item.reason for item in judged(paid(10_024), missing=missing)] == ["deposit_differs"]


def test_where_a_difference_stands() -> None:
    """A batch's on the day of its settlement under its name, a lonely deposit's on its own under the bank's."""
    (batch,) = judged(paid(9_999))
    (lonely,) = judged(paid(9, batch="", n=7))

    assert (batch.business_date, batch.reference, batch.difference_minor) == (DAY, "B1", -1)
    assert (lonely.business_date, lonely.reference, lonely.difference_minor) == (DAY + timedelta(1), "7", 9)


def test_two_batches_of_one_amount() -> None:
    """Each gets one deposit, the earlier batch the earlier one, in whatever order they come."""
    batches = [BATCH, Batch("B2", DAY + timedelta(1), 10_000, "USD")]
    deposits = [paid(days=1, batch="", n=1), paid(days=2, batch="", n=2)]
    for some in permutations(batches):
        for others in permutations(deposits):
            banked = bank(some, others, DAYS_MAX)
            assert banked.by_batch == {"B1": [deposits[0]], "B2": [deposits[1]]}
            assert banked.loose == []
