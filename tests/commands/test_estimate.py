"""The estimate of a job, compared with the job itself, and with all rows tokenized."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from job.conftest import Job

from rwkv_batch import cli
from rwkv_batch.commands.estimate import Options, estimate
from rwkv_batch.commands.estimate_text import describe
from rwkv_batch.commands.job_parsers import DEVICES
from rwkv_batch.errors import ConfigurationError
from rwkv_batch.roofline.cards import CARDS

pytestmark = pytest.mark.usefixtures("real_engine")


def estimated(job: Job, **options: Any) -> Any:
    return estimate(job.write(), [], None, Options(**options))


@pytest.fixture
def shared(job: Job) -> Job:
    """40 rows of which every other one begins with the same sentence; two samples each."""
    job.set(sampling__n=2, sampling__max_tokens=12, sampling__ignore_eos=True, engine__device="cpu")
    header = "def total(numbers):\n    '''Adds up all numbers of a list.'''\n"
    prompts = [f"{header if i % 2 else ''}    x_{i} = {i * 37}\n" for i in range(40)]
    return job.input(id=list(range(40)), prompt=prompts)


def test_a_job_that_then_runs(shared: Job, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows, tokens and parts are those of the run; bytes on disk are within a tenth."""
    found = estimated(shared)
    assert shared.run("--progress", "none") == 0
    report = json.loads((shared.state / "report.json").read_text())
    rows = shared.rows()
    assert found["rows"] == report["rows_planned"] == 40
    assert found["samples"]["estimate"] == len(rows)
    assert found["prompt_tokens"]["estimate"] == report["tokens"]["prompt_tokens"]
    assert found["completion_tokens"] == {"estimate": 960, "low": 960, "high": 960, "kind": "upper bound"}
    assert sum(row["completion_tokens"] for row in rows) == 960
    assert found["parts"]["count"] == len(shared.parts())
    assert found["requested_tokens"]["estimate"] == report["prefixes"]["tokens_requested"]
    assert found["computed_tokens"]["estimate"] == pytest.approx(report["prefixes"]["tokens_computed"], rel=0.01)
    assert found["disk"]["output_bytes"] == pytest.approx(sum(map(len, shared.parts().values())), rel=0.1)
    assert found["time"] == {"earlier": None, "measured": None, "predicted": []}
    again = estimated(shared)
    assert again["time"]["earlier"]["rows"] == 40
    assert again["time"]["earlier"]["seconds"] == pytest.approx(report["serving_seconds"])
    assert again["completion_tokens"]["kind"] == "earlier run"
    assert again["completion_tokens"]["estimate"] == pytest.approx(960)


def test_room_for_long_completions(shared: Job) -> None:
    """Much of the part is completions, of a model that was trained on texts like the prompts."""
    prompts = pq.read_table("jobs/data/demo_prompts.parquet")["prompt"][:40]
    shared.input(prompt=prompts).set(sampling__max_tokens=100, output__rows_per_part=40)
    found = estimated(shared)["disk"]["output_bytes"]
    assert shared.run("--progress", "none") == 0
    (part,) = shared.parts().values()
    assert found == pytest.approx(len(part), rel=0.2)
    texts = pq.read_metadata(next(shared.output.iterdir())).row_group(0)
    sizes = {texts.column(i).path_in_schema: texts.column(i).total_compressed_size for i in range(texts.num_columns)}
    assert sizes["completion"] > 0.3 * len(part)  # what an estimate without completions would lack


def test_a_trial_tells_how_long_completions_are(shared: Job) -> None:
    """Completions of a trial end at their stop string; the estimate of the whole job expects the same of all."""
    shared.set(sampling__stop=["\n"], sampling__max_tokens=200, sampling__ignore_eos=False)
    assert shared.run("--limit", "20", "--progress", "none") == 0
    parts = sorted(Path(f"{shared.output}-limit-20").iterdir())
    lengths = [n for path in parts for n in pq.read_table(path)["completion_tokens"].to_pylist()]
    found = estimated(shared)
    assert found["time"]["earlier"]["trial"] and found["time"]["earlier"]["rows"] == 20
    assert found["completion_tokens"]["kind"] == "earlier run"
    assert found["completion_tokens"]["estimate"] == pytest.approx(80 * np.mean(lengths), rel=0.01)
    shared.set(sampling__max_tokens=199)  # another job
    assert estimated(shared)["time"]["earlier"] is None


def test_limits_of_rows_are_added_up(job: Job) -> None:
    """A column max_tokens says how many tokens its row may have; a mean that the user gives is cut to them."""
    limits = [1, 2, 3, None, 100] * 6
    job.input(prompt=[f"prompt {i}" for i in range(30)], max_tokens=pa.array(limits, pa.int32()))
    found = estimated(job)["completion_tokens"]
    assert (found["estimate"], found["kind"]) == (6 * (1 + 2 + 3 + 8 + 100), "upper bound")
    found = estimated(job, mean_tokens=5.0)["completion_tokens"]
    assert (found["estimate"], found["kind"]) == (6 * (1 + 2 + 3 + 5 + 5), "given")


