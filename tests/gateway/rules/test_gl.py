"""Places in the general ledger: by date, and split so that no cent is lost."""

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rules.gl import UNMAPPED, Chart, Mapped, Share, split

NEW_YEAR = date(2027, 1, 1)
CHART = Chart(
    [
        Mapped("parks", "camp", NEW_YEAR, Share("100-2", 2)),
        Mapped("parks", "camp", NEW_YEAR, Share("100-1", 1)),
        Mapped("parks", "camp", date(2026, 7, 1), Share("100-0", 1)),
        Mapped("parks", "", date(2026, 7, 1), Share("999-0", 1)),
        Mapped("utilities", "camp", date(2020, 1, 1), Share("200-0", 1)),
    ],
    {("parks", "camp"): "REG-1", ("parks", "pool"): "REG-2"},
)


@pytest.mark.parametrize(
    ("department", "service", "day", "codes"),
    [
        ("parks", "camp", date(2026, 6, 30), {"REG-1"}),
        ("parks", "camp", date(2026, 7, 1), {"100-0"}),
        ("parks", "camp", NEW_YEAR - timedelta(1), {"100-0"}),
        ("parks", "camp", NEW_YEAR, {"100-1", "100-2"}),
        ("parks", "camp", date(2030, 1, 1), {"100-1", "100-2"}),
        ("parks", "pool", NEW_YEAR, {"REG-2"}),
        ("parks", None, date(2026, 6, 30), {UNMAPPED}),
        ("parks", None, NEW_YEAR, {"999-0"}),
        ("utilities", "camp", NEW_YEAR, {"200-0"}),
        ("utilities", None, NEW_YEAR, {UNMAPPED}),
        ("city", "camp", NEW_YEAR, {UNMAPPED}),
    ],
)
def test_a_mapping_holds_from_its_date_on(department: str, service: str | None, day: date, codes: set[str]) -> None:
    """The latest one of the date or before it; without one the service's own code; without that, none, said so."""
    assert {share.gl_code for share in CHART.shares(department, service, day)} == codes


@pytest.mark.parametrize(
    ("amount", "shares", "parts"),
    [
        (100, [("a", 1)], [("a", 100)]),
        (100, [("b", 1), ("a", 1), ("c", 1)], [("a", 34), ("b", 33), ("c", 33)]),
        (101, [("a", 1), ("b", 1), ("c", 1)], [("a", 34), ("b", 34), ("c", 33)]),
        (100, [("a", 1), ("b", 2)], [("a", 33), ("b", 67)]),
        (1, [("a", 1), ("b", 2)], [("a", 0), ("b", 1)]),
        (-100, [("b", 1), ("a", 1), ("c", 1)], [("a", -34), ("b", -33), ("c", -33)]),
        (0, [("a", 1), ("b", 1)], [("a", 0), ("b", 0)]),
    ],
)
def test_what_is_left_goes_to_the_largest_remainder(
    amount: int, shares: list[tuple[str, int]], parts: list[tuple[str, int]]
) -> None:
    """At a tie to the first code, whatever order the shares came in."""
    assert split(amount, [Share(*share) for share in shares]) == parts


SHARES = st.dictionaries(st.text("abcdef-", min_size=1, max_size=4), st.integers(1, 10_000), min_size=1, max_size=6)


@given(st.integers(-(10**14), 10**14), SHARES)
def test_parts_sum_to_the_amount(amount: int, shares: dict[str, int]) -> None:
    """Exactly; each within a cent of its share; the order of shares changes nothing, and a minus only the sign."""
    listed = [Share(code, share) for code, share in shares.items()]
    parts = split(amount, listed)
    whole = sum(shares.values())

    assert sum(part for _, part in parts) == amount
    assert all(abs(part * whole - amount * shares[code]) < whole for code, part in parts)
    assert split(amount, listed[::-1]) == parts
    assert split(-amount, listed) == [(code, -part) for code, part in parts]
