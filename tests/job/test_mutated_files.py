"""Whatever is in the files that a user names, a job ends with a documented exit code and a sentence."""

from __future__ import annotations

import copy
import faulthandler
import json
import os
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from job import fake_llm
from job.mutations import as_json, mutated, mutated_bytes
from rwkv_batch import run
from rwkv_batch.model_summary import ModelSummary, inspect_model

CASES = 50
"""Mutations of one seed: 50 in the gate; `make soak SEEDS=200` runs 10,000."""
SECONDS = 120
"""The process ends where one mutation takes longer."""
ENDS = (run.EXIT_OK, run.EXIT_USAGE, run.EXIT_ROW_ERRORS, run.EXIT_REFUSED, run.EXIT_DEVICE)

TEMPLATE = "{% if topic is defined and topic %}{{ topic }}: {% endif %}{{ prompt }}\nAnswer:"
VOCABULARY = "".join(f"{byte + 1} {bytes([byte])!r} 1\n" for byte in range(256)).encode()
JSON_ROWS = [
    {"id": "a", "prompt": "one", "temperature": 0.5, "stop": ["x"], "sampling": {"top_k": 3}, "topic": "t"},
    {"id": "b", "prompt": "two", "logit_bias": {"5": 1.5}, "topic": None},
]
REQUESTS = [
    {"custom_id": "a", "body": {"model": "m", "prompt": "one", "max_tokens": 3, "stop": "x", "logit_bias": {"3": 1}}},
    {"custom_id": "b", "body": {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "n": 1}},
]
EVERY_SETTING = """
task: generate
model: {path: demo, tokenizer: vocabulary.txt, init_state: state.pth, dtype: auto, strategy: null, quantization: null,
  ln_x_eps: null, sha256: null}
engine: {device: cpu, backend: auto, max_batch_size: 4, max_batch_tokens: auto, state_dtype: float32,
  prefix_sharing: true, prefix_host_gib: 0.1, batch_invariant: true}
input: {path: rows.parquet, format: auto, columns: {}, template: null, limit: 4, max_prompt_tokens: 50}
sampling: {max_tokens: 4, temperature: 0.7, top_p: 0.9, top_k: 5, min_p: 0.1, presence_penalty: 0.1, n: 1, seed: 3,
  frequency_penalty: 0.1, repetition_penalty: 1.1, penalty_decay: 0.9, stop: [ab, c], stop_token_ids: [3],
  logit_bias: {5: 1.0}, bad_token_ids: [7], top_p_order: rwkv, min_tokens: 1}
output: {path: out, rows_per_part: 2, flush_seconds: 0, input_columns: all, token_ids: true, logprobs: true}
run: {state_dir: null, segments: store, on_row_error: continue, backend: local}
"""
JSONL = """
model: {path: demo, tokenizer: vocabulary.txt}
input: {path: [rows.jsonl], template: template.j2, columns: {id: id}}
sampling: {max_tokens: 4, logit_bias: {5: 1.0}}
output: {path: out}
"""
OPENAI = """
model: {path: demo}
input: {path: "requests*", format: openai-batch}
output: {path: out}
"""
SCORE = """
task: score
model: {path: demo, tokenizer: vocabulary.txt}
input: {path: questions.parquet, columns: {context: context, choices: choices}}
score: {add_bos_token: true, prefix: x, answer: auto, group_by: subject}
output: {path: out, input_columns: [answer], logprobs: true}
"""
QUESTIONS = """
task: score
model: {path: demo}
input: {path: questions.jsonl, template: "{{ question }} {{ choices[0] }}"}
score: {choice_template: " {{ letter }}{{ index }}{{ choice }}", answer: auto, group_by: subject, chunk_tokens: null,
  choices: null, continuation_template: null, prefix: null}
output: {path: out}
"""
DOCUMENTS = """
task: score
model: {path: demo}
input: {path: texts.jsonl, columns: {text: text}}
score: {chunk_tokens: 3, add_bos_token: false}
output: {path: out}
"""
JOBS: tuple[dict[str, Any], ...] = tuple(
    map(yaml.safe_load, (EVERY_SETTING, JSONL, OPENAI, SCORE, QUESTIONS, DOCUMENTS))
)
QUESTION_ROWS = [
    {"question": "a?", "choices": ["x", "y"], "answer": "A", "subject": "m"},
    {"question": "b?", "choices": ["x", "y", "z"], "answer": "c", "subject": None},
]
TEXT_ROWS = [{"text": "a long text"}, {"text": "one"}]


