"""Commands of benchmarks in documents: each module exists and accepts the arguments."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from rwkv_batch.cli import main

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks" / "README.md"]
DRIVERS = [path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text()]


ON_A_LINE = re.compile(r"^ *(python -m benchmarks[^#\n]*)", re.MULTILINE)
IN_A_SENTENCE = re.compile(r"`((?:python -m benchmarks\.|rwkv-batch bench )[^`]+)`")


def documented() -> set[str]:
    """Lists every command of a benchmark between backticks or on a line of its own."""
    texts = [path.read_text() for path in DOCUMENTS]
    found = [command for text in texts for form in (ON_A_LINE, IN_A_SENTENCE) for command in form.findall(text)]
    return {" ".join(command.removesuffix("--help").split()) for command in found}


class Parsed(Exception):
    """The arguments were accepted."""


@pytest.fixture
def only_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, arguments=None, namespace=None):
        parse(parser, arguments, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)


@pytest.mark.parametrize("command", sorted(documented()))
def test_documented_commands_are_accepted(command, only_parse, monkeypatch, tmp_path):
    program, *arguments = shlex.split(command)
    (tmp_path / "build" / "triton-sm90").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)  # it has the folders that arguments name
    with pytest.raises(Parsed):
        if program == "rwkv-batch":
            main(arguments)
        else:
            module = arguments[1]
            monkeypatch.delitem(sys.modules, module, raising=False)
            monkeypatch.setattr(sys, "argv", [module, *arguments[2:]])
            runpy.run_module(module, run_name="__main__", alter_sys=True)


def test_the_readme_names_every_driver():
    table = (ROOT / "benchmarks" / "README.md").read_text().partition("## ")[0]
    assert sorted(set(re.findall(r"python -m benchmarks\.(\w+)", table)) - {"gpu_parts"}) == sorted(DRIVERS)


def test_the_results_that_the_readme_names_are_there():
    text = (ROOT / "benchmarks" / "README.md").read_text()
    named = set(re.findall(r"`([\w.-]+\.json)`", text))
    assert named == {path.name for path in (ROOT / "benchmarks" / "results").glob("*.json")}
