"""Processes of engines that end: by a signal, by a row, while they load, and with their parent."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from checkpoints import make_checkpoint, write_checkpoint

from data_parallel.conftest import SETTINGS
from data_parallel.crashing import EndsWhenEncoded, EndsWhenRead
from rwkv_batch import LLM, SamplingParams
from rwkv_batch.data_parallel import engine_processes, parallel_rows
from rwkv_batch.data_parallel.engine_process import EngineProcess
from rwkv_batch.errors import CapacityError, CheckpointError, ConfigurationError
from rwkv_batch.model_summary import inspect_model
from rwkv_batch.rows import GenerateRow, ScoreRow
from rwkv_batch.settings import EngineSettings, ModelSettings

ROOT = Path(__file__).parents[2]
SHORT = SamplingParams(max_tokens=6, ignore_eos=True)
LONG = SamplingParams(max_tokens=200, ignore_eos=True)


def pids(llm):
    return [llm._engine.by_index[index].pid for index in range(2)]


def wait_for(condition):
    """Waits until it is true; the time limit of the tests ends a wait in vain."""
    while not condition():
        time.sleep(0.01)


def is_running(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("index", [0, 1])
def test_rows_of_a_killed_process_are_served_again(one, two, caplog, index):
    prompts = [[i] for i in range(24)]
    expected = one.generate(prompts, LONG)
    results = two.generate_iter(prompts, LONG)
    found = dict([next(results)])
    os.kill(pids(two)[index], signal.SIGKILL)
    found.update(results)
    assert [found[i] for i in range(24)] == expected
    (record,) = caplog.records
    assert record.getMessage().startswith(f"the process of engine {index} ended with signal 9 (SIGKILL); its ")


def test_processes_that_are_killed_again_and_again_lose_no_row(one, two):
    prompts = [[i] for i in range(40)]
    expected = one.generate(prompts, LONG)
    found = {}
    for i, output in two.generate_iter(prompts, LONG):
        assert i not in found
        found[i] = output
        if len(found) in (3, 20):
            os.kill(pids(two)[len(found) // 20], signal.SIGKILL)
    assert [found[i] for i in range(40)] == expected


def test_a_process_that_was_killed_between_two_calls_is_replaced(one, two):
    os.kill(pids(two)[0], signal.SIGKILL)
    wait_for(lambda: two._engine.by_index[0].ended_with)
    assert two.generate([[i] for i in range(20)], SHORT) == one.generate([[i] for i in range(20)], SHORT)


def test_scores_survive_a_killed_process(one, two):
    rows = [ScoreRow(i, i, "a context " * 20, [f"{i}" * 200]) for i in range(30)]
    results = two.serve_scores(rows)
    found = dict([next(results)])
    os.kill(pids(two)[1], signal.SIGKILL)
    found.update(results)
    assert found == dict(one.serve_scores(rows))


@pytest.mark.parametrize(("crashing", "ending"), [(EndsWhenRead, "exit code 7"), (EndsWhenEncoded, "(SIGSEGV)")])
def test_a_row_that_ends_its_process_is_found_and_all_others_are_served(one, two, crashing, ending):
    rows = [GenerateRow(i, i, [i], SHORT) for i in range(30)]
    expected = dict(one.serve(rows))
    rows[11] = GenerateRow(11, 11, crashing(), SHORT)
    found = dict(two.serve(rows))
    bad = found.pop(11)
    del expected[11]
    assert found == expected
    assert bad.error_code == "engine_crash"
    assert bad.error == f"the row ended the process of its engine twice, the second time alone; with {bad_ending(bad)}"
    assert bad_ending(bad).endswith(ending)
    assert bad.outputs[0].finish_reason == "error"


def bad_ending(output):
    return output.error.partition("; with ")[2]


def test_a_pair_that_ends_its_process_is_an_error_of_each_continuation(one, two):
    rows = [ScoreRow(0, 0, [1], [[2]]), ScoreRow(1, 1, [1], [[2], EndsWhenRead()])]
    found = dict(two.serve_scores(rows))
    assert found[0] == dict(one.serve_scores(rows[:1]))[0]
    assert [output.error_code for output in found[1]] == ["engine_crash"] * 2


def test_an_aborted_row_stays_aborted_when_its_process_ends(two):
    rows = [GenerateRow(i, i, [i], SamplingParams(max_tokens=60_000, ignore_eos=True)) for i in range(6)]
    rows.append(GenerateRow("short", 7, [1], SHORT))
    results = two.serve(rows)
    found = dict([next(results)])
    assert list(found) == ["short"]
    for pid in pids(two):
        os.kill(pid, signal.SIGKILL)
    for i in range(6):
        two.abort(i)
    found.update(results)
    assert [found[i].outputs[0].finish_reason for i in range(6)] == ["abort"] * 6


def test_processes_that_all_end_before_a_row_is_finished_end_the_call(one, two, monkeypatch):
    monkeypatch.setattr(parallel_rows, "MOST_ENDS", 1)
    with pytest.raises(RuntimeError, match=r"2 processes of engines ended one after another, .* with exit code 7"):
        two.generate([EndsWhenRead([1])] * 12, SHORT)
    assert two.generate([[1]], SHORT) == one.generate([[1]], SHORT)
    assert not any(process.ended_with for process in two._engine.by_index.values()), "the next call starts all"


def test_an_engine_that_cannot_be_started_again_is_left_out(one, two, monkeypatch, caplog):
    prompts = [[i] for i in range(30)]
    first, second = two._engine._starts
    with monkeypatch.context() as patched:
        patched.setattr(two._engine, "_starts", [first._replace(model=ModelSettings("absent.pth")), second])
        results = two.generate_iter(prompts, LONG)
        found = dict([next(results)])
        os.kill(two._engine.by_index[0].pid, signal.SIGKILL)
        found.update(results)
    assert [found[i] for i in range(30)] == one.generate(prompts, LONG)
    assert "engine 0 cannot be started again, and 1 are left: absent.pth" in caplog.text


def test_an_error_of_loading_has_its_type_and_leaves_no_process(tmp_path, monkeypatch):
    started = []

    def start(*given):
        started.append(EngineProcess(*given))
        return started[-1]

    monkeypatch.setattr(engine_processes, "EngineProcess", start)
    path = write_checkpoint(make_checkpoint("7.0", vocab=257), tmp_path / "model.pth")
    settings = EngineSettings(device="cpu", data_parallel=2, max_batch_size=2)
    summary = inspect_model(ModelSettings(str(path)), settings)
    path.write_bytes(b"something else")
    with pytest.raises(CheckpointError, match=r"model.pth"):
        LLM.from_summary(summary)
    assert len(started) == 2 and not any(is_running(process.pid) for process in started)
    with pytest.raises(CapacityError):
        LLM("demo", device="cpu", data_parallel=2, memory_share=1e-6)
    assert len(started) == 2, "the parent refuses what it sees"


def test_an_error_of_serving_has_its_type_and_ends_no_process(tmp_path):
    path = write_checkpoint(make_checkpoint("7.0", vocab=257), tmp_path / "model.pth")
    (tmp_path / "chat_template.jinja").write_text("{% broken")
    messages: Any = {"messages": [{"role": "user", "content": "hi"}]}
    with LLM(path, data_parallel=2, **SETTINGS) as llm:
        running = pids(llm)
        with pytest.raises(ConfigurationError, match=r"chat_template\.jinja"):
            llm.generate([messages, [1]], SHORT)
        assert llm.generate([[1]], SHORT)[0].error is None
        assert pids(llm) == running and all(map(is_running, running))


def test_closing_and_dropping_end_the_processes(path):
    with LLM(path, data_parallel=2, **SETTINGS) as llm:
        running = pids(llm)
        results: Any = llm.generate_iter([[1]] * 20, LONG)
        next(results)
        assert all(map(is_running, running))
        results.close()
    assert not any(map(is_running, running))
    with pytest.raises(RuntimeError, match="this LLM is closed"):
        llm.generate([[1]])
    llm.close()
    llm = LLM(path, data_parallel=2, **SETTINGS)
    running = pids(llm)
    results = llm.generate_iter([[1]] * 20, LONG)
    next(results)
    del llm, results
    gc.collect()
    assert not any(map(is_running, running))


def test_a_fork_of_the_process_is_refused_and_leaves_the_engines_alone(one, two):
    child = os.fork()
    if not child:
        try:
            two.generate([[1]])
        except RuntimeError as error:
            if "a fork of it" in str(error):
                two.close()
                two._engine.close()
                os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert two.generate([[1]], SHORT) == one.generate([[1]], SHORT)


PARENT = """
import sys, threading, time
from rwkv_batch import LLM, SamplingParams
from data_parallel.conftest import SETTINGS
params = SamplingParams(max_tokens=60_000, ignore_eos=True)
llm = LLM(sys.argv[1], data_parallel=2, **SETTINGS)
print(*(process.pid for process in llm._engine.by_index.values()), flush=True)

