"""Results on disk: what is written is read again, whatever the names and the values are."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rwkv_batch.errors import ConfigurationError
from rwkv_batch.suite import result as module
from rwkv_batch.suite.result import (
    Failure,
    Metric,
    Samples,
    TaskResult,
    file_name,
    read_failures,
    read_results,
    result_path,
    write_failure,
    write_result,
)

METRICS = (Metric("acc", 0.5, 0.25, 0.75, 4, True), Metric("loss", math.nan, None, None, 0, False))


def make(model: str = "m", task: str = "t", samples: Samples | None = None, **settings: Any) -> TaskResult:
    return TaskResult(model, task, "job", METRICS, samples, 1.5, settings)


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    samples = Samples(["a", "<b>\n"], {"acc": np.array([1.0, math.nan]), "µ": np.array([0.25, -1e300])})
    write_result(str(tmp_path), make(samples=samples, n=4, path=Path("x"), odd=math.inf))
    (found,) = read_results(str(tmp_path))
    assert found.samples is not None and found.samples.ids == samples.ids
    for name, values in samples.values.items():
        np.testing.assert_array_equal(found.samples.values[name], values)
    assert found.metrics[0] == METRICS[0] and math.isnan(found.metrics[1].value)
    assert (found.model, found.task, found.kind, found.seconds) == ("m", "t", "job", 1.5)
    assert found.settings == {"n": 4, "path": "x", "odd": None}
    content = json.loads((tmp_path / "results/m/t.json").read_text())
    assert set(content) == {"format", "model", "task", "kind", "time", "seconds", "metrics", "samples", "settings"}
    assert pq.read_schema(tmp_path / "results/m/t.samples.parquet").names == ["id", "acc", "µ"]
    assert sorted(os.listdir(tmp_path / "results/m")) == ["t.json", "t.samples.parquet"]


def test_a_later_result_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    write_result(str(tmp_path), make(samples=Samples(["a"], {"acc": np.array([1.0])})))
    write_failure(str(tmp_path), "m", "t", "it broke")
    assert read_failures(str(tmp_path)) == []  # there is a result
    write_result(str(tmp_path), make())
    assert os.listdir(tmp_path / "results/m") == ["t.json"]
    assert read_results(str(tmp_path))[0].samples is None


def test_a_result_is_there_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_result(str(tmp_path), make(samples=Samples(["a"], {"acc": np.array([1.0])})))

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(module, "_write_json", fail)
    with pytest.raises(OSError, match="disk full"):
        write_result(str(tmp_path), make(samples=Samples(["b"], {"acc": np.array([0.0])})))
    assert read_results(str(tmp_path)) == []


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "..", ".hidden", "a%2Fb", "a\x00b\nc", "模型", "-x", "a b"])
def test_names_never_become_paths(tmp_path: Path, name: str) -> None:
    write_result(str(tmp_path / "out"), make(name, name))
    write_failure(str(tmp_path / "out"), name, f"{name}2", "no")
    assert [(one.model, one.task) for one in read_results(str(tmp_path / "out"))] == [(name, name)]
    assert [(one.model, one.task) for one in read_failures(str(tmp_path / "out"))] == [(name, f"{name}2")]
    folder = tmp_path / "out/results"
    assert len(os.listdir(folder)) == 1 and len(os.listdir(folder / file_name(name))) == 2
    assert os.listdir(tmp_path) == ["out"]


def test_different_names_have_different_files() -> None:
    names = ["a/b", "a%2Fb", "a:b", "a.b", ".a", "%2Ea"]
    assert len({file_name(name) for name in names}) == len(names)


@pytest.mark.parametrize("name", ["", "x" * 201])
def test_names_that_no_file_has(name: str) -> None:
    with pytest.raises(ConfigurationError, match="expected one of 1 to 200 bytes"):
        file_name(name)


def test_failures_of_others(tmp_path: Path) -> None:
    """A note without the names has those of its file."""
    path = Path(result_path(str(tmp_path), "m", "t", ".failed.json"))
    path.parent.mkdir(parents=True)
    path.write_text('{"error": "out of memory", "time": 5}')
    assert read_failures(str(tmp_path)) == [Failure("m", "t", "out of memory", 5.0)]
    assert read_results(str(tmp_path)) == []


@pytest.mark.parametrize(
    "content", ["", "[]", '{"metrics": []}', '{"metrics": [{"name": "a"}]}', '{"metrics": [], "format": 2}']
)
def test_damaged_results_are_named(tmp_path: Path, content: str) -> None:
    path = Path(result_path(str(tmp_path), "m", "t"))
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=r"results/m/t\.json cannot be read .*; remove it and run"):
        read_results(str(tmp_path))


def test_no_results(tmp_path: Path) -> None:
    assert read_results(str(tmp_path)) == [] and read_failures(str(tmp_path)) == []
