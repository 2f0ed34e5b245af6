"""Results of a suite on disk: for each model and task one JSON file, and the values of each sample in Parquet."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..commands.target_file import target_file
from ..errors import ConfigurationError

FORMAT = 1
"""The version of the keys of a result: a number that grows when a key changes its meaning or goes away."""
FOLDER = "results"
MOST_NAME_BYTES = 200
_RESERVED = re.compile(r"""[\x00-\x1f\x7f/\\:*?"<>|%]|^\.""")
"""Characters that are no part of the name of a file on some system, or mean something else at its beginning."""


@dataclass(frozen=True)
class Metric:
    """A number that says how good a model is at a task.

    Args:
        name: such as "accuracy".
        value: NaN where it is not known.
        low, high: its 95 % interval; None where it is not known.
        samples: rows, or questions, of which it is.
        higher_is_better: the direction in which models get better.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    samples: int
    higher_is_better: bool


@dataclass(frozen=True)
class Samples:
    """The values of each row of a task, by which models are compared.

    Args:
        ids: [n] the id of each row as text, or its number where rows have none.
        values: metric → [n] float64; NaN where it is not known.
    """

    ids: list[str]
    values: dict[str, np.ndarray]


@dataclass(frozen=True)
class TaskResult:
    """What a model has reached at a task.

    Args:
        model: the id of the model.
        task: the name of the task in the suite.
        kind: "job" or "lm_eval".
        metrics: the most important one first.
        samples: None where the values of the rows are not known.
        seconds: that the task took.
        settings: what the result depends on, in plain JSON.
    """

    model: str
    task: str
    kind: str
    metrics: tuple[Metric, ...]
    samples: Samples | None
    seconds: float
    settings: dict[str, Any]


class Failure(NamedTuple):
    """A task that a model has not finished: why, and when, in seconds since 1970."""

    model: str
    task: str
    error: str
    time: float


def result_path(folder: str, model: str, task: str, ending: str = ".json") -> str:
    """The path of a file about a model and a task.

    Args:
        folder: of the suite's output.
        ending: ".json", ".samples.parquet" or ".failed.json".
    """
    return os.path.join(folder, FOLDER, file_name(model), file_name(task) + ending)


def file_name(name: str) -> str:
    """A name as that of a file or folder: what may be none in it is written as %2F and so on.

    Raises:
        ConfigurationError: the name is empty or too long.
    """
    found = _RESERVED.sub(lambda one: "".join(f"%{ord(char):02X}" for char in one[0]), name)
    if not found or len(found.encode(errors="replace")) > MOST_NAME_BYTES:
        raise ConfigurationError(f"got the name {name[:80]!r}, expected one of 1 to {MOST_NAME_BYTES} bytes")
    return found


def write_result(folder: str, result: TaskResult) -> None:
    """Writes a result and its samples, each file as a whole, and removes the note of an earlier failure.

    Args:
        folder: of the suite's output.
    """
    path = result_path(folder, result.model, result.task)
    samples = result_path(folder, result.model, result.task, ".samples.parquet")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    _remove(path)  # no moment has the metrics of one run beside the samples of another
    if result.samples is None:
        _remove(samples)
    else:
        columns = {"id": pa.array(result.samples.ids, pa.string())}
        columns |= {name: pa.array(values, pa.float64()) for name, values in result.samples.values.items()}
        with target_file(samples, overwrite=True) as file:
            pq.write_table(pa.table(columns), file)
    content = {
        "format": FORMAT,
        "model": result.model,
        "task": result.task,
        "kind": result.kind,
        "time": time.time(),
        "seconds": result.seconds,
        "metrics": [asdict(metric) for metric in result.metrics],
        "samples": None if result.samples is None else os.path.basename(samples),
        "settings": result.settings,
    }
    _write_json(path, content)
    _remove(result_path(folder, result.model, result.task, ".failed.json"))


def write_failure(folder: str, model: str, task: str, error: str) -> None:
    """Notes that a model has not finished a task."""
    path = result_path(folder, model, task, ".failed.json")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    _write_json(path, {"model": model, "task": task, "error": error, "time": time.time()})


def read_results(folder: str) -> list[TaskResult]:
    """Reads all results, in the order of the names of their files.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    return [_result(path, content) for path, content in _contents(folder) if "metrics" in content]


def read_failures(folder: str) -> list[Failure]:
    """Reads the notes about tasks that models have not finished, and that have no result."""
    found = []
    for path, content in _contents(folder):
        if "metrics" in content or os.path.exists(path.removesuffix(".failed.json") + ".json"):
            continue
        model, task = os.path.basename(os.path.dirname(path)), os.path.basename(path).removesuffix(".failed.json")
        names = (str(content.get("model", model)), str(content.get("task", task)))
        found.append(Failure(*names, str(content.get("error", "")), float(content.get("time", 0.0))))
    return found


def _contents(folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields path and content of each JSON file of the results."""
    top = os.path.join(folder, FOLDER)
    for model in sorted(os.listdir(top)) if os.path.isdir(top) else ():
        inner = os.path.join(top, model)
        for name in sorted(os.listdir(inner)) if os.path.isdir(inner) else ():
            if not name.endswith(".json") or name.startswith("."):
                continue
            path = os.path.join(inner, name)
            try:
                with open(path, encoding="utf-8") as file:
                    content = json.load(file)
                if not isinstance(content, dict):
                    raise ValueError("it holds no mapping")
            except (OSError, ValueError) as error:
                raise _unreadable(path, error) from error
            yield path, content


def _result(path: str, content: dict[str, Any]) -> TaskResult:
    try:
        if content["format"] > FORMAT:
            raise ValueError(f"it has format {content['format']}, of a later version of rwkv_batch")
        names = ("name", "value", "low", "high", "samples", "higher_is_better")
        metrics = [{name: one[name] for name in names} for one in content["metrics"]]
        return TaskResult(
            content["model"],
            content["task"],
            content["kind"],
            tuple(Metric(**{**one, "value": math.nan if one["value"] is None else one["value"]}) for one in metrics),
            None if content["samples"] is None else _samples(os.path.join(os.path.dirname(path), content["samples"])),
            content["seconds"],
            content["settings"],
        )
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise _unreadable(path, error) from error


def _samples(path: str) -> Samples:
    table = pq.read_table(path, partitioning=None)
    names = [name for name in table.column_names if name != "id"]
    return Samples(table["id"].to_pylist(), {name: table[name].to_numpy() for name in names})


def _unreadable(path: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(f"{path} cannot be read ({error!r}); remove it and run the suite again to make it again")


def _write_json(path: str, content: dict[str, Any]) -> None:
    text = json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False, default=str)
    with target_file(path, overwrite=True) as file:
        file.write(text.encode(errors="backslashreplace"))


def _finite(value: Any) -> Any:
    """A value as JSON has it: null for numbers that are not finite."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _finite(one) for name, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def _remove(path: str) -> None:
    if os.path.exists(path):
        os.unlink(path)
