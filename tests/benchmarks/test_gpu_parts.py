"""Decisions in parts of the GPU benchmark: broken ops, the load of serving, reports of the sanitizer."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu_parts import correctness, decode, device, sanitizer, serving, smoke
from benchmarks.gpu_parts.context import TINY, Context
from benchmarks.gpu_parts.engines import load, other_backends, usable_backend
from benchmarks.gpu_parts.random_model import random_checkpoint
from benchmarks.gpu_parts.record import Record
from benchmarks.gpu_parts.serving import Load, sequence_seconds, stream
from benchmarks.roofline import MODELS, Card, decode_seconds
from rwkv_batch.checks import CheckResult, runner, worker
from rwkv_batch.checks.result import CRASHED, FAILED, OK, REFUSED, TIMEOUT, UNUSABLE, WRONG

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
    own = context(tmp_path, case("wkv7 bfloat16 state float16", status, backend="cuda"), case("sample top-p", OK))
    assert usable_backend(own, "wkv7", "auto", "bfloat16", "float16") == "triton"
    assert usable_backend(own, "wkv7", "auto", "bfloat16", "float32") == "cuda"
    assert usable_backend(own, "wkv7", "auto", "float16", "float16") == "cuda"
    assert usable_backend(own, "wkv7", "reference", "bfloat16", "float16") == "reference"
    assert usable_backend(own, "sample", "auto", "bfloat16", "float16") == "triton"
    assert "why" in own.record.notes["wkv7 served by triton"]


def test_where_both_kernels_are_broken_or_one_is_missing_the_definition_serves(tmp_path):
    both = [case("wkv7 bfloat16 state float32", TIMEOUT, backend=backend) for backend in ("triton", "cuda")]
    own = context(tmp_path, *both, case("linear bfloat16", CRASHED))
    assert usable_backend(own, "wkv7", "auto", "bfloat16", "float32") == "reference"
    assert usable_backend(own, "linear", "auto", "bfloat16", "float32") == "reference"  # no such CUDA kernel


@pytest.mark.parametrize(("worst", "backend"), [(3e-2, "cuda"), (0.5, "triton"), (None, "triton")])
def test_an_error_near_its_limit_is_no_reason_to_measure_another_kernel(tmp_path, worst, backend):
    own = context(tmp_path, case("wkv7 bfloat16 state float32", WRONG, worst, backend="cuda"))
    assert usable_backend(own, "wkv7", "auto", "bfloat16", "float32") == backend


def test_a_backend_that_refuses_is_not_broken(tmp_path):
    own = context(tmp_path, case("wkv7 bfloat16 state float32", REFUSED, backend="cuda"))
    assert usable_backend(own, "wkv7", "auto", "bfloat16", "float32") == "cuda"


def test_an_op_that_smoke_did_not_reach_is_used_and_named(tmp_path):
    own = context(tmp_path, case("wkv7 bfloat16 state float32", OK, backend="cuda"))
    assert usable_backend(own, "linear", "auto", "bfloat16", "float32") == "triton"
    assert usable_backend(own, "wkv7", "auto", "bfloat16", "float32") == "cuda"
    assert own.record.notes.keys() == {"linear"}


def test_processes_that_share_the_cores_have_one_thread_each(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(worker, "limit_threads", lambda: 8)
    for backend in ("reference", "cpu"):
        worker.check("no such case", backend, "cpu")
    assert asked == [1, worker.THREADS]


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


def test_points_of_correctness_take_turns_by_op_and_triton_comes_first():
    names = ("wkv7 a", "wkv7 b", "wkv7/cuda a", "linear a", "linear b", "linear c", "sample a")
    ordered = [name for name, _ in correctness.in_turns([(name, None) for name in names])]
    assert ordered == ["wkv7 a", "linear a", "sample a", "wkv7 b", "linear b", "linear c", "wkv7/cuda a"]


def test_smoke_begins_with_what_every_step_needs(tmp_path):
    found = smoke.jobs(context(tmp_path), smoke.KERNELS)
    backends = [job.backend for job in found]
    assert backends == sorted(backends, reverse=True)  # triton, cuda
    own = [job.op for job in found if job.backend == "triton"]
    assert [*dict.fromkeys(own)][: len(smoke.FIRST)] == [*smoke.FIRST]


def test_smoke_keeps_what_is_known_when_its_time_is_over(tmp_path, monkeypatch):
    own = context(tmp_path)
    names = [f"{job.name} {job.backend}" for job in smoke.jobs(own, smoke.KERNELS)]

    def run_jobs(jobs: list, at_once: int, report: Callable) -> None:
        for number, job in enumerate(jobs):
            if number == 2:
                own.record.close()
            report(CheckResult(job.name, job.op, job.backend, job.device, OK))

    monkeypatch.setattr(smoke, "run_jobs", run_jobs)
    table = smoke.run(own)
    assert [*own.record.points] == names[:3]
    assert own.record.left_out == names[3:]
    assert any(line.startswith("3 cases") for line in table)
    again = context(tmp_path)
    again.record.points.update(own.record.points)
    monkeypatch.setattr(smoke, "run_jobs", lambda jobs, *_: started.extend(jobs))
    started: list = []
    smoke.run(again)
    assert [f"{job.name} {job.backend}" for job in started] == names[3:]
    assert again.record.left_out == names[3:]


def test_smoke_compiles_once_before_its_cases_and_goes_on_where_that_fails(tmp_path, monkeypatch):
    build, calls = runner.Job("build of Triton's kernels", "build", "triton", "cuda:0", 240.0), []

    def run_jobs(jobs: list, at_once: int, report: Callable) -> None:
        calls.append((jobs, at_once))
        for job in jobs:
            status = TIMEOUT if job.op == "build" else OK
            report(CheckResult(job.name, job.op, job.backend, job.device, status))

    monkeypatch.setattr(smoke, "builds", lambda jobs: [build])
    monkeypatch.setattr(smoke, "run_jobs", run_jobs)
    own = context(tmp_path)
    smoke.run(own)
    (building, at_once), (cases, _) = calls
    assert [(job.name, job.time_limit) for job in building] == [(build.name, smoke.BUILD_SECONDS)]
    assert at_once == 1 and len(own.record.points) == len(cases)


def test_every_case_of_smoke_is_ended_before_one_is_waited_for(monkeypatch):
    told = []

    class Stuck:
        def __init__(self, *_: object) -> None:
            self.number = len(told)

        def ended(self) -> None:
            raise KeyboardInterrupt

        def send_kill(self) -> None:
            told.append("told")

        def kill(self) -> None:
            told.append("waited")

    monkeypatch.setattr(runner, "Process", Stuck)
    jobs = [runner.Job(f"case {i}", "op", "triton", "cuda:0", 1.0) for i in range(3)]
    with pytest.raises(KeyboardInterrupt):
        runner.run_jobs(jobs, 3, print)
    assert told == ["told"] * 3 + ["waited"] * 3


@pytest.mark.parametrize(
    ("models", "batches", "names"),
    [
        (("7.2B",), (), ["7.2B B=256 128+100"]),
        (("1.5B",), (384, 7), ["1.5B B=384 64+256", "1.5B B=7 128+100"]),
        ((), (1024,), ["1.5B B=1024 128+100", "0.1B B=1024 128+100"]),
        ((), (), [load.name for load in serving.LOADS]),
    ],
)
def test_any_model_and_number_of_rows_can_be_served(tmp_path, models, batches, names):
    own = context(tmp_path, models=models, batches=batches)
    assert [load.name for load in serving._loads(own)] == names


def test_the_price_of_batch_invariant_is_measured_with_one_model(tmp_path):
    own = context(tmp_path)
    assert decode._variants(own, "1.5B", 256) == ["float32", "float16", "batch_invariant"]
    assert decode._variants(own, "1.5B", 1) == decode._variants(own, "7.2B", 256) == ["float32", "float16"]


def test_a_model_is_loaded_once_for_all_points(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(decode, "random_checkpoint", lambda *given: drawn.append(given) or random_checkpoint(*given))
    loaded = decode.Loaded(context(tmp_path), TINY, backend="reference")
    assert loaded.get("float32") is loaded.get("float32")
    assert len(drawn) == 1
    assert {choice.backend for choice in loaded.get("float32").ops.choices} == {"reference"}


def test_the_limit_of_one_row_is_the_recurrence_that_was_measured(tmp_path):
    measured = {"recurrence, one row": {"seconds": 1e-6}}
    assert replace(context(tmp_path), limits=measured).card.token_latency == 1e-6
    assert context(tmp_path).card.token_latency == Card().token_latency


def test_the_driver_is_asked_once_and_for_what_is_kept_alone(monkeypatch):
    calls = []

    def answer(command: list[str], **_: object) -> SimpleNamespace:
        calls.append(command)
        return SimpleNamespace(stdout="580.1, 1980 MHz, 3201 MHz\n")

    properties = SimpleNamespace(
        name="a card", major=9, minor=0, multi_processor_count=132, L2_cache_size=50 << 20, total_memory=80 << 30
    )
    monkeypatch.setattr(subprocess, "run", answer)
    monkeypatch.setattr(device, "machine", dict)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    found = device.about(torch.device("cuda"), "abc", False)
    assert (found["driver"], found["clock_mhz"], found["memory_clock_mhz"]) == ("580.1", "1980 MHz", "3201 MHz")
    assert len(calls) == 1
    assert "driver" not in device.about(torch.device("cuda"), "abc", False, is_dry=True)
    assert len(calls) == 1


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
=========     at wkv7_kernel+0x40 in wkv7.py:30
========= ERROR SUMMARY: 1 error
"""


