"""The convenience fee and its documented cost (California Government Code 6159)."""

from datetime import date

import pytest

from gateway.errors import AmountRefused
from gateway.rules.fees import ABOVE_COST, NO_COST, FeeCosts
from gateway.rules.settlement import FeeSchedule

JULY, AUGUST = date(2026, 7, 1), date(2026, 8, 1)
COSTS = FeeCosts(((JULY, FeeSchedule(290, 30)), (AUGUST, FeeSchedule(200, 0))))


@pytest.mark.parametrize(
    ("day", "fee_minor", "covered"),
    [
        (JULY, 320, True),
        (JULY, 321, False),
        (date(2026, 7, 31), 320, True),
        (AUGUST, 200, True),
        (AUGUST, 201, False),
        (date(2027, 1, 1), 201, False),
    ],
)
def test_a_fee_is_bounded_by_the_cost_of_its_date(day: date, fee_minor: int, covered: bool) -> None:
    """Of 100.00: the whole cost of that day, and not a cent more, whoever asks."""
    for documented_only in (False, True):
        if covered:
            COSTS.require_covers(fee_minor, 10_000, day, documented_only=documented_only)
            continue
        with pytest.raises(AmountRefused) as refused:
            COSTS.require_covers(fee_minor, 10_000, day, documented_only=documented_only)
        assert (refused.value.detail, refused.value.pointers) == (ABOVE_COST, ("/convenience_fee",))


@pytest.mark.parametrize("costs", [FeeCosts(), COSTS])
def test_without_a_documented_cost_production_takes_no_fee(costs: FeeCosts) -> None:
    """Before the first cost: no fee where costs must be documented, any fee where they need not be."""
    before = date(2026, 6, 30)
    costs.require_covers(0, 10_000, before, documented_only=True)
    costs.require_covers(10_000, 10_000, before, documented_only=False)
    with pytest.raises(AmountRefused) as refused:
        costs.require_covers(1, 10_000, before, documented_only=True)

    assert (refused.value.detail, refused.value.pointers) == (NO_COST, ("/convenience_fee",))
