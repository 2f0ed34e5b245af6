"""The page report.html: what it says, what it does with hostile text, and reports that lack facts."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest

from rwkv_batch.job.load import load_job
from rwkv_batch.job.report.page import render

from ..conftest import Job

HOSTILE = (
    "</pre></style><script>alert(1)</script><img src=x onerror=alert(1)>\" onload='alert(1)'&lt; {{ 7 * 7 }} \u202e\x00"
)
TAGS = "article b body code details div figcaption figure footer g h1 h2 h3 head header html i li main meta p path pre"
TAGS += " polygon polyline rect section small span style summary svg table tbody td text th thead title tr ul circle"


class Found(HTMLParser):
    """The elements of a page with their attributes, and what is still open at the end."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: dict[str, set[str]] = {}
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, set()).add(value or "")
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def hostile(job: Job) -> Job:
    """Ids, prompts, names of columns, group names, template and error sentences that try to be markup."""
    prompts: list[Any] = [f"{HOSTILE} {index}" for index in range(12)]
    prompts[2] = None
    temperatures = [None, -1.0, *[None] * 10]
    columns: dict[str, Any] = {
        "id": [HOSTILE] * 12,
        "prompt": prompts,
        f"x{HOSTILE}": [HOSTILE] * 12,
        "temperature": temperatures,
    }
    job.input(**columns)
    return job.set(report__show_text=True, sampling__stop=[HOSTILE.replace("\x00", "")])


def test_hostile_text_does_nothing(hostile: Job) -> None:
    assert hostile.run() == 3
    found = Found((hostile.state / "report.html").read_text())
    assert found.tags <= set(TAGS.split()) and not found.open
    assert not {name for name in found.attributes if name.startswith("on")}
    assert not found.attributes.keys() & {"src", "href"}
    assert "alert(1)" in found.text and "{{ 7 * 7 }}" in found.text and "\u202e" not in found.text
    report = json.loads((hostile.state / "report.json").read_text())
    group = {"rows": 4, "value": 0.5, "stderr": 0.1}
    report["score_groups"] = {"column": HOSTILE, "groups": {HOSTILE: {HOSTILE: group}}}
    report["scores"] = {HOSTILE: group}
    report["damaged"] = {HOSTILE: HOSTILE}
    report["runs"][0] |= {"outcome": HOSTILE, "shard": HOSTILE, "machine": {"host": HOSTILE}}
    report["error_rows"] = {HOSTILE: {"count": 1, "do": HOSTILE, "first_rows": [{"row": 1, "error": HOSTILE}]}}
    found = Found(render(report))
    assert found.tags <= set(TAGS.split()) and not found.open
    assert not {name for name in found.attributes if name.startswith("on")} | found.attributes.keys() & {"src", "href"}


def test_no_text_of_a_row_is_shown_unless_asked_for(hostile: Job) -> None:
    """An error sentence that quotes a row loses what it quotes."""
    secret = [f"a secret {index}" for index in range(12)]
    hostile.input(id=list(range(12)), prompt=secret, top_p_order=["a secret order"] * 12)
    assert hostile.set(report__show_text=False, sampling__stop=None).run() == 3
    for name in ("report.html", "report.json"):
        assert "a secret" not in (hostile.state / name).read_text()
    assert json.loads((hostile.state / "report.json").read_text())["error_rows"]["bad_sampling"]["count"] == 12


def test_the_page_says_what_people_look_for(job: Job) -> None:
    prompts: list[Any] = [f"prompt {index}" for index in range(30)]
    prompts[4] = None
    assert job.input(id=[f"row-{index}" for index in range(30)], prompt=prompts).run() == 3
    page = (job.state / "report.html").read_text()
    text = " ".join(Found(page).text.split())
    assert re.search("<title>! out: 30 rows</title>", page)
    assert "completed 30 rows of prompts.parquet" in text and "1 run" in text
    assert "1 row of 30 could not be served" in text and "fill the cell, or leave the row out" in text
    assert "row-4" in text and "3.3 % of the rows are errors" in text
    assert "rows_per_part: 10" in text and "flush_seconds" in text
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (UTC|[+-]\d\d:\d\d)", text)
    assert not re.search(r"\d{10}\.\d|None|True|False|\d\.\d{6}", text.partition("Job and machine")[0])


def test_the_settings_of_the_page_are_a_job_file(job: Job) -> None:
    """Saved, it is the same job."""
    job.set(sampling__stop=["\n\n", "é: #"], output__columns={"completion": "text"}, report__show_text=True)
    assert job.input(prompt=["a", "b"]).run() == 0
    report = json.loads((job.state / "report.json").read_text())
    page = (job.state / "report.html").read_text()
    (text,) = re.findall(r"makes the same job, or goes on with it.</p><pre>(.*?)</pre>", page, re.DOTALL)
    file = job.folder / "again.yaml"
    file.write_text(unescape(text))
    config = load_job(str(file), ())
    again = {**config.model_dump(exclude={"sampling"}), "sampling": asdict(config.sampling)}
    assert json.loads(json.dumps(again)) == report["runs"][-1]["config"]
    assert "batch_invariant" not in text, "the others have their defaults"


def test_a_report_that_lacks_facts_renders(job: Job) -> None:
    """As of an earlier version: no phases, no error rows, no lengths, times in seconds; and of a job without runs."""
    assert job.input(prompt=["a", None]).run() == 3
    report = json.loads((job.state / "report.json").read_text())
    for name in (
        "phases",
        "marks",
        "error_rows",
        "lengths",
        "samples",
        "warnings",
        "loading_seconds",
        "format",
        "name",
        "input_rows",
        "unrecorded_steps",
    ):
        del report[name]
    report["runs"][0] |= {"started": 1795647428.9, "ended": 1795647439.9}
    del report["runs"][0]["config"]["report"]
    assert "null_prompt" in render(report) and "<h1>out</h1>" in render(report)
    empty = {name: [] for name in report["timeline"]}
    report |= {"runs": [], "timeline": empty, "rows": {}, "errors": {}, "finish_reasons": {}, "serving_seconds": 0.0}
    assert "<h1>out</h1>" in render(report)


def test_the_page_stays_small(job: Job) -> None:
    """Whatever the number of rows, runs, groups, input files and the length of texts."""
    assert job.set(report__show_text=True).input(prompt=["a", None]).run() == 3
    report = json.loads((job.state / "report.json").read_text())
    long = "lorem ipsum " * 80
    metric = {"rows": 9, "value": 0.5, "stderr": 0.1}
    report["runs"][0]["workers"] = {index: {**report["runs"][0], "outcome": long[:300]} for index in range(64)}
    report["runs"] *= 500
    report["samples"] = [{"row": 1, "sample": 0, "prompt": long, "completion": long, "finish_reason": "stop"}] * 100
    report["score_groups"] = {
        "column": "c",
        "groups": {f"group {index}": {"accuracy": metric} for index in range(1000)},
    }
    report["scores"] = {"accuracy": metric}
    report["job"]["input"] *= 10_000
    report["damaged"] = {f"part-{index}": long for index in range(1000)}
    report["timeline"] = {name: [0.5 + index for index in range(120)] for name in report["timeline"]}
    row = {"row": 1, "id": "x" * 80, "error": long[:300], "prompt": long[:300]}
    report["error_rows"] = {f"code_{index}": {"count": 3, "do": "x", "first_rows": [row] * 3} for index in range(20)}
    assert len(render(report).encode()) < 500_000
