"""The grid of results: orders, states, pairs, and remarks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rwkv_batch.suite.grid import Grid, read_grid, series, shown_metric, shown_number
from rwkv_batch.suite.result import Metric, write_failure, write_result

from .results import result


def made(folder: Path, *pairs: tuple[str, str]) -> str:
    for model, task in pairs:
        write_result(str(folder), result(model, task, [0.0, 1.0]))
    return str(folder)


@pytest.mark.parametrize(
    ("found", "given", "expected"),
    [
        (["rwkv-10", "rwkv-9", "rwkv-200"], [], ["rwkv-9", "rwkv-10", "rwkv-200"]),
        (["rwkv-10", "rwkv-9"], ["rwkv-200", "rwkv-10"], ["rwkv-9", "rwkv-10", "rwkv-200"]),
        (["base", "tuned", "other"], ["tuned", "base"], ["tuned", "base", "other"]),
        (["x7-1.5b", "x7-0.4b", "x7-0.1b"], [], ["x7-0.1b", "x7-0.4b", "x7-1.5b"]),
        (["b-10-s1", "b-9-s2", "a-3"], ["x"], ["x", "a-3", "b-9-s2", "b-10-s1"]),
    ],
)
def test_the_order_of_models(tmp_path: Path, found: list[str], given: list[str], expected: list[str]) -> None:
    folder = made(tmp_path, *((model, "t") for model in found))
    assert read_grid(folder, given).models == expected


def test_a_series_differs_in_one_number() -> None:
    assert series(["rwkv7-100", "rwkv7-20"]) == [("rwkv7-100", 100), ("rwkv7-20", 20)]
    assert series(["rwkv6-100", "rwkv7-20"]) == [] == series(["rwkv7-1"]) == series(["a-1", "b-2"]) == series([])


def test_states(tmp_path: Path) -> None:
    folder = made(tmp_path, ("a", "t1"), ("b", "t2"))
    write_failure(folder, "b", "t1", "no")
    grid = read_grid(folder, ["a", "b", "c"], ["t2"])
    assert (grid.models, grid.tasks) == (["a", "b", "c"], ["t2", "t1"])
    states = {(model, task): grid.state(model, task) for model in grid.models for task in grid.tasks}
    assert [pair for pair, state in states.items() if state == "failed"] == [("b", "t1")]
    assert [pair for pair, state in states.items() if not state] == [("a", "t1"), ("b", "t2")]
    assert (grid.count("failed"), grid.count("missing")) == (1, 3)


def test_pairs(tmp_path: Path) -> None:
    """All pairs of a few models; of many the neighbours, and the first with the last."""
    few = read_grid(made(tmp_path / "few", *((f"m{number}", "t") for number in range(5))))
    assert len(few.differences()) == 10
    many = read_grid(made(tmp_path / "many", *((f"m{number}", "t") for number in range(7))))
    pairs = [(one.a, one.b) for one in many.differences()]
    assert pairs == [*((f"m{number}", f"m{number + 1}") for number in range(6)), ("m0", "m6")]


def test_remarks() -> None:
    def shares(model: str, cut: float, lost: float, errors: float) -> Grid:
        others = [
            Metric(name, value, None, None, 10, False)
            for name, value in (("truncated", cut), ("no_answer", lost), ("errors", errors))
        ]
        return Grid([model], ["t"], {(model, "t"): result(model, "t", [1.0], *others)}, {})

    assert shares("m", 0.05, 0.05, 0.0).remarks() == []
    found = [shares(*one) for one in (("a", 0.5, 0.0, 0.0), ("b", 0.06, math.nan, 0.001))]
    both = Grid(["a", "b"], ["t"], {**found[0].results, **found[1].results}, {})
    assert both.remarks() == [
        "t, b: 0.1 % of the questions are error rows, and do not count; the report of the job has their errors",
        "t, 2 models: 6.0 % to 50 % of the completions were cut at sampling.max_tokens, perhaps before their answers",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.12345, "0.1235"),
        (9.5, "9.5000"),
        (1234.56, "1,234.6"),
        (2e9, "2e+09"),
        (math.nan, "not known"),
        (-0.5, "-0.5000"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert shown_number(value) == text
    assert shown_metric(Metric("m", value, None, None, 1, True)) == text
    assert shown_metric(Metric("m", value, 0.0, 1.0, 1, True)) == f"{text} (0.0000 to 1.0000)"
