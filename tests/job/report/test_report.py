"""The output of a run for people and machines: progress, metrics, log, report."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from job import fake_llm
from rwkv_batch import cli
from rwkv_batch.job.folders import Folders
from rwkv_batch.job.output.storage import LocalStorage
from rwkv_batch.job.report.error_codes import ERROR_CODES
from rwkv_batch.job.report.events import EventLog, read_events
from rwkv_batch.job.report.history import Run, serving_seconds, timeline
from rwkv_batch.job.report.report import collect
from rwkv_batch.job.report.run_status import read_prometheus
from rwkv_batch.job.report.wording import percent

from ..conftest import Job


@pytest.fixture
def mixed(job: Job) -> Job:
    """28 good rows of two samples, two bad ones."""
    prompts: list[str | None] = [f"secret {i}" for i in range(30)]
    prompts[3] = prompts[21] = None
    return job.input(prompt=prompts).set(sampling__n=2)


def report_of(job: Job) -> dict[str, Any]:
    return json.loads((job.state / "report.json").read_text())


def test_report_counts_what_the_parts_hold(mixed: Job) -> None:
    assert mixed.run() == 3
    report, rows = report_of(mixed), mixed.rows()
    assert (report["rows"], report["input_rows"]) == ({"ok": 56, "error": 2}, {"ok": 28, "error": 2})
    assert report["errors"] == {"null_prompt": 2}
    reasons = [row["finish_reason"] for row in rows]
    assert report["finish_reasons"] == {reason: reasons.count(reason) for reason in set(reasons)}
    assert report["tokens"]["completion_tokens"] == sum(row["completion_tokens"] or 0 for row in rows)
    assert report["tokens"]["prompt_tokens"] == sum(row["prompt_tokens"] or 0 for row in rows) // 2
    assert sum(report["length_histograms"]["prompt_tokens"].values()) == 28
    assert report["length_histograms"]["prompt_tokens"] == {"8-15": 28}
    assert (report["complete"], report["parts"]) == (True, {"published": 3, "planned": 3})
    (run,) = report["runs"]
    assert run["model"]["backends"] == [{"op": "wkv7", "backend": "cpu", "not_used": []}]
    assert run["config"]["sampling"]["n"] == 2
    assert {"host", "cpus", "python"} <= set(run["machine"])
    assert run["outcome"] == "finished"
    assert (run["rows"], run["completion_tokens"]) == (30, report["tokens"]["completion_tokens"])


def test_report_says_what_sharing_saved_and_how_full_the_slots_were(
    mixed: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs: what each saved is added up; the mean share of slots is over the steps of both."""
    prompts: list[str | None] = [f"prompt {i:02}" for i in range(30)]
    prompts[22] = "explode"
    assert mixed.input(prompt=prompts).run() == 1
    original, fake_llm.Serving._complete = fake_llm.Serving._complete, complete_all
    try:
        assert mixed.run() == 0
    finally:
        fake_llm.Serving._complete = original
    report = report_of(mixed)
    runs = report["runs"]
    computed = runs[0]["tokens_computed"]
    assert computed > 0 and computed % len("prompt 00") == 0
    assert [runs[0][name] for name in ("tokens_requested", "seconds_saved_estimate")] == [2 * computed, computed]
    assert report["prefixes"] == {
        "tokens_requested": 2 * computed,
        "tokens_computed": computed,
        "seconds_saved_estimate": computed,
    }
    courses = [run["occupancy"]["course"] for run in runs]
    assert runs[0]["occupancy"]["steps_per_bucket"] == 1 and [len(course) for course in courses] == [
        run["steps"] for run in runs
    ]
    every_step = [share for course in courses for share in course]
    assert report["utilisation"]["slots"] == pytest.approx(sum(every_step) / len(every_step), abs=1e-4)
    assert report["utilisation"]["step_tokens"] == 0.25
    out = capsys.readouterr().out
    assert f"shared  {2 * computed:,} prompt tokens, {computed:,} of them computed (2.0 times fewer)" in out
    assert f"slots in use {percent(report['utilisation']['slots'])}, tokens 25 % of" in out
    assert (
        f"<b>{computed:,}</b><span>of {2 * computed:,}; 2.0 times fewer were computed"
        in (mixed.state / "report.html").read_text()
    )


