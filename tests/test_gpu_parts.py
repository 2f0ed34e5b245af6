"""Parts of the GPU benchmark that decide something: what smoke forbids, the load of serving, the sanitizer's words."""

from __future__ import annotations

import sys
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # benchmarks are not installed

from benchmarks.gpu_parts import correctness, sanitizer  # noqa: E402
from benchmarks.gpu_parts.context import TINY, Context  # noqa: E402
from benchmarks.gpu_parts.engines import load, other_backends, usable_backend  # noqa: E402
from benchmarks.gpu_parts.random_model import random_checkpoint  # noqa: E402
from benchmarks.gpu_parts.record import Record  # noqa: E402
from benchmarks.gpu_parts.serving import Load, sequence_seconds, stream  # noqa: E402
from benchmarks.roofline import MODELS, Card, decode_seconds  # noqa: E402
from rwkv_batch.checks import CheckResult  # noqa: E402
from rwkv_batch.checks.result import CRASHED, FAILED, OK, REFUSED, TIMEOUT, UNUSABLE, WRONG  # noqa: E402

CPU = torch.device("cpu")


def context(
    folder: Path, *smoke: CheckResult, models: tuple = (), batches: tuple = (), is_dry: bool = False
) -> Context:
    record = Record(folder / "part.json", {"card": "a card"}, 60, None, lambda what: None)
    points = {f"{one.name} {one.backend}": asdict(one) | {"ok": one.is_good} for one in smoke}
    return Context(CPU, False, is_dry, folder, record, {}, points, {}, models, batches, lambda what: None)


def case(name: str, status: str, worst: float | None = None, backend: str = "triton") -> CheckResult:
    return CheckResult(name, name.split()[0], backend, "cuda:0", status, "why", worst, 1e-2)


@pytest.mark.parametrize("status", [FAILED, TIMEOUT, CRASHED, UNUSABLE, WRONG])
def test_an_op_that_smoke_finds_broken_is_served_by_the_next_backend(tmp_path, status):
    own = context(tmp_path, case("wkv7 bfloat16 state float16", status), case("sample top-p", OK))
    assert usable_backend(own, "wkv7", "triton", "bfloat16", "float16") == "cuda"
    assert usable_backend(own, "wkv7", "triton", "bfloat16", "float32") == "triton"
    assert usable_backend(own, "wkv7", "triton", "float16", "float16") == "triton"
    assert usable_backend(own, "wkv7", "reference", "bfloat16", "float16") == "reference"
    assert usable_backend(own, "sample", "triton", "bfloat16", "float16") == "triton"
    assert "why" in own.record.notes["wkv7 served by cuda"]


def test_where_both_kernels_are_broken_or_one_is_missing_the_definition_serves(tmp_path):
    both = [case("wkv7 bfloat16 state float32", TIMEOUT, backend=backend) for backend in ("triton", "cuda")]
    own = context(tmp_path, *both, case("linear bfloat16", CRASHED))
    assert usable_backend(own, "wkv7", "triton", "bfloat16", "float32") == "reference"
    assert usable_backend(own, "linear", "triton", "bfloat16", "float32") == "reference"  # no such CUDA kernel


@pytest.mark.parametrize(("worst", "backend"), [(3e-2, "triton"), (0.5, "cuda"), (None, "cuda")])
def test_an_error_near_its_limit_is_no_reason_to_measure_another_kernel(tmp_path, worst, backend):
    own = context(tmp_path, case("wkv7 bfloat16 state float32", WRONG, worst))
    assert usable_backend(own, "wkv7", "triton", "bfloat16", "float32") == backend


def test_a_backend_that_refuses_is_not_broken(tmp_path):
    own = context(tmp_path, case("wkv7 bfloat16 state float32", REFUSED))
    assert usable_backend(own, "wkv7", "triton", "bfloat16", "float32") == "triton"


def test_a_model_loads_without_the_kernels_that_are_broken(tmp_path):
    model = load(context(tmp_path), random_checkpoint(TINY, CPU), "float32", backend="reference")
    names = [choice.op for choice in model.ops.choices]
    own = context(tmp_path, *(case(f"{op} float32", CRASHED, backend=b) for op in names for b in ("triton", "cuda")))
    model = load(own, random_checkpoint(TINY, CPU), "float32")
    assert other_backends(model) == dict.fromkeys(names, "reference")
    assert own.record.notes.keys() == {f"{name} served by reference" for name in names}


