"""Money: whole minor units of an enabled currency. There is no float anywhere."""

from collections.abc import Mapping

from gateway.errors import AmountRefused, CurrencyRefused

ENABLED: Mapping[str, int] = {"USD": 2}
"""ISO 4217 code to minor-unit digits."""


def require_currency(code: str) -> None:
    """Raises `CurrencyRefused` unless the code is enabled, in upper case."""
    if code not in ENABLED:
        raise CurrencyRefused(pointers=["/currency"])


def require_amount(amount_minor: int, amount_minor_max: int) -> None:
    """Raises `AmountRefused` unless 1 <= amount <= the application's limit."""
    if amount_minor < 1:
        raise AmountRefused("The amount must be at least 1 minor unit.", ["/amount"])
    if amount_minor > amount_minor_max:
        raise AmountRefused("The amount is above this application's limit.", ["/amount"])


def require_fee(fee_minor: int, amount_minor: int) -> None:
    """The convenience fee is a part of the amount; raises `AmountRefused`."""
    if not 0 <= fee_minor <= amount_minor:
        raise AmountRefused("The convenience fee is part of the amount: 0 to the amount.", ["/convenience_fee"])
