"""A bad job stops before the model loads and before anything is written: exit code 2, and one clear sentence."""

from __future__ import annotations

import hashlib
import os
import sys
from typing import Any

import pyarrow as pa
import pytest

from job import fake_llm
from rwkv_batch.errors import ConfigurationError
from rwkv_batch.job.prepare import SETTINGS

from .conftest import Job


def refusal(job: Job, capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    before = sorted(job.folder.rglob("*"))
    assert job.run(*arguments) == code
    assert fake_llm.LLM.loaded == 0
    assert set(job.folder.rglob("*")) - set(before) <= {job.file}
    return capsys.readouterr().err


TOKENS = pa.array([[1]], pa.list_(pa.int32()))


@pytest.mark.parametrize(
    ("columns", "settings", "expected"),
    [
        ({"text": ["a"]}, {}, "found none of them, expected exactly one of the columns prompt, messages"),
        ({"text": ["a"]}, {}, "; the input has text"),
        ({f"c{i}": ["a"] for i in range(40)}, {}, "c28, c29 and 10 more"),
        ({"prompt": ["a"], "prompt_token_ids": TOKENS}, {}, "found prompt and prompt_token_ids, expected exactly one"),
        ({"prompt": [1]}, {}, "input.columns.prompt: column 'prompt' is int64, expected string"),
        ({"messages": [1]}, {}, "column 'messages' is int64, expected list<struct<role: string, content: string>>"),
        ({"prompt_token_ids": ["a"]}, {}, "column 'prompt_token_ids' is string, expected list<int>"),
        ({"prompt": ["a"], "temperature": ["x"]}, {}, "column 'temperature' is string, expected a number"),
        ({"prompt": ["a"], "logprobs": [1]}, {}, "column 'logprobs' is int64, expected only nulls, as output.logprobs"),
        (
            {"prompt": ["a"], "sampling": [{"prompt_logprobs": 1}]},
            {},
            "'prompt_logprobs' is int64, expected only nulls",
        ),
        ({"prompt": ["a"], "stop": [1]}, {}, "column 'stop' is int64, expected string or list<string>"),
        ({"prompt": ["a"], "sampling": [1]}, {}, "column 'sampling' is int64, expected a struct"),
        (
            {"prompt": ["a"], "sampling": [{"topp": 1.0}]},
            {},
            "sampling.topp is no sampling field (did you mean 'top_p'?)",
        ),
        ({"prompt": ["a"], "sampling": [{"n": 1}], "n": [1]}, {}, "n is a column and in 'sampling' too"),
        ({"prompt": ["a"], "sampling": [{"n": "1"}]}, {}, "column 'n' is string, expected a number"),
        (
            {"prompt": ["a"], "completion": ["b"]},
            {},
            "output.columns: the input has columns with names that the output needs: completion. Rename the output's, "
            "for example columns: {completion: completion_2}, or leave the input's out of output.input_columns",
        ),
        (
            {"prompt": ["a"], "status": ["b"], "status_2": ["c"], "error": ["d"], "rating": ["e"]},
            {"output__columns": {"completion": "rating", "error": "error"}},
            "the output needs: status, error, rating. Rename the output's, for example "
            "columns: {completion: completion_2, status: status_3, error: error_2}",
        ),
        (
            {"prompt": ["a"]},
            {"output__columns": {"completoin": "x"}, "output__extra": ["prompt"]},
            "output.columns.completoin: the job adds no column of this name (did you mean 'completion'?)\n"
            "output.columns: the input has columns with names that the output needs: prompt. Rename",
        ),
        (
            {"prompt": ["a"]},
            {"output__columns": {"x": "y"}},
            "output.columns.x: the job adds no column of this name; it",
        ),
        (
            {"prompt": ["a"]},
            {"output__columns": {"completion": "status"}},
            "output.columns: got two columns named 'status', expected one",
        ),
        (
            {"prompt": ["a"]},
            {"output__columns": {"completion": ""}},
            "output.columns: got {'completion': ''}, expected a",
        ),
        (
            {"prompt": ["a"]},
            {"output__extra": ["row"]},
            "output.extra: got ['row'], expected a list of prompt, input_row or input_file",
        ),
        ({"prompt": ["a"]}, {"input__columns": {"promt": "prompt"}}, "unknown role (did you mean 'prompt'?)"),
        ({"prompt": ["a"]}, {"input__columns": {"prompt": "promt"}}, "no column 'promt' (did you mean 'prompt'?)"),
        ({"prompt": ["a"]}, {"output__input_columns": ["prmpt"]}, "no column 'prmpt' (did you mean 'prompt'?)"),
        ({"prompt": ["a"]}, {"model__tokenizer": None}, "expected a tokenizer, because prompts are text"),
        ({"prompt": ["a"]}, {"input__template": "{{ x"}, "template"),
        ({"prompt": ["a"]}, {"input__template": "no.j2"}, "got 'no.j2', expected a Jinja template or an existing file"),
        ({"prompt": ["a"]}, {"model__path": "broken"}, "broken: is no checkpoint"),
        ({"context": ["a"]}, {"task": "score"}, "either continuation or choices"),
        (
            {"choices": [["x"]]},
            {"task": "score", "input__columns": {"context": None}},
            "either continuation or choices (context: null scores continuations as whole documents)",
        ),
        (
            {"messages": [[{"role": 1, "content": "a"}]]},
            {},
            "expected list<struct<role: string, content: string>>",
        ),
        (
            {"messages": [[{"role": "user", "content": 1}]]},
            {},
            "expected list<struct<role: string, content: string>>",
        ),
        ({"context": ["a"], "choices": ["x"]}, {"task": "score"}, "expected list<string> or list<list<int>>"),
    ],
)
def test_schema(job: Job, capsys: pytest.CaptureFixture[str], columns: Any, settings: Any, expected: str) -> None:
    job.settings["task"] = settings.pop("task", "generate")
    job.input(**columns).set(**settings)
    assert expected in refusal(job, capsys)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"regex": "["}, "sampling: regex: "),
        ({"regex": 5}, "regex: got 5, expected "),
        ({"allowed_token_ids": [9999]}, "sampling: allowed_token_ids holds id 9999, expected ids below 1000"),
        ({"logit_bias": {1000: 1.0}}, "sampling: logit_bias holds id 1000, expected ids below 1000"),
        ({"stop": ["x"]}, "sampling: stop strings need a tokenizer"),
        ({"allowed_token_ids": [5], "bad_token_ids": [5]}, "sampling: nothing may be sampled: allowed_token_ids and "),
        ({"allowed_token_ids": [0], "min_tokens": 2}, "sampling: nothing may be sampled: min_tokens (2) bans the end"),
    ],
)
def test_sampling_that_would_spoil_every_row(
    job: Job, capsys: pytest.CaptureFixture[str], settings: Any, expected: str
) -> None:
    if "stop" in settings:
        job.input(prompt_token_ids=TOKENS).set(model__tokenizer=None)
    job.settings["sampling"] = settings
    assert expected in refusal(job, capsys)
    assert expected in refusal(job, capsys, "--dry-run")


