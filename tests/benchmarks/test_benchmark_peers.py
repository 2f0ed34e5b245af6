"""The benchmark beside other engines: its rounds, its ratios, and a rehearsal with the engines that tests have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tolerances import TOLERANCES

from benchmarks import probes
from benchmarks.peer_process import PeerFailed, PeerProcess
from benchmarks.peer_report import BASE, as_json, differences, report, same_round_ratios
from benchmarks.peer_rounds import Contender, Round, Run, run_rounds
from benchmarks.peer_workers.protocol import Task, log_softmax, prompts
from benchmarks.workloads import QUICK, Point

ROOT = Path(__file__).parents[2]

PEAKS = {"float32": 100.0, "bfloat16": 200.0, "int8": 0.0, "copy": 20.0, "read": 20.0}
ONE, MANY = Point("decode", 1), Point("decode", 8)


def contender(engine: str, form: str, *points: Point) -> Contender:
    return Contender(engine, engine, form, "python", list(points))


@pytest.fixture
def run() -> Run:
    """Two rounds: the second is twice as slow, and one form of llama.cpp has no figure in it."""
    found = Run(
        [
            contender("rwkv", "cpu fp32", ONE),
            contender("llama.cpp", "F32", ONE, MANY),
            contender("llama.cpp", "Q4_0", ONE, MANY),
            contender("rwkv_batch", "float32", ONE, MANY),
        ],
        QUICK,
    )
    first = {BASE: {ONE: 20.0}, "llama.cpp F32": {ONE: 40.0, MANY: 100.0}, "llama.cpp Q4_0": {ONE: 80.0, MANY: 90.0}}
    second = {BASE: {ONE: 10.0}, "llama.cpp F32": {ONE: 20.0, MANY: 50.0}, "llama.cpp Q4_0": {ONE: 40.0}}
    found.rounds = [
        Round(PEAKS, {**first, "rwkv_batch float32": {ONE: 20.0, MANY: 150.0}}),
        Round(PEAKS, {**second, "rwkv_batch float32": {ONE: 20.0, MANY: 100.0}}),
    ]
    return found


def test_ratios_are_to_the_best_form_of_the_same_round(run):
    llama = ["llama.cpp F32", "llama.cpp Q4_0"]
    assert same_round_ratios(run, "rwkv_batch float32", MANY, llama) == [1.5, 2.0]
    assert same_round_ratios(run, "rwkv_batch float32", ONE, llama) == [0.25, 0.5]


def test_an_engine_without_batches_counts_with_its_one_sequence(run):
    assert same_round_ratios(run, "rwkv_batch float32", MANY, [BASE]) == [7.5, 10.0]


def test_a_round_without_the_other_has_no_ratio(run):
    assert same_round_ratios(run, "rwkv_batch float32", MANY, ["llama.cpp Q4_0"]) == [150 / 90]
    assert same_round_ratios(run, "rwkv_batch float32", MANY, ["absent"]) == []


def test_the_report_has_medians_ratios_and_reasons(run):
    run.failures["rwkvserve fp32"] = "no module"
    run.about[BASE] = {"version": "0.8.32", "what": "takes the most likely token"}
    run.logprobs = {BASE: [-1.0, -2.0], "llama.cpp F32": [-1.5, -2.0]}
    text = report(run)
    lines = [line.split() for line in text.splitlines()]
    assert ["rwkv_batch", "float32", "20", "(20-20)", "125", "(100-150)"] in lines
    assert ["rwkv_batch", "float32", "0.38", "1.75"] in lines
    assert "rwkvserve fp32: no module" in text
    assert differences(run) == {BASE: 0.0, "llama.cpp F32": 0.5}
    kept = json.loads(json.dumps(as_json(run)))
    assert kept["median_ratio_to_best_form"]["llama.cpp"]["rwkv_batch float32"] == {
        "decode B=1": 0.375,
        "decode B=8": 1.75,
    }


class FakeProcess:
    """A process that answers at once. A batch of 8 fails."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.about = {"version": "1", "what": "nothing"}
        log.append(name)

    def ask(self, question):
        if question["ask"] == "logprobs":
            return {"logprobs": [-1.0]}
        return {"error": "too many"} if question["batch_size"] == 8 else {"seconds": 2.0}

    def close(self) -> None:
        pass


def test_rounds_turn_round_and_failures_keep_their_reasons(monkeypatch):
    monkeypatch.setattr(probes, "peaks", lambda: PEAKS)
    run = Run([contender("a", "x", ONE, MANY), contender("b", "x", ONE), contender("c", "x", ONE)], QUICK)
    started: list[str] = []

    def start(one: Contender) -> FakeProcess:
        if one.engine == "b":
            raise PeerFailed("not installed")
        return FakeProcess(one.engine, started)

    run_rounds(run, start, 3, lambda _: None)  # type: ignore[arg-type]
    assert started == ["a", "c", "c", "a", "a", "c"]
    assert run.failures == {"b x": "not installed", f"a x, {MANY}": "too many"}
    # Four tokens of one row in two seconds.
    assert run.rates == {"a x": {ONE: [2.0] * 3}, "c x": {ONE: [2.0] * 3}}


def test_a_worker_that_cannot_start_says_why(tmp_path):
    task = Task(str(tmp_path / "missing.pth"), "", "float32", str(tmp_path), 1, 97, 1, 8)
    with pytest.raises(PeerFailed, match=r"missing\.pth"):
        PeerProcess("ours", sys.executable, task, tmp_path / "log")
    with pytest.raises(PeerFailed, match="No such file"):
        PeerProcess("ours", str(tmp_path / "python"), task, tmp_path / "log")


def test_prompts_are_the_same_for_all_and_have_bytes():
    assert prompts(2, 5, 65536) == prompts(2, 5, 65536)
    assert all(0 < token < 65530 for row in prompts(8, 500, 65536) for token in row)
    assert {token for row in prompts(8, 50, 4) for token in row} == {1, 2, 3}


def test_logprobs_of_candidates():
    assert log_softmax([0.0, 0.0, 0.0, 0.0], [2, 0]) == pytest.approx([-1.3862944, -1.3862944])


@pytest.mark.soak
def test_it_rehearses_with_the_rwkv_package(tmp_path):
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks.peers", "--shape", "tiny", "--rounds", "1", "--batch-sizes", "1,2"]
    command += ["--peers", "rwkv", "--forms", "rwkv=cpu fp32", "--variants", "float32,float32+nonsense"]
    command += ["--threads", "1", "--cache", str(tmp_path), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert set(result["tokens_per_second"][BASE]) == {"decode B=1", "prefill B=1"}
    assert set(result["tokens_per_second"]["rwkv_batch float32"]) == {"decode B=1", "decode B=2", "prefill B=1"}
    assert result["largest_logprob_difference"]["rwkv_batch float32"] < 20 * TOLERANCES["float32"]
    assert "nonsense" in result["failures"]["rwkv_batch float32+nonsense"]
    assert "rwkv_batch float32+nonsense: " in done.stdout
