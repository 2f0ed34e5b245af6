"""A job outlives an upgrade: what an earlier commit began or finished goes on, and settings that came later count."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from job import fake_llm
from rwkv_batch import llm, run
from rwkv_batch.job import fingerprint
from rwkv_batch.job.config import JobConfig
from rwkv_batch.job.section import Section
from rwkv_batch.sampling_params import SamplingParams
from rwkv_batch.settings import EngineSettings, ModelSettings

from .conftest import Job

DATA = Path(__file__).parent / "data"
KINDS = [f"{commit.name}/{kind.name}" for commit in sorted(DATA.iterdir()) for kind in sorted(commit.iterdir())]


@dataclass
class OldJob:
    """A copy of a job that `make_old_jobs.py` has left."""

    folder: Path

    @property
    def output(self) -> Path:
        return self.folder / "made"

    @property
    def state(self) -> Path:
        return self.folder / "made.rwkv_batch"

    def run(self) -> int:
        paths = (f"input.path={self.folder}/input.parquet", f"output.path={self.output}")
        return run.main([str(self.folder / "job.yaml"), *(argument for path in paths for argument in ("-o", path))])

    def files(self) -> dict[str, bytes]:
        """Parts and segments."""
        paths = [*self.output.glob("*"), *self.state.glob("unit-*/*")]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in paths}

    def committed(self) -> set[int]:
        return {row for path in self.state.glob("unit-*/*") for row in pq.read_table(path)["row"].to_pylist()}


def copy(kind: str, state: str, target: Path) -> OldJob:
    shutil.copytree(DATA / kind / state, target)
    for name in ("input.parquet", "job.yaml"):
        shutil.copy(DATA / kind / name, target / name)
    return OldJob(target)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def later_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """This version of the package has a setting that the old one lacks, so that it makes other fingerprints."""

    def result_settings(*arguments: Any) -> dict[str, Any]:
        return {**fingerprint.result_settings(*arguments), "engine.new_trick": None}

    monkeypatch.setattr("rwkv_batch.job.prepare.result_settings", result_settings)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that are loaded, of any kind."""
    loaded: list[str] = []
    original = llm.LLM.from_summary

    def from_summary(summary: Any, **settings: Any) -> Any:
        loaded.append(summary.file.checkpoint.path.name)
        return original(summary, **settings)

    monkeypatch.setattr(llm.LLM, "from_summary", from_summary)
    return loaded