def test_correctness_does_not_try_what_hangs_and_looks_closer_at_what_is_wrong(tmp_path):
    own = context(tmp_path, case("wkv5 bfloat16", TIMEOUT), case("wkv6 bfloat16", WRONG, 1.0))
    assert "timeout" in correctness._broken(own, "wkv5-no-gate bfloat16 state float32, decode")
    assert not correctness._broken(own, "wkv5-no-gate/cuda bfloat16 state float32, decode")
    assert not correctness._broken(own, "wkv6 bfloat16 state float32, decode")


def test_models_and_rows_are_those_that_were_asked_for(tmp_path):
    assert context(tmp_path).choose_models(("0.1B",)) == {"0.1B": MODELS["0.1B"]}
    own = context(tmp_path, models=("7.2B",), batches=(3,))
    assert own.choose_models(("0.1B",)) == {"7.2B": MODELS["7.2B"]}
    assert own.choose_batches((1, 2)) == (3,)
    assert context(tmp_path, is_dry=True).models["7.2B"].C == MODELS["7.2B"].C
    assert context(tmp_path, is_dry=True).models["7.2B"].L < MODELS["7.2B"].L


def test_sequences_end_evenly_spread_over_the_steps(tmp_path):
    model = load(context(tmp_path), random_checkpoint(TINY, CPU), "float32", backend="reference")
    made = list(islice(stream(model, Load("tiny", 20, 5, 10)), 50))
    assert [one.params.max_tokens for one in made] == [1 + i // 2 for i in range(20)] + [10] * 30
    assert {len(one.prompt_token_ids) for one in made} == {5}
    assert len({one.key for one in made}) == 50


def test_the_limit_of_serving_is_decoding_and_prompts():
    card, own = Card(), Load("1.5B", 256, 128, 100)
    decoding = 100 * decode_seconds(MODELS["1.5B"], 256, card, 4) / 256
    # 128 tokens through 1.3e9 numbers of the layers' matrices, at 0.8 of the matrix rate.
    products = 2 * 128 * (MODELS["1.5B"].streamed_weights - 65536 * 2048) / (card.matrix_rate * card.efficiency)
    found = sequence_seconds(MODELS["1.5B"], own, card, 4)
    assert decoding + products < found < decoding + 2.5 * products


INVALID = """========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at _write+0x40 in case.py:30
========= ERROR SUMMARY: 1 error
"""


def test_the_sanitizers_findings_are_red_and_all_else_is_skipped():
    found = sanitizer.outcome(sanitizer.FOUND, INVALID)
    assert found["ok"] is False
    assert found["why"] == "Invalid __global__ write of size 4 bytes at _write+0x40 in case.py:30"
    assert sanitizer.outcome(0, "ok: ") == {"ok": True, "why": ""}
    assert sanitizer.outcome(1, "failed: no room") == {"skipped": "exit code 1; failed: no room"}
    assert "longer" in sanitizer.outcome(None, "")["skipped"]


@pytest.mark.parametrize("end", ["echo '========= Error: Device not supported'; exit 1", "exit 0"])
def test_a_sanitizer_that_refuses_or_finds_nothing_is_not_believed(tmp_path, monkeypatch, end):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "calls"}\n{end}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    own = context(tmp_path)
    table = sanitizer.run(own)
    assert (tmp_path / "calls").read_text().count("\n") == 1
    assert "planted error" in (tmp_path / "calls").read_text()
    assert own.record.points
    assert all("skipped" in point and "ok" not in point for point in own.record.points.values())
    assert any("does not find a planted error" in line for line in table)


def test_a_sanitizer_that_works_runs_every_case(tmp_path, monkeypatch):
    """It stands for the real one: a script that finds the planted error, and an error in each racecheck."""
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\ncase \"$*\" in *planted*|*racecheck*) echo '{INVALID}'; exit 9;; esac\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    own = context(tmp_path)
    sanitizer.run(own)
    expected = {f"{kind} {name} {backend}": kind == "memcheck" for kind, (name, backend) in _product(own)}
    assert {name: point["ok"] for name, point in own.record.points.items()} == expected


def _product(own: Context) -> list[tuple[str, tuple[str, str]]]:
    return [(kind, case) for kind in sanitizer.TOOLS for case in sanitizer.chosen(own)]
