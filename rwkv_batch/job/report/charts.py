"""Charts of the report page, as inline SVG. Colours and fonts come from the page's style; each mark has a tooltip."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil, floor, log10
from typing import Any

from markupsafe import Markup, escape

from .wording import DAY, HOUR, MINUTE, count, duration, percent, rounded

WIDTH, HEIGHT = 440, 220
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 26, 42
ACROSS, DOWN = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
NUM_TICKS = 4
MOST_LABELS = 8
CHARACTER_WIDTH = 7
"""Of a label, with some room beside it."""
TIME_STEPS = (
    *(1, 2, 5, 10, 15, 30),
    *(number * MINUTE for number in (1, 2, 5, 10, 15, 30)),
    *(number * HOUR for number in (1, 2, 3, 6, 12)),
    *(number * DAY for number in (1, 2, 5, 10, 30)),
)

Wording = Callable[[float], str]


def time_chart(
    label: str,
    seconds: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    unit: str,
    top: float | None = None,
    marks: Sequence[Mapping[str, Any]] = (),
    words: Wording = rounded,
) -> Markup:
    """Returns lines over the time of serving, the first of them filled.

    Args:
        label: what a screen reader says.
        seconds: the middles of bins of equal width.
        series: name → a value for each bin.
        unit: of the values.
        top: the highest value of the scale; None takes that of the values.
        marks: each a vertical line, at "seconds", with "text" for its tooltip and "kind" for its style.
    """
    width = (2 * seconds[0] if len(seconds) else 0) or 1.0
    end = width * max(len(seconds), 1)
    ticks = _ticks(top if top is not None else max((max(values) for values in series.values()), default=0.0))
    shapes = [_frame(ticks, unit, words), _time_axis(end)]
    for index, values in enumerate(series.values(), 1):
        points = [
            (LEFT + at / end * ACROSS, _height(value / ticks[-1])) for at, value in zip(seconds, values, strict=True)
        ]
        if len(points) == 1:
            points = [(LEFT, points[0][1]), (LEFT + ACROSS, points[0][1])]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        if index == 1 and points:
            base = f"{points[-1][0]:.1f},{_height(0):.1f} {points[0][0]:.1f},{_height(0):.1f}"
            shapes.append(Markup('<polygon class="area c1" points="{} {}"/>').format(line, base))
        shapes.append(Markup('<polyline class="line c{}" points="{}"/>').format(index, line))
    for mark in marks:
        x = LEFT + min(mark["seconds"] / end, 1) * ACROSS
        line = Markup('<path d="M{0:.1f} {1}V{2}"/><path class="hit" d="M{0:.1f} {1}V{2}"/>').format(x, TOP, TOP + DOWN)
        shapes.append(Markup('<g class="mark {}">{}{}</g>').format(mark["kind"], _tip(mark["text"]), line))
    for index, at in enumerate(seconds):
        said = ", ".join(f"{name} {words(values[index])}" for name, values in series.items())
        tip = f"at {duration(at)}: {said} {unit}"
        shapes.append(_bar(LEFT + (at - width / 2) / end * ACROSS, TOP, width / end * ACROSS, DOWN, "over", tip))
    return _svg(label, shapes)


def bar_chart(
    label: str, bars: Sequence[tuple[str, Sequence[float]]], names: Sequence[str], *, unit: str, axis: str
) -> Markup:
    """Returns groups of bars, one group for each label.

    Args:
        bars: the label of each group, with a value for each of `names`.
        names: what the bars of a group are.
        unit: of the values.
        axis: what the labels are.
    """
    ticks = _ticks(max((max(values) for _, values in bars), default=0.0))
    shapes = [_frame(ticks, unit, count)]
    step = ACROSS / max(len(bars), 1)
    widest = max((len(name) for name, _ in bars), default=0) * CHARACTER_WIDTH
    every = max(ceil(len(bars) / MOST_LABELS), ceil(widest / step))
    for index, (name, values) in enumerate(bars):
        left, wide = LEFT + index * step, step * 0.86 / len(values)
        for number, value in enumerate(values):
            height = value / ticks[-1] * DOWN
            what = f"{names[number]}: " if len(names) > 1 else ""
            tip = f"{f'{name} {axis}'.strip()}: {what}{count(value)} {unit}"
            x = left + step * 0.07 + number * wide
            shapes.append(_bar(x, _height(value / ticks[-1]), wide, height, f"bar c{number + 1}", tip))
        if index % every == 0:
            shapes.append(_text(left + step / 2, TOP + DOWN + 15, name, "middle"))
    shapes.append(_text(WIDTH - RIGHT, HEIGHT - 6, axis, "end"))
    return _svg(label, shapes)


def points_chart(
    label: str, points: Sequence[tuple[str, float, tuple[float, float] | None]], *, unit: str, axis: str
) -> Markup:
    """Returns values with their intervals, joined by a line, at equal distances.

    Args:
        points: label, value and interval of each; None where that is not known.
        unit: of the values.
        axis: what the labels are.
    """
    ticks = _ticks(max((max(value, *(interval or ())) for _, value, interval in points), default=0.0))
    shapes = [_frame(ticks, unit, rounded)]
    step = ACROSS / max(len(points), 1)
    every = -(-len(points) // MOST_LABELS)
    where = [(LEFT + (index + 0.5) * step, _height(value / ticks[-1])) for index, (_, value, _) in enumerate(points)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in where)
    shapes.append(Markup('<polyline class="line c1" points="{}"/>').format(line))
    for index, ((x, y), (name, value, interval)) in enumerate(zip(where, points, strict=True)):
        said = ""
        if interval is not None:
            ends = [_height(min(max(end, 0.0), ticks[-1]) / ticks[-1]) for end in interval]
            shapes.append(Markup('<path class="line c1" d="M{:.1f} {:.1f}V{:.1f}"/>').format(x, *ends))
            said = f", 95 % interval {rounded(interval[0])} to {rounded(interval[1])}"
        dot = Markup('<circle class="c1" cx="{:.1f}" cy="{:.1f}" r="4">{}</circle>')
        shapes.append(dot.format(x, y, _tip(f"{name}: {rounded(value)}{said}")))
        if index % every == 0:
            shapes.append(_text(x, TOP + DOWN + 15, name, "middle"))
    shapes.append(_text(WIDTH - RIGHT, HEIGHT - 6, axis, "end"))
    return _svg(label, shapes)


def calibration_chart(label: str, points: Sequence[Mapping[str, float]]) -> Markup:
    """Returns how often the model was right over how sure it was, beside the line on which both are equal.

    Args:
        points: "confidence", "accuracy" and "rows" of each bin.
    """
    shapes = [_frame([0, 0.25, 0.5, 0.75, 1], "right", percent)]
    for share in (0, 0.25, 0.5, 0.75, 1):
        shapes.append(_text(LEFT + share * ACROSS, TOP + DOWN + 15, percent(share), "end" if share == 1 else "middle"))
    shapes.append(Markup('<path class="ideal" d="M{} {}L{} {}"/>').format(LEFT, TOP + DOWN, LEFT + ACROSS, TOP))
    most = max((point["rows"] for point in points), default=1)
    where = [(LEFT + point["confidence"] * ACROSS, _height(point["accuracy"])) for point in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in where)
    shapes.append(Markup('<polyline class="line c1" points="{}"/>').format(line))
    for (x, y), point in zip(where, points, strict=True):
        tip = f"{count(point['rows'])} rows: {percent(point['confidence'])} sure, {percent(point['accuracy'])} right"
        size = 3 + 5 * (point["rows"] / most) ** 0.5
        dot = Markup('<circle class="c1" cx="{:.1f}" cy="{:.1f}" r="{:.1f}">{}</circle>')
        shapes.append(dot.format(x, y, size, _tip(tip)))
    shapes.append(_text(WIDTH - RIGHT, HEIGHT - 6, "probability of the best choice", "end"))
    return _svg(label, shapes)


def _svg(label: str, shapes: Sequence[Markup]) -> Markup:
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>')
    return head.format(WIDTH, HEIGHT, label, Markup("").join(shapes))


def _frame(ticks: Sequence[float], unit: str, words: Wording) -> Markup:
    """The horizontal lines of a scale, its numbers and its unit."""
    shapes = [_text(4, 11, unit, "start")]
    for tick in ticks:
        y = _height(tick / ticks[-1])
        kind = "axis" if not tick else "grid"
        shapes.append(Markup('<path class="{}" d="M{} {:.1f}H{}"/>').format(kind, LEFT, y, LEFT + ACROSS))
        shapes.append(_text(LEFT - 6, y + 4, words(tick), "end"))
    return Markup("").join(shapes)


def _time_axis(end: float) -> Markup:
    step = next((step for step in TIME_STEPS if end / step <= NUM_TICKS + 1), end)
    step = step if end >= 1 else end
    shapes = [_text(WIDTH - RIGHT, HEIGHT - 6, "time of serving", "end")]
    for index in range(int(end / step + 1e-9) + 1):
        x = LEFT + index * step / end * ACROSS
        shapes.append(Markup('<path class="axis" d="M{:.1f} {}v4"/>').format(x, TOP + DOWN))
        anchor = "end" if x > WIDTH - RIGHT - 12 else "middle"
        shapes.append(_text(x, TOP + DOWN + 17, duration(index * step), anchor))
    return Markup("").join(shapes)


def _ticks(top: float) -> list[float]:
    """Round numbers from 0 to at least `top`."""
    if top <= 0:
        return [0.0, 1.0]
    power = 10.0 ** floor(log10(top / NUM_TICKS))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power * NUM_TICKS >= top * (1 - 1e-9))
    return [index * step for index in range(ceil(top / step - 1e-9) + 1)]


def _height(share: float) -> float:
    return TOP + (1 - share) * DOWN


def _bar(x: float, y: float, width: float, height: float, kind: str, tip: str) -> Markup:
    box = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">{}</rect>')
    return box.format(kind, x, y, width, height, _tip(tip))


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def _tip(text: str) -> Markup:
    return Markup("<title>{}</title>").format(escape(text))
