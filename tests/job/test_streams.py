"""Standard streams that are closed, full, missing or read by nobody change no exit code and no part."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rwkv_batch.job.execute import run_job
from rwkv_batch.job.streams import lasting_streams

from .conftest import Job

FAKE = Path(__file__).with_name("fake_run.py")
QUIET = (
    "import sys; sys.path[:0] = [{folder!r}]\n"
    "import fake_run; from rwkv_batch.run import exit_with, main; exit_with(lambda: main([{job!r}]))"
)
"""The command with the fake engine, which prints nothing of its own when it ends."""


def started(job: Job, redirection: str, **environment: str) -> subprocess.Popen[bytes]:
    """The command in a shell that redirects its streams."""
    here = Path(__file__).parent
    code = QUIET.format(folder=str(here), job=job.write())
    path = os.pathsep.join([str(here.parent.parent), str(here.parent)])
    command = f'exec "$0" -c "$1" {redirection}'
    variables = {**os.environ, "PYTHONPATH": path, **environment}
    process = subprocess.Popen(["bash", "-c", command, sys.executable, code], env=variables, stdin=subprocess.DEVNULL)
    job.processes.append(process)  # type: ignore[arg-type]
    return process


@pytest.mark.parametrize(
    "redirection",
    [
        "<&- >&- 2>&-",
        ">&-",
        "2>&-",
        ">/dev/full 2>/dev/full",
        "> >(true) 2> >(true)",
    ],
)
def test_the_exit_code_is_that_of_the_work(job: Job, redirection: str) -> None:
    job.input(prompt=["a", None, "c"])
    process = started(job, redirection)
    process.communicate()
    assert process.returncode == 3
    assert (job.state / "_SUCCESS.json").exists() and (job.state / "report.html").exists()
    assert [row["error_code"] for row in job.rows()] == [None, "null_prompt", None]


def test_a_signal_writes_no_message_into_a_file_of_the_job(job: Job) -> None:
    """A file gets the number of standard error where that is closed."""
    job.set(output__flush_seconds=0)
    process = started(job, "<&- >&- 2>&-", FAKE_HOLD_AFTER="5")
    while not list(job.state.glob("unit-*/*.seg")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    for path in [path for path in job.state.rglob("*") if path.is_file()]:
        assert b"committing finished rows" not in path.read_bytes()
    assert job.run() == 0


class Failing(io.StringIO):
    """A stream whose reader is gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


@pytest.mark.parametrize("stream", [None, Failing(), io.TextIOWrapper(io.BytesIO())], ids=["none", "broken", "closed"])
def test_a_program_that_has_no_standard_error_may_run_jobs(
    job: Job, monkeypatch: pytest.MonkeyPatch, stream: Any
) -> None:
    if isinstance(stream, io.TextIOWrapper):
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    assert run_job(job.write()).is_complete


def test_lines_of_progress_do_not_move_to_standard_output(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    run_job(job.write())
    assert capsys.readouterr().out == ""


class Terminal(io.StringIO):
    """A terminal that is closed after some writes."""

    def __init__(self, writes: int) -> None:
        super().__init__()
        self.left = writes

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return len(text)


@pytest.mark.parametrize("writes", [0, 1, 3])
def test_a_terminal_that_is_closed_while_its_bar_moves(job: Job, monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal(writes))
    assert run_job(job.write()).is_complete
    assert terminal.left < 0


def test_characters_that_a_stream_cannot_show_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with lasting_streams():
        print("Grüße")
    assert raw.getvalue() == b"Gr\\xfc\\xdfe\n"


def test_a_terminal_stays_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal(9))
    with lasting_streams():
        assert sys.stderr.isatty()


def test_the_streams_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sys.stdout, sys.stderr
    with pytest.raises(ZeroDivisionError), lasting_streams():
        assert sys.stdout is not before[0]
        _ = 1 / 0
    assert (sys.stdout, sys.stderr) == before
