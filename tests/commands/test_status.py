"""The status of a job, compared with what its files hold as other readers count them."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from job.conftest import Job

from rwkv_batch import cli, run
from rwkv_batch.commands import status
from rwkv_batch.job.claim import Machine
from rwkv_batch.job.report.run_status import METRICS
from rwkv_batch.job.report.status import JobWatch


def status_of(job: Job, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """Runs the command. Returns its exit code and its JSON object."""
    capsys.readouterr()
    code = cli.main(["status", str(job.output), "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


def committed_rows(job: Job) -> int:
    """Counts the rows in parts and segments."""
    parts = sum(pq.read_metadata(path).num_rows for path in job.output.glob("*.parquet"))
    segments = {row for path in job.state.glob("unit-*/*.seg") for row in pq.read_table(path)["row"].to_pylist()}
    return parts + len(segments)


def files_below(*folders: Path) -> dict[Path, tuple[int, int]]:
    """Every file, with its size and the time of its last change."""
    paths = [path for folder in folders for path in folder.rglob("*")]
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


@pytest.fixture
def bad(job: Job) -> Job:
    """30 rows in parts of 10; three of them are errors, of two codes."""
    prompts: list[str | None] = [f"prompt {i}" for i in range(30)]
    prompts[3] = prompts[4] = None
    prompts[25] = "too long " * 40
    return job.input(prompt=prompts).set(input__max_prompt_tokens=100)


def test_a_finished_job(bad: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert bad.run() == 3
    before = files_below(bad.output, bad.state)
    code, found = status_of(bad, capsys)
    assert (code, found["state"]) == (3, "errors")
    assert found["rows"] == {"total": 30, "done": 30, "committed": 30}
    assert found["parts"] == {"published": 3, "planned": 3, "unreadable": []}
    codes = Counter(row["error_code"] for row in bad.rows() if row["error_code"])
    assert found["errors"] == {"published": codes, "running": 0} and len(codes) == 2
    for name, folder in (("output", bad.output), ("state_folder", bad.state)):
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        assert found["disk"][name] == {"files": len(sizes), "bytes": sum(sizes)}
    assert files_below(bad.output, bad.state) == before, "a status writes nothing"
    assert cli.main(["status", str(bad.state)]) == 3
    text = capsys.readouterr().out
    assert f"{bad.output}: finished, with error rows" in text and "null_prompt 2" in text
    assert bad.input(prompt=["a"]).set(output__path=str(bad.folder / "good")).run() == 0
    assert status_of(bad, capsys)[0] == 0


def test_a_job_that_runs_and_is_killed(bad: Job, capsys: pytest.CaptureFixture[str]) -> None:
    """The process is held after 15 of 30 rows, and then killed: what its files hold is what is committed."""
    process = bad.set(output__flush_seconds=0).start(FAKE_HOLD_AFTER=15)
    assert process.stdout and process.stdout.readline() == "held\n"
    for _ in range(1000):
        code, found = status_of(bad, capsys)
        if found["rows"]["done"] >= 15 and found["rows"]["committed"] == committed_rows(bad):
            break
        time.sleep(0.02)
    assert (code, found["state"], found["rows"]["total"]) == (status.EXIT_RUNNING, "running", 30)
    (shard,) = found["shards"]
    assert (shard["claim"]["state"], shard["claim"]["pid"], shard["doing"]) == ("alive", process.pid, "serving")
    assert shard["run"]["outcome"] == "running"
    process.kill()
    process.wait()
    code, found = status_of(bad, capsys)
    assert (code, found["state"]) == (75, "stopped")
    assert found["rows"]["committed"] == found["rows"]["done"] == committed_rows(bad) >= 10
    (shard,) = found["shards"]
    assert (shard["claim"]["state"], shard["run"]["outcome"], shard["doing"]) == ("ended", "killed", "")
    assert "start the same command again" in found["next"]


def test_exit_codes_of_a_status_are_those_of_a_run_or_no_runs() -> None:
    assert status.EXIT_RUNNING not in run.EXIT_CODES
    assert {*status.EXIT_CODES.values()} - {status.EXIT_RUNNING} < run.EXIT_CODES.keys()


@pytest.fixture
def serving(job: Job) -> Iterator[Job]:
    """A job of which one part is there and a run of shard 0/2 with two workers seems to go on, on another machine."""
    assert job.run("--shard", "1/2") == 0
    now = time.time()
    common = {"run": "abcd", "shard": "0/2"}
    events: list[dict[str, Any]] = [{"event": "start", "time": now - 200, "machine": {"host": "far"}}]
    events += [worker(0, now - 150, "placed", pid=7, host="far"), worker(0, now - 140, "ready")]
    events += [worker(1, now - 150, "placed", pid=8, host="far"), worker(1, now - 20, "ended", how="signal 9")]
    for ago, rows in ((130, 0), (70, 2), (40, 7), (10, 8)):
        counts = {"seconds": 130.0 - ago, "rows_total": 20, "rows_done": rows, "rows_committed": rows - rows % 5}
        events.append({"event": "progress", "time": now - ago, "prompt_tokens": rows * 10, "slots": 8, **counts})
    events += [{"event": "commit", "time": now - ago, "unit": 0, "rows": rows} for ago, rows in ((50, 4), (5, 2))]
    lines = [json.dumps({**event, **common}) for event in sorted(events, key=lambda event: event["time"])]
    lines[1:1] = ["", "{", "[]", '{"event": "progress"}', '{"time": 1, "run": 2, "shard": null, "event": "x"}']
    (job.state / "log-0-of-2.jsonl").write_text("\n".join([*lines, '{"time": 5, "ru']))
    (job.state / "metrics-0-of-2.prom").write_text("rwkv_batch_rows 3\n# HEL")
    (job.state / "claim.json").write_text("{")
    claim(job, now)
    yield job


def worker(index: int, at: float, state: str, **fields: Any) -> dict[str, Any]:
    return {"event": "worker", "time": at, "worker": index, "state": state, **fields}


def claim(job: Job, renewed: float, beat: int = 3) -> None:
    """Writes the claim of a process on another machine."""
    text = datetime.fromtimestamp(renewed, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    content = {**json.loads(Machine().claim("abcd").encoded()), "host": "far", "beat": beat, "renewed": text}
    (job.state / "claim-0-of-2.json").write_text(json.dumps(content))


def test_rates_shards_and_workers_of_a_run_on_another_machine(serving: Job, capsys: pytest.CaptureFixture[str]) -> None:
    """6 rows in the last minute, of 20: 8 are done, so 12 are left for 2 minutes. Damaged files are no error."""
    code, found = status_of(serving, capsys)
    assert code == status.EXIT_RUNNING
    assert found["rates"]["rows"] == pytest.approx(0.1) and found["rates"]["prompt_tokens"] == pytest.approx(1.0)
    assert found["seconds_left"] == pytest.approx(120.0)
    assert found["rows"] == {"total": 30, "done": 18, "committed": 10 + 5 + 2}, "the last commit is the latest news"
    mine, other = found["shards"]
    assert (mine["shard"], mine["claim"]["state"], mine["claim"]["host"]) == ("0/2", "alive", "far")
    states = [(one["worker"], one["state"], one["pid"], one.get("how")) for one in mine["workers"]]
    assert states == [(0, "ready", 7, None), (1, "ended", 8, "signal 9")]
    assert (other["claim"], other["run"]["outcome"], found["missing_shards"]) == (None, "finished", [])
    assert cli.main(["status", str(serving.output)]) == status.EXIT_RUNNING
    text = capsys.readouterr().out
    assert "about 2 min" in text and "worker   1: ended" in text and "0/2" in text


@pytest.mark.parametrize(("estimate", "left", "text"), [(75.0, 65.0, "about 1 min"), (None, None, "measuring")])
def test_the_time_left_is_the_estimate_of_the_run(
    serving: Job, capsys: pytest.CaptureFixture[str], estimate: float | None, left: float | None, text: str
) -> None:
    """It was made ten seconds ago."""
    log = serving.state / "log-0-of-2.jsonl"
    *before, cut = log.read_text().splitlines()
    last = next(line for line in reversed(before) if '"progress"' in line)
    changed = json.dumps({**json.loads(last), "seconds_left": estimate})
    log.write_text("\n".join([*(changed if line == last else line for line in before), cut]))
    found = JobWatch(str(serving.output)).look()
    assert found["seconds_left"] == (None if left is None else pytest.approx(left, abs=3))
    cli.main(["status", str(serving.output)])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left ")]
    assert line.startswith(f"left     {text}")


def test_a_claim_is_stale_after_a_minute_unless_it_is_renewed_before_our_eyes(serving: Job) -> None:
    """The clock of another machine may be wrong: what counts then is that the claim changes."""
    claim(serving, time.time() - 100)
    watch = JobWatch(str(serving.output))
    found = watch.look()
    assert (found["state"], found["shards"][0]["claim"]["state"]) == ("stopped", "stale")
    assert found["missing_shards"] == ["0/2"] and "0/2" in status.next_step(found)
    claim(serving, time.time() - 100, beat=4)
    assert watch.look()["state"] == "running"


def test_watching_ends_with_the_job(
    serving: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two looks, between which the process goes; on a terminal the text is drawn in place. Ctrl-C ends with 130."""

    def leave(_: float) -> None:
        os.unlink(serving.state / "claim-0-of-2.json")

    monkeypatch.setattr(time, "sleep", leave)
    capsys.readouterr()
    assert status.status(str(serving.output), watch=True, as_json=False) == 75
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert "rows 18 of 30" in first and "eta 2 min" in first and second.endswith(": stopped")
    claim(serving, time.time())
    assert status.status(str(serving.output), watch=True, as_json=True) == 75
    states = [json.loads(line)["state"] for line in capsys.readouterr().out.splitlines()]
    assert states == ["running", "stopped"]
    claim(serving, time.time())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert status.status(str(serving.output), watch=True, as_json=False) == 75
    assert capsys.readouterr().out.count(status.REDRAW) == 2
    claim(serving, time.time())
    monkeypatch.setattr(time, "sleep", lambda _: signal.raise_signal(signal.SIGINT))
    assert cli.main(["status", str(serving.output), "--watch"]) == 130


def test_every_key_and_metric_is_explained(serving: Job) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "output.md").read_text(encoding="utf-8")
    found = JobWatch(str(serving.output)).look()
    (shard, *_) = found["shards"]
    told = set(re.findall(r"`(\w+)`", page.partition("## Status as JSON")[2]))
    assert {*found, "next", *shard, *shard["run"], *shard["progress"], *shard["workers"][0], *found["rates"]} <= told
    rows = re.findall(r"^\| `rwkv_batch_(\w+)` \| (\w+) \|", page, re.MULTILINE)
    assert rows == [(metric.name, metric.kind) for metric in METRICS.values()]


def test_no_such_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", str(tmp_path)]) == 2
    assert "job.json is missing" in capsys.readouterr().err
