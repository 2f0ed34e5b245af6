"""All results of a suite as a grid of models and tasks, with the order of the models."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from ..job.report.wording import percent
from .differences import Difference, adjusted, difference
from .result import Failure, Metric, TaskResult, read_failures, read_results

MOST_IN_PAIRS = 5
"""Models up to which all pairs are tested. Of more, neighbours are, and the first with the last."""
NUMBER = re.compile(r"\d+(?:\.\d+)?")
FAILED, MISSING = "failed", "missing"
NOTED_SHARES = {"errors": 0.0, "truncated": 0.05, "no_answer": 0.05}
"""Metric → the share beyond which a remark is made."""
REMARKS = {
    "errors": "of the questions are error rows, and do not count; the report of the job has their errors",
    "truncated": "of the completions were cut at sampling.max_tokens, perhaps before their answers",
    "no_answer": "of the completions have no answer that grade.extract finds; they count as wrong",
}


@dataclass(frozen=True)
class Grid:
    """Results of a suite.

    Args:
        models, tasks: in the order in which they are shown.
        results: (model, task) → what the model has reached.
        failures: (model, task) → why there is no result.
    """

    models: list[str]
    tasks: list[str]
    results: dict[tuple[str, str], TaskResult]
    failures: dict[tuple[str, str], Failure]

    def state(self, model: str, task: str) -> str:
        """ "", or why there is no result: "failed" or "missing"."""
        pair = (model, task)
        return "" if pair in self.results else FAILED if pair in self.failures else MISSING

    def main(self, model: str, task: str) -> Metric | None:
        """The first metric of a result."""
        found = self.results.get((model, task))
        return found.metrics[0] if found is not None and found.metrics else None

    def heading(self, task: str) -> str:
        """The name of a task, with its first metric where that is the same for all models."""
        names = {one.name for model in self.models if (one := self.main(model, task)) is not None}
        return f"{task} ({names.pop()})" if len(names) == 1 else task

    def count(self, state: str) -> int:
        """How many pairs of model and task have a state."""
        return sum(self.state(model, task) == state for model in self.models for task in self.tasks)

    def remarks(self) -> list[str]:
        """What a reader of the metrics has to know: shares of errors, cut completions and missing answers."""
        found = []
        for task in self.tasks:
            jobs = [one for model in self.models if (one := self.results.get((model, task))) and one.kind == "job"]
            for name, least in NOTED_SHARES.items():
                noted = [(one.model, metric.value) for one in jobs for metric in one.metrics if metric.name == name]
                noted = [(model, value) for model, value in noted if value > least]
                if noted:
                    values = sorted(value for _, value in noted)
                    share = percent(values[0]) + (f" to {percent(values[-1])}" if values[0] < values[-1] else "")
                    models = noted[0][0] if len(noted) == 1 else f"{len(noted)} models"
                    found.append(f"{task}, {models}: {share} {REMARKS[name]}")
        return found

    def neighbours(self) -> list[tuple[str, str]]:
        """The pairs of models that follow each other."""
        return [*pairwise(self.models)]

    def differences(self) -> list[Difference]:
        """Tests between the models of each pair at each task, with p-values for all of them together."""
        pairs = [*combinations(self.models, 2)]
        if len(self.models) > MOST_IN_PAIRS:
            pairs = [*self.neighbours(), (self.models[0], self.models[-1])]
        found = [
            one
            for task in self.tasks
            for a, b in pairs
            if (a, task) in self.results and (b, task) in self.results
            if (one := difference(self.results[a, task], self.results[b, task])) is not None
        ]
        return adjusted(found)


def read_grid(folder: str, models: Sequence[str] = (), tasks: Sequence[str] = ()) -> Grid:
    """Reads the results of a suite.

    Args:
        folder: of the suite's output.
        models, tasks: those of the suite, in its order. Others with results come after them.
    """
    results = {(one.model, one.task): one for one in read_results(folder)}
    failures = {(one.model, one.task): one for one in read_failures(folder)}
    known = [*results, *failures]
    all_models = in_order(models, (model for model, _ in known))
    number = dict(series(all_models))
    all_models = sorted(all_models, key=number.__getitem__) if number else all_models
    return Grid(all_models, in_order(tasks, (task for _, task in known)), results, failures)


def in_order(given: Sequence[str], found: Iterable[str]) -> list[str]:
    """The given names in their order, then the others that were found, with numbers in them by their values."""
    first = [*dict.fromkeys(given)]
    return first + sorted(set(found) - set(first), key=natural)


def natural(name: str) -> tuple[tuple[bool, float, str], ...]:
    """A key that sorts names with numbers in them by the numbers' values."""
    parts = re.split(f"({NUMBER.pattern})", name)
    return tuple((index % 2 == 1, float(part) if index % 2 else 0.0, part) for index, part in enumerate(parts))


def series(models: Sequence[str]) -> list[tuple[str, float]]:
    """Each model with its number, where the models are checkpoints of a series: their names differ in one number.

    Of other models, and of fewer than two, it is empty.
    """
    shapes = {NUMBER.sub("0", model) for model in models}
    numbers = [[float(number) for number in NUMBER.findall(model)] for model in models]
    if len(shapes) != 1 or len(models) < 2:
        return []
    differing = [index for index, values in enumerate(zip(*numbers, strict=True)) if len({*values}) > 1]
    if len(differing) != 1:
        return []
    return [(model, values[differing[0]]) for model, values in zip(models, numbers, strict=True)]


def shown_number(value: float) -> str:
    """A metric's value as text."""
    if not math.isfinite(value):
        return "not known"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}" if abs(value) < 1e6 else f"{value:.3g}"


def shown_interval(metric: Metric) -> str:
    """A metric's interval as text; "" where it is not known."""
    if metric.low is None or metric.high is None:
        return ""
    return f"{shown_number(metric.low)} to {shown_number(metric.high)}"


def shown_metric(metric: Metric) -> str:
    """A metric with its interval as text."""
    interval = shown_interval(metric)
    return shown_number(metric.value) + (f" ({interval})" if interval else "")
