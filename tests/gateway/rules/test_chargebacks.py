"""A chargeback's life: taken, perhaps given back, perhaps taken again, and nothing twice."""

from datetime import UTC, date, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rules.chargebacks import Stage, after
from gateway.rules.settlement import LineKind, SettlementLine

LINE = SettlementLine(
    *(2, LineKind.CHARGEBACK, "ch_1", -2_000, 0, -2_000, "USD"),
    *(datetime(2026, 11, 23, tzinfo=UTC), date(2026, 11, 23), "B1"),
)


@pytest.mark.parametrize(
    ("stage", "gross", "leads_to"),
    [
        (None, -2_000, Stage.OPENED),
        (None, 2_000, None),
        (None, 0, None),
        (Stage.OPENED, -2_000, None),
        (Stage.OPENED, 2_000, Stage.WON),
        (Stage.OPENED, 0, None),
        (Stage.WON, -1, Stage.OPENED),
        (Stage.WON, 1, None),
        (Stage.WON, 0, None),
    ],
)
def test_each_line_leads_somewhere_or_nowhere(stage: Stage | None, gross: int, leads_to: Stage | None) -> None:
    """The whole table: a line that does not fit leads nowhere."""
    assert after(stage, LINE._replace(gross_minor=gross)) is leads_to


def test_only_an_opened_one_voids_the_receipt() -> None:
    """Once it is won the payment counts again."""
    assert Stage.OPENED.voids_receipt
    assert not Stage.WON.voids_receipt


@given(st.lists(st.integers(-3, 3), max_size=12))
def test_stages_take_turns(amounts: list[int]) -> None:
    """Whatever lines come, it is opened first, and then opened and won in turn: each effect exactly once."""
    stages: list[Stage] = []
    for gross in amounts:
        stage = after(stages[-1] if stages else None, LINE._replace(gross_minor=gross))
        stages += [stage] if stage else []

    assert stages[:1] in ([], [Stage.OPENED])
    assert all(one is not other for one, other in pairwise(stages))