LINES: tuple[tuple[str, list[Any], dict[str, Any]], ...] = (
    ("rows.jsonl", JSON_ROWS, JOBS[1]),
    ("requests.jsonl", REQUESTS, JOBS[2]),
    ("questions.jsonl", QUESTION_ROWS, JOBS[4]),
    ("texts.jsonl", TEXT_ROWS, JOBS[5]),
)
"""File → its lines, and the job that reads it."""


def state() -> dict[str, Any]:
    """An initial state of the demo model."""
    return {f"blocks.{layer}.att.time_state": torch.zeros(3, 64, 64) for layer in range(3)}


def write_files(folder: Path) -> None:
    """The files of all jobs."""
    rows = {"id": [1, 2, 3], "prompt": ["one", "two", None], "temperature": [None, 0.5, 9.0]}
    pq.write_table(pa.table(rows), folder / "rows.parquet")
    questions = {"context": ["one", "two"], "choices": [["a", "b"], ["c"]], "answer": [1, 0], "subject": ["m", None]}
    pq.write_table(pa.table(questions), folder / "questions.parquet")
    for name, lines, _ in LINES:
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "template.j2").write_text(TEMPLATE)
    (folder / "vocabulary.txt").write_bytes(VOCABULARY)
    torch.save(state(), folder / "state.pth")
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to("loop")


def change_bytes(dice: random.Random, folder: Path) -> dict[str, Any]:
    job = dice.choice(JOBS)
    read = [path.name for path in folder.glob("*.*") if path.stem in json.dumps(job)]
    path = folder / dice.choice(sorted(read))
    path.write_bytes(mutated_bytes(dice, path.read_bytes()))
    return job


def change_rows(dice: random.Random, folder: Path) -> dict[str, Any]:
    name, rows, job = dice.choice(LINES)
    lines = [as_json(mutated(dice, row), dice) for row in (*rows, *rows)]
    (folder / name).write_bytes(b"\n".join(lines))
    return job


def change_state(dice: random.Random, folder: Path) -> dict[str, Any]:
    tensors: dict[Any, Any] = state()
    name = dice.choice(list(tensors))
    tensors[name] = dice.choice(
        (
            *(None, 3, {}, [], "x", torch.zeros(0), torch.zeros(3, 64, 63), torch.zeros(3, 64, 64, dtype=torch.int64)),
            *(torch.full((3, 64, 64), torch.nan), torch.zeros(3, 64, 64, device="meta"), torch.eye(3).to_sparse()),
        )
    )
    if dice.random() < 0.3:
        tensors[dice.choice((1, "", "blocks.-1.att.time_state", "x\0", "\ud800", ("a", 1)))] = tensors.pop(name)
    torch.save(dice.choice((tensors, tensors, [tensors], {"model": tensors})), folder / "state.pth")
    return JOBS[0]


def change_job(dice: random.Random, folder: Path) -> dict[str, Any]:
    return mutated(dice, dice.choice(JOBS))


CHANGES: tuple[Callable[[random.Random, Path], dict[str, Any]], ...] = (
    *(change_job, change_job, change_job, change_bytes, change_bytes, change_rows, change_state),
)


