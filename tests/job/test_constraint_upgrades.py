"""Jobs whose rows have constraints, begun by a version with another engine for these."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rwkv_batch.job import fingerprint

from .conftest import Job
from .test_upgrades import edit, run_again

CONSTRAINED: dict[str, dict[str, Any]] = {
    "sampling": {"prompt": ["a", "b"], "sampling": [{"regex": "a+", "top_k": 3}] * 2},
    "json_schema": {"prompt": ["a", "b"], "json_schema": [None, "{}"]},
}
"""Kind of a job whose rows have constraints → its input."""


@pytest.fixture(params=["job file", "request", *CONSTRAINED])
def constrained(request: pytest.FixtureRequest, job: Job) -> Job:
    """A job whose rows have constraints."""
    job.set(output__rows_per_part=1)
    if request.param == "job file":
        return job.input(prompt=["a", "b"]).set(sampling__regex="a+")
    if request.param == "request":
        body = {"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_object"}}
        return job.lines(*(json.dumps({"custom_id": name, "body": body}) for name in "xy"))
    return job.input(**CONSTRAINED[request.param])


def test_a_job_with_constraints_is_not_continued_with_other_ones(
    constrained: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sampled texts would differ: earlier versions had another engine for JSON schemas, regexes and grammars."""
    job = constrained
    assert job.run() == 0
    edit(job, **{fingerprint.CONSTRAINT_RULES: ...})
    assert run_again(job) == (0, 0), "nothing is missing"
    assert job.run("--dry-run") == 0
    parts = job.parts()
    (job.output / "part-00001-of-00002.parquet").unlink()
    for arguments in ([], ["--dry-run"]):
        capsys.readouterr()
        assert run_again(job, *arguments) == (4, 0)
        said = capsys.readouterr().err
        assert 'json_schema, regex and grammar: "xgrammar" found the allowed tokens when it was started' in said
        assert f'"{fingerprint.RULES}" does now' in said
    assert list(job.parts().items()) == list(parts.items())[:1]


def test_a_job_without_constraints_records_no_rules_for_them(job: Job) -> None:
    assert job.input(prompt=["a", "b"], sampling=[{"top_k": 3}, None]).run() == 0
    assert fingerprint.CONSTRAINT_RULES not in json.loads((job.state / "job.json").read_text())["settings"]
