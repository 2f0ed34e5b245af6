"""The page report.html of a suite: one file without scripts or links, with the look of a job's report."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import yaml

from .. import __version__
from ..job.report.charts import points_chart
from ..job.report.page_parts import Figure, Table
from ..job.report.page_template import environment, style
from ..job.report.wording import count, counted, date, duration, moment, shortened
from .differences import Difference
from .grid import FAILED, MISSING, Grid, series, shown_interval, shown_number
from .table_files import (
    COMPARED,
    DIFFERENCE_HEAD,
    METRIC_HEAD,
    NO_TESTS,
    difference_row,
    main_row,
    metric_rows,
)

MOST_MODELS, MOST_TASKS = 60, 30
"""Models and tasks of the first table. table.csv has all of them."""
MOST_ROWS = 300
"""Rows of every other table."""
MOST_CHARTS = 20
MOST_POINTS = 100
MOST_LISTS = 40
"""Lists of samples that have changed."""
MOST_REMARKS = 30
NAME_CHARACTERS = 60
ERROR_CHARACTERS = 500
SETTINGS_CHARACTERS = 3000
MOST_SETTINGS = 30


def render(name: str, grid: Grid, differences: Sequence[Difference]) -> str:
    """Returns the page.

    Args:
        name: of the suite.
        differences: between the models of the grid.
    """
    template = environment().from_string(files(__package__).joinpath("suite.html.j2").read_text(encoding="utf-8"))
    failed, missing = grid.count(FAILED), grid.count(MISSING)
    mark = "!" if failed else "…" if missing else "✓"
    remarks = grid.remarks()
    return template.render(
        style=style(),
        title=f"{mark} {_short(name)}: {counted(len(grid.models), 'model')}, {counted(len(grid.tasks), 'task')}",
        name=_short(name),
        pills=_pills(failed, missing),
        lead=_lead(grid),
        remarks=[_short(remark, ERROR_CHARACTERS) for remark in remarks[:MOST_REMARKS]],
        more_remarks=_more(len(remarks) - MOST_REMARKS, "remarks"),
        main=_main(grid),
        failures=_failures(grid),
        figures=_figures(grid),
        differences=_table(DIFFERENCE_HEAD, [*map(difference_row, differences)], range(4, len(DIFFERENCE_HEAD))),
        compared=COMPARED if differences else NO_TESTS,
        changed=_changed(grid, differences),
        metrics=_table(METRIC_HEAD, [*metric_rows(grid)], range(3, len(METRIC_HEAD))),
        settings=_settings(grid),
        version=__version__,
        written=date(moment(time.time())),
    )


def _pills(failed: int, missing: int) -> list[dict[str, str]]:
    """The state of the suite in a few words each."""
    found = [{"kind": "bad", "text": f"{count(failed)} failed"}] if failed else []
    found += [{"kind": "warn", "text": f"{count(missing)} missing"}] if missing else []
    return found or [{"kind": "good", "text": "finished"}]


def _lead(grid: Grid) -> list[str]:
    seconds = sum(one.seconds for one in grid.results.values())
    models, tasks = counted(len(grid.models), "model"), counted(len(grid.tasks), "task")
    return [
        f"{models} at {tasks}: {counted(len(grid.results), 'result')} in {duration(seconds)}.",
        "The table has the first metric of each task, with its 95 % interval over questions or rows.",
    ]


def _main(grid: Grid) -> Table:
    """Models and tasks, with the first metric of each."""
    shown = Grid(grid.models[:MOST_MODELS], grid.tasks[:MOST_TASKS], grid.results, grid.failures)
    head = ["model", *(_short(shown.heading(task)) for task in shown.tasks)]
    rows = [[_short(cell) for cell in main_row(shown, model)] for model in shown.models]
    left = [_more(len(grid.models) - MOST_MODELS, "models"), _more(len(grid.tasks) - MOST_TASKS, "tasks")]
    return Table(head, rows, frozenset(range(1, len(head))), " ".join(filter(None, left)))


def _figures(grid: Grid) -> list[Figure]:
    """A chart of each task over the checkpoints of a series; none of other models."""
    numbers = series(grid.models)[:MOST_POINTS]
    figures = []
    for task in grid.tasks[:MOST_CHARTS] if len(numbers) > 2 else ():
        found = [
            (model, f"{number:,.10g}", metric)
            for model, number in numbers
            if (metric := grid.main(model, task)) is not None and math.isfinite(metric.value) and metric.value >= 0
        ]
        if len(found) < 2:
            continue
        points = [
            (label, one.value, None if one.low is None or one.high is None else (one.low, one.high))
            for _, label, one in found
        ]
        title, unit = _short(grid.heading(task)), _short(found[0][2].name)
        rows = [[_short(model), shown_number(one.value), shown_interval(one)] for model, _, one in found]
        figures.append(
            Figure(
                title,
                points_chart(f"{title} of each checkpoint", points, unit=unit, axis="number in the model's name"),
                Table(["model", unit, "95 % interval"], rows, frozenset({1, 2})),
            )
        )
    return figures


def _changed(grid: Grid, differences: Sequence[Difference]) -> list[dict[str, Any]]:
    """For models that follow each other: the samples that have changed."""
    neighbours = set(grid.neighbours())
    known = [one for one in differences if (one.a, one.b) in neighbours and one.changed]
    return [
        {
            "title": f"{_short(one.task)}: {_short(one.a)} → {_short(one.b)}",
            "note": f"{count(one.only_b)} better, {count(one.only_a)} worse, of {count(one.samples)}",
            "table": Table(
                ["id", f"{_short(one.metric)} before", "after"],
                [[_short(sample.identity), shown_number(sample.a), shown_number(sample.b)] for sample in one.changed],
                frozenset({1, 2}),
                _more(one.only_a + one.only_b - len(one.changed), "samples", "the results' samples.parquet"),
            ),
        }
        for one in known[:MOST_LISTS]
    ]


def _failures(grid: Grid) -> Table:
    rows = [
        [_short(one.model), _short(one.task), date(moment(one.time)) if one.time else "", one.error]
        for one in grid.failures.values()
    ]
    return _table(["model", "task", "when", "error"], rows, (), ERROR_CHARACTERS)


def _settings(grid: Grid) -> list[dict[str, str]]:
    """The settings of each task, of the first model that has a result."""
    found = []
    for task in grid.tasks[:MOST_SETTINGS]:
        settings = [grid.results[model, task].settings for model in grid.models if (model, task) in grid.results]
        if settings and settings[0]:
            text = yaml.safe_dump(settings[0], sort_keys=False, allow_unicode=True, width=100)
            found.append({"task": _short(task), "text": shortened(text, SETTINGS_CHARACTERS)})
    return found


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int], most: int = NAME_CHARACTERS
) -> Table:
    """A table of the first rows, with at most so many characters in a cell."""
    shown = [[_short(cell, most) for cell in row] for row in rows[:MOST_ROWS]]
    return Table(head, shown, frozenset(numbers), _more(len(rows) - MOST_ROWS, "rows"))


def _more(left: int, what: str, where: str = "table.md and table.csv") -> str:
    """A sentence about what is left out; "" where nothing is."""
    return f"And {count(left)} more {what}: see {where}." if left > 0 else ""


def _short(text: str, most: int = NAME_CHARACTERS) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
