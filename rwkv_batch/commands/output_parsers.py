"""The command lines of commands that read what a job has made. Their modules are imported when they run."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from .command_line import EXIT_OK, command_parser, say

OUT = "the job's output folder, its state folder where run.state_dir is set, or its job file; also in an object store"


def add_report(commands: Any) -> None:
    """Adds the command `report`."""
    parser = command_parser(
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


def add_status(commands: Any) -> None:
    """Adds the command `status`."""
    parser = command_parser(
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


def add_export(commands: Any) -> None:
    """Adds the command `export`."""
    parser = command_parser(
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

    say(
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


def add_compare(commands: Any) -> None:
    """Adds the command `compare`."""
    parser = command_parser(
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
    say(to_json(found) if options.json else "\n".join(describe(found)))
    return EXIT_OK


def add_clean(commands: Any) -> None:
    """Adds the command `clean`."""
    parser = command_parser(
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
    say("\n".join(describe(leftovers)) or f"{folders.state}: nothing to remove")
    if options.dry_run or not leftovers:
        return EXIT_OK
    check_idle(storage, folders)
    if not options.yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise ConfigurationError("there is no terminal to ask at; remove these files with --yes")
        if input("remove them? [y/N] ").strip().lower() not in ("y", "yes"):
            return EXIT_OK
    remove(storage, leftovers)
    say("removed")
    return EXIT_OK
