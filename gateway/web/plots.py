"""Where the bars of a plot stand: numbers in, rectangles out; a template draws them as SVG.

Nothing but the bars is drawn. What stands beside them (scale, days, names) is text of the page, which stays readable
on a phone, and every plot has its numbers in a table below it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

WIDTH, HEIGHT = 720, 200
"""In units of the drawing, which is stretched to the room that there is."""
SERIES_MAX = 6
OTHERS = "others"
TICKS = 4


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle; `series` counts from 1, `said` is told where the pointer rests."""

    x: float
    y: float
    width: float
    height: float
    series: int
    said: tuple[str, date, int]


@dataclass(frozen=True, slots=True)
class Stacks:
    """A stack of bars for each day, one bar for each name."""

    names: Sequence[str]
    bars: Sequence[Bar]
    ticks: Sequence[int]
    """Values at the lines of the scale, the highest first; zero is the last."""
    days: Sequence[date]
    values: Mapping[tuple[str, date], int]

    def of(self, day: date) -> int:
        """The height of a stack."""
        return sum(self.values.get((name, day), 0) for name in self.names)


def stacks(names: Sequence[str], days: Sequence[date], values: Mapping[tuple[str, date], int]) -> Stacks:
    """The stacks of some names, the largest first; from the sixth on they are one, `OTHERS`."""
    shown, merged = _merged(names, days, values)
    highest = max((sum(merged.get((name, day), 0) for name in shown) for day in days), default=0)
    top = _round_up(highest)
    step = WIDTH / max(len(days), 1)
    bars = []
    for place, day in enumerate(days):
        base = float(HEIGHT)
        for series, name in enumerate(shown, 1):
            value = merged.get((name, day), 0)
            height = HEIGHT * value / top
            base -= height
            if value:
                x, width = round(place * step + step * 0.14, 2), round(step * 0.72, 2)
                bars.append(Bar(x, round(base, 2), width, round(height, 2), series, (name, day, value)))
    return Stacks(shown, bars, [top * tick // TICKS for tick in range(TICKS, -1, -1)], days, merged)


def _merged(
    names: Sequence[str], days: Sequence[date], values: Mapping[tuple[str, date], int]
) -> tuple[Sequence[str], Mapping[tuple[str, date], int]]:
    if len(names) <= SERIES_MAX:
        return names, values
    kept, rest = names[: SERIES_MAX - 1], names[SERIES_MAX - 1 :]
    others = {(OTHERS, day): sum(values.get((name, day), 0) for name in rest) for day in days}
    return [*kept, OTHERS], {key: value for key, value in values.items() if key[0] in kept} | others


def _round_up(highest: int) -> int:
    """The end of a scale: 4, 8, 10, 20 or 40 times a power of ten, so that its quarters are round, too."""
    power = 1
    while True:
        for step in (4, 8, 10, 20):
            if highest <= step * power:
                return step * power
        power *= 10
