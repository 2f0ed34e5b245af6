"""Error rows that are served again: what changes, what stays, and that no kill loses a row."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pyarrow.parquet as pq
import pytest
from fakes.object_store import Bucket

from job import fake_llm
from job.faulty_storage import EXIT_CRASHED, Countdown, SteppingStorage, crash
from rwkv_batch import cli
from rwkv_batch.job.folders import Folders
from rwkv_batch.job.output.parts import footer

from .conftest import Job
from .prepared import forget, in_child

PROMPTS = ["long prompt", "a", "long prompt", "b", None, "long prompt"]
CODES = ["prompt_too_long", None, "prompt_too_long", None, "null_prompt", "prompt_too_long"]


@pytest.fixture
def limited(job: Job) -> Job:
    """6 rows in two parts; 3 prompts are too long, one is null. A row has two samples."""
    job.input(id=list(range(6)), prompt=PROMPTS)
    return job.set(output__rows_per_part=4, output__flush_seconds=0, sampling__n=2, input__max_prompt_tokens=4)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the rows that the engine takes in this process. Error rows are among them."""
    rows: list[int] = []
    original = fake_llm.Serving._built

    def built(self: Any, row: Any) -> Any:
        rows.append(row.row)
        return original(self, row)

    monkeypatch.setattr(fake_llm.Serving, "_built", built)
    return rows


def codes(job: Job) -> list[str | None]:
    return [row["error_code"] for row in job.rows() if row["sample_index"] == 0]


def values(job: Job) -> list[list[dict[str, Any]]]:
    """The records of each part."""
    return [pq.read_table(path).to_pylist() for path in sorted(job.output.iterdir())]


def retries(job: Job) -> list[Any]:
    """What the footer of each part says of the runs that have served its error rows again."""
    footers = [footer(pq.ParquetFile(path)) for path in sorted(job.output.iterdir())]
    return [json.loads(values.get("retries", "[]")) for values in footers]


def unlimited(job: Job) -> list[list[dict[str, Any]]]:
    """The records that the job would have had without a limit."""
    job.set(input__max_prompt_tokens=None)
    assert job.run() in (0, 3)
    found = values(job)
    forget(job)
    job.set(input__max_prompt_tokens=4)
    return found