def test_a_score_job(job: Job) -> None:
    """The demo's tokens are bytes: the numbers follow from the texts."""
    contexts = [f"context number {i} of thirty, which both choices share" for i in range(30)]
    choices = [[" yes", f" no, {i}"] for i in range(30)]
    job.input(context=contexts, choices=choices)
    job.settings.pop("sampling")
    job.settings["task"] = "score"
    found = estimated(job)
    assert found["context_tokens"]["estimate"] == sum(map(len, contexts))
    assert found["scored_tokens"]["estimate"] == sum(len(text) for row in choices for text in row)
    assert "completion_tokens" not in found
    assert job.run("--progress", "none") == 0
    report = json.loads((job.state / "report.json").read_text())
    assert report["tokens"]["num_tokens"] == found["scored_tokens"]["estimate"]
    assert found["requested_tokens"]["estimate"] == report["prefixes"]["tokens_requested"]
    assert found["computed_tokens"]["estimate"] == pytest.approx(report["prefixes"]["tokens_computed"], rel=0.01)
    assert found["disk"]["output_bytes"] == pytest.approx(sum(map(len, job.parts().values())), rel=0.15)
    with pytest.raises(ConfigurationError, match="samples no tokens"):
        estimated(job, mean_tokens=3.0)


def test_a_large_input_is_not_read_whole(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    """Totals of 6,000 rows, of which 2,048 are read, lie in the intervals; rows get longer, and some are errors."""
    random = np.random.default_rng(1)
    lengths = random.integers(1, 40, 6000) + np.arange(6000) // 100
    prompts: list[str | None] = [chr(97 + i % 26) * int(length) for i, length in enumerate(lengths)]
    for row in range(0, 6000, 15):
        prompts[row] = None
    job.input(prompt=prompts)
    found = estimated(job)
    assert found["sample"] == {"rows": 2048, "windows": 16, "whole": False}
    truth = {
        "prompt_tokens": sum(len(prompt) for prompt in prompts if prompt),
        "error_rows": 400,
        "samples": 5600,
        "completion_tokens": 5600 * 8,
    }
    for name, value in truth.items():
        assert found[name]["low"] <= value <= found[name]["high"], name
        assert 0 < found[name]["high"] - found[name]["low"] < 0.3 * value, name
    text = "\n".join(describe(found))
    assert "2,048 of them were read and tokenized" in text and "null_prompt" in text
    assert all(len(line) < 140 for line in text.splitlines())


def test_rows_that_are_errors(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.input(prompt=pa.array([None, None], pa.string()))
    assert cli.main(["estimate", job.write(), "--device", "none"]) == 3
    assert "null_prompt 2" in capsys.readouterr().out
    job.input(prompt=pa.array([], pa.string()))
    assert cli.main(["estimate", job.write(), "--device", "none", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["disk"]["output_bytes"]) == (0, None)


def test_a_job_that_is_wrong(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["estimate", job.write(), "-o", "sampling.max_token=3"]) == 2
    assert "max_tokens" in capsys.readouterr().err
    assert cli.main(["estimate", job.write(), "--mean-completion-tokens", "0"]) == 2
    assert "above 0" in capsys.readouterr().err
    with pytest.raises(ConfigurationError, match="ray"):
        estimated(job.set(run__backend="ray"), is_measured=True)


def test_a_measured_job(job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With short rounds: what is said about them is there, and the job's folders are not."""
    monkeypatch.setattr("rwkv_batch.commands.estimate_measure.ROUND_SECONDS", 0.02)
    assert cli.main(["estimate", job.set(engine__device="cpu").write(), "--measure", "--device", "none"]) == 0
    text = capsys.readouterr().out
    assert "by a measured run" in text and "prompt tokens/s" in text
    assert not job.output.exists() and not job.state.exists()
    found = estimated(job, is_measured=True)["time"]["measured"]
    assert 0 < found["low"] <= found["seconds"] <= found["high"]
    assert found["measured_completion_tokens"] > 0 and found["slots"] == 30
    assert estimated(job, is_measured=True, mean_tokens=2.0)["time"]["measured"]["high"] > 0


def test_devices_are_those_with_figures() -> None:
    assert (*CARDS,) == DEVICES


def test_where_nothing_can_be_predicted(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each device has the reason: kernels are interpreted, or layers have places of their own."""
    monkeypatch.setattr("rwkv_batch.triton_kernels.launch.is_interpreted", lambda: True)
    found = estimated(job, devices=DEVICES)
    assert [one["device"] for one in found["time"]["predicted"]] == list(DEVICES)
    assert all("TRITON_INTERPRET" in one["problem"] for one in found["time"]["predicted"])
    assert "H200 SXM 141 GB" in "\n".join(describe(found))
    found = estimated(job.set(model__strategy="cpu fp32"), devices=["h100"])
    assert "strategy" in found["time"]["predicted"][0]["problem"]
