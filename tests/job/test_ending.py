"""A command's process ends before the interpreter takes itself down, with all output and the exit code of the work."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys
from rwkv_batch.job.ending import exit_with

class Thing:
    def __del__(self):
        print("taken down")

kept = Thing()

def main():
    atexit.register(print, "registered")
    sys.stdout.write("written\\n")
    {last}

exit_with(main)
"""


@pytest.mark.parametrize(
    ("last", "code", "printed"),
    [
        ("return 3", 3, ["written", "registered"]),
        ("return 0", 0, ["written", "registered"]),
        ("sys.exit(2)", 2, ["written", "registered", "taken down"]),
        ("raise ValueError", 1, ["written", "registered", "taken down"]),
    ],
)
def test_the_end_of_a_process(last: str, code: int, printed: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(last=last)], capture_output=True, text=True)
    assert done.returncode == code and done.stdout.split("\n")[:-1] == printed
    assert ("ValueError" in done.stderr) == ("raise" in last)


def test_a_closed_stream_changes_no_exit_code() -> None:
    code = "import sys; from rwkv_batch.job.ending import exit_with; exit_with(lambda: sys.stdout.close() or 3)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 3
