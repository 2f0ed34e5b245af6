"""The command lines of the commands before and after a job. A command's modules are imported when it runs."""

from __future__ import annotations

import argparse
import sys
import textwrap
from typing import Any

from ..job.messages import printable

EXIT_OK = 0
EXIT_ROW_ERRORS = 3
DEVICES = ("h100", "h200", "rtx5090", "rtx4090")
"""The names of `rwkv_batch.roofline.cards.CARDS`."""

EXIT_CODES = """\
exit codes:
    0  done
    1  a file cannot be read or written
    2  the command line is wrong, or what it names is not as the command needs it; nothing has been written
  130  interrupted by Ctrl-C"""

SHELLS = ("bash", "zsh", "fish")

OUT = "the job's output folder, its state folder where run.state_dir is set, or its job file; also in an object store"

EVAL_EXIT_CODES = """\
exit codes:
    0  every task has a result with every checkpoint
    1  a file cannot be read or written
    2  the command line, the suite, a job file or the name of a task is wrong; nothing has been evaluated
    3  some tasks have failed; the next start tries them again
   75  stopped by a signal; the same command goes on
  130  ended at once by a second signal"""


def add_parsers(commands: Any) -> None:
    """Adds the commands to the subparsers of `rwkv-batch`."""
    _add_report(commands)
    _add_estimate(commands)
    _add_eval(commands)
    _add_status(commands)
    _add_export(commands)
    _add_compare(commands)
    _add_inspect(commands)
    _add_clean(commands)
    _add_init(commands)
    _add_schema(commands)
    _add_completion(commands)