class MutatedLLM(fake_llm.LLM):
    """The fake engine with the real checks of model, tokenizer, state and device."""

    @classmethod
    def from_summary(cls, summary: ModelSummary, *, max_prompt_tokens: int | None = None) -> MutatedLLM:  # type: ignore[override]
        plain = SimpleNamespace(tokenizer=summary.tokenizer, seed=summary.engine.seed)
        return super().from_summary(plain, max_prompt_tokens=max_prompt_tokens)  # type: ignore[arg-type, return-value]


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with real checks of the model."""
    monkeypatch.setitem(sys.modules, "rwkv_batch.llm", SimpleNamespace(LLM=MutatedLLM, inspect_model=inspect_model))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    faulthandler.cancel_dump_traceback_later()


def run_case(folder: Path, seed: int) -> int:
    """Makes the files of one mutation in a folder of its own, and runs the job. Returns its exit code."""
    dice = random.Random(seed)
    here = folder / str(seed)
    here.mkdir()
    os.chdir(here)
    write_files(here)
    text = as_json(dice.choice(CHANGES)(dice, here), dice)
    if dice.random() < 0.1:
        text = mutated_bytes(dice, text)
    (here / "job.yaml").write_bytes(text)
    faulthandler.dump_traceback_later(SECONDS, exit=True, file=sys.__stderr__)
    return run.main(["job.yaml", *(["--dry-run"] if dice.random() < 0.3 else [])])


def test_mutated_files_end_with_a_sentence(in_folder: Path, soak_seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    ends = dict.fromkeys(ENDS, 0)
    for seed in range(CASES * soak_seed, CASES * (soak_seed + 1)):
        code = run_case(in_folder, seed)
        message = capsys.readouterr().err
        assert code in ENDS, f"seed {seed}: {message}"
        assert "Traceback" not in message, f"seed {seed}"
        if code in (run.EXIT_USAGE, run.EXIT_REFUSED, run.EXIT_DEVICE):
            assert re.search(r"^rwkv-batch: \S", message, re.MULTILINE), f"seed {seed}"
        ends[code] += 1
    assert ends[run.EXIT_USAGE] and ends[run.EXIT_OK] + ends[run.EXIT_ROW_ERRORS], ends


RAISED: list[tuple[str, Any]] = [
    *(("input.path", value) for value in ("[!]", "[z-a]", "hf://", "\0", "\ud800", "x" * 70_000, "fifo", "loop")),
    *(("model.path", value) for value in ("", "\0", "\ud800", "x" * 300, "fifo", "folder", "/dev/zero")),
    *(("model.init_state", value) for value in ("\0", "x" * 300, "fifo", "folder")),
    *(
        ("model.tokenizer", value)
        for value in ("\0", "x" * 300, "fifo", "folder", "deep.json", "empty.json", "empty.txt")
    ),
    *(
        ("input.template", value)
        for value in ("\0", "x" * 300, "fifo", "latin.j2", "{% if 1 %}" * 200 + "{% endif %}" * 200)
    ),
    *(("output.path", value) for value in ("", "\0", "\ud800", "x" * 250, "x" * 70_000)),
    *(("sampling.logit_bias", value) for value in ({"5": 10**100}, {"5": 10**400}, {"5": True}, {"9" * 100: 1})),
    *(("sampling.stop", value) for value in ("\ud800", [""], [10**100])),
]


@pytest.mark.parametrize(("setting", "value"), RAISED, ids=lambda value: ascii(value)[:30])
def test_settings_that_ended_jobs_with_exceptions(
    in_folder: Path, capsys: pytest.CaptureFixture[str], setting: str, value: Any
) -> None:
    write_files(in_folder)
    (in_folder / "deep.json").write_text("[" * 100_000)
    (in_folder / "empty.json").write_text('{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}')
    (in_folder / "empty.txt").touch()
    (in_folder / "latin.j2").write_bytes(b"caf\xe9")
    job = copy.deepcopy(JOBS[0])
    section, key = setting.split(".")
    job[section][key] = value
    (in_folder / "job.yaml").write_bytes(as_json(job, random.Random(1)))
    assert run.main(["job.yaml"]) == run.EXIT_USAGE
    assert re.search(r"^rwkv-batch: .{20}", capsys.readouterr().err, re.MULTILINE)
