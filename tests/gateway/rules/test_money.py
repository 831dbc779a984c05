"""Money: enabled currencies, and amounts within their limits."""

import pytest

from gateway.errors import AmountRefused, CurrencyRefused
from gateway.rules.money import require_amount, require_currency, require_fee


def test_dollars_are_enabled() -> None:
    """USD passes."""
    require_currency("USD")


@pytest.mark.parametrize(
    "code", ["", "usd", "Usd", "USD ", " USD", "USD\n", "US", "USDX", "EUR", "JPY", "BHD", "XXX", "840", "\uff35SD"]
)
def test_other_currencies_are_refused(code: str) -> None:
    """Only the exact code of an enabled currency passes; another is not repeated."""
    with pytest.raises(CurrencyRefused) as refused:
        require_currency(code)

    assert refused.value.pointers == ("/currency",)
    assert refused.value.detail == CurrencyRefused.default


@pytest.mark.parametrize("amount_minor", [1, 2, 99_999, 100_000])
def test_an_amount_within_the_limit_passes(amount_minor: int) -> None:
    """One minor unit and the limit itself are both allowed."""
    require_amount(amount_minor, 100_000)


@pytest.mark.parametrize("amount_minor", [-(10**30), -1, 0, 100_001, 2**31, 2**53 + 1, 2**63, 10**30])
def test_an_amount_beyond_the_limits_is_refused(amount_minor: int) -> None:
    """Nothing, less than nothing, and more than the application's limit are refused."""
    with pytest.raises(AmountRefused) as refused:
        require_amount(amount_minor, 100_000)

    assert refused.value.pointers == ("/amount",)
    assert str(abs(amount_minor)) not in refused.value.detail or amount_minor in {-1, 0}


@pytest.mark.parametrize("fee_minor", [0, 1, 499, 500])
def test_a_fee_is_a_part_of_the_amount(fee_minor: int) -> None:
    """From no fee to all of the amount."""
    require_fee(fee_minor, 500)


@pytest.mark.parametrize("fee_minor", [-1, 501, 2**63])
def test_a_fee_beyond_the_amount_is_refused(fee_minor: int) -> None:
    """A fee below nothing or above the amount is refused."""
    with pytest.raises(AmountRefused) as refused:
        require_fee(fee_minor, 500)

    assert refused.value.pointers == ("/convenience_fee",)
