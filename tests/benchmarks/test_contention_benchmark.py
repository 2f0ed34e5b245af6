"""The benchmark of a CPU that other programs use: its shares and ratios, its loads, and a rehearsal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import contention
from benchmarks.contention import ALL, BEFORE, ONE, Loads, Result

ROOT = Path(__file__).parents[2]
CELL = ("equal", "float32", 8)


@pytest.fixture
def result() -> Result:
    """Two rounds: one thread is the faster one in the second."""
    found = Result()
    for name, rates in {ALL: (100.0, 60.0), ONE: (50.0, 80.0), BEFORE: (25.0, 60.0)}.items():
        for rate in rates:
            found.add(CELL, name, rate)
    return found


def test_a_share_is_of_the_better_number_of_threads_of_the_same_round(result: Result) -> None:
    assert result.shares(CELL) == [1.0, 0.75]
    assert result.ratios(CELL, BEFORE) == [4.0, 1.0]
    assert result.ratios(CELL, "llama.cpp") == []


def test_rows_have_medians(result: Result) -> None:
    assert result.rows([ALL, ONE, BEFORE]) == [["equal", "float32", "8", "80", "65", "42", "0.88", "2.50"]]


def state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.skipif(not Path("/proc").exists(), reason="the system does not list processes")
def test_the_other_program_runs_under_its_load_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contention, "CONTROL_GROUPS", tmp_path)
    loads = Loads([os.getpid()])
    try:
        processes = {load: process.pid for load, process in loads._busy.items()}
        os.waitid(os.P_PID, processes["equal"], os.WSTOPPED | os.WNOWAIT)
        with loads.applied("equal"):
            os.waitid(os.P_PID, processes["equal"], os.WCONTINUED)
            assert state(processes["equal"]) in "RS"
        os.waitid(os.P_PID, processes["equal"], os.WSTOPPED | os.WNOWAIT)
        assert state(processes["equal"]) == "T"
        assert loads.missing is not None
        with loads.applied("quota"):
            pass
    finally:
        loads.close()


@pytest.mark.soak
def test_rehearsal() -> None:
    command = [sys.executable, "-m", "benchmarks.contention", "--quick", "--rounds", "1", "--batch-sizes", "2"]
    done = subprocess.run([*command, "--variants", "float32"], cwd=ROOT, capture_output=True, text=True, check=True)
    table = [line.split() for line in done.stdout.splitlines()]
    assert [line[:3] for line in table if line[:1] == ["equal"]] == [["equal", "float32", "2"]]
