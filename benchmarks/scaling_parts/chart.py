"""Charts of efficiency over the number of workers, in SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, RIGHT = 640, 340, 46, 40, 44, 20
COLOURS = ("#2a6f97", "#e07a5f", "#6a994e", "#9d4edd")
DASHES = ("", "6 3", "2 3")
TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


def efficiency_chart(title: str, workers: Sequence[int], series: Mapping[str, Sequence[float]]) -> str:
    """Returns a chart: the number of workers on a logarithmic scale, the efficiency from 0 to 1.

    Args:
        series: name → the efficiency at each number of workers.
    """
    last = math.log(max(workers)) or 1.0
    across = [LEFT + math.log(count) / last * (WIDTH - LEFT - RIGHT) for count in workers]
    shapes = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>', _text(LEFT, 18, title, "start", "600")]
    for tick in TICKS:
        shapes.append(f'<path d="M{LEFT} {_down(tick):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        shapes.append(_text(LEFT - 6, _down(tick) + 4, f"{tick:g}", "end"))
    for count, x in zip(workers, across, strict=True):
        shapes.append(_text(x, HEIGHT - BOTTOM + 16, f"{count:,}", "middle"))
    shapes.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "workers", "middle"))
    for index, (name, values) in enumerate(series.items()):
        points = " ".join(f"{x:.1f},{_down(value):.1f}" for x, value in zip(across, values, strict=True))
        look = f'stroke="{COLOURS[index % len(COLOURS)]}" stroke-dasharray="{DASHES[index // len(COLOURS)]}"'
        shapes.append(f'<polyline points="{points}" fill="none" stroke-width="2" {look}/>')
        y = _down(0.0) - 14 * (len(series) - index)
        shapes.append(f'<path d="M{LEFT + 10} {y - 4:.1f}h24" stroke-width="2" {look}/>')
        shapes.append(_text(LEFT + 40, y, name, "start"))
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n' + "\n".join(shapes) + "\n</svg>\n"


def _down(value: float) -> float:
    return HEIGHT - BOTTOM - value * (HEIGHT - TOP - BOTTOM)


def _text(x: float, y: float, text: str, anchor: str, weight: str = "400") -> str:
    look = f'text-anchor="{anchor}" font-family="sans-serif" font-size="12" font-weight="{weight}" fill="#444"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{escape(text)}</text>'
