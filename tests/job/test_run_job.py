"""`rwkv_batch.run_job`: the same as the command, from a program: its arguments, what it returns, and signals."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import rwkv_batch
from job import fake_llm
from rwkv_batch import ConfigurationError, Outcome, ResumeError, Stopped, run_job
from rwkv_batch.job import stopping
from rwkv_batch.job.output.commit import JobFiles
from rwkv_batch.job.stopping import SIGNALS, StopSignals

from .conftest import Job

ERRORS = ("BackendError", "CapacityError", "CheckpointError", "ConfigurationError", "MissingExtraError", "ResumeError")


@pytest.fixture
def fails_first(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Makes the engine call a function before its fifth row, once. Handlers of signals are put back."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    original = fake_llm.Serving._complete

    def install(act: Callable[[], None]) -> None:
        rows: list[int] = []

        def complete(self: Any, row: Any) -> None:
            rows.append(row.row.row)
            if len(rows) == 5:
                act()
            original(self, row)

        monkeypatch.setattr(fake_llm.Serving, "_complete", complete)

    yield install
    for number, handler in before.items():
        signal.signal(number, handler)


def committed(job: Job) -> int:
    return sum(pq.read_metadata(path).num_rows for path in job.state.glob("unit-*/*.seg"))


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in SIGNALS]


def test_a_file_and_its_content_are_the_same_job(job: Job) -> None:
    outcome = run_job(Path(job.write()))
    assert (outcome.rows, outcome.errors, outcome.is_finished, outcome.is_complete) == (30, 0, True, True)
    assert (outcome.output, outcome.report) == (str(job.output), f"{job.state}/report.html")
    assert outcome.report is not None and os.path.getsize(outcome.report)
    assert isinstance(outcome, Outcome)
    parts = job.parts()
    fake_llm.LLM.loaded = 0
    assert run_job(job.settings) == outcome
    assert (fake_llm.LLM.loaded, job.parts()) == (0, parts)


def test_relative_paths_are_relative_to_the_current_folder(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(job.folder)
    outcome = run_job(job.settings, {"input.path": "prompts.parquet", "output.path": "here"})
    assert outcome.output == str(job.folder / "here")


def test_a_local_output_takes_an_address_of_a_file(job: Job) -> None:
    path = job.output
    assert job.set(output__path=f"file://{path}").run() == 0
    assert len(list(path.iterdir())) == 3


@pytest.mark.parametrize("overrides", [{"sampling.max_tokens": 3, "sampling": {"n": 2}}, ["sampling.n=2"]])
def test_overrides_replace_settings_and_leave_the_callers_alone(job: Job, overrides: Any) -> None:
    settings, given = {**job.settings, "sampling": {"n": 1}}, type(overrides)(overrides)
    assert run_job(settings, overrides).rows == 30
    assert len(job.rows()) == 60
    assert (settings["sampling"], overrides) == ({"n": 1}, given)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"sampling.top_p": 2}, "overrides: sampling.top_p: got 2, expected a number from 0 to 1"),
        ({"sampling.topp": 1}, "overrides: sampling.topp: unknown key (did you mean 'top_p'?)"),
        ({"engine.device": 5}, "overrides: engine.device: got 5, expected auto, cpu, cuda or cuda:<index>"),
        ({"task.name": 1}, "overrides: task.name: task is 'generate', not a section"),
        ({"": 1}, "overrides: : expected names such as 'sampling.temperature'"),
        (["sampling.top_p=2"], "-o sampling.top_p=2: got 2, expected a number from 0 to 1"),
        (["sampling"], "-o sampling: expected section.key=value"),
    ],
)
def test_a_bad_override_is_named(job: Job, overrides: Any, expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        run_job({**job.settings, "task": "generate"}, overrides)
    assert expected in str(caught.value)
    assert not job.state.exists()


def test_paths_may_be_objects_and_lists_tuples(job: Job) -> None:
    settings = {**job.settings, "input": {"path": (job.folder / "prompts.parquet",)}}
    outcome = run_job(settings, {"output.path": job.folder / "there", "sampling.stop": ("x",)})
    assert (outcome.rows, outcome.output) == (30, str(job.folder / "there"))
    assert run_job(settings, f"output.path={job.folder / 'elsewhere'}").output == str(job.folder / "elsewhere")


@pytest.mark.parametrize(
    ("given", "overrides", "expected"),
    [
        (5, (), "job: got 5, expected the path of a job file, or a mapping"),
        ({}, [("sampling.n", 2)], "overrides: got ('sampling.n', 2), expected a text such as 'sampling.n=2'"),
    ],
)
def test_a_job_or_overrides_of_another_kind_are_refused(given: Any, overrides: Any, expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        run_job(given, overrides)
    assert expected in str(caught.value)


def test_a_bad_setting_of_a_mapping_is_named(job: Job) -> None:
    with pytest.raises(ConfigurationError, match="job: model: missing, expected a mapping with path,"):
        run_job({name: section for name, section in job.settings.items() if name != "model"})


def test_the_exceptions_of_a_job_are_public(job: Job) -> None:
    assert run_job(job.settings).is_complete
    with pytest.raises(ResumeError, match=r"sampling\.seed: 0 when it was started, 1 now"):
        run_job(job.settings, {"sampling.seed": 1})
    for name in ERRORS:
        assert issubclass(getattr(rwkv_batch, name), rwkv_batch.RwkvBatchError)
    assert not issubclass(Stopped, Exception)


def test_public_names_are_listed_before_they_are_imported() -> None:
    code = (
        "import sys, rwkv_batch; assert set(rwkv_batch.__all__) <= set(dir(rwkv_batch)); "
        "rwkv_batch.Stopped; sys.exit(bool({'torch', 'pyarrow', 'pydantic'} & set(sys.modules)))"
    )
    assert {"run_job", "Outcome", "Stopped", *ERRORS} <= set(rwkv_batch.__all__)
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_shards(job: Job) -> None:
    outcome = run_job(job.settings, shard="1/2")
    assert (outcome.rows, outcome.is_finished, outcome.is_complete, outcome.report) == (10, True, False, None)
    outcome = run_job(job.settings, shard="0/2")
    assert (outcome.rows, outcome.is_complete) == (20, True)
    with pytest.raises(ConfigurationError, match="got shard 2 of 2"):
        run_job(job.settings, shard="2/2")


def test_a_run_that_ends_at_a_bad_row(job: Job) -> None:
    job.input(prompt=[None, *["p"] * 29])
    outcome = run_job(job.settings, {"run.on_row_error": "stop"})
    assert (outcome.is_finished, outcome.is_complete) == (False, False)
    assert outcome.stopped_at.startswith("row ")
    outcome = run_job(job.settings)
    assert (outcome.rows, outcome.errors, outcome.is_finished) == (30, 1, True)


def test_in_other_threads_twice_in_one_process(job: Job) -> None:
    before = handlers()
    found = []

    def run(name: str) -> Outcome:
        outcome = run_job(job.settings, {"output.path": str(job.folder / name)})
        found.append(handlers())
        return outcome

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, ["a", "b"])
    assert first.is_complete and second.is_complete
    parts = [[path.read_bytes() for path in sorted((job.folder / name).iterdir())] for name in "ab"]
    assert parts[0] == parts[1]
    assert [*found, handlers()] == [before] * 3


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_stops_a_job_of_the_main_thread(
    job: Job, fails_first: Callable[..., None], number: signal.Signals
) -> None:
    """A program that does not handle the signal itself, such as a notebook at Ctrl-C, gets `Stopped`."""
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    before = handlers()
    fails_first(lambda: signal.raise_signal(number))
    job.set(output__flush_seconds=86_400)
    with pytest.raises(Stopped, match=f"{number.name}: what was finished is committed"):
        run_job(job.settings)
    assert (committed(job), handlers()) == (4, before)
    assert issubclass(Stopped, KeyboardInterrupt)
    assert run_job(job.settings).is_complete
    assert [row["id"] for row in job.rows()] == [f"row-{i}" for i in range(30)]


@pytest.mark.parametrize("is_ignored", [False, True])
def test_signals_that_the_program_handles_or_ignores_are_left_to_it(
    job: Job, fails_first: Callable[..., None], is_ignored: bool
) -> None:
    received: list[int] = []
    signal.signal(signal.SIGTERM, signal.SIG_IGN if is_ignored else lambda number, _: received.append(number))
    fails_first(lambda: signal.raise_signal(signal.SIGTERM))
    assert run_job(job.settings).is_complete
    assert received == ([] if is_ignored else [signal.SIGTERM])


def test_a_second_signal_does_what_it_did_before(
    job: Job, fails_first: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first Ctrl-C waits for a commit that is stuck, the second one does not; the thread of the commit ends."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    release, main = threading.Event(), threading.main_thread().ident
    commit = JobFiles.commit

    def stuck(*arguments: Any) -> None:
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)
        assert release.wait(60)
        commit(*arguments)

    monkeypatch.setattr(JobFiles, "commit", stuck)
    job.set(output__flush_seconds=86_400)
    fails_first(lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt) as caught:
        run_job(job.settings)
    assert caught.type is KeyboardInterrupt
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    release.set()
    for thread in threading.enumerate():
        if thread.name.startswith("rwkv_batch-writer"):
            thread.join(60)
            assert not thread.is_alive()
    assert committed(job) == 4


def test_handlers_are_put_back_whenever_ctrl_c_comes() -> None:
    """Ctrl-C comes before every line that installs or restores handlers. It raises, and handlers are restored."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    expected, line, is_reached = handlers(), 0, True
    try:
        while is_reached:
            is_reached, outcome = interrupted_at(line)
            assert handlers() == expected, f"line {line}"
            assert outcome == ("interrupted" if is_reached else "done"), f"line {line}"
            line += 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert line > 20