@pytest.mark.parametrize("place", ["job", "column", "struct"])
def test_structured_output_without_its_package(
    job: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    columns: Any = {"job": {}, "column": {"regex": ["a", None]}, "struct": {"sampling": [{"regex": "a"}, None]}}
    job.input(prompt=["a", "b"], **columns[place])
    if place == "job":
        job.set(sampling__regex="a")
    for arguments in ([], ["--dry-run"]):
        assert "pip install 'rwkv_batch[structured]'" in refusal(job, capsys, *arguments)


def test_all_schema_problems_are_reported_together(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.input(prompt=[1], temperature=["x"]).set(output__input_columns=["nope"])
    message = refusal(job, capsys)
    assert all(name in message for name in ("column 'prompt'", "column 'temperature'", "no column 'nope'"))


def test_a_missing_input(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.set(input__path=str(job.folder / "nothing.parquet"))
    assert "nothing.parquet', expected an existing file" in refusal(job, capsys)


def test_a_name_of_the_output_may_be_left_out(job: Job) -> None:
    job.input(prompt=["a"], completion=["b"]).set(output__input_columns=["prompt"])
    assert job.run() == 0


@pytest.mark.parametrize(("argument", "setting"), SETTINGS.items())
def test_what_is_wrong_with_the_model_is_named_as_in_the_job_file(
    job: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, argument: str, setting: str
) -> None:
    """`LLM` and `inspect_model` name their own parameters."""

    def refuse(*_: Any, **__: Any) -> None:
        raise ConfigurationError("got this, expected that", setting=argument)

    with monkeypatch.context() as patch:
        patch.setattr(fake_llm, "inspect_model", refuse)
        assert f"rwkv-batch: {setting}: got this, expected that" in refusal(job, capsys)
    monkeypatch.setattr(fake_llm.LLM, "from_summary", refuse)
    assert job.run() == 2
    assert f"rwkv-batch: {setting}: got this, expected that" in capsys.readouterr().err


def test_the_device_is_too_small(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert "needs 900 GiB" in refusal(job.set(model__path="huge"), capsys, code=5)


def test_a_pinned_model(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    path = job.folder / "model.pth"
    path.write_bytes(b"weights")
    job.set(model__path=str(path), model__sha256="0" * 64)
    assert "this is another model" in refusal(job, capsys)
    job.set(model__sha256=hashlib.sha256(b"weights").hexdigest().upper())
    assert job.run() == 0


def test_a_pin_on_something_else(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert "'demo' is a part of rwkv_batch" in refusal(job.set(model__sha256="0" * 64), capsys)


def test_a_pinned_folder(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    folder = job.folder / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    job.set(model__path=str(folder), model__sha256="0" * 64)
    assert "this is another model" in refusal(job, capsys)
    job.set(model__sha256=hashlib.sha256(b"weights").hexdigest())
    assert job.run() == 0


def in_input(job: Job) -> None:
    job.set(input__path=str(job.folder), output__path=str(job.folder / "out"))


def around_input(job: Job) -> None:
    (job.folder / "all").mkdir()
    os.rename(job.folder / "prompts.parquet", job.folder / "all" / "prompts.parquet")
    job.set(input__path=str(job.folder / "all" / "prompts.parquet"), output__path=str(job.folder / "all"))


def foreign(job: Job) -> None:
    job.output.mkdir()
    (job.output / "thesis.txt").write_text("mine")


def a_file(job: Job) -> None:
    job.output.write_text("mine")


def state_inside(job: Job) -> None:
    job.set(run__state_dir=str(job.output / "state"))


def state_around(job: Job) -> None:
    job.set(run__state_dir=str(job.output.parent))


def object_store(job: Job) -> None:
    job.set(output__path="hdfs://host/out")


def around_input_through_a_link(job: Job) -> None:
    around_input(job)
    (job.folder / "link").symlink_to(job.folder / "all")
    job.set(output__path=str(job.folder / "link"))


def through_a_link(job: Job) -> None:
    (job.folder / "in").mkdir()
    os.rename(job.folder / "prompts.parquet", job.folder / "in" / "prompts.parquet")
    (job.folder / "link").symlink_to(job.folder / "in")
    job.set(input__path=str(job.folder / "in"), output__path=str(job.folder / "link" / "out"))


@pytest.mark.parametrize(
    ("arrange", "expected"),
    [
        (in_input, "parts would become input"),
        (through_a_link, "parts would become input"),
        (around_input, "which contains the input"),
        (around_input_through_a_link, "which contains the input"),
        (foreign, "is not empty and is no job's output"),
        (a_file, "is a file, or a link to none; expected a folder"),
        (state_inside, "contain each other"),
        (state_around, "contain each other"),
        (object_store, "is not served; expected s3://, gs:// or az://, or a folder on a local disk"),
    ],
)
def test_folders(job: Job, capsys: pytest.CaptureFixture[str], arrange: Any, expected: str) -> None:
    arrange(job)
    assert expected in refusal(job, capsys)


def test_state_on_another_file_system(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    folders = (folder for folder in ("/tmp", "/dev/shm", "/var/tmp", "/run") if os.access(folder, os.W_OK))
    elsewhere = next((folder for folder in folders if os.stat(folder).st_dev != os.stat(job.folder).st_dev), None)
    if elsewhere is None:
        pytest.skip("this machine has one writable file system")
    job.set(run__state_dir=f"{elsewhere}/no-such-folder/state")
    assert "another file system" in refusal(job, capsys)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/proc/self/out", "output.path: cannot write to '/proc/self/out' ('/proc/self': "),
        ("{folder}/prompts.parquet/out", "output.path: cannot write to '{folder}/prompts.parquet/out' ("),
        ("{folder}/" + "x" * 300, "File name too long); choose another folder, or make it writable"),
        ("{folder}/" + "x" * 250, ".rwkv_batch': File name too long); choose another folder"),
        ("{folder}/a\0b", "expected a folder on a local disk"),
        ("{folder}/\ud800", "expected text without the lone surrogate U+D800"),
        ("{folder}/loop/out", "Too many levels of symbolic links); choose another folder"),
        ("{folder}/nowhere", "output.path: {folder}/nowhere is a file, or a link to none; expected a folder"),
    ],
)
def test_folders_that_cannot_be_written(job: Job, capsys: pytest.CaptureFixture[str], path: str, expected: str) -> None:
    (job.folder / "loop").symlink_to(job.folder / "loop")
    (job.folder / "nowhere").symlink_to(job.folder / "nothing")
    job.set(output__path=path.replace("{folder}", str(job.folder)))
    for arguments in ([], ["--dry-run"]):
        assert expected.replace("{folder}", str(job.folder)) in refusal(job, capsys, *arguments)


def test_a_state_folder_that_cannot_be_written(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.set(run__state_dir="/proc/self/state")
    for arguments in ([], ["--dry-run"]):
        assert "run.state_dir: cannot write to '/proc/self/state' (" in refusal(job, capsys, *arguments)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_permission(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.folder.joinpath("closed").mkdir(mode=0o500)
    job.set(output__path=str(job.folder / "closed" / "out"))
    for arguments in ([], ["--dry-run"]):
        assert "closed': Permission denied); choose another folder" in refusal(job, capsys, *arguments)


def test_templates_that_cannot_be_read(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    (job.folder / "latin.j2").write_bytes(b"\xe9{{ prompt }}")
    for path, expected in ((job.folder, "Is a directory"), (job.folder / "latin.j2", "can't decode byte 0xe9")):
        message = refusal(job.set(input__template=str(path)), capsys)
        assert "input.template: got " in message and expected in message


def test_where_relative_paths_were_looked_up(
    job: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(job.folder)
    place = f"(looked up in the current folder, {job.folder})"
    assert f"input.path: got 'no/*.jsonl' {place}, expected an existing" in refusal(
        job, capsys, "-o", "input.path=no/*.jsonl"
    )
    assert f"expected a Jinja template or an existing file {place}: No such file" in refusal(
        job, capsys, "-o", "input.template=no.j2"
    )
    assert f"no.pth: can't be read (No such file or directory) {place}" in refusal(
        job, capsys, "-o", "model.path=no.pth", "-o", f"model.sha256='{'0' * 64}'"
    )
    assert "looked up" not in refusal(job, capsys, "-o", "input.path=/no/such.jsonl")


def test_shards_that_make_no_sense(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert "got shard 3 of 3, expected 0 to 2" in refusal(job, capsys, "--shard", "3/3")
    assert "expected i/n with i from 0" in refusal(job, capsys, "--shard", "1")
