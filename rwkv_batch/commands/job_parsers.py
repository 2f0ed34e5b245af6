"""The command lines of commands that need no output of a job. Their modules are imported when they run."""

from __future__ import annotations

import argparse
from typing import Any

from .command_line import EXIT_OK, EXIT_ROW_ERRORS, command_parser, say

DEVICES = ("h100", "h200", "rtx5090", "rtx4090")
"""The names of `rwkv_batch.roofline.cards.CARDS`."""

SHELLS = ("bash", "zsh", "fish")

EVAL_EXIT_CODES = """\
exit codes:
    0  every task has a result with every checkpoint
    1  a file cannot be read or written
    2  the command line, the suite, a job file or the name of a task is wrong; nothing has been evaluated
    3  some tasks have failed; the next start tries them again
   75  stopped by a signal; the same command goes on
  130  ended at once by a second signal"""


def add_estimate(commands: Any) -> None:
    """Adds the command `estimate`."""
    parser = command_parser(
        commands,
        "estimate",
        "say what a job will cost, before it runs",
        "Estimate rows, tokens, memory, disk and time of a job. A sample of the rows is tokenized; nothing is written. "
        "The time on this machine is known with --measure, or where an earlier run or a trial of the job has finished "
        "rows; on other GPUs it is predicted. Exit code 3: every row that was read is an error.",
        "rwkv-batch estimate jobs/demo.yaml --measure",
    )
    parser.add_argument("job", metavar="JOB.yaml", help="the job file, or - for standard input")
    parser.add_argument(
        "-o",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting in place of the job file's; may be repeated",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="estimate a trial of the first N rows")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="load the model and serve rows of the job for half a minute, to say the time on this machine",
    )
    parser.add_argument(
        "--mean-completion-tokens",
        type=float,
        metavar="N",
        help="the mean tokens of a completion; default: that of an earlier run, or else max_tokens as an upper bound",
    )
    parser.add_argument(
        "--device",
        nargs="+",
        choices=(*DEVICES, "none"),
        default=DEVICES,
        metavar="GPU",
        help=f"GPUs for which the time is predicted: {', '.join(DEVICES)} (all of them), or none",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(command=_estimate)


def _estimate(options: argparse.Namespace) -> int:
    from ..errors import ConfigurationError
    from .estimate import Options, estimate
    from .estimate_text import describe
    from .plain_values import to_json

    mean = options.mean_completion_tokens
    if mean is not None and not 0 < mean < float("inf"):
        raise ConfigurationError(f"--mean-completion-tokens: got {mean:g}, expected a number above 0")
    devices = [name for name in dict.fromkeys(options.device) if name != "none"]
    found = estimate(options.job, options.overrides, options.limit, Options(devices, options.measure, mean))
    say(to_json(found) if options.json else "\n".join(describe(found)))
    sampled = sum(found["error_rows"]["sampled"].values())
    return EXIT_ROW_ERRORS if sampled and sampled == found["sample"]["rows"] else EXIT_OK


def add_eval(commands: Any) -> None:
    """Adds the command `eval`."""
    parser = command_parser(
        commands,
        "eval",
        "evaluate many checkpoints with one suite of tasks",
        "Evaluate every checkpoint with every task of a suite: tasks of the lm-evaluation-harness, and jobs. Results "
        "are kept in one folder, with one table. Started again, it evaluates what has no result yet, what has failed, "
        "and what has changed.",
        "rwkv-batch eval jobs/suite.yaml --models demo",
        EVAL_EXIT_CODES,
    )
    parser.add_argument("suite", metavar="SUITE.yaml", help="the suite file; jobs/suite.yaml is an example")
    parser.add_argument(
        "--models",
        nargs="+",
        required=True,
        metavar="MODEL",
        help="checkpoints: files, folders, patterns in quotes such as 'out/rwkv-*.pth', hf://owner/repo/file, or demo",
    )
    parser.add_argument(
        "--output", metavar="DIR", help="the folder of all results, in place of the suite's output.path"
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="go on until a signal, and take new checkpoints of a training run as soon as they are complete",
    )
    parser.add_argument(
        "--interval", type=float, default=30.0, metavar="S", help="with --watch: look every S seconds (30)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, and list what is done and what is not"
    )
    parser.set_defaults(command=_eval)


def _eval(options: argparse.Namespace) -> int:
    from ..errors import ConfigurationError
    from ..suite.command import evaluate

    if not options.interval > 0:
        raise ConfigurationError(f"--interval: got {options.interval}, expected a number of seconds above 0")
    interval = options.interval if options.watch else None
    return evaluate(options.suite, options.models, output=options.output, interval=interval, dry_run=options.dry_run)


def add_inspect(commands: Any) -> None:
    """Adds the command `inspect`."""
    parser = command_parser(
        commands,
        "inspect",
        "describe a model, a state file or a part",
        "Describe a model (version, sizes, state, tokenizer, chat format, slots on GPUs of several sizes), a file with "
        "an initial state, or a part (columns, footer). Weights are not loaded.",
        "rwkv-batch inspect demo",
    )
    parser.add_argument("path", metavar="FILE", help="a model as in model.path, a state file, or a part")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(command=_inspect)


def _inspect(options: argparse.Namespace) -> int:
    from .inspect_part import describe as describe_part
    from .inspect_part import inspect_part, is_parquet
    from .plain_values import to_json

    if is_parquet(options.path):
        found = inspect_part(options.path)
        lines = describe_part(found)
    else:
        from .inspect_model import describe, inspect_weights

        found = inspect_weights(options.path)
        lines = describe(found)
    say(to_json(found) if options.json else "\n".join(lines))
    return EXIT_OK


def add_init(commands: Any) -> None:
    """Adds the command `init`."""
    parser = command_parser(
        commands,
        "init",
        "write a job file for a data file",
        "Write a commented job file for a Parquet, JSON Lines, CSV or Arrow file, an OpenAI batch, a folder or a glob: "
        "columns are recognized, a template is suggested where no column is a prompt.",
        "rwkv-batch init questions.parquet",
    )
    parser.add_argument("data", metavar="DATA", help="the input, as in input.path")
    parser.add_argument("--file", metavar="JOB.yaml", help="the job file to write; default: DATA's name with .yaml")
    parser.add_argument("--model", default="demo", metavar="MODEL", help="the model, as in model.path (demo)")
    parser.add_argument("--overwrite", action="store_true", help="replace a job file that exists")
    parser.set_defaults(command=_init)


def _init(options: argparse.Namespace) -> int:
    from .init import init

    path = init(options.data, options.file, model=options.model, overwrite=options.overwrite)
    say(f"{path}: look through it, then try it:\n  rwkv-batch validate {path}\n  rwkv-batch run {path} --limit 10")
    return EXIT_OK


def add_schema(commands: Any) -> None:
    """Adds the command `schema`."""
    parser = command_parser(
        commands,
        "schema",
        "print the JSON Schema of a job file, for editors",
        "Print the JSON Schema (draft 2020-12) of a job file. An editor with the YAML language server completes and "
        "checks a job file whose first line is: # yaml-language-server: $schema=job.schema.json",
        "rwkv-batch schema > job.schema.json",
    )
    parser.add_argument("--suite", action="store_true", help="print that of a suite file, see rwkv-batch eval")
    parser.set_defaults(command=_schema)


def _schema(options: argparse.Namespace) -> int:
    import json

    from .schema import job_schema, suite_schema

    print(json.dumps(suite_schema() if options.suite else job_schema(), indent=1, ensure_ascii=False))
    return EXIT_OK


def add_completion(commands: Any) -> None:
    """Adds the command `completion`."""
    parser = command_parser(
        commands,
        "completion",
        "print a script that completes commands in a shell",
        "Print a script with which a shell completes commands, options, their values and files. bash: add the line "
        'eval "$(rwkv-batch completion bash)" to ~/.bashrc. zsh: write it to a file _rwkv-batch in a folder of $fpath. '
        "fish: write it to ~/.config/fish/completions/rwkv-batch.fish.",
        "rwkv-batch completion bash",
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell")
    parser.set_defaults(command=_completion)


def _completion(options: argparse.Namespace) -> int:
    from pathlib import Path

    print(
        (Path(__file__).parents[1] / "data_files" / f"completion.{options.shell}").read_text(encoding="utf-8"), end=""
    )
    return EXIT_OK
