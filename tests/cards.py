"""The only place of card numbers in the tests: published test numbers, the stub's triggers, and canaries."""

PUBLISHED: dict[str, str] = {
    "4242424242424242": "visa",
    "4000056655665556": "visa",
    "4012888888881881": "visa",
    "4111111111111111": "visa",
    "4007000000027": "visa",
    "4222222222222": "visa",
    "4000000000009987": "visa",
    "4000000000009979": "visa",
    "4000000000000341": "visa",
    "4000000000000077": "visa",
    "4000000000003220": "visa",
    "4000002500003155": "visa",
    "4000002760003184": "visa",
    "4000008400001629": "visa",
    "4988438843884305": "visa",
    "4444333322221111": "visa",
    "5555555555554444": "mastercard",
    "2223003122003222": "mastercard",
    "5200828282828210": "mastercard",
    "5105105105105100": "mastercard",
    "2222400070000005": "mastercard",
    "5454545454545454": "mastercard",
    "378282246310005": "amex",
    "371449635398431": "amex",
    "378734493671000": "amex",
    "6011111111111117": "discover",
    "6011000990139424": "discover",
    "6011981111111113": "discover",
    "3056930009020004": "diners",
    "36227206271667": "diners",
    "30569309025904": "diners",
    "38520000023237": "diners",
    "3566002020360505": "jcb",
    "3530111333300000": "jcb",
    "6200000000000005": "unionpay",
    "6205500000000000004": "unionpay",
    "6555900000604105": "discover",
}
"""Published by processors; the brand is what our table says (the last is a co-brand on Discover's range)."""

TRIGGERS: tuple[str, ...] = (
    "4000000000000002",
    "4000000000000069",
    "4000000000000127",
    "4000000000000119",
    "4000000000009995",
)
"""Numbers that the processor's double declines."""

CANARY = "4000001234567899"
"""On the range of test numbers, valid, and published nowhere: finding it means that a test planted it."""


def with_check_digit(digits: str) -> str:
    """The digits and the check digit that makes them a number (ISO/IEC 7812 annex B)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        doubled = int(digit) * 2 if place % 2 == 0 else int(digit)
        total += doubled - 9 if doubled > 9 else doubled
    return digits + str(-total % 10)


def canary(index: int) -> str:
    """A 16-digit number that is unique to `index`, valid, and published nowhere."""
    assert 0 <= index < 10**9
    return with_check_digit(f"477619{index * 7_368_787 % 10**9:09d}")
