"""Completion in shells: what a real shell offers, and that the scripts know every command and option."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from rwkv_batch import cli
from rwkv_batch.commands.job_parsers import SHELLS
from rwkv_batch.measure.bench import _parser as bench_parser

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "rwkv_batch" / "data_files"


@cache
def commands() -> dict[str, argparse.ArgumentParser]:
    """Command → its parser. The harness has the one of lm-eval."""
    action = next(action for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction))
    return {**action.choices, "bench": bench_parser()}


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


def needs(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"there is no {program} on this machine")
    return path


@pytest.mark.parametrize("shell", SHELLS)
def test_the_command_prints_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    assert capsys.readouterr().out == (SCRIPTS / f"completion.{shell}").read_text(encoding="utf-8")


def test_the_scripts_know_every_command_and_option() -> None:
    """Of bash all, one by one. The scripts are made together, so the others know them too."""
    text = (SCRIPTS / "completion.bash").read_text(encoding="utf-8")
    found = {name: set(words.split()) for name, words in re.findall(r"^_shtab_rwkv_batch_(\w+)=\((.*)\)$", text, re.M)}
    assert found["subparsers"] == {*cli.COMMANDS}
    for name, parser in commands().items():
        assert found[f"{name.replace('-', '_')}_option_strings"] == options_of(parser), "run python docs/completion.py"
    for shell in ("zsh", "fish"):
        text = (SCRIPTS / f"completion.{shell}").read_text(encoding="utf-8")
        for name, parser in commands().items():
            assert name in text
            for option in options_of(parser):
                assert re.search(rf"(?<![\w-]){re.escape(option if shell == 'zsh' else option.lstrip('-'))}\b", text)


def bash_offers(*words: str, folder: Path) -> set[str]:
    """What bash offers for the last word."""
    lines = [
        f"source {SCRIPTS / 'completion.bash'}",
        "complete -p rwkv-batch | grep -q -- '-F _shtab_rwkv_batch' || exit 1",
        'COMP_WORDS=(rwkv-batch "$@"); COMP_CWORD=$#',
        "_shtab_rwkv_batch",
        'printf "%s\\n" "${COMPREPLY[@]}"',
    ]
    command = [needs("bash"), "--norc", "-c", "\n".join(lines), "bash", *words]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, timeout=20)
    assert run.returncode == 0 and not run.stderr, run.stderr
    return set(run.stdout.split())


def test_bash(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").touch()
    (tmp_path / "out").mkdir()
    assert bash_offers("", folder=tmp_path) >= {*cli.COMMANDS}
    assert bash_offers("re", folder=tmp_path) == {"report"}
    assert bash_offers("run", "", folder=tmp_path) >= {"job.yaml", "out"}
    assert bash_offers("run", "job.yaml", "--l", folder=tmp_path) == {"--limit"}
    assert bash_offers("run", "job.yaml", "--progress", "", folder=tmp_path) == {"auto", "bar", "lines", "json", "none"}
    assert bash_offers("run", "job.yaml", "--retry-errors", "null", folder=tmp_path) == {"null_prompt"}
    assert bash_offers("status", "o", folder=tmp_path) == {"out"}
    assert bash_offers("export", "out", "j", folder=tmp_path) == {"job.yaml"}
    assert bash_offers("export", "out", "x.csv", "--format", "", folder=tmp_path) >= {"parquet", "openai"}
    assert bash_offers("bench", "demo", "--batch", folder=tmp_path) == {"--batch-sizes"}
    assert bash_offers("completion", "", folder=tmp_path) == {*SHELLS}


def test_zsh() -> None:
    """That it can be read; what zsh offers needs a terminal."""
    subprocess.run([needs("zsh"), "-n", str(SCRIPTS / "completion.zsh")], check=True, timeout=20)


def test_fish(tmp_path: Path) -> None:
    lines = [
        f"source {SCRIPTS / 'completion.fish'}",
        *(f'complete -C "rwkv-batch {words}"' for words in ("sta", "run --l")),
    ]
    command = [needs("fish"), "-c", "\n".join(lines)]
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment, timeout=20)
    assert [line.split("\t")[0] for line in run.stdout.splitlines()] == ["status", "--limit"]


def generator() -> ModuleType:
    pytest.importorskip("shtab", reason="shtab makes the scripts; it is in the extra test")
    spec = importlib.util.spec_from_file_location("completion", ROOT / "docs" / "completion.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_scripts_are_up_to_date() -> None:
    found = {path.name: path.read_text(encoding="utf-8") for path in SCRIPTS.glob("completion.*")}
    assert found == generator().scripts(), "run python docs/completion.py"
