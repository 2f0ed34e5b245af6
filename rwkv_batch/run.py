"""The command line of a job, `python -m rwkv_batch.run JOB.yaml`, and the meaning of its exit codes."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .errors import (
    BackendError,
    CapacityError,
    CheckpointError,
    ConfigurationError,
    MissingExtraError,
    ResumeError,
    Stopped,
)
from .job.ending import exit_with
from .job.messages import printable
from .job.stopping import EXIT_KILLED
from .job.streams import lasting_streams

if TYPE_CHECKING:
    from .job.shard_run import Outcome

logger = logging.getLogger("rwkv_batch")

EXIT_OK = 0
EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_ROW_ERRORS = 3
EXIT_REFUSED = 4
EXIT_DEVICE = 5
EXIT_STOPPED = 75

EXIT_CODES = {
    EXIT_OK: "every row is served; with --allow-errors some rows may be errors",
    EXIT_INTERNAL: "an internal error",
    EXIT_USAGE: "the command line, the job file, the input or the model file is wrong",
    EXIT_ROW_ERRORS: "some rows are errors; under run.on_row_error: stop the run has ended at one",
    EXIT_REFUSED: "the output folder belongs to a job with other results, or the input has changed",
    EXIT_DEVICE: "the device is missing or has too little memory",
    EXIT_STOPPED: "stopped by a signal, or because another process has taken over; the same command goes on",
    EXIT_KILLED: "ended at once by a second signal",
}
"""Exit code → what it means."""

PROGRESS = ("auto", "bar", "lines", "json", "none")
"""Values of --progress; the first one is the default. They are those of `run_job`'s argument."""

DESCRIPTION = """\
Run a job: read prompts or questions from files, serve them with a model, and write the results as Parquet files.
Start the same command again after an interruption: it serves the rows that are missing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job that the arguments name (those of the process where None), and returns the exit code."""
    program = "python -m rwkv_batch.run"
    parser = argparse.ArgumentParser(prog=program, description=DESCRIPTION, **help_with(f"{program} jobs/demo.yaml"))
    add_arguments(parser)
    with lasting_streams():
        return execute(parser.parse_args(arguments))


def exit_codes() -> str:
    """The exit codes, a line each, for the end of a help text."""
    return "exit codes:\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())


def help_with(example: str) -> dict[str, Any]:
    """Returns arguments of the parser of a command that runs or checks a job.

    Args:
        example: a command line, for the end of its help.
    """
    epilog = f"example:  {example}\n\n{exit_codes()}"
    return {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": epilog}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of a run to the parser of this command, or of `rwkv-batch run`."""
    parser.add_argument(
        "job", metavar="JOB.yaml", help="the job file, or - for standard input; jobs/eval.yaml explains every setting"
    )
    what = parser.add_argument_group("what is run")
    what.add_argument(
        "-o",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting in place of the job file's, such as sampling.top_p=0.7; may be repeated",
    )
    what.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="a trial of the first N rows: it writes to OUTPUT-limit-N, and the whole job starts fresh beside it",
    )
    what.add_argument(
        "--shard",
        metavar="I/N",
        help="make only every Nth part, from part I on; I counts from 0. auto or auto/N: take the numbers from the "
        "variables of Slurm, torchrun or Kubernetes",
    )
    what.add_argument(
        "--retry-errors",
        nargs="*",
        metavar="CODE",
        help="serve error rows of the parts that are there again, all or those with these error codes, and nothing "
        "else; input.max_prompt_tokens, engine.constraint_timeout and other settings that change no result may differ",
    )
    how = parser.add_argument_group("how it is run")
    how.add_argument("--dry-run", action="store_true", help="check everything, show the first prompt, run nothing")
    how.add_argument("--allow-errors", action="store_true", help="exit with 0 even where rows are errors")
    how.add_argument(
        "--progress",
        choices=PROGRESS,
        default="auto",
        metavar="KIND",
        help="what standard error shows while rows are served: auto (a bar on a terminal, else lines), bar, lines (one "
        "every 30 seconds), json (an object on a line each second) or none",
    )
    how.add_argument("--verbose", action="store_true", help="log more, and show a failure in full")