def _parser(
    commands: Any, name: str, summary: str, description: str, example: str, exit_codes: str = EXIT_CODES
) -> argparse.ArgumentParser:
    """Returns a new command's parser.

    Args:
        example: a command line, for the end of its help.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=textwrap.fill(description, 100),
        epilog=f"example:  {example}\n\n{exit_codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _say(text: str) -> None:
    print(printable(text))


def _add_report(commands: Any) -> None:
    parser = _parser(
        commands,
        "report",
        "summarize a job, write its report again, and show its first results",
        "Summarize what a job has made so far, and write report.json and report.html into its state folder.",
        "rwkv-batch report out/demo --show 3",
    )
    parser.add_argument("path", metavar="OUT", help=OUT)
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print the first N rows of the output")
    parser.add_argument("--status", choices=("ok", "error"), help="with --show: only rows of this status")
    parser.add_argument("--json", action="store_true", help="print the content of report.json, and nothing else")
    parser.set_defaults(command=_report)


def _report(options: argparse.Namespace) -> int:
    from .report import report

    for text in report(options.path, show=options.show, status=options.status, is_json=options.json):
        print(text)
    return EXIT_OK


def _add_estimate(commands: Any) -> None:
    parser = _parser(
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
    _say(to_json(found) if options.json else "\n".join(describe(found)))
    sampled = sum(found["error_rows"]["sampled"].values())
    return EXIT_ROW_ERRORS if sampled and sampled == found["sample"]["rows"] else EXIT_OK


def _add_eval(commands: Any) -> None:
    parser = _parser(
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


def _add_status(commands: Any) -> None:
    parser = _parser(
        commands,
        "status",
        "show how far a job is, who serves it, and what to do next",
        "Show the state of a job from any machine that reads its folders: rows, error codes, rates of the last minute, "
        "time left, parts, the claim of each shard, workers, how the last runs ended, and the disk that is used. It "
        "writes nothing and disturbs no run. Exit code 0: the job is finished; 3: finished, and some rows are errors; "
        "6: it runs; 75: it is not finished and nobody runs it (start the same command again).",
        "rwkv-batch status out/demo --watch",
    )
    parser.add_argument("out", metavar="OUT", help=OUT)
    parser.add_argument(
        "--watch",
        action="store_true",
        help="show it every 2 seconds while the job runs: in place on a terminal, otherwise as a line each time",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object; with --watch one on each line")
    parser.set_defaults(command=_status)


def _status(options: argparse.Namespace) -> int:
    from .status import status

    return status(options.out, watch=options.watch, as_json=options.json)


def _add_export(commands: Any) -> None:
    parser = _parser(
        commands,
        "export",
        "write the results of a job as one file",
        "Write the finished parts of a job as one Parquet, JSON Lines or CSV file, in input order, or as the output "
        "and error files of an OpenAI batch. The file appears whole. In CSV, lists and structs are JSON.",
        "rwkv-batch export out/demo results.jsonl",
    )
    parser.add_argument("out", metavar="OUT", help=OUT)
    parser.add_argument("file", metavar="FILE", help="the file to write; .parquet, .jsonl or .csv says its format")
    parser.add_argument(
        "--format",
        choices=("parquet", "jsonl", "csv", "openai"),
        help="the format, whatever the file is called; openai: a line with custom_id and response for each input row",
    )
    parser.add_argument(
        "--errors",
        metavar="FILE",
        help="with --format openai: the file for error rows; default: FILE.errors.jsonl for FILE.jsonl",
    )
    parser.add_argument("--partial", action="store_true", help="take a job of which parts are missing")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.set_defaults(command=_export)


def _export(options: argparse.Namespace) -> int:
    from .export import export

    _say(
        export(
            options.out,
            options.file,
            form=options.format,
            errors=options.errors,
            is_partial=options.partial,
            overwrite=options.overwrite,
        )
    )
    return EXIT_OK


def _add_compare(commands: Any) -> None:
    parser = _parser(
        commands,
        "compare",
        "compare the results of two jobs over the same rows",
        "Compare two jobs row by row, joined by the column id where ids are unique, else by the order of the rows. Of "
        "score jobs: both accuracies and the difference with a 95 % interval (paired bootstrap) and McNemar's exact "
        "test. Of generations: how many completions are equal, lengths, finish reasons.",
        "rwkv-batch compare out/base out/tuned",
    )
    parser.add_argument("out_a", metavar="OUT_A", help=OUT)
    parser.add_argument("out_b", metavar="OUT_B", help="that of the other job")
    parser.add_argument(
        "--show", type=int, default=5, metavar="N", help="the most rows to list that differ, or that have flipped (5)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--partial", action="store_true", help="take jobs of which parts are missing")
    parser.set_defaults(command=_compare)


def _compare(options: argparse.Namespace) -> int:
    from .compare import compare, describe
    from .plain_values import to_json

    found = compare(options.out_a, options.out_b, show=max(0, options.show), is_partial=options.partial)
    _say(to_json(found) if options.json else "\n".join(describe(found)))
    return EXIT_OK


def _add_inspect(commands: Any) -> None:
    parser = _parser(
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
    _say(to_json(found) if options.json else "\n".join(lines))
    return EXIT_OK


def _add_clean(commands: Any) -> None:
    parser = _parser(
        commands,
        "clean",
        "remove what a job no longer needs",
        "Remove segments of finished units, damaged files that were set aside, and temporary files from a job's state "
        "folder. Parts, and rows that are in no part yet, stay. A job that runs is refused.",
        "rwkv-batch clean out/demo --dry-run",
    )
    parser.add_argument("out", metavar="OUT", help=OUT)
    parser.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")
    parser.add_argument("--yes", action="store_true", help="remove without a question; needed without a terminal")
    parser.set_defaults(command=_clean)


def _clean(options: argparse.Namespace) -> int:
    from ..errors import ConfigurationError
    from .clean import check_idle, describe, find_leftovers, remove

    folders, storage, leftovers = find_leftovers(options.out)
    _say("\n".join(describe(leftovers)) or f"{folders.state}: nothing to remove")
    if options.dry_run or not leftovers:
        return EXIT_OK
    check_idle(storage, folders)
    if not options.yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise ConfigurationError("there is no terminal to ask at; remove these files with --yes")
        if input("remove them? [y/N] ").strip().lower() not in ("y", "yes"):
            return EXIT_OK
    remove(storage, leftovers)
    _say("removed")
    return EXIT_OK


def _add_init(commands: Any) -> None:
    parser = _parser(
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
    _say(f"{path}: look through it, then try it:\n  rwkv-batch validate {path}\n  rwkv-batch run {path} --limit 10")
    return EXIT_OK


def _add_schema(commands: Any) -> None:
    parser = _parser(
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


def _add_completion(commands: Any) -> None:
    parser = _parser(
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
