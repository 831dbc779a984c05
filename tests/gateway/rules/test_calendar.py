"""Business dates: every instant is of exactly one, whatever the clocks do."""

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rules.calendar import Calendar

CITY = ZoneInfo("America/Los_Angeles")
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
TICK = timedelta(microseconds=1)
PARKS = "parks"
ZONES = [CITY, ZoneInfo("America/St_Johns"), ZoneInfo("America/Sao_Paulo"), ZoneInfo("Pacific/Apia"), ZoneInfo("UTC")]
"""Some set their clocks at midnight, or a minute after it; Apia once left a whole date out."""

CUTOFFS = st.lists(
    st.tuples(st.dates(date(2000, 1, 1), date(2030, 12, 31)), st.times()),
    max_size=4,
    unique_by=lambda change: change[0],
)
MOMENTS = st.datetimes(datetime(2000, 1, 2), datetime(2030, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001 - by strategy


def at(*cutoffs: tuple[date, time]) -> Calendar:
    """The parks' calendar."""
    return Calendar(CITY, {PARKS: cutoffs})


def local(day: date, hour: int, minute: int = 0, fold: int = 0) -> datetime:
    """A moment as the city's clocks show it."""
    return datetime(day.year, day.month, day.day, hour, minute, fold=fold, tzinfo=CITY)


@given(zone=st.sampled_from(ZONES), cutoffs=CUTOFFS, moment=MOMENTS)
def test_a_moment_is_of_one_date(zone: ZoneInfo, cutoffs: list[tuple[date, time]], moment: datetime) -> None:
    """The interval of its business date holds a moment, ends where it says, and the next one begins there."""
    calendar = Calendar(zone, {PARKS: cutoffs})
    day = calendar.business_date(PARKS, moment)
    start, end = calendar.interval(PARKS, day, day)

    assert start <= moment < end
    assert calendar.business_date(PARKS, start) == calendar.business_date(PARKS, end - TICK) == day
    assert calendar.business_date(PARKS, start - TICK) < day < calendar.business_date(PARKS, end)
    assert calendar.interval(PARKS, day - DAY, day) == (calendar.end(PARKS, day - 2 * DAY), end)


@given(cutoffs=CUTOFFS, first=st.dates(date(2024, 1, 1), date(2026, 12, 1)), days=st.integers(1, 62))
def test_the_dates_of_a_month_make_the_month(cutoffs: list[tuple[date, time]], first: date, days: int) -> None:
    """One after the other, without a gap, and never backwards."""
    calendar = at(*cutoffs)
    dates = [first + n * DAY for n in range(days)]
    intervals = [calendar.interval(PARKS, day, day) for day in dates]

    assert all(start < end for start, end in intervals)
    assert [end for _, end in intervals[:-1]] == [start for start, _ in intervals[1:]]
    assert calendar.interval(PARKS, dates[0], dates[-1]) == (intervals[0][0], intervals[-1][1])


@pytest.mark.parametrize(
    ("day", "hours"),
    [(date(2026, 3, 8), 23), (date(2026, 11, 1), 25), (date(2024, 2, 29), 24), (date(2026, 12, 31), 24)],
)
@pytest.mark.parametrize("cutoffs", [(), ((date(2000, 1, 1), time()),)])
def test_the_length_of_a_date(day: date, hours: int, cutoffs: tuple[tuple[date, time], ...]) -> None:
    """Days on which the clocks are set are longer or shorter; 00:00 is as good as no cut-off."""
    start, end = at(*cutoffs).interval(PARKS, day, day)

    assert end - start == hours * HOUR
    assert start == local(day, 0)


def test_the_hour_that_comes_twice() -> None:
    """Both 01:15 of 2026-11-01 are of that date; with a cut-off between, one is, and the date does not return."""
    day = date(2026, 11, 1)
    once, again = local(day, 1, 15), local(day, 1, 15, fold=1)
    assert again.astimezone(UTC) - once.astimezone(UTC) == HOUR

    assert [at().business_date(PARKS, moment) for moment in (once, again)] == [day, day]
    early = at((date(2000, 1, 1), time(1, 30)))
    assert [early.business_date(PARKS, moment) for moment in (once, again)] == [day, day + DAY]
    assert early.business_date(PARKS, local(day, 1, 30)) == day + DAY


def test_the_hour_that_is_left_out() -> None:
    """A cut-off of 02:30 on 2026-03-08 comes an hour and a half after 01:00, when clocks show 03:30."""
    day = date(2026, 3, 8)
    calendar = at((date(2000, 1, 1), time(2, 30)))

    assert calendar.business_date(PARKS, local(day, 3, 29)) == day
    assert calendar.business_date(PARKS, local(day, 3, 30)) == day + DAY


def test_a_new_cut_off_holds_from_its_date_on() -> None:
    """From 17:00 to midnight and back: one date is longer, another shorter, and nothing is in two or none."""
    calendar = at((date(2026, 1, 1), time(17)), (date(2026, 6, 10), time()), (date(2026, 6, 20), time(17)))
    lengths = {day: end - start for day in (9, 10, 11, 20) for start, end in [_of(calendar, date(2026, 6, day))]}

    assert lengths == {9: 24 * HOUR, 10: 31 * HOUR, 11: 24 * HOUR, 20: 17 * HOUR}
    assert calendar.business_date(PARKS, local(date(2026, 6, 9), 17)) == date(2026, 6, 10)
    assert calendar.business_date(PARKS, local(date(2026, 6, 10), 23, 59)) == date(2026, 6, 10)
    assert calendar.business_date(PARKS, local(date(2025, 12, 31), 18)) == date(2025, 12, 31)


def test_a_cut_off_is_of_its_department() -> None:
    """What has none, the city as a whole among it, ends its dates at midnight."""
    calendar, evening = at((date(2026, 1, 1), time(17))), local(date(2026, 12, 31), 18)

    assert calendar.business_date(PARKS, evening) == date(2027, 1, 1)
    assert calendar.business_date("city", evening) == date(2026, 12, 31)


def _of(calendar: Calendar, day: date) -> tuple[datetime, datetime]:
    return calendar.interval(PARKS, day, day)
