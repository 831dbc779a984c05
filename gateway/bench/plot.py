"""Ratios as a drawing: a bar each, with its spread and the line of its target; an SVG without script or font."""

from collections.abc import Sequence
from html import escape

from gateway.bench.report import Ratio

WIDTH, ROW, LEFT, RIGHT, TOP = 900, 34, 340, 60, 30
BAR = 16


def svg(ratios: Sequence[Ratio]) -> str:
    """Each row is drawn in units of its own target, so that all targets stand on one line."""
    top = max([1.5, *(ratio.highest / ratio.at_least for ratio in ratios)])
    unit = (WIDTH - LEFT - RIGHT) / top
    height = TOP + ROW * len(ratios) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        "<title>Ratios beside their targets</title><style>text {font: 13px sans-serif}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for place, ratio in enumerate(ratios):
        parts += _row(ratio, TOP + place * ROW, unit)
    line = LEFT + unit
    parts += [
        f'<path d="M{line:.1f} {TOP - 8}V{height - 8}" stroke="#b00020" stroke-dasharray="5 3"/>',
        f'<text x="{line:.1f}" y="{TOP - 13}" text-anchor="middle" fill="#b00020">target</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _row(ratio: Ratio, y: int, unit: float) -> list[str]:
    middle, (low, median, high) = (
        y + BAR / 2,
        (LEFT + unit * value / ratio.at_least for value in (ratio.lowest, ratio.median, ratio.highest)),
    )
    color = "#1b6e3c" if ratio.met else "#c77700"
    name = escape(f"{ratio.name}  (≥ {ratio.at_least:g})")
    return [
        f'<text x="{LEFT - 8}" y="{middle + 5:.1f}" text-anchor="end">{name}</text>',
        f'<rect x="{LEFT}" y="{y}" width="{median - LEFT:.1f}" height="{BAR}" fill="{color}"/>',
        f'<path d="M{low:.1f} {middle:.1f}H{high:.1f}m0 -5v10M{low:.1f} {middle - 5:.1f}v10" stroke="#222"/>',
        f'<text x="{high + 8:.1f}" y="{middle + 5:.1f}">{ratio.median:.2f}</text>',
    ]