def test_the_sanitizers_findings_are_red_and_all_else_is_skipped():
    found = sanitizer.outcome(sanitizer.FOUND, INVALID)
    assert found["ok"] is False
    assert found["why"] == "Invalid __global__ write of size 4 bytes at wkv7_kernel+0x40 in wkv7.py:30"
    assert sanitizer.outcome(0, "ok: ") == {"ok": True, "why": ""}
    assert sanitizer.outcome(1, "failed: no room") == {"skipped": "exit code 1; failed: no room"}
    assert "longer" in sanitizer.outcome(None, "")["skipped"]


@pytest.mark.parametrize(
    ("line", "is_own"),
    [
        ("at void wkv56<float, 64>(Args)+0x140 in wkv56.cu:30", True),
        ("Race reported between Write access at linear_kernel+0x40 and Read access", True),
        ("at void at::native::vectorized_elementwise_kernel<4, Fill>(int)+0x40", False),
        ("Host Frame: launch in /somewhere/wkv7.so", False),
    ],
)
def test_a_report_is_red_where_it_names_a_kernel_of_this_project(line, is_own):
    found = sanitizer.outcome(sanitizer.FOUND, f"wkv7_kernel\n========= Error: found\n=========     {line}\n")
    assert (found.get("ok"), "skipped" in found) == ((False, False) if is_own else (None, True))


def test_the_sanitizer_looks_at_all_accesses_before_it_looks_for_races(tmp_path, monkeypatch):
    kinds = []
    monkeypatch.setattr(sanitizer, "_case", lambda tool, kind, name, backend: kinds.append(kind) or {"ok": True})
    sanitizer.run(context(tmp_path))
    half = len(kinds) // 2
    assert kinds == ["memcheck"] * half + ["racecheck"] * half
    assert half


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
    """A script stands in for the sanitizer: it finds the planted error, and an error in each racecheck."""
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
