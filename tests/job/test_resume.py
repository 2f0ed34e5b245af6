"""Starting a job again: what is kept, what is refused, and what a refusal says."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from job import fake_llm
from rwkv_batch import cli
from rwkv_batch.job.state import JOB_KEYS

from .conftest import Job


def failing_job(job: Job, row: int = 22) -> Job:
    """A job whose engine fails at one row. Rows that finish before are committed."""
    prompts = [f"prompt {i}" for i in range(30)]
    prompts[row] = "explode"
    return job.input(id=[f"row-{i}" for i in range(30)], prompt=prompts)


def test_an_engine_failure_ends_the_run_and_keeps_what_was_finished(
    job: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_job(job)
    assert job.run() == 1
    message = capsys.readouterr().err
    assert "RuntimeError: the engine exploded" in message
    assert "start the same command again" in message
    assert "Traceback" not in message
    log = (job.state / "log.jsonl").read_text()
    assert "Traceback" in log and "prompt 1" not in log
    served: list[int] = []

    def complete(self: Any, row: Any) -> None:
        served.append(row.row.row)
        row.completions += [self._sampled(row.row, request) for request in row.requests]

    monkeypatch.setattr(fake_llm.Serving, "_complete", complete)
    assert job.run() == 0
    assert 22 in served and len(served) < 16
    assert [row["id"] for row in job.rows()] == [f"row-{i}" for i in range(30)]
    assert (job.state / "_SUCCESS.json").exists()


def test_a_finished_job_loads_no_model(job: Job) -> None:
    assert job.run() == 0
    parts = job.parts()
    fake_llm.LLM.loaded = 0
    assert job.run() == 0
    assert (fake_llm.LLM.loaded, job.parts()) == (0, parts)


@pytest.mark.parametrize("damage", ["removed", "torn", "foreign"])
def test_a_lost_part_is_made_again(job: Job, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    assert job.run() == 0
    parts = job.parts()
    path = job.output / "part-00001-of-00003.parquet"
    if damage == "removed":
        path.unlink()
    elif damage == "torn":
        path.write_bytes(path.read_bytes()[:500])
    else:
        table = pq.read_table(path)
        pq.write_table(table.replace_schema_metadata({b"rwkv_batch.fingerprint": b"other"}), path)
    assert job.run() == 0
    assert job.parts() == parts
    is_damaged = damage != "removed"
    assert (f"{path} is damaged" in caplog.text) == is_damaged
    assert (str(path) in (job.state / "report.json").read_text()) == is_damaged


def test_input_columns_may_change_until_the_first_part(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    """Segments hold no input columns, so that nothing is served again."""
    failing_job(job, row=9).set(output__flush_seconds=0)
    assert job.run() == 1
    assert not job.output.exists() or not job.parts()
    committed = {row for path in job.state.glob("unit-*/*.seg") for row in pq.read_table(path)["row"].to_pylist()}
    assert len(committed) > 1
    served: list[int] = []

    def complete(self: Any, row: Any) -> None:
        served.append(row.row.row)
        row.completions += [self._sampled(row.row, request) for request in row.requests]

    original, fake_llm.Serving._complete = fake_llm.Serving._complete, complete
    try:
        assert job.run("-o", "output.input_columns=[id]", "--dry-run") == 0
        assert '"prompt"' in (job.state / "job.json").read_text().partition("output.input_columns")[2][:60]
        assert job.run("-o", "output.input_columns=[id]") == 0
    finally:
        fake_llm.Serving._complete = original
    assert committed.isdisjoint(served)
    assert job.table().column_names[:2] == ["id", "sample_index"]
    message = changed(job, capsys)
    assert "output.input_columns may change only until the first part is published" in message
    assert 'output.input_columns: ["id"] when it was started, ["id", "prompt"] now' in message
    assert job.run("-o", "output.input_columns=[id]") == 0


def test_a_part_of_a_run_with_other_input_columns_is_made_again(job: Job) -> None:
    """Of another process, which started before the columns changed and has published since."""
    assert job.set(output__input_columns=["id"]).run() == 0
    parts = job.parts()
    settings = (job.state / "job.json").read_text()
    job.output.rename(job.folder / "old")
    assert job.set(output__input_columns="all").run() == 0
    assert (job.state / "job.json").read_text() != settings
    for name, data in parts.items():
        (job.output / name).write_bytes(data)
    for record in (job.state / "parts").iterdir():
        record.unlink()
    assert job.run() == 0
    assert job.table().column_names[:3] == ["id", "prompt", "sample_index"]


def test_a_job_that_lost_a_part_is_no_success_until_it_is_made_again(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    assert job.run() == 0
    (job.output / "part-00001-of-00003.parquet").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(fake_llm.Serving, "_complete", lambda *_: 1 / 0)
        assert job.run() == 1
    assert not (job.state / "_SUCCESS.json").exists()
    assert job.run() == 0
    assert (job.state / "_SUCCESS.json").exists()


def changed(job: Job, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    parts = job.parts()
    fake_llm.LLM.loaded = 0
    assert job.run(*arguments) == 4
    assert (fake_llm.LLM.loaded, job.parts()) == (0, parts)
    assert job.run(*arguments, "--dry-run") == 4
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("sampling.temperature=0.5", "sampling.temperature: 1 when it was started, 0.5 now"),
        ("sampling.seed=3", "sampling.seed: 0 when it was started, 3 now"),
        ("sampling.stop=[x]", 'sampling.stop: null when it was started, ["x"] now'),
        ("model.dtype=bfloat16", 'model.dtype: "float32" when it was started, "bfloat16" now'),
        ("model.path=other", "model.fingerprint: "),
        ("model.quantization=int8", 'model.quantization: null when it was started, "int8" now'),
        ("model.tokenizer=null", "model.tokenizer: "),
        ("input.template='{{ prompt }}!'", "input.template: null"),
        ("input.max_prompt_tokens=99", "input.max_prompt_tokens: null when it was started, 99 now"),
        ("input.columns.prompt=id", 'input.columns.prompt: "prompt" when it was started, "id" now'),
        ("output.token_ids=true", "output.columns: "),
        ("output.logprobs=true", "output.columns: "),
        ("model.init_state=other.pth", "model.fingerprint: "),
        ("output.input_columns=none", 'output.input_columns: ["id", "prompt"] when it was started, ["id"] now'),
        ("output.extra=[input_row]", 'output.input_columns: ["id", "prompt"] when it was started, '),
        ("output.rows_per_part=7", "output.rows_per_part: 10 when it was started, 7 now"),
        ("input.limit=20", "input.limit: null when it was started, 20 now"),
        ("engine.batch_invariant=false", "engine.batch_invariant: true when it was started, false now"),
    ],
)
def test_settings_that_change_results_are_refused(
    job: Job, capsys: pytest.CaptureFixture[str], override: str, difference: str
) -> None:
    if override == "model.tokenizer=null":
        job.input(prompt_token_ids=[[1], [2]])
    assert job.run() == 0
    message = changed(job, capsys, "-o", override)
    assert difference in message
    assert f"rm -r {job.output} {job.state}" in message


def test_the_command_to_start_over_is_safe_to_paste(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.set(output__path=str(job.folder / "my results"))
    assert job.run() == 0
    assert f"rm -r '{job.output}' '{job.state}'" in changed(job, capsys, "-o", "sampling.seed=3")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"settings": {'])
def test_a_damaged_job_file_is_refused(job: Job, capsys: pytest.CaptureFixture[str], content: str) -> None:
    assert job.run() == 0
    (job.state / "job.json").write_text(content)
    assert f"{job.state}/job.json is damaged, expected a JSON object with settings" in changed(job, capsys)
    for path in (job.output, job.state):
        assert cli.main(["report", str(path)]) == 2
        assert f"{job.state}/job.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key in JOB_KEYS for value in (None, 0, "x", [], {}, [0], [{}], {"a": 0}, ...)],
)
def test_a_job_file_with_values_of_other_kinds_is_refused(
    job: Job, capsys: pytest.CaptureFixture[str], key: str, value: Any
) -> None:
    """The refusal is a message, not a traceback, and no part is made again."""
    assert job.run() == 0
    parts = job.parts()
    document = json.loads((job.state / "job.json").read_text())
    del document[key]
    (job.state / "job.json").write_text(json.dumps(document if value is ... else {**document, key: value}))
    assert str(job.state / "job.json" if (key, value) != ("input", []) else "the input changed") in changed(job, capsys)
    assert job.parts() == parts


def test_the_job_file_keeps_letters_as_they_are(job: Job) -> None:
    assert job.set(input__template="Grüße, {{ prompt }}").run() == 0
    assert '"input.template": "Grüße, {{ prompt }}"' in (job.state / "job.json").read_text(encoding="utf-8")


def test_all_differences_are_printed(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.run() == 0
    message = changed(job, capsys, "-o", "sampling.seed=3", "-o", "sampling.top_k=3", "-o", "input.limit=5")
    assert all(name in message for name in ("sampling.seed", "sampling.top_k", "input.limit"))


@pytest.mark.parametrize(
    "override",
    [
        "engine.max_batch_size=3",
        "engine.max_batch_tokens=100",
        "engine.device=cuda",
        "engine.backend=reference",
        "engine.prefix_sharing=false",
        "engine.prefix_host_gib=0",
        "engine.constraint_timeout=1",
        "output.flush_seconds=1",
        "model.dtype=float32",
        "sampling.temperature=1",
        "run.on_row_error=stop",
    ],
)
def test_settings_that_change_no_results_are_not(job: Job, override: str) -> None:
    assert job.run() == 0
    assert job.run("-o", override) == 0


def test_a_limit_in_the_file_is_part_of_the_job(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.run("-o", "input.limit=10") == 0
    assert "input.limit: 10 when it was started, null now" in changed(job, capsys)


@pytest.mark.parametrize("state", [None, "state"])
def test_a_trial_has_an_output_of_its_own(
    job: Job, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, state: str | None
) -> None:
    job.set(input__limit=20, run__state_dir=state and str(job.folder / state))
    for limit, rows in ((3, 3), (25, 20)):
        trial = Path(f"{job.output}-limit-{limit}")
        assert job.run("--limit", str(limit), "--dry-run") == 0
        out = capsys.readouterr().out
        assert out.startswith("this is a trial, with an output of its own; without --limit the whole job starts fresh")
        assert f"{trial}: {rows} rows" in out and not trial.exists()
        assert job.run("--limit", str(limit)) == 0
        assert f"the whole job starts fresh beside it: {trial}" in caplog.text
        assert pq.read_table(trial).num_rows == rows
        assert (job.folder / f"out-limit-{limit}.rwkv_batch" / "_SUCCESS.json").exists()
        assert f"report {trial} --show 3" in capsys.readouterr().out
        assert not job.output.exists() and not (job.folder / "state").exists()
    assert (job.run(), job.table().num_rows) == (0, 20)
    assert (job.run("--limit", "3"), fake_llm.LLM.loaded) == (0, 3)


def test_a_trial_of_a_path_with_a_slash_at_its_end(job: Job) -> None:
    assert job.set(output__path=f"{job.output}/").run("--limit", "2") == 0
    assert Path(f"{job.output}-limit-2").is_dir()


def test_a_changed_input_is_named(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.run() == 0
    prompts = [f"prompt {i}" for i in range(30)]
    prompts[17] = "prompt ??"
    job.input(id=[f"row-{i}" for i in range(30)], prompt=prompts)
    message = changed(job, capsys)
    assert "the input changed since the run started" in message
    assert f"{job.folder}/prompts.parquet: bytes was " in message


def test_an_added_file_is_named(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    (job.folder / "in").mkdir()
    job.input("in/a.parquet", prompt=["a"]).set(input__path=str(job.folder / "in"))
    assert job.run() == 0
    job.input("in/b.parquet", prompt=["b"]).set(input__path=str(job.folder / "in"))
    assert f"number of files was 1, is 2: {job.folder}/in/b.parquet" in changed(job, capsys)


def test_a_touched_or_moved_input_is_the_same_input(job: Job) -> None:
    assert job.run() == 0
    os.utime(job.folder / "prompts.parquet", (1, 1))
    assert job.run() == 0
    os.rename(job.folder / "prompts.parquet", job.folder / "moved.parquet")
    assert job.set(input__path=str(job.folder / "moved.parquet")).run() == 0


def test_moved_folders_are_the_same_job(job: Job) -> None:
    assert job.run() == 0
    os.rename(job.output, job.folder / "elsewhere")
    os.rename(job.state, job.folder / "elsewhere.rwkv_batch")
    fake_llm.LLM.loaded = 0
    job.set(output__path=str(job.folder / "elsewhere"))
    assert (job.run(), fake_llm.LLM.loaded) == (0, 0)


def test_a_state_folder_serves_one_output(job: Job) -> None:
    job.set(run__state_dir=str(job.folder / "state"))
    assert job.run() == 0
    assert json.loads((job.folder / "state" / "job.json").read_text())["plan"]["output.path"] == "../out"
    assert job.set(output__path=str(job.folder / "other")).run() == 4


def test_failed_rows_stay_failed(job: Job) -> None:
    job.input(prompt=["a", None, "c"])
    assert job.run() == 3
    assert job.run() == 3
    assert [row["status"] for row in job.rows()] == ["ok", "error", "ok"]


def test_a_run_with_other_backends_says_so_in_a_line(
    job: Job, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert job.run() == 0
    assert json.loads((job.state / "job.json").read_text())["backends"] == {"wkv7": "cpu"}
    assert job.run() == 0
    assert "other backends" not in caplog.text
    choices = [{"op": "wkv7", "backend": "reference", "not_used": ["cpu: no compiler"]}]
    monkeypatch.setattr(fake_llm.Summary, "describe", lambda self: {"dtype": self.dtype, "backends": choices})
    assert job.run() == 0
    (message,) = [record.getMessage() for record in caplog.records if "other backends" in record.getMessage()]
    assert message.endswith("not bit for bit: wkv7 was cpu, is reference") and "\n" not in message


def test_a_job_with_float16_states_that_were_rounded_by_other_random_bits_says_so_in_a_line(
    job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    """A job of a version that recorded its backends, and not the rounding."""
    job.set(engine__state_dtype="float16")
    assert job.run() == 0
    document = json.loads((job.state / "job.json").read_text())
    assert document["backends"].pop("rounding of float16 states") == "2"
    assert job.run() == 0
    assert "other backends" not in caplog.text
    (job.state / "job.json").write_text(json.dumps(document))
    assert job.run() == 0
    assert "not bit for bit: rounding of float16 states was 1, is 2" in caplog.text


@pytest.mark.parametrize("content", [..., [], "cpu"])
def test_a_job_that_has_not_recorded_its_backends_goes_on(
    job: Job, caplog: pytest.LogCaptureFixture, content: Any
) -> None:
    assert job.run() == 0
    document = json.loads((job.state / "job.json").read_text())
    del document["backends"]
    (job.state / "job.json").write_text(json.dumps(document if content is ... else {**document, "backends": content}))
    assert job.run() == 0
    assert "other backends" not in caplog.text
