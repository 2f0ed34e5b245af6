"""What every command has in common: an example in its help that can be typed, a first line, and pipes that close."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path

import pytest
from job.conftest import Job

from rwkv_batch import cli
from rwkv_batch.measure.bench import _parser as bench_parser

ROOT = Path(__file__).parents[2]
OWN = [name for name in cli.COMMANDS if name != "lm-eval"]
"""Commands whose help is ours. That of lm-eval is the harness's, which has examples."""


@cache
def parsers() -> dict[str, argparse.ArgumentParser]:
    """Command → its parser."""
    action = next(action for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction))
    return {**action.choices, "bench": bench_parser()}


@pytest.mark.parametrize("name", OWN)
def test_the_help_of_a_command_has_an_example_that_can_be_typed(name: str) -> None:
    text = parsers()[name].format_help()
    (example,) = re.findall(r"^example:  (.+)$", text, re.MULTILINE)
    program, command, *arguments = shlex.split(example.partition(" > ")[0])
    assert (program, command) == ("rwkv-batch", name)
    options = parsers()[name].parse_args(arguments)  # ends the process where it is wrong
    jobs = [word for word in arguments if word.startswith("jobs/")]
    assert all((ROOT / path).exists() for path in jobs)
    assert vars(options)


@pytest.mark.parametrize("name", OWN)
def test_the_help_of_a_command_has_no_colours_and_no_long_lines(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    lines = parsers()[name].format_help().splitlines()
    assert all("\x1b" not in line for line in lines)
    assert max(map(len, lines)) <= 120


def first_line(arguments: list[str], heavy: str) -> subprocess.CompletedProcess[str]:
    """Runs a command that ends where it would import a package. Nothing is imported before the line is printed."""
    code = f"""
        import sys
        class Stop:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == {heavy!r}:
                    raise SystemExit(77)
        sys.meta_path.insert(0, Stop())
        from rwkv_batch import cli
        sys.exit(cli.main({arguments!r}))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "heavy", "line"),
    [
        (["run", "jobs/demo.yaml"], "pyarrow", "INFO jobs/demo.yaml: reading the job file, and loading libraries"),
        (
            ["validate", "jobs/demo.yaml"],
            "pydantic",
            "INFO jobs/demo.yaml: reading the job file, and loading libraries",
        ),
        (["bench", "demo"], "torch", "rwkv-batch bench: loading libraries"),
        (["doctor"], "torch", "rwkv-batch doctor: loading libraries"),
        (["inspect", "demo"], "numpy", "rwkv-batch inspect: loading libraries, and reading demo"),
        (["convert", "a.pth", "b.safetensors"], "numpy", "rwkv-batch convert: loading libraries, and reading a.pth"),
        (["lm-eval", "ls", "tasks"], "numpy", "rwkv-batch lm-eval: loading libraries"),
    ],
)
def test_the_first_line_comes_before_libraries_are_loaded(arguments: list[str], heavy: str, line: str) -> None:
    run = first_line(arguments, heavy)
    assert run.returncode == 77, run.stderr
    assert run.stderr.splitlines()[0].endswith(line) and run.stdout == ""


def test_a_pipe_that_closes_is_no_error(job: Job) -> None:
    """As of `rwkv-batch report out --show 30 | head -1`: no traceback, and the exit code of the work."""
    assert job.run() == 0
    script = (
        "set -o pipefail\n"
        'for arguments in "report $1 --show 30" "run --help"; do\n'
        '  { "$0" -m rwkv_batch.cli $arguments; echo "code $?" >&2; } | true\n'
        "done"
    )
    command = ["bash", "-c", script, sys.executable, str(job.output)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert run.stderr.split("\n") == ["code 0"] * 2 + [""]