def tell():
    while not llm.stats().running:
        time.sleep(0.01)
    print("serving", flush=True)

threading.Thread(target=tell).start()
try:
    llm.generate([[i] for i in range(40)], params, use_tqdm=False)
except KeyboardInterrupt:
    short = llm.generate([[1]] * 12, SamplingParams(max_tokens=2, ignore_eos=True), use_tqdm=False)
    llm.check_integrity()
    print("interrupted", len(short), llm.stats().running, flush=True)
"""


def start_parent(path):
    python_path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": python_path},
    )
    return parent, [int(pid) for pid in parent.stdout.readline().split()]


def test_the_processes_end_when_their_parent_is_killed(path):
    parent, running = start_parent(path)
    assert len(running) == 2 and all(map(is_running, running))
    parent.kill()
    parent.wait()
    wait_for(lambda: not any(map(is_running, running)))
    parent.stdout.close()


def test_an_interrupt_ends_the_call_and_the_next_one_is_served(path):
    parent, running = start_parent(path)
    assert parent.stdout.readline() == "serving\n"
    parent.send_signal(signal.SIGINT)
    out, _ = parent.communicate()
    assert out.split() == ["interrupted", "12", "0"]
    assert parent.returncode == 0
    assert not any(map(is_running, running)), "the end of the interpreter ends the processes"