def test_error_rows_alone_are_served_again(limited: Job, served: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    expected = unlimited(limited)
    assert limited.run() == 3 and codes(limited) == CODES
    document = (limited.state / "job.json").read_bytes()
    served.clear()
    capsys.readouterr()
    assert limited.set(input__max_prompt_tokens=100).run("--retry-errors") == 3
    assert sorted(served) == [0, 2, 4, 5]
    assert values(limited) == expected
    assert "retried 4 error rows, 3 of them are ok now, 1 still errors" in capsys.readouterr().out
    assert (limited.state / "job.json").read_bytes() == document and not list(limited.state.glob("unit-*"))
    success = json.loads((limited.state / "_SUCCESS.json").read_text())
    assert success["errors"] == 1 and success["parts"][0]["bytes"] == len(next(iter(limited.parts().values())))
    assert [[run["input.max_prompt_tokens"] for run in part] for part in retries(limited)] == [[100], [100]]
    assert retries(limited)[0][0]["engine.constraint_timeout"] == 10.0
    assert limited.set(input__max_prompt_tokens=4).run() == 3  # the job as it was begun finds nothing left to do
    assert values(limited) == expected


def test_a_dry_run_counts_the_rows(limited: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert limited.run() == 3
    parts = limited.parts()
    assert limited.set(input__max_prompt_tokens=100).run("--retry-errors", "prompt_too_long", "--dry-run") == 0
    assert "retry     3 error rows in 2 parts" in capsys.readouterr().out
    assert limited.parts() == parts


def test_an_error_that_fails_again_has_its_newest_reason(limited: Job) -> None:
    assert limited.run() == 3
    assert limited.set(input__max_prompt_tokens=5).run("--retry-errors") == 3
    assert codes(limited) == CODES
    assert "max_prompt_tokens (5)" in limited.rows()[0]["error"]


def test_a_part_without_change_is_not_written_again(limited: Job) -> None:
    assert limited.run() == 3
    parts = limited.parts()
    assert limited.run("--retry-errors") == 3
    assert limited.parts() == parts


def test_codes_and_shards_choose_the_rows(limited: Job, served: list[int], caplog: pytest.LogCaptureFixture) -> None:
    assert limited.run() == 3
    limited.set(input__max_prompt_tokens=100)
    served.clear()
    assert limited.run("--retry-errors", "null_prompt", "not_finite") == 3
    assert served == [4]
    assert "no error row has the code 'not_finite'; there are null_prompt 1" in caplog.text
    served.clear()
    assert limited.run("--retry-errors", "prompt_too_long", "--shard", "1/2") == 3
    assert served == [5] and codes(limited) == [*CODES[:5], None]
    assert retries(limited)[0] == []
    served.clear()
    assert limited.run("--retry-errors", "prompt_too_long", "--allow-errors") == 0
    assert sorted(served) == [0, 2] and codes(limited) == [None] * 4 + ["null_prompt", None]


def test_rows_without_a_result_are_not_served(limited: Job, served: list[int]) -> None:
    assert limited.run("--shard", "1/2") == 3
    served.clear()
    assert limited.set(input__max_prompt_tokens=100).run("--retry-errors") == 3
    assert sorted(served) == [4, 5] and len(limited.parts()) == 1


def test_a_bad_row_does_not_stop_a_run_that_serves_error_rows_again(limited: Job, served: list[int]) -> None:
    assert limited.run() == 3
    limited.set(run__on_row_error="stop", input__max_prompt_tokens=100)
    served.clear()
    assert limited.run("--retry-errors") == 3
    assert sorted(served) == [0, 2, 4, 5]


def test_other_results_are_refused(limited: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert limited.run("--retry-errors") == 2
    assert "is no job's output yet; run the job without it first" in capsys.readouterr().err
    assert limited.run() == 3
    assert limited.run("--retry-errors", "promt_too_long") == 2
    assert "got 'promt_too_long', expected an error code (did you mean 'prompt_too_long'?)" in capsys.readouterr().err
    assert limited.set(sampling__temperature=0.5).run("--retry-errors") == 4
    assert "sampling.temperature" in capsys.readouterr().err


def test_a_score_job(job: Job, served: list[int]) -> None:
    job.settings["task"] = "score"
    job.input(context=["long context", "b", None], choices=[["x", "y"]] * 3, answer=[0, 1, 1])
    assert job.set(input__max_prompt_tokens=4).run() == 3
    before = job.rows()
    served.clear()
    assert job.set(input__max_prompt_tokens=100).run("--retry-errors") == 3
    assert served == [0, 2]
    rows = job.rows()
    assert rows[1:] == before[1:] and (rows[0]["status"], len(rows[0]["logprob"])) == ("ok", 2)


def test_a_crash_at_every_third_durable_step(limited: Job, monkeypatch: pytest.MonkeyPatch, soak_seed: int) -> None:
    """Whatever command goes on, no row is lost, and what a retry has committed reaches the part.

    Three seeds in a row have every step.
    """

    def at_step(act: Any) -> None:
        monkeypatch.setattr(Folders, "open_storage", lambda folders: SteppingStorage(folders.file("tmp"), act))

    limited.input(id=[0, 1], prompt=["long prompt", "long prompt too"]).set(sampling__n=1)
    expected = unlimited(limited)
    assert limited.run() == 3
    first = values(limited)
    finished = f"{limited.folder}-finished"
    shutil.copytree(limited.folder, finished)
    step, code, settled = soak_seed % 3 - 2, EXIT_CRASHED, 0
    while code == EXIT_CRASHED:
        step += 3
        limited.set(input__max_prompt_tokens=100)
        at_step(Countdown(step, crash))
        code = in_child(lambda: limited.run("--retry-errors"))
        assert code in (0, EXIT_CRASHED)
        between = values(limited)
        assert between in (first, expected)
        at_step(lambda _: None)
        if step % 2:  # the job as it was begun takes over what the killed run has committed
            limited.set(input__max_prompt_tokens=4).run()
            settled += values(limited) != between
            assert not list(limited.state.glob("unit-*/*"))
            limited.set(input__max_prompt_tokens=100)
        assert limited.run("--retry-errors") == 0, f"crash at step {step}"
        assert values(limited) == expected, f"crash at step {step}"
        assert (limited.state / "_SUCCESS.json").exists() and not list(limited.state.glob("unit-*/*"))
        forget(limited)
        shutil.copytree(finished, limited.folder, dirs_exist_ok=True)
    shutil.rmtree(finished)
    assert step > 30 and settled > 0


def test_a_worker_serves_error_rows_again(limited: Job) -> None:
    expected = unlimited(limited)
    assert limited.run() == 3
    limited.set(input__max_prompt_tokens=100, engine__device="cpu", run__workers=2)
    assert limited.run("--retry-errors", "--shard", "0/2", "--allow-errors") == 0
    assert values(limited)[0] == expected[0]
    assert [run["input.max_prompt_tokens"] for run in retries(limited)[0]] == [100]


def test_commands_for_a_finished_job(job: Job, bucket: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    """Error rows are served again, results exported and compared, and nothing is left to remove."""
    out, target = f"{bucket.url}/out", job.folder / "all.jsonl"
    job.input(prompt=["long prompt", "b"]).set(input__max_prompt_tokens=4, output__path=out)
    assert job.run() == 3
    assert job.set(input__max_prompt_tokens=None).run("--retry-errors") == 0
    assert cli.main(["export", out, str(target)]) == 0
    assert [json.loads(line)["status"] for line in target.read_text().splitlines()] == ["ok", "ok"]
    assert cli.main(["compare", out, out]) == 0 and "equal   2 of 2" in capsys.readouterr().out
    assert cli.main(["clean", out, "--yes"]) == 0 and "nothing to remove" in capsys.readouterr().out
