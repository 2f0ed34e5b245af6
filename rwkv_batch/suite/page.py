"""The page report.html of a suite: one file without scripts or links, with the look of a job's report."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
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
    FIRST_NUMBER,
    METRIC_HEAD,
    NO_TESTS,
    difference_row,
    main_row,
    metric_rows,
)

MOST_BYTES = 480_000
"""The size beyond which a page is made again with less in it."""
NAME_CHARACTERS = 60
ERROR_CHARACTERS = 300
SETTINGS_CHARACTERS = 2000


@dataclass(frozen=True)
class Limits:
    """The most that a page shows. The files of tables have everything.

    Args:
        models, tasks: of the first table.
        rows: of every other table.
        charts, points: charts, and checkpoints in each.
        lists: of samples that have changed.
        remarks, settings: remarks, and tasks whose settings are shown.
    """

    models: int = 60
    tasks: int = 30
    rows: int = 300
    charts: int = 20
    points: int = 60
    lists: int = 40
    remarks: int = 30
    settings: int = 30

    def halved(self) -> Limits:
        """Half of everything, but at least one of each."""
        return Limits(*(max(1, most // 2) for most in astuple(self)))


def render(name: str, grid: Grid, differences: Sequence[Difference]) -> str:
    """Returns the page. It shows less where it would be larger than `MOST_BYTES`.

    Args:
        name: of the suite.
        differences: between the models of the grid.
    """
    limits = Limits()
    page = _page(name, grid, differences, limits)
    while len(page.encode(errors="replace")) > MOST_BYTES and limits != limits.halved():
        limits = limits.halved()
        page = _page(name, grid, differences, limits)
    return page


def _page(name: str, grid: Grid, differences: Sequence[Difference], limits: Limits) -> str:
    template = environment().from_string(files(__package__).joinpath("suite.html.j2").read_text(encoding="utf-8"))
    failed, missing = grid.count(FAILED), grid.count(MISSING)
    mark = "!" if failed else "…" if missing else "✓"
    remarks = grid.remarks()
    tests = [*map(difference_row, differences)]
    return template.render(
        style=style(),
        title=f"{mark} {_short(name)}: {counted(len(grid.models), 'model')}, {counted(len(grid.tasks), 'task')}",
        name=_short(name),
        pills=_pills(failed, missing),
        lead=_lead(grid),
        remarks=[_short(remark, ERROR_CHARACTERS) for remark in remarks[: limits.remarks]],
        more_remarks=_more(len(remarks) - limits.remarks, "remarks"),
        main=_main(grid, limits),
        failures=_table(["model", "task", "when", "error"], _failures(grid), (), limits.rows),
        figures=_figures(grid, limits),
        differences=_table(DIFFERENCE_HEAD, tests, range(FIRST_NUMBER, len(DIFFERENCE_HEAD)), limits.rows),
        compared=COMPARED if differences else NO_TESTS,
        changed=_changed(grid, differences)[: limits.lists],
        metrics=_table(METRIC_HEAD, [*metric_rows(grid)], range(FIRST_NUMBER, len(METRIC_HEAD)), limits.rows),
        settings=_settings(grid)[: limits.settings],
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


def _main(grid: Grid, limits: Limits) -> Table:
    """Models and tasks, with the first metric of each."""
    shown = Grid(grid.models[: limits.models], grid.tasks[: limits.tasks], grid.results, grid.failures)
    head = ["model", *(_short(shown.heading(task)) for task in shown.tasks)]
    rows = [[_short(cell) for cell in main_row(shown, model)] for model in shown.models]
    left = [_more(len(grid.models) - limits.models, "models"), _more(len(grid.tasks) - limits.tasks, "tasks")]
    return Table(head, rows, frozenset(range(1, len(head))), " ".join(filter(None, left)))


def _figures(grid: Grid, limits: Limits) -> list[Figure]:
    """A chart of each task over the checkpoints of a series, the last ones; none of other models."""
    numbers = series(grid.models)[-limits.points :]
    figures = []
    for task in grid.tasks[: limits.charts] if len(numbers) > 2 else ():
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
        for one in known
    ]


def _failures(grid: Grid) -> list[list[str]]:
    """The cells of each failure."""
    return [
        [one.model, one.task, date(moment(one.time)) if one.time else "", _short(one.error, ERROR_CHARACTERS)]
        for one in grid.failures.values()
    ]


def _settings(grid: Grid) -> list[dict[str, str]]:
    """The settings of each task, of the first model that has a result."""
    found = []
    for task in grid.tasks:
        settings = [grid.results[model, task].settings for model in grid.models if (model, task) in grid.results]
        if settings and settings[0]:
            text = yaml.safe_dump(settings[0], sort_keys=False, allow_unicode=True, width=100)
            found.append({"task": _short(task), "text": shortened(text, SETTINGS_CHARACTERS)})
    return found


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int], most: int) -> Table:
    """A table of the first rows, at most this many. Names in it are shortened, the last cell of a row is not."""
    shown = [[*map(_short, row[:-1]), row[-1]] for row in rows[:most]]
    return Table(head, shown, frozenset(numbers), _more(len(rows) - most, "rows"))


def _more(left: int, what: str, where: str = "table.md and table.csv") -> str:
    """A sentence about what is left out; "" where nothing is."""
    return f"And {count(left)} more {what}: see {where}." if left > 0 else ""


def _short(text: str, most: int = NAME_CHARACTERS) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
