"""The promise of the commit protocol: whatever dies, and wherever, nothing committed is lost and no row is doubled."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from job.faulty_storage import EXIT_CRASHED, Countdown, SteppingStorage, crash, fail
from rwkv_batch.job.folders import Folders

from .conftest import Job
from .prepared import ROWS, files_of, forget, in_child, prepared, undisturbed, units_of


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], None]], None]:
    """Makes jobs use storage that calls a function at every durable step."""

    def install(act: Callable[[str], None]) -> None:
        monkeypatch.setattr(Folders, "open_storage", lambda folders: SteppingStorage(folders.file("tmp"), act))

    return install


def committed(job: Job) -> set[int]:
    """Rows that a crash must not lose: in segments or in parts."""
    ready = prepared(job)
    files = files_of(job, ready)
    rows: set[int] = set()
    for unit in units_of(ready):
        rows |= set(range(unit.start, unit.stop)) if files.part(unit) else files.committed_rows(unit)
    return rows


def assert_visible_rows_are_whole(job: Job, parts: dict[str, bytes]) -> None:
    """Readers see parts of the final content or nothing, at every moment."""
    if job.output.exists():
        assert job.parts().items() <= parts.items()


def test_a_crash_at_every_durable_step(small: Job, served: list[int], at_step: Any) -> None:
    parts = undisturbed(small)
    step = 0
    while True:
        step += 1
        at_step(Countdown(step, crash))
        code = in_child(small.run)
        assert code in (0, EXIT_CRASHED)
        assert_visible_rows_are_whole(small, parts)
        kept = committed(small)
        served.clear()
        at_step(lambda _: None)
        assert small.run() == 0, f"crash at step {step}"
        assert small.parts() == parts, f"crash at step {step}"
        assert sorted(served) == sorted(set(range(ROWS)) - kept), f"crash at step {step}"
        assert not list(small.state.glob("tmp/*")) and not list(small.state.glob("unit-*"))
        assert (small.state / "_SUCCESS.json").exists() and (small.state / "report.html").exists()
        forget(small)
        if code == 0:
            break
    assert step > 70


def test_crash_after_crash(small: Job, at_step: Any, soak_seed: int) -> None:
    parts = undisturbed(small)
    crashes = 0
    for trial in range(8):
        dice = random.Random(8 * soak_seed + trial)
        before: set[int] = set()
        code = EXIT_CRASHED
        while code == EXIT_CRASHED:
            at_step(Countdown(dice.randint(1, 40), crash))
            code = in_child(small.run)
            crashes += code == EXIT_CRASHED
            assert_visible_rows_are_whole(small, parts)
            now = committed(small)
            assert before <= now
            before = now
        assert (code, small.parts()) == (0, parts)
        forget(small)
    assert crashes > 20


def test_the_disk_fails_at_every_durable_step(
    small: Job, served: list[int], at_step: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = undisturbed(small)
    failures, step, is_over = 0, 0, False
    while not is_over:
        step += 1
        code = errno.ENOSPC if step % 2 else errno.EIO
        countdown = Countdown(step, fail(code))
        at_step(countdown)
        exit_code = small.run()
        is_over = countdown.left > 0
        message = capsys.readouterr().err
        if exit_code:
            failures += 1
            assert exit_code == 1
            assert os.strerror(code) in message and "start the same command again" in message
            assert "Traceback" not in message
        assert not list(small.state.glob("tmp/*"))
        kept = committed(small)
        served.clear()
        at_step(lambda _: None)
        assert small.run() == 0
        assert small.parts() == parts, f"failure at step {step}"
        assert sorted(served) == sorted(set(range(ROWS)) - kept)
        forget(small)
    assert failures > 50
