"""Metrics of finished score jobs: those of the job's report, with the values of each row."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from job.conftest import Job

from rwkv_batch.errors import ConfigurationError
from rwkv_batch.suite.score_results import score_results

from .finished import finished_job, samples_of


def test_choices(job: Job) -> None:
    job.settings["task"] = "score"
    answers = [0, 1, 2, 1, None] * 8
    job.input(
        id=[f"q{row}" for row in range(40)], context=["c", "d"] * 20, choices=[["a", "bb", "c"]] * 40, answer=answers
    )
    assert job.run() == 0
    metrics, samples = score_results(str(job.output))
    assert [one.name for one in metrics] == ["accuracy", "accuracy_norm", "accuracy_bytes"]
    rows = job.rows()
    right = [row["correct"] for row in rows]
    known = [one for one in right if one is not None]
    assert (metrics[0].value, metrics[0].samples) == (pytest.approx(sum(known) / 32), 32)
    assert samples.ids == [row["id"] for row in rows]
    seen = samples.values["accuracy"].tolist()
    assert [None if math.isnan(one) else bool(one) for one in seen] == right
    assert set(samples.values) == {"accuracy", "accuracy_norm", "accuracy_bytes"}
    report = json.loads((job.state / "report.json").read_text())["scores"]["accuracy"]
    half = 1.96 * report["stderr"]
    assert metrics[0].value == report["value"]
    assert (metrics[0].low, metrics[0].high) == pytest.approx(
        (report["value"] - half, report["value"] + half), rel=1e-3
    )


def test_continuations_and_an_error_row(job: Job) -> None:
    job.settings["task"] = "score"
    assert job.input(context=["a", "b", None], continuation=["x", "yy", "z"]).run() == 3
    metrics, samples = score_results(str(job.output))
    report = json.loads((job.state / "report.json").read_text())["scores"]
    assert {one.name: one.value for one in metrics} == {name: one["value"] for name, one in report.items()}
    assert metrics[0].name == "greedy_match"
    assert {one.name for one in metrics if one.higher_is_better} == {"greedy_match"}
    assert (samples.ids, {one.samples for one in metrics}) == (["0", "1", "2"], {2})
    logprobs = [row["logprob"] for row in job.rows()]
    assert samples.values["nats"][:2].tolist() == [-one for one in logprobs[:2]]
    assert np.isnan(samples.values["nats"][2])


def test_documents(job: Job) -> None:
    job.settings["task"] = "score"
    assert job.input(text=["some text", "more"]).run() == 0
    metrics, samples = score_results(str(job.output))
    assert metrics[0].name == "bits_per_byte" and list(samples.values) == ["nats"]
    nats = -sum(row["logprob"] for row in job.rows())
    assert metrics[0].value == pytest.approx(nats / math.log(2) / 13)


def test_another_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="got a job with task generate, expected score"):
        score_results(finished_job(tmp_path / "out", samples_of("a", "4", "4")))