@pytest.mark.usefixtures("real_engine", "later_version")
def test_a_paused_job_ends_as_an_undisturbed_run_of_the_old_commit(
    kind: str, tmp_path: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that were committed are kept bit for bit; of the others numbers may differ as much as processors do."""
    old = copy(kind, "paused", tmp_path / "job")
    before, committed = old.files(), old.committed()
    served = rows_given_to_the_engine(monkeypatch)
    assert (old.run(), loads) == (3, ["model.safetensors"])
    published = [name for name in before if name.endswith(".parquet")]
    assert [old.files()[name] for name in published] == [before[name] for name in published]
    expected = [pq.read_table(path) for path in sorted((DATA / kind / "finished" / "made").iterdir())]
    found = [pq.read_table(path) for path in sorted(old.output.iterdir())]
    first, rows = 0, 20
    for expected_part, found_part in zip(expected, found, strict=True):
        assert found_part.schema.remove_metadata() == expected_part.schema.remove_metadata()
        assert own_footer(found_part) == own_footer(expected_part)
        assert_alike(found_part.to_pylist(), expected_part.to_pylist())
        first += int(own_footer(found_part)["rows"])
    assert first == rows
    in_published = set(range(7, 14))
    assert set(served).isdisjoint(committed | in_published)
    assert not [*old.state.glob("unit-*")]


@pytest.mark.usefixtures("real_engine", "later_version")
def test_a_finished_job_is_left_as_it_is(kind: str, tmp_path: Path, loads: list[str]) -> None:
    old = copy(kind, "finished", tmp_path / "job")
    before, job = old.files(), (old.state / "job.json").read_bytes()
    assert (old.run(), loads) == (3, [])
    assert (old.files(), (old.state / "job.json").read_bytes()) == (before, job)
    success = (DATA / kind / "finished" / "made.rwkv_batch" / "_SUCCESS.json").read_text()
    assert json.loads((old.state / "_SUCCESS.json").read_text()) == json.loads(success)


def rows_given_to_the_engine(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    rows: list[int] = []
    from rwkv_batch.engine import request

    original = request.Request.__init__

    def init(self: Any, *arguments: Any, **fields: Any) -> None:
        original(self, *arguments, **fields)
        rows.append(self.row)

    monkeypatch.setattr(request.Request, "__init__", init)
    return rows


def own_footer(table: pa.Table) -> dict[str, str]:
    pairs = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    return {key.removeprefix("rwkv_batch."): value for key, value in pairs.items() if key != "rwkv_batch.version"}


def assert_alike(found: Any, expected: Any) -> None:
    """Asserts that two results are equal. Floating-point numbers may differ by the rounding of float32 sums."""
    if isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-3)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_alike(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    else:
        assert found == expected


@pytest.mark.usefixtures("real_engine")
def test_the_initial_state_is_a_part_of_the_models_fingerprint(tmp_path: Path) -> None:
    summary = llm.inspect_model(engine=EngineSettings(device="cpu"))
    sizes = summary.file.sizes
    found = {summary.fingerprint}
    for value in (0.0, 1.0):
        state = torch.full((sizes["H"], sizes["N"], sizes["N"]), value)
        torch.save({f"blocks.{i}.att.time_state": state for i in range(sizes["L"])}, tmp_path / "state.pth")
        found.add(
            llm.inspect_model(
                ModelSettings(init_state=tmp_path / "state.pth"), EngineSettings(device="cpu")
            ).fingerprint
        )
    assert len(found) == 3


def edit(job: Job, **settings: Any) -> None:
    """Change what job.json records; None removes a setting."""
    path = job.state / "job.json"
    document = json.loads(path.read_text())
    for name, value in settings.items():
        document["settings"].pop(name, None)
        if value is not ...:
            document["settings"][name] = value
    path.write_text(json.dumps(document))


def run_again(job: Job, *arguments: str) -> tuple[int, int]:
    """The exit code, and how many models were loaded."""
    fake_llm.LLM.loaded = 0
    return job.run(*arguments), fake_llm.LLM.loaded


@pytest.mark.parametrize("name", ["sampling.top_k", "sampling.stop", "engine.state_dtype", "input.max_prompt_tokens"])
def test_a_setting_that_came_later_counts_as_its_default(
    job: Job, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert job.run() == 0
    edit(job, **{name: ...})
    assert run_again(job) == (0, 0)
    value = {"sampling.top_k": "5", "sampling.stop": "[x]", "engine.state_dtype": "float16"}.get(name, "5")
    assert job.run("-o", f"{name}={value}") == 4
    assert f"{name}: " in capsys.readouterr().err


def test_a_column_that_came_to_mean_something_is_a_difference(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.input(prompt=["a", "b"], temperature=[0.5, None])
    assert job.run() == 0
    edit(job, **{"input.columns.temperature": ...})
    assert job.run() == 4
    assert 'input.columns.temperature: null when it was started, "temperature" now' in capsys.readouterr().err


def test_a_setting_that_is_gone_is_no_difference_where_it_had_its_default(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job.run() == 0
    edit(job, **{"engine.old_trick": True})
    assert job.run() == 4
    monkeypatch.setattr(fingerprint, "FORMER_DEFAULTS", {"engine.old_trick": True})
    assert run_again(job) == (0, 0)
    edit(job, **{"engine.old_trick": False})
    capsys.readouterr()
    assert job.run() == 4
    assert "engine.old_trick: false when it was started, true now" in capsys.readouterr().err


@pytest.mark.parametrize(("length", "shown"), [(78, '"' + 78 * "x" + '"'), (79, '"' + 76 * "x" + "...")])
def test_a_long_setting_is_shown_by_its_first_80_characters(length: int, shown: str) -> None:
    found = fingerprint.differences({"model.tokenizer": "x" * length}, {"model.tokenizer": None})
    assert found == [f"model.tokenizer: {shown} when it was started, null now"]


def test_the_recorded_fingerprint_is_the_one_that_counts(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    """Parts of any version carry it; a part with the one that this version would compute is another job's."""
    assert job.run() == 0
    parts = job.parts()
    path = job.state / "job.json"
    document = json.loads(path.read_text())
    computed, document["fingerprint"] = document["fingerprint"], "f" * 64
    path.write_text(json.dumps(document))
    assert run_again(job) == (0, 1), "parts with another fingerprint than the recorded one were taken"
    for part in job.output.iterdir():
        assert pq.read_metadata(part).metadata[b"rwkv_batch.fingerprint"] == b"f" * 64
        assert pq.read_table(part).equals(pq.read_table(pa.BufferReader(parts[part.name])))
    assert json.loads((job.state / "_SUCCESS.json").read_text())["fingerprint"] == "f" * 64
    assert run_again(job) == (0, 0)
    capsys.readouterr()
    assert job.run("--dry-run") == 0
    shown = capsys.readouterr().out
    assert f"fingerprint {'f' * 16}\n" in shown and computed[:16] not in shown


def settings_of_a_job() -> Iterator[str]:
    for name, field in JobConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from (f"{name}.{key}" for key in field.annotation.model_fields)
        elif name != "sampling":
            yield name
    yield from (f"sampling.{field.name}" for field in dataclasses.fields(SamplingParams))


CHANGES: dict[str, str] = {
    "task": "",
    "model.tokenizer": "",
    "model.dtype": "bfloat16",
    "model.quantization": "int8",
    "model.strategy": "cpu fp32",
    "model.ln_x_eps": "1e-5",
    "model.parse_special_tokens": "true",
    "engine.state_dtype": "float16",
    "engine.batch_invariant": "false",
    "engine.logprobs_mode": "processed_logprobs",
    "input.template": "'{{ prompt }}!'",
    "input.max_prompt_tokens": "99",
    "chat.format": "bot",
    "chat.think": "open",
    "chat.template": "'{{ messages[0].content }}'",
    "score.add_bos_token": "true",
    "score.prefix": "'\\n'",
    "score.chunk_tokens": "4",
    "score.choices": "[x, y]",
    "score.choice_template": "' {{ letter }}'",
    "score.continuation_template": "'{{ context }}!'",
    "score.answer": "text",
    "output.columns": "{completion: text}",
    "sampling.n": "2",
    "sampling.temperature": "0.5",
    "sampling.top_p": "0.5",
    "sampling.top_k": "5",
    "sampling.min_p": "0.5",
    "sampling.presence_penalty": "0.5",
    "sampling.frequency_penalty": "0.5",
    "sampling.repetition_penalty": "2",
    "sampling.penalty_decay": "0.5",
    "sampling.max_tokens": "3",
    "sampling.min_tokens": "2",
    "sampling.stop": "[x]",
    "sampling.stop_token_ids": "[5]",
    "sampling.truncate_prompt_tokens": "5",
    "sampling.ignore_eos": "true",
    "sampling.include_stop_str_in_output": "true",
    "sampling.logit_bias": "{5: 1}",
    "sampling.allowed_token_ids": "[5]",
    "sampling.bad_words": "[x]",
    "sampling.bad_token_ids": "[5]",
    "sampling.seed": "5",
    "sampling.top_p_order": "rwkv",
    "sampling.json_schema": "'{}'",
    "sampling.regex": "a",
    "sampling.grammar": 'root ::= "a"',
}
"""Settings that change results, with another value than the default. Other tests change those with an empty text.

A new setting is listed here, or in `HARMLESS` or `RESOLVED` of job/fingerprint.py."""

UNWRITTEN = {"sampling.logprobs", "sampling.prompt_logprobs", "sampling.detokenize"}
"""Fields of `SamplingParams` that a job refuses: it writes no results of the first two, and always the text."""

OF_SCORE: dict[str, Any] = {
    "score.chunk_tokens": {"text": ["a"]},
    "score.choices": {"context": ["a"], "choices": [["b"]]},
    "score.choice_template": {"context": ["a"], "choices": [["b"]]},
    "score.answer": {"context": ["a", "b"], "choices": [["b", "c"], ["d", "e"]], "answer": ["A", "b"]},
}
"""Setting of task score → an input for it."""


def test_every_setting_is_compared_or_harmless() -> None:
    found = set(settings_of_a_job())
    assert found == {*CHANGES, *UNWRITTEN, *fingerprint.HARMLESS, *fingerprint.RESOLVED}
    assert not set(CHANGES) & (fingerprint.HARMLESS | fingerprint.RESOLVED)


@pytest.mark.parametrize("name", [name for name, value in CHANGES.items() if value])
def test_every_setting_that_changes_results_is_compared(
    job: Job, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    if name.startswith("score."):
        job.settings["task"] = "score"
        job.input(**OF_SCORE.get(name, {"context": ["a"], "continuation": ["b"]}))
    if name.startswith("chat."):
        job.input(messages=[[{"role": "user", "content": "a"}]])
    assert job.run() == 0
    capsys.readouterr()
    assert job.run("-o", f"{name}={CHANGES[name]}") == 4
    assert f"\n  {name}: " in capsys.readouterr().err


@pytest.mark.parametrize("part", ["temperature", "sampling", "answer"])
def test_the_columns_that_settings_and_answers_come_from_are_compared(
    job: Job, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    if part == "answer":
        job.settings["task"] = "score"
        job.input(context=["a"], choices=[["b", "c"]], answer=[1])
    else:
        column: Any = [0.5 if part == "temperature" else {"top_p": 0.5}]
        job.input("prompts.parquet", prompt=["a"], **{part: column})
    assert job.run() == 0
    assert job.run("-o", f"input.columns.{part}=null") == 4
    assert f'input.columns.{part}: "{part}" when it was started, null now' in capsys.readouterr().err
