"""docs/reference/suites.md names every key, normalization, metric key and column."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

from rwkv_batch.suite.grade_section import GradeSection
from rwkv_batch.suite.normalize import NORMALIZATIONS
from rwkv_batch.suite.result import Metric, write_result
from rwkv_batch.suite.table_files import CSV_HEAD

from .results import result

DOCS = Path(__file__).parents[2] / "docs"


def first_cells(heading: str) -> list[str]:
    """The names in the first column of the tables below a heading."""
    text = (DOCS / "reference/suites.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return [
        name
        for line in text.splitlines()
        if line.startswith("| `")
        for name in re.findall("`([^`]+)`", line.split(" | ")[0])
    ]


def test_keys_of_grade() -> None:
    assert first_cells("grade") == [*GradeSection.model_fields, *NORMALIZATIONS]


def test_keys_of_a_result(tmp_path: Path) -> None:
    write_result(str(tmp_path), result("m", "t", [1.0]))
    content = json.loads((tmp_path / "results/m/t.json").read_text())
    assert first_cells("TASK.json") == [*content, *(field.name for field in fields(Metric))]


def test_columns_of_the_table() -> None:
    text = (DOCS / "reference/suites.md").read_text().split("## table.csv\n")[1]
    assert re.findall("`([a-z_]+)`", text)[: len(CSV_HEAD)] == [*CSV_HEAD]


def test_metrics_of_completions() -> None:
    text = (DOCS / "how-to/evaluation.md").read_text().split("### Grading of completions\n")[1].split("\n### ")[0]
    for name in ("accuracy", "avg@n", "maj@k", "pass@k", "no_answer", "truncated", "completion_tokens", "errors"):
        assert re.search(rf"^\| .*`{name}`.* \|", text, re.MULTILINE), name