def execute(options: argparse.Namespace, task: str | None = None) -> int:
    """Runs the job that the command line names.

    Args:
        options: the arguments that `add_arguments` adds.
        task: replaces the job's task where it is given.

    Returns:
        The exit code, one of `EXIT_CODES`. A run that stops at a bad row (run.on_row_error: stop) gives 3 also under
        --allow-errors, as the job is not done. A second signal ends the process at once with 130.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_TerminalFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logger.setLevel(logging.DEBUG if options.verbose else logging.INFO)  # the level of this package alone
    logger.info("%s: reading the job file, and loading libraries", options.job)
    from .job.execute import check_job, run_job
    from .job.output.storage import StorageError
    from .job.plan import parse_shard
    from .job.stopping import StopSignals

    retry_errors = False if options.retry_errors is None else options.retry_errors or True
    overrides = [*options.overrides, *([f"task={task}"] if task else [])]
    stop = StopSignals(is_command=True)
    try:
        # The environment is read here, where a scheduler's variables name this process's shard, and for a job file's
        # references to variables.
        shard = str(parse_shard(options.shard, os.environ))
        if options.dry_run:
            text, is_useful = check_job(
                options.job, overrides, shard, limit=options.limit, stop=stop, retry_errors=retry_errors
            )
            print(printable(text))
            return EXIT_OK if is_useful else EXIT_ROW_ERRORS
        outcome = run_job(
            options.job,
            overrides,
            shard,
            limit=options.limit,
            stop=stop,
            retry_errors=retry_errors,
            progress=options.progress,
        )
    except Stopped:
        return _fail(EXIT_STOPPED, "stopped; start the same command again to go on")
    except ResumeError as error:
        return _fail(EXIT_REFUSED, f"refused to resume: {error}")
    except CapacityError as error:
        return _fail(EXIT_DEVICE, str(error))
    except (ConfigurationError, CheckpointError, BackendError, MissingExtraError) as error:
        return _fail(EXIT_USAGE, str(error))
    except Exception as error:  # every other failure becomes a message and an exit code here
        logger.debug("the failure in full", exc_info=True)
        advice = "what was committed is safe; start the same command again to go on"
        kind = "" if isinstance(error, StorageError) else f"{type(error).__name__}: "
        return _fail(EXIT_INTERNAL, f"{kind}{error}\n{advice}")
    _print_summary(outcome)
    return EXIT_OK if outcome.is_finished and (not outcome.errors or options.allow_errors) else EXIT_ROW_ERRORS


class _TerminalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _print_summary(outcome: Outcome) -> None:
    """Prints how the job ended, and the command that shows the results."""
    folders, output = outcome.folders, _shortest(outcome.output)
    lines = outcome.summary or [f"{output}: {outcome.rows:,} rows, {outcome.errors:,} of them errors"]
    print(printable("\n".join(lines)))
    if outcome.retried is not None:
        print(f"retried {outcome.retried}")
    if outcome.stopped_at:
        print(printable(f"stopped at {outcome.stopped_at}"))
        print("run.on_row_error is stop: start the same command again to go on with the rows after it")
    elif not outcome.is_finished:
        print("parts are missing; start the same command again to make them")
    elif not outcome.is_complete:
        print("this shard is done; other shards are not")
    else:
        print(f"report  {outcome.report}")
        job = output if folders.are_siblings else _shortest(folders.state)
        print(f"look    rwkv-batch report {shlex.quote(job)} --show 3")


def _shortest(path: str) -> str:
    """The absolute path, or the one relative to the current folder if that is shorter; an address as it is."""
    return path if "://" in path else min(path, os.path.relpath(path), key=len)


def _fail(code: int, message: str) -> int:
    print(f"rwkv-batch: {printable(message)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    exit_with(main)