def interrupted_at(line: int) -> tuple[bool, str]:
    """Runs a block of StopSignals with Ctrl-C before its `line`-th line. Returns if it has that line, and its end."""
    lines = itertools.count()
    is_reached = False

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal is_reached
        if frame.f_code.co_filename != stopping.__file__ or frame.f_code.co_name == "_handle":
            return None
        if event == "line" and next(lines) == line:
            is_reached = True
            sys.settrace(None)
            signal.raise_signal(signal.SIGINT)
        return trace

    stop, outer = StopSignals(), sys.gettrace()
    sys.settrace(trace)
    try:
        with stop, stop.interruptible():
            pass
    except KeyboardInterrupt:
        return is_reached, "interrupted"
    finally:
        sys.settrace(outer)
    return is_reached, "done"


def test_a_signal_stops_a_job_whose_standard_error_is_closed(job: Job, fails_first: Callable[..., None]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    kept = os.dup(2)

    def interrupt() -> None:
        os.close(2)
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            os.dup2(kept, 2)

    fails_first(interrupt)
    job.set(output__flush_seconds=86_400)
    try:
        with pytest.raises(Stopped):
            run_job(job.settings)
    finally:
        os.close(kept)
    assert committed(job) == 4


def test_a_signal_that_comes_when_all_is_done_is_not_lost(
    job: Job, fails_first: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rwkv_batch.job import shard_run as module

    write_report = module.__dict__["write_report"]

    def write(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return write_report(*arguments)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_report", write)
        with pytest.raises(Stopped):
            run_job(job.settings)
    assert len(job.parts()) == 3
    assert run_job(job.settings).is_complete
