"""The tables of a suite as Markdown, as CSV, and as lines for a terminal."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..job.messages import printable
from .differences import Difference, shown_p
from .grid import MISSING, Grid, shown_interval, shown_metric, shown_number

CSV_HEAD = (
    *("model", "task", "kind", "metric", "value", "low", "high", "samples", "higher_is_better", "seconds", "error"),
)
COMPARED = (
    "Two models are compared at the samples that both have; perplexities by the logarithm of each sample. p is how "
    "likely a difference of this size is where there is none: by McNemar's exact test for values of 0 and 1, by random "
    "signs of the differences for others. Of many tests some have a small p by chance; the adjusted p is for all tests "
    "of this table together, by Holm's method."
)
NO_TESTS = "No two models have samples of the same task in common."
DIFFERENCE_HEAD = ("task", "A", "B", "samples", "B - A", "95 % interval", "A, B better", "p", "adjusted p")
FIRST_NUMBER = 3
"""The first column of `DIFFERENCE_HEAD` and of `METRIC_HEAD` that is a number."""
_FORMULA = re.compile(r"[\t\r\n ]*[=+\-@|%]")
"""The beginning of a cell that a spreadsheet takes for a formula."""
_MARKDOWN = re.compile(r"([\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_]))")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_TERMINAL_TASKS = 6
"""Tasks up to which the table of a terminal has a column for each."""


def csv_text(grid: Grid) -> str:
    """One row for each model, task and metric; of a pair without a result one row that says so."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for row in _csv_rows(grid):
        writer.writerow([_csv_cell(cell) for cell in row])
    return file.getvalue()


def _csv_rows(grid: Grid) -> Iterator[tuple[Any, ...]]:
    for model in grid.models:
        for task in grid.tasks:
            pair = (model, task)
            if (result := grid.results.get(pair)) is not None:
                for one in result.metrics:
                    value = (one.name, one.value, one.low, one.high, one.samples, one.higher_is_better)
                    yield (model, task, result.kind, *value, result.seconds, None)
            else:
                error = grid.failures[pair].error if pair in grid.failures else MISSING
                yield (model, task, *[None] * 8, error)


def _csv_cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula; nothing for a number that is not known."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return value if value == value else None
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if _FORMULA.match(text) else text


def markdown_text(name: str, grid: Grid, differences: Sequence[Difference]) -> str:
    """The tables for a text in Markdown: main metrics, all metrics, differences, remarks and failures."""
    tests = [difference_row(one) for one in differences]
    failures = [(one.model, one.task, one.error) for one in grid.failures.values()]
    head = ["model", *(grid.heading(task) for task in grid.tasks)]
    sections: list[tuple[str, Iterable[str]]] = [
        ("", [f"# {_markdown(name)}"]),
        ("", _markdown_table(head, [main_row(grid, model) for model in grid.models], numbers=1)),
        ("", ["The first metric of each task, with its 95 % interval."]),
        ("Remarks", [f"- {_markdown(one)}" for one in grid.remarks()]),
        (
            "Differences between models",
            [COMPARED, "", *_markdown_table(DIFFERENCE_HEAD, tests, FIRST_NUMBER)] if tests else [],
        ),
        ("All metrics", _markdown_table(METRIC_HEAD, [*metric_rows(grid)], FIRST_NUMBER)),
        ("Failures", _markdown_table(["model", "task", "error"], failures, numbers=3) if failures else []),
    ]
    lines = []
    for title, found in sections:
        if content := [*found]:
            lines += [*([f"## {title}", ""] if title else []), *content, ""]
    return "\n".join(lines)


METRIC_HEAD = ("task", "model", "metric", "value", "95 % interval", "samples")


def metric_rows(grid: Grid) -> Iterator[tuple[str, ...]]:
    """All metrics: cells under `METRIC_HEAD`."""
    for task in grid.tasks:
        for model in grid.models:
            if (result := grid.results.get((model, task))) is not None:
                for one in result.metrics:
                    value = (one.name, shown_number(one.value), shown_interval(one), f"{one.samples:,}")
                    yield (task, model, *value)


def main_row(grid: Grid, model: str) -> list[str]:
    """The name of a model, and its first metric of each task."""
    cells = []
    for task in grid.tasks:
        metric = grid.main(model, task)
        cells.append(grid.state(model, task) or (shown_metric(metric) if metric is not None else "no metric"))
    return [model, *cells]


def difference_row(one: Difference) -> tuple[str, ...]:
    """A difference: cells under `DIFFERENCE_HEAD`."""
    return (
        *(f"{one.task} ({one.metric})", one.a, one.b, f"{one.samples:,}"),
        *(f"{one.mean_b - one.mean_a:+.4f}", f"{one.low:+.4f} to {one.high:+.4f}"),
        *(f"{one.only_a:,}, {one.only_b:,}", shown_p(one.p_value), shown_p(one.adjusted)),
    )


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: int) -> list[str]:
    """A table.

    Args:
        numbers: the first column that is aligned to the right.
    """
    lines = ["---" if index < numbers else "--:" for index in range(len(head))]
    cells = [[*map(_markdown, head)], lines, *([*map(_markdown, row)] for row in rows)]
    return [f"| {' | '.join(row)} |" for row in cells]


def _markdown(text: str) -> str:
    """A text that Markdown and HTML show as it is, on one line."""
    escaped = _MARKDOWN.sub(r"\\\1", " ".join(printable(text).split()))
    return "".join(_HTML.get(char, char) for char in escaped)


def terminal_lines(grid: Grid) -> list[str]:
    """The main metrics for a terminal: a line for each model, or for each task where there are many."""
    rows = [["model", *map(grid.heading, grid.tasks)], *(main_row(grid, model) for model in grid.models)]
    if len(grid.tasks) > _TERMINAL_TASKS:
        rows = [[*cells] for cells in zip(*rows, strict=True)]
        rows[0][0] = "task"
    rows = [[" ".join(printable(cell).split()) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
