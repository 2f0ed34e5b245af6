"""Rendering in another process: no row takes more than its time and memory, and the other rows are rendered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rwkv_batch.errors import RowError
from rwkv_batch.job.input.rendering import Renderer, answer_rows
from rwkv_batch.text import rendering

from ..conftest import Job

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def test_every_row_has_its_prompt_or_its_error():
    rows: list[dict[str, Any]] = [{"x": i if i % 7 else None} for i in range(200)]
    found = Renderer("{{ x }}!").render(rows)
    for i, prompt in enumerate(found):
        if i % 7:
            assert prompt == f"{i}!"
        else:
            assert isinstance(prompt, RowError)
            assert (prompt.code, "a null is printed" in prompt.message) == ("template_error", True)


@pytest.mark.parametrize(
    "source",
    [
        "{{ '-' * n }}",
        "{{ 'a' | center(n) }}",
        "{{ 'a'.ljust(n) }}",
        "{{ ('%' ~ n ~ 'd') % 1 }}",
        "{{ '{:>{}}'.format(1, n) }}",
        "{{ ('a\n' * 1000) | indent(n) }}",
        "{{ [0] * n }}",
    ],
)
def test_a_row_that_takes_too_much_memory_is_an_error(source: str):
    found = Renderer(source).render([{"n": 3}, {"n": 3_000_000_000}, {"n": 4}])
    assert isinstance(found[1], RowError) and found[1].code == "template_error"
    assert [isinstance(prompt, str) for prompt in found] == [True, False, True]


def test_a_row_that_takes_too_long_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rendering, "TEXT_SECONDS", 0.5)
    found = Renderer("{{ n }}{% if n == 1 %}" + ENDLESS + "{% endif %}").render([{"n": n} for n in range(4)])
    assert isinstance(found[1], RowError)
    assert found[1].message == "template: rendering this text takes more than 0.5 s"
    assert [found[i] for i in (0, 2, 3)] == ["0", "2", "3"]


def test_a_prompt_that_is_too_long_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rendering, "TEXT_CHARACTERS", 10)
    answer = answer_rows(("{{ '-' * n }}", "input.template"))
    assert answer([{"n": 10}, {"n": 11}]) == [
        ("-" * 10, "", ""),
        (None, "template_error", "template: the text has 11 characters, expected at most 10"),
    ]


def test_after_a_while_the_rows_that_are_rendered_are_answered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rendering, "PART_SECONDS", 0.0)
    assert answer_rows(("{{ n }}", "input.template"))([{"n": 1}, {"n": 2}]) == [("1", "", "")]


def test_long_prompts_are_answered_in_parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rendering, "TEXT_CHARACTERS", 10)
    rows: list[Mapping[str, Any]] = [{"n": 6}, {"n": 5}, {"n": 4}]
    assert [len(text or "") for text, *_ in answer_rows(("{{ '-' * n }}", "input.template"))(rows)] == [6, 5]


def test_a_bad_row_of_a_job_is_an_error_row(job: Job):
    job.input(length=[1, 3_000_000_000, 2]).set(input__template="{{ '-' * length }}")
    assert job.run() == 3
    assert pq.read_table(job.output)["error_code"].to_pylist() == [None, "template_error", None]


def test_a_column_with_any_name_is_passed_to_the_template(job: Job):
    job.input(_PROMPT=["a"], object=pa.array(["b"])).set(input__template="{{ _PROMPT }}{{ object }}")
    assert job.run() == 0
