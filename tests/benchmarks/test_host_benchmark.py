"""The benchmark of the host: time of the simulated device, and the counts of its processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.host import OTHER, PRESENT, ratios, spread, start_up
from benchmarks.host_parts import structured
from benchmarks.host_parts.cases import CASES, DEFAULT, QUESTIONS_OF_A_SUBJECT, questions
from benchmarks.host_parts.contender import PARTS, ROOT, Contender, ContenderFailed, Package, checked_out, package
from benchmarks.host_parts.device import SimulatedDevice
from benchmarks.host_parts.worker import Transfers

SETTINGS = {"step_ms": 0.0, "recorded": False, "threads": 1}


class FakeTime:
    """A clock that advances by sleeping, slightly longer than asked, and by simulated work."""

    def __init__(self, late: float = 0.0) -> None:
        self.now = 100.0
        self.late = late

    def read(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds + self.late

    def device(self, step_seconds: float) -> SimulatedDevice:
        return SimulatedDevice(step_seconds, self.read, self.sleep)


def test_steps_queue_behind_each_other():
    time = FakeTime()
    device = time.device(2.0)
    device.launch()
    first = device.ready_at
    time.now += 0.5
    device.launch()  # the first one runs until 102
    second = device.ready_at
    assert (first, second) == (102.0, 104.0)
    device.wait(first)
    assert time.now == 102.0
    time.now = 110.0
    device.wait(second)  # has long been ready
    assert time.now == 110.0
    device.launch()  # the device is idle: it starts at once
    device.wait(device.ready_at)
    assert time.now == 112.0
    assert device.wall_seconds == 12.0
    assert device.used_share == pytest.approx(6 / 12)


def test_a_device_that_is_never_waited_for_in_vain_is_used_all_the_time():
    """Every step is launched before the results of the previous one are read, however late the host reads them."""
    time = FakeTime(late=0.3)
    device = time.device(1.0)
    device.launch()
    ready = device.ready_at
    for _ in range(50):
        device.launch()
        device.wait(ready)
        time.now += 0.6  # the host's work: with what it sleeps too long, less than a step
        ready = device.ready_at
    device.wait(ready)
    assert device.wall_seconds == pytest.approx(51 + time.late)
    assert device.used_share == pytest.approx(51 / (51 + time.late))


@given(st.lists(st.tuples(st.floats(0, 5), st.booleans()), min_size=1, max_size=40), st.floats(0.001, 3))
def test_one_step_runs_at_a_time(moves, step_seconds):
    """For any order of launches and waits, the device is busy for at most the time that has passed."""
    time = FakeTime()
    device = time.device(step_seconds)
    ends: list[float] = []
    for work, waits in moves:
        launched = time.now
        device.launch()
        start = max(launched, ends[-1]) if ends else launched
        ends.append(start + step_seconds)
        assert device.ready_at == pytest.approx(ends[-1])
        time.now += work
        if waits:
            device.wait(device.ready_at)
            assert time.now >= ends[-1] - 1e-9
    device.wait(device.ready_at)
    assert device.used_share <= 1 + 1e-9


def test_a_free_device_has_results_at_once_and_no_share():
    time = FakeTime()
    device = time.device(0.0)
    device.launch()
    device.wait(device.ready_at)
    assert (time.now, device.used_share) == (100.0, None)
    device.reset()
    assert (device.num_steps, device.wall_seconds) == (0, 0.0)


def test_copies_to_the_host_wait_for_the_step_before_them():
    class Copy:
        def __init__(self, value: int) -> None:
            self.value = value

        def read(self) -> int:
            return self.value

    time = FakeTime()
    device = time.device(2.0)
    with device.delays(Copy):
        device.launch()
        copy = Copy(7)
        device.launch()
        assert (copy.read(), time.now) == (7, 102.0)
        assert (Copy(8).read(), time.now) == (8, 104.0)
    assert (Copy(9).read(), time.now) == (9, 104.0)


def test_cases_have_names_of_their_own():
    assert all(CASES[name].name == name for name in CASES)
    assert set(DEFAULT) <= set(CASES)
    assert len({case.quick().name for case in CASES.values()}) == len(CASES)
    for case in CASES.values():
        assert case.requests % case.n == 0 and case.quick().requests % case.n == 0


def test_questions_of_a_subject_share_their_examples():
    asked = list(questions(3 * QUESTIONS_OF_A_SUBJECT))
    assert asked == list(questions(len(asked)))
    headers = []
    for start in range(0, len(asked), QUESTIONS_OF_A_SUBJECT):
        contexts = [one.context for one in asked[start : start + QUESTIONS_OF_A_SUBJECT]]
        (header,) = {context[: context.rindex("Question:")] for context in contexts}
        assert header.count("Answer:") == 5
        assert 600 <= len(header.encode()) <= 1000
        assert len(set(contexts)) == len(contexts)
        headers.append(header)
    assert len(set(headers)) == len(headers)
    # The first token of a choice is scored with the context; only the others need a request of their own.
    assert all(len(choice.encode()) > 1 for one in asked for choice in one.choices)


def test_ratios_are_those_of_one_round():
    def answer(rate: float, milliseconds: float) -> dict[str, float]:
        rates = dict.fromkeys(("tokens_per_second", "tokens_per_processor_second", "rows_per_second"), rate)
        return {**rates, **dict.fromkeys(("main_thread_ms", "in_steps_ms", "all_threads_ms"), milliseconds)}

    mine, its = [answer(100, 1), answer(10, 4)], [answer(50, 2), answer(20, 4)]
    found = ratios({"case": {"engine": {PRESENT: mine, OTHER: its}, "job": {PRESENT: mine}}})
    assert found["case"]["engine"]["rows_per_second"] == [2.0, 0.5]
    assert found["case"]["engine"]["in_steps_ms"] == [0.5, 1.0]
    assert "job" not in found["case"]


def test_a_spread_has_the_median_and_both_ends():
    assert spread([3.0, 1.0, 2.0, 10.0], ".1f") == "2.5 (1.0-10.0)"
    assert spread([None, 4.0], ".0f") == "4"
    assert spread([None], ".0f") == "-"


@pytest.mark.soak
def test_the_benchmark_rehearses_two_processes(tmp_path):
    out = tmp_path / "result.json"
    names = ["1024x64-stop", "1024x64-logprobs", "256x64-penalties", "1024x64-n8", "1024-score"]
    command = [sys.executable, "-m", "benchmarks.host", "--quick", "--rounds", "1", "--split", "--device-ms", "0.2"]
    command += ["--threads", "1", "--worktree", str(ROOT), "--cases", ",".join(names), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert list(result["runs"]) == [CASES[name].quick().name for name in names]
    for name in names:
        case = CASES[name].quick()
        for part in PARTS:
            for contender in (PRESENT, OTHER):
                (answer,) = result["runs"][case.name][part][contender]
                assert 0 < answer["in_steps_ms"] < answer["main_thread_ms"]
                assert 0 < answer["used_share"] <= 1 + 1e-9
                assert 0 < answer["transfers"] <= answer["most_transfers"]
                waves = -(-case.requests // case.batch_size)
                assert answer["steps"] >= (1 if case.is_score else waves * case.length)
                tokens_of_a_row = answer["tokens_per_second"] / answer["rows_per_second"]
                if case.is_score:
                    assert 4 * len(" wo") < tokens_of_a_row < 4 * len(" wordsy wordsy wordsy")
                else:
                    assert tokens_of_a_row == pytest.approx(case.n * case.length)
                split = result["splits"][case.name][part][contender]
                assert {"admission", "rest"} < set(split)
                assert all(value > 0 for key, value in split.items() if key != "rest"), split
            assert len(result["ratios"][case.name][part]["tokens_per_second"]) == 1
        assert {"thread: writing", "thread: reading, tokenizing"} < set(result["splits"][case.name]["job"][OTHER])
    assert PRESENT in done.stdout and "ratio" in done.stdout and "whole job" in done.stdout


def test_constrained_rows_are_measured_with_texts_that_satisfy_their_schema(tmp_path):
    """Were a token refused, the row would cost nothing from then on. A quick case has 2 slots and 4 tokens a row."""
    pytest.importorskip("llguidance", reason="structured output needs the extra 'structured'")
    texts = structured.texts()[::16].tolist()
    for text in texts:
        constraint = structured.constraint()()
        for token_id in text:
            constraint.accept(token_id)
            assert not constraint.is_finished
    contender = Contender(package(ROOT), {**SETTINGS, "recorded": True}, tmp_path / "log")
    try:
        every, few = (contender.measure("engine", CASES[f"256x64-{name}"].quick()) for name in ("constrained", "few"))
        assert every["all_threads_ms"] > 0 and few["steps"] >= 48
        assert every["transfers"] > few["transfers"] >= 1
    finally:
        contender.close()
    assert CASES["256x64-constrained"].parts == ("engine",)


def test_transfers_are_counted_for_each_step():
    """Transfers before a step count for the step: 2 and 5, after those of the first step."""
    time = FakeTime()
    device = time.device(1.0)
    sent = SimpleNamespace(count=10)
    found = Transfers(device, SimpleNamespace(num_transfers=lambda engine: engine.count), [None, sent])
    for count in (13, 15, 20):
        sent.count = count
        device.launch()
    assert (found.mean, found.most) == (3.5, 5)


def test_recorded_steps_are_recorded(tmp_path):
    """With `recorded` the engine takes the code path of recorded steps, whose rows have no copies on the host."""
    case = CASES["256x64"].quick()
    contender = Contender(package(ROOT), {**SETTINGS, "recorded": True}, tmp_path / "log")
    try:
        assert contender.measure("engine", case)["tokens_per_second"] > 0
        assert contender.measure("job", case)["tokens_per_second"] > 0
    finally:
        contender.close()


def test_a_process_measures_the_package_that_it_was_given(tmp_path):
    """A process that imports another package, such as the installed one, refuses to measure."""
    with pytest.raises(ContenderFailed, match="rwkv_batch was imported from"):
        Contender(_Elsewhere(tmp_path, "some commit", "driver"), SETTINGS, tmp_path / "log")


class _Elsewhere(Package):
    """A contender whose environment has another package than that of `root`."""

    def command(self, module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
        return Package(ROOT, self.commit, self.driver).command(module, *arguments)


def test_an_unknown_commit_is_named():
    with pytest.raises(ContenderFailed, match="commit 0123456789: "), checked_out("0123456789"):
        pass


def test_a_commit_with_a_driver_of_its_own_gets_it(monkeypatch):
    monkeypatch.setattr("benchmarks.host_parts.contender.git", lambda *_: "558f3da5ecb3")
    assert package(ROOT).driver == "driver_558f3da"
    monkeypatch.setattr("benchmarks.host_parts.contender.git", lambda *_: "658f3da5ecb3-dirty")
    assert package(ROOT).driver == "driver"


def test_start_up_ends_with_the_first_step():
    """The first process fills caches, the second is measured. The job ends before it finishes a row."""
    (found,) = start_up({PRESENT: package(Path(ROOT))}, 1)[PRESENT]
    assert 0 < found["torch"] < found["total"]