def test_report_of_a_score_job(job: Job) -> None:
    job.settings["task"] = "score"
    assert job.input(context=["a", "b"], choices=[["x"], ["y", "z"]]).run() == 0
    report = report_of(job)
    assert report["length_histograms"] == {"num_tokens": {"2-3": 3}}
    assert report["tokens"] == {"num_tokens": 9}
    assert [run["scored_tokens"] for run in report["runs"]] == [9]
    assert "completion" not in (job.state / "report.html").read_text().partition("<summary>All settings")[0]
    assert read_prometheus((job.state / "metrics.prom").read_text())["scored_tokens"] == 9


def test_report_covers_all_runs(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = [f"prompt {i}" for i in range(30)]
    prompts[22] = "explode"
    job.input(prompt=prompts)
    assert job.run() == 1
    assert cli.main(["report", str(job.output)]) == 0
    assert " of 30 rows made; the last run: RuntimeError: the engine exploded\n" in capsys.readouterr().out
    original, fake_llm.Serving._complete = fake_llm.Serving._complete, complete_all
    try:
        assert job.run() == 0
    finally:
        fake_llm.Serving._complete = original
    failed, finished = report_of(job)["runs"]
    assert failed["outcome"] == "RuntimeError: the engine exploded"
    assert finished["outcome"] == "finished"
    assert failed["rows"] + finished["rows"] == 30


def complete_all(self: fake_llm.Serving, row: Any) -> None:
    row.completions += [self._sampled(row.row, request) for request in row.requests]


def test_the_report_shows_the_first_rows_of_each_error(mixed: Job) -> None:
    assert mixed.run() == 3
    found = report_of(mixed)["error_rows"]["null_prompt"]
    assert (found["count"], found["do"]) == (2, ERROR_CODES["null_prompt"].plain_advice)
    assert [row["row"] for row in found["first_rows"]] == [3, 21]
    assert all("'prompt'" in row["error"] for row in found["first_rows"])


def test_samples_have_texts_where_the_job_asks_for_them(mixed: Job) -> None:
    """The chosen rows are those of the parts, whatever made them, and do not change when the report is made again."""
    assert mixed.set(report__show_text=True, report__samples=6).run() == 3
    found = report_of(mixed)["samples"]
    rows = {(row["prompt"], row["sample_index"]): row for row in mixed.rows()}
    assert len(found) == 6
    for sample in found:
        row = rows[sample["prompt"], sample["sample"]]
        assert sample["prompt"] == f"secret {sample['row']}"
        assert (sample["completion"], sample["finish_reason"]) == (row["completion"], row["finish_reason"])
    assert mixed.run() == 3
    assert report_of(mixed)["samples"] == found
    assert mixed.set(report__show_text=False).run() == 3
    assert report_of(mixed)["samples"] == [] and "secret" not in (mixed.state / "report.html").read_text()


def test_a_run_records_where_its_time_went(mixed: Job) -> None:
    assert mixed.run() == 3
    report = report_of(mixed)
    serving, writing = report["phases"]  # the engine of this test reads no rows ahead
    assert (serving["name"], writing["name"]) == ("serving", "writing")
    assert serving["phases"]["model"] == pytest.approx(report["runs"][0]["steps"] / 1000, abs=0.002)
    assert {"commit", "publish"} <= writing["phases"].keys()


def test_a_report_that_cannot_be_written_is_printed(
    mixed: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mixed.run() == 3

    def refuse(self: LocalStorage, path: str, content: bytes) -> None:
        raise OSError(30, "Read-only file system", path)

    monkeypatch.setattr(LocalStorage, "atomic_write", refuse)
    capsys.readouterr()
    assert cli.main(["report", str(mixed.output)]) == 0
    printed = capsys.readouterr()
    assert "3 of 3 parts, 30 rows" in printed.out and "ok 28, error 2 (56 samples)" in printed.out
    assert "report.json and report.html were not written" in printed.err


def test_the_report_command_shows_error_rows(mixed: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert mixed.run() == 3
    capsys.readouterr()
    assert cli.main(["report", str(mixed.output), "--show", "3", "--status", "error"]) == 0
    out = capsys.readouterr().out
    assert out.count("status: error") == 2 and "status: ok" not in out
    assert "null_prompt row 3: " in out and "null_prompt row 21: " in out


def test_no_prompt_is_written_outside_the_parts(mixed: Job, capfd: pytest.CaptureFixture[str]) -> None:
    assert mixed.run("--verbose") == 3
    for path in (path for path in mixed.state.rglob("*") if path.is_file()):
        assert b"secret" not in path.read_bytes(), path
    assert "secret" not in "".join(capfd.readouterr())


def test_timeline_sums_runs_over_time() -> None:
    def run(start: float, tokens: int) -> list[dict[str, float]]:
        return [
            {"time": start, "prompt_tokens": 0, "completion_tokens": 0, "slots_in_use": 2, "slots": 4},
            {"time": start + 60, "prompt_tokens": 0, "completion_tokens": tokens, "slots_in_use": 2, "slots": 4},
        ]

    found = timeline([run(0, 600), run(60, 1200), [run(0, 9)[0]]])
    assert found["seconds"][0] == 0.5 and found["seconds"][-1] == 119.5
    assert found["completion_tokens"] == pytest.approx([10] * 60 + [20] * 60)
    assert found["slots_in_use"] == pytest.approx([2] * 120)
    assert timeline([])["slots"] == []


def test_a_log_survives_a_full_disk_and_a_torn_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = EventLog(LocalStorage(str(tmp_path / "tmp")), str(tmp_path / "log.jsonl"), shard="0/1")
    log("one", value=1)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"event": "to')
    events = list(read_events(LocalStorage(str(tmp_path)), str(tmp_path)))
    assert [event["event"] for event in events] == ["one"]
    broken = EventLog(LocalStorage(str(tmp_path / "tmp")), str(tmp_path / "nowhere" / "log.jsonl"))
    broken("one")
    broken("two")
    assert caplog.text.count("no more events are logged") == 1


def test_the_report_command(mixed: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert mixed.run() == 3
    before = report_of(mixed)
    (mixed.state / "report.json").unlink()
    capsys.readouterr()
    for path in (mixed.output, mixed.state, f"{mixed.output}/"):
        assert cli.main(["report", str(path), "--show", "2"]) == 0
        out = capsys.readouterr().out
        assert "3 of 3 parts, 30 rows" in out and "errors  null_prompt 2" in out
        assert out.count("prompt: secret 0") == 2 and "secret 1" not in out
    assert report_of(mixed) == before
    assert cli.main(["report", str(mixed.folder)]) == 2
    assert "expected a job's output folder" in capsys.readouterr().err


def test_parts_are_read_at_the_same_time(mixed: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first reads of three parts wait for one another; one part at a time gives the same report."""
    assert mixed.run() == 3
    before, folders = report_of(mixed), Folders(str(mixed.output), str(mixed.state))
    together, begun = threading.Barrier(3), set()

    class WaitingStorage(LocalStorage):
        def open(self, path: str) -> BinaryIO:
            if path.endswith(".parquet") and path not in begun:
                begun.add(path)
                together.wait(60)
            return super().open(path)

    assert json.loads(json.dumps(collect(WaitingStorage(str(mixed.folder)), folders))) == before
    monkeypatch.setattr("rwkv_batch.job.report.report.MOST_READ_ROWS", 1)
    assert json.loads(json.dumps(collect(LocalStorage(str(mixed.folder)), folders))) == before


def test_the_report_of_a_state_folder_elsewhere(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.set(run__state_dir=str(job.folder / "states" / "one")).run() == 0
    assert cli.main(["report", str(job.folder / "states" / "one")]) == 0
    assert f"{job.output}: 3 of 3 parts" in capsys.readouterr().out


def test_runs_at_the_same_time_count_once() -> None:
    """Two shards side by side for 10 s, one of them inside the other, and a later run of 5 s."""
    spans = [(100.0, 110.0), (102.0, 105.0), (104.0, 112.0), (200.0, 205.0)]
    runs = [Run("0/1", start, samples=[{"time": end, "seconds": end - start}]) for start, end in spans]
    assert serving_seconds([*runs, Run("0/1", 300.0)]) == 17.0
