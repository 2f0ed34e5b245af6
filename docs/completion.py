"""The scripts that `rwkv-batch completion` prints, made by shtab: `python docs/completion.py` writes them.

They are files of the package, so that no user needs shtab, and no command gets slower. A test compares them with what
this script makes of the present code.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import shtab

from rwkv_batch.cli import _parser as main_parser
from rwkv_batch.commands.job_parsers import SHELLS
from rwkv_batch.job.report.error_codes import ERROR_CODES
from rwkv_batch.measure.bench import _parser as bench_parser

FOLDER = Path(__file__).parents[1] / "rwkv_batch" / "data_files"
FILES = {"job", "path", "out", "out_a", "out_b", "file", "errors", "data", "model", "source", "target"}
"""Names of arguments that take a file or a folder."""
NOTICE = "# Written by docs/completion.py: change the code or that script, then run it.\n"


def scripts() -> dict[str, str]:
    """File name below rwkv_batch/data_files → its text."""
    return {f"completion.{shell}": _script(shell) for shell in SHELLS}


def _script(shell: str) -> str:
    text: str = shtab.complete(_whole_parser(), shell=shell)
    first, _, rest = text.partition("\n")  # zsh has "#compdef" in its first line
    lines = (first, NOTICE.rstrip(), rest) if first.startswith("#compdef") else (NOTICE.rstrip(), text)
    return "\n".join(line.rstrip() for line in "\n".join(lines).split("\n")).rstrip() + "\n"


def _whole_parser() -> argparse.ArgumentParser:
    """The command's parser, with those of all commands, and with what completes their arguments. It parses nothing."""
    parser = main_parser()
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    choices: dict[str, argparse.ArgumentParser] = commands.choices  # type: ignore[assignment]
    choices["bench"] = bench_parser()
    helps = {choice.dest: choice.help for choice in commands._choices_actions}
    for name, command in choices.items():
        command.description = helps[name]  # in a line
        for action in command._actions:
            _complete(action)
    return parser


def _complete(action: Any) -> None:
    """Says what completes the value of an argument."""
    if action.dest in FILES:
        action.complete = shtab.FILE
    elif action.dest == "retry_errors":
        action.choices = sorted(ERROR_CODES)


if __name__ == "__main__":
    for name, text in scripts().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
