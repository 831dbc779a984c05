"""Where bars stand: they fill their scale, add up, and stay inside the drawing."""

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.web.plots import HEIGHT, OTHERS, SERIES_MAX, WIDTH, stacks

DAY = date(2026, 3, 1)


def test_stacks_stand_on_each_other() -> None:
    """Half the scale is half the height; the next name begins where the last one ended, and nothing draws nothing."""
    days = [DAY, DAY + timedelta(days=1)]
    plot = stacks(["parks", "water"], days, {("parks", DAY): 500, ("water", DAY): 250})

    assert plot.ticks == [800, 600, 400, 200, 0]
    assert [(bar.y, bar.height, bar.series) for bar in plot.bars] == [(75.0, 125.0, 1), (12.5, 62.5, 2)]
    assert [plot.of(day) for day in days] == [750, 0]


@pytest.mark.parametrize("count", [1, 6, 7, 30])
@given(data=st.data())
def test_every_cent_is_in_a_bar(count: int, data: st.DataObject) -> None:
    """However many names there are, the bars are as high as all values together and stay inside the drawing."""
    names, days = [f"d{number}" for number in range(count)], [DAY + timedelta(days=age) for age in range(3)]
    amounts = st.integers(0, 10**12)
    values = {(name, day): data.draw(amounts) for name in names for day in days}
    plot = stacks(names, days, values)

    assert len(plot.names) == min(count, SERIES_MAX)
    assert (OTHERS in plot.names) == (count > SERIES_MAX)
    assert sum(bar.said[2] for bar in plot.bars) == sum(values.values())
    assert sum(map(plot.of, days)) == sum(values.values())
    for bar in plot.bars:
        assert 0 <= bar.x <= bar.x + bar.width <= WIDTH
        assert -0.1 <= bar.y <= bar.y + bar.height <= HEIGHT + 0.1
