"""table.md, table.csv, report.html and the lines of the terminal, with names that try to do something."""

from __future__ import annotations

import csv
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from rwkv_batch.suite.grid import Grid
from rwkv_batch.suite.page import render
from rwkv_batch.suite.result import Failure, Metric, write_failure, write_result
from rwkv_batch.suite.tables import write_tables

from .results import result

HOSTILE = [
    '=HYPERLINK("http://x","y")',
    "+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "a|b*_c_[d](e)`f`",
    "<script>hits = 1</script><img src=x onerror='hits = 1'>",
    "new\nline",
    "\x1b[31mred\u202e",
]


def lines_of(text: str, title: str) -> list[str]:
    """The table below a heading of table.md."""
    return [line for line in text.split(f"## {title}\n")[1].split("\n## ")[0].splitlines() if line.startswith("|")]


def test_a_suite(tmp_path: Path) -> None:
    right = {"m-1": [1, 0, 0, 0] * 10, "m-2": [1, 1, 0, 0] * 10, "m-10": [1, 1, 1, 0] * 10}
    for model, values in right.items():
        lost = Metric("truncated", 0.5, 0.4, 0.6, 40, False)
        write_result(str(tmp_path), result(model, "gsm8k", values, lost))
    write_result(str(tmp_path), result("m-2", "mmlu", [1.0, 0.0]))
    write_failure(str(tmp_path), "m-1", "mmlu", "out of memory")
    lines = write_tables(str(tmp_path), ["m-1", "m-2", "m-10"], ["mmlu", "gsm8k"])
    assert lines[0].split("  ")[0] == "model" and "mmlu (accuracy)" in lines[0]
    assert [line.split()[0] for line in lines[1:4]] == ["m-1", "m-2", "m-10"]
    assert lines[1].split()[1:3] == ["failed", "0.2500"] and lines[3].split()[1] == "missing"
    assert "results   1 failed, 1 missing" in lines and lines[5].startswith("remark    gsm8k, 3 models: 50 % of")
    assert [Path(line.split()[-1]).name for line in lines[-3:]] == ["table.md", "table.csv", "report.html"]

    text = (tmp_path / "table.md").read_text()
    assert "| m-1 | failed | 0.2500 (0.1419 to 0.4019) |" in text  # Wilson's interval of 10 of 40
    (test,) = [line for line in lines_of(text, "Differences between models") if "| m-1 | m-10 |" in line]
    cells = [cell.strip() for cell in test.strip("|").split("|")]
    assert cells[:5] == ["gsm8k (accuracy)", "m-1", "m-10", "40", "+0.5000"]
    assert cells[6:] == ["0, 20", "&lt; 0.001", "&lt; 0.001"]
    assert lines_of(text, "Failures")[2:] == ["| m-1 | mmlu | out of memory |"]
    assert len(lines_of(text, "All metrics")) == 2 + 7

    rows = [*csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text()))]
    assert len(rows) == 7 + 2
    first = rows[0]
    assert (first["model"], first["task"], first["error"]) == ("m-1", "mmlu", "out of memory")
    (one,) = [row for row in rows if row["model"] == "m-10" and row["metric"] == "accuracy"]
    assert (float(one["value"]), one["samples"], one["higher_is_better"], one["kind"]) == (0.75, "40", "true", "job")
    assert [row["error"] for row in rows if row["model"] == "m-10"] == ["missing", "", ""]

    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 1  # gsm8k: mmlu has one result
    assert "10 better, 0 worse, of 40" in page and "m-1 → m-2" in page and "m-1 → m-10" not in page


def test_hostile_names(tmp_path: Path) -> None:
    for model in HOSTILE:
        values = np.random.default_rng(len(model)).integers(0, 2, 30).astype(float)
        write_result(
            str(tmp_path / "out"), result(model, HOSTILE[6], values, ids=[f"{HOSTILE[6]}{n}" for n in range(30)])
        )
    write_failure(str(tmp_path / "out"), HOSTILE[5], HOSTILE[0], f"{HOSTILE[6]} | x\n| y |")
    lines = write_tables(str(tmp_path / "out"))
    assert not [line for line in lines if re.search(r"[\x00-\x1f\x7f\u202e]", line)]

    text = (tmp_path / "out/table.csv").read_text()
    rows = [*csv.reader(io.StringIO(text))]
    assert {len(row) for row in rows} == {11} and len(rows) == 1 + 2 * len(HOSTILE)
    for cell in (cell for row in rows[1:] for cell in row):
        assert not re.match(r"\s*[=+\-@]", cell) or re.fullmatch(r"-?[0-9.e-]+", cell), cell
    assert "'-2+3" in {row[0] for row in rows} and "\x1b" not in text

    text = (tmp_path / "out/table.md").read_text()
    for title in ("All metrics", "Failures", "Differences between models"):
        table = lines_of(text, title)
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1, title
    assert "<" not in text and r"a\|b\*\_c\_\[d\](e)\`f\`" in text and "| new line |" in text


class Tags(HTMLParser):
    """The names of all elements, and of their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names |= {tag, *(name for name, _ in attrs)}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_escapes_everything(tmp_path: Path) -> None:
    test_hostile_names(tmp_path)
    tags = Tags()
    page = (tmp_path / "out/report.html").read_text()
    tags.feed(page)
    assert not tags.names & {"script", "img", "onerror", "src", "href", "link", "iframe"}
    assert HOSTILE[6] in tags.text and "\u202e" not in page and "\x1b" not in page


def test_many_models_and_tasks_make_a_small_page() -> None:
    """A hundred checkpoints with thirty tasks, long names and ids, remarks and failures: the page is bounded."""
    rng = np.random.default_rng(0)
    models, tasks = (
        [f"{'<' * 50}-{kind}-{number}" for number in range(most)] for kind, most in (("m", 100), ("t", 30))
    )
    ids = [f"{'&' * 80}{number}" for number in range(12)]
    others = [Metric(name, 0.5, 0.1, 0.9, 12, False) for name in ("truncated", "no_answer", "errors")]
    results = {
        (model, task): result(model, task, rng.integers(0, 2, 12), *others, ids=ids)
        for model in models
        for task in tasks[:25]
    }
    failures = {(model, "f"): Failure(model, "f", "<" * 9999, 1.0) for model in models}
    grid = Grid(models, tasks, results, failures)
    page = render("x" * 999, grid, grid.differences())
    assert 200_000 < len(page.encode()) < 500_000
    assert page.count("<svg") >= 5 and re.search(r"And [0-9]+ more models: see table.md and table.csv", page)


@pytest.mark.parametrize("models", [[], ["a"]])
def test_nothing_yet(tmp_path: Path, models: list[str]) -> None:
    lines = write_tables(str(tmp_path), models, ["t"] * len(models))
    assert lines[0].split() == (["model", "t"] if models else ["model"])
    assert (tmp_path / "table.csv").read_text().count("\n") == 1 + len(models)
    assert "No two models have samples" in (tmp_path / "report.html").read_text()


def test_many_tasks_are_lines_of_the_terminal(tmp_path: Path) -> None:
    for task in range(8):
        write_result(str(tmp_path), result("m", f"t{task}", [math.nan]))
    lines = write_tables(str(tmp_path))
    assert lines[0].split() == ["task", "m"] and lines[8] == "t7 (accuracy)  not known"
