"""The page report.html: one file without scripts or links, with charts in SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .progress import RATES
from .score_conventions import shown_metric

WIDTH, HEIGHT, MARGIN = 640, 200, 46
COLOURS = ("#2a6f97", "#e07a5f", "#6a994e", "#9d4edd")

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem; border-bottom: 1px solid #ddd }
table { border-collapse: collapse } td, th { text-align: left; vertical-align: top; padding: .15rem .8rem .15rem 0 }
th { font-weight: 600; white-space: nowrap } td { overflow-wrap: anywhere } svg { max-width: 100%; height: auto }
svg text { font: 11px system-ui, sans-serif; fill: #555 } .charts { display: flex; flex-wrap: wrap; gap: 1rem }
"""


def render(report: Mapping[str, Any]) -> str:
    """Returns the report as an HTML page."""
    time = report["timeline"]
    occupancy = [
        used / slots if slots else 0.0 for used, slots in zip(time["slots_in_use"], time["slots"], strict=True)
    ]
    throughput = {kind: time[f"{kind}_tokens"] for kind in reversed(RATES[report["task"]])}
    charts = [line_chart("tokens per second", time["seconds"], throughput)]
    charts.append(line_chart("slots in use, share", time["seconds"], {"occupancy": occupancy}))
    for name, histogram in report["length_histograms"].items():
        charts.append(bar_chart(name.replace("_", " "), histogram))
    for name in ("finish_reasons", "errors"):
        if report[name]:
            charts.append(bar_chart(name.replace("_", " "), report[name]))
    summary = {
        "output": report["output"],
        "complete": report["complete"],
        "parts": f"{report['parts']['published']} of {report['parts']['planned']}",
        **({"damaged parts": report["damaged"]} if report["damaged"] else {}),
        "input rows": report["rows_planned"],
        "output rows": report["rows"],
        "tokens": report["tokens"],
        "shared prefixes": report["prefixes"],
        "in use, mean over all steps": {name: f"{share:.1%}" for name, share in report["utilisation"].items()},
        **{name: shown_metric(metric) for name, metric in report["scores"].items()},
    }
    sections = [
        ("Summary", _table(summary)),
        *_of_scores(report),
        ("Charts", f'<div class="charts">{"".join(charts)}</div>'),
        *((f"Run {index}", _table(run)) for index, run in enumerate(report["runs"], 1)),
        ("Job", _table(report["job"])),
    ]
    body = "".join(f"<h2>{escape(title)}</h2>{content}" for title, content in sections)
    head = f'<meta charset="utf-8"><title>{escape(report["output"])}</title><style>{_STYLE}</style>'
    return f"<!doctype html><html><head>{head}</head><body><h1>rwkv_batch report</h1>{body}</body></html>\n"


def _of_scores(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the sections of a score job: the scores of groups, and the conventions; none for another task."""
    sections = []
    if groups := report.get("score_groups"):
        table = {
            name: {
                "rows": max((metric["rows"] for metric in metrics.values()), default=0),
                **{metric: shown_metric(found) for metric, found in metrics.items()},
            }
            for name, metrics in groups["groups"].items()
        }
        sections.append((f"Scores by {groups['column']}", _columns_table(groups["column"], table)))
    if "conventions" in report:
        sections.append(("Conventions of the scores", _table(report["conventions"])))
    return sections


def line_chart(title: str, x: Sequence[float], series: Mapping[str, Sequence[float]]) -> str:
    """Returns a chart of lines over seconds. The scale goes from zero to the highest value of all series."""
    top = max((value for values in series.values() for value in values), default=0.0) or 1.0
    end = (x[-1] if x else 0.0) or 1.0
    shapes = [_axes(title, _number(top), f"{_number(end)} s")]
    for index, (name, values) in enumerate(series.items()):
        across = (MARGIN + seconds / end * (WIDTH - 2 * MARGIN) for seconds in x)
        down = (HEIGHT - MARGIN - value / top * (HEIGHT - 2 * MARGIN) for value in values)
        points = " ".join(f"{left:.1f},{y:.1f}" for left, y in zip(across, down, strict=True))
        colour = COLOURS[index % len(COLOURS)]
        shapes.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        right = WIDTH - MARGIN - 90 * index
        shapes.append(f'<text x="{right}" y="16" text-anchor="end" style="fill:{colour}">{escape(name)}</text>')
    return _svg(shapes)


def bar_chart(title: str, counts: Mapping[str, int]) -> str:
    """Returns a chart with a bar for each name, in the given order, and its count above the bar."""
    top = max(counts.values(), default=0) or 1
    step = (WIDTH - 2 * MARGIN) / max(1, len(counts))
    shapes = [_axes(title, _number(top), "")]
    for index, (name, count) in enumerate(counts.items()):
        left, height = MARGIN + index * step, count / top * (HEIGHT - 2 * MARGIN)
        middle, y = left + step / 2, HEIGHT - MARGIN - height
        bar = f'x="{left + step * 0.1:.1f}" y="{y:.1f}" width="{step * 0.8:.1f}" height="{height:.1f}"'
        shapes.append(f'<rect {bar} fill="{COLOURS[0]}"/>')
        shapes.append(f'<text x="{middle:.1f}" y="{y - 4:.1f}" text-anchor="middle">{count:,}</text>')
        shapes.append(
            f'<text x="{middle:.1f}" y="{HEIGHT - MARGIN + 14}" text-anchor="middle">{escape(str(name))}</text>'
        )
    return _svg(shapes)


def _svg(shapes: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">{"".join(shapes)}</svg>'


def _axes(title: str, top: str, end: str) -> str:
    left, right, bottom = MARGIN, WIDTH - MARGIN, HEIGHT - MARGIN
    return (
        f'<text x="{left}" y="16" style="font-weight:600">{escape(title)}</text>'
        f'<path d="M{left} {MARGIN}V{bottom}H{right}" fill="none" stroke="#999"/>'
        f'<text x="{left - 4}" y="{MARGIN + 4}" text-anchor="end">{top}</text>'
        f'<text x="{left - 4}" y="{bottom}" text-anchor="end">0</text>'
        f'<text x="{right}" y="{bottom + 14}" text-anchor="end">{end}</text>'
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def _columns_table(corner: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a table with a row for each name, and a column for each value; `corner` is the head of the names."""
    heads = [*dict.fromkeys(head for values in rows.values() for head in values)]
    lines = ["".join(f"<th>{escape(str(head))}</th>" for head in (corner, *heads))]
    lines += [
        f"<th>{escape(name)}</th>" + "".join(f"<td>{_table(values.get(head, ''))}</td>" for head in heads)
        for name, values in rows.items()
    ]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _table(value: Any) -> str:
    """Returns mappings as tables, lists of mappings as tables below each other, and any other value as text."""
    if isinstance(value, Mapping):
        rows = (f"<tr><th>{escape(str(name))}</th><td>{_table(item)}</td></tr>" for name, item in value.items())
        return f"<table>{''.join(rows)}</table>"
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return "".join(_table(item) for item in value)
    if isinstance(value, list):
        return escape(", ".join(map(str, value)))
    return escape(f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))
