"""python -m rwkv_batch.run JOB.yaml: the command line of a job, and what its exit codes mean."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import (
    BackendError,
    CapacityError,
    CheckpointError,
    ConfigurationError,
    MissingExtraError,
    ResumeError,
    Stopped,
)

if TYPE_CHECKING:
    from .job.execute import Outcome

logger = logging.getLogger("rwkv_batch")

EXIT_OK = 0
EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_ROW_ERRORS = 3
EXIT_REFUSED = 4
EXIT_DEVICE = 5
EXIT_STOPPED = 75


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rwkv_batch.run", description="Run a batch inference job.")
    add_arguments(parser)
    return execute(parser.parse_args(arguments))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of a run, for this command and for `rwkv-batch run`."""
    parser.add_argument("job", metavar="JOB.yaml", help="the job file")
    parser.add_argument(
        "-o", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="a setting: sampling.top_p=0.7"
    )
    parser.add_argument(
        "--shard", metavar="I/N", help="make units I, I+N, …; I from 0; auto or auto/N: from the scheduler's variables"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N rows, as input.limit")
    parser.add_argument("--dry-run", action="store_true", help="check everything, show the first prompt, run nothing")
    parser.add_argument("--allow-errors", action="store_true", help="exit with 0 even where rows are errors")
    parser.add_argument("--verbose", action="store_true", help="log more")


def execute(options: argparse.Namespace, task: str | None = None) -> int:
    """Run the job that the command line names.

    Args:
        task: replaces the job's task where it is given.

    Returns:
        The exit code: 0 all rows ok, 1 internal error, 2 usage or configuration, 3 some rows are errors,
        4 refused to resume, 5 device or memory preflight failed, 75 stopped by a signal. A run that stops at a bad row
        (run.on_row_error: stop) gives 3, also under --allow-errors, as it is not done. A second signal ends the process
        at once with 130.
    """
    from .job.execute import check_job, run_job
    from .job.plan import parse_shard
    from .job.stopping import StopSignals

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logger.setLevel(logging.DEBUG if options.verbose else logging.INFO)  # of this package, not of those that it uses
    limit = [] if options.limit is None else [f"input.limit={options.limit}"]
    overrides = [*options.overrides, *limit, *([f"task={task}"] if task else [])]
    stop = StopSignals(is_command=True)
    try:
        # The one place where the environment is read: which shard a scheduler has made this process.
        shard = str(parse_shard(options.shard, os.environ))
        if options.dry_run:
            print(check_job(options.job, overrides, shard, stop=stop))
            return EXIT_OK
        outcome = run_job(options.job, overrides, shard, stop=stop)
    except Stopped:
        return _fail(EXIT_STOPPED, "stopped; start the same command again to go on")
    except ResumeError as error:
        return _fail(EXIT_REFUSED, f"refused to resume: {error}")
    except CapacityError as error:
        return _fail(EXIT_DEVICE, str(error))
    except (ConfigurationError, CheckpointError, BackendError, MissingExtraError) as error:
        return _fail(EXIT_USAGE, str(error))
    except Exception as error:  # the last place where a failure can become a message and a code
        logger.debug("the failure in full", exc_info=True)
        advice = "what was committed is safe; start the same command again to go on"
        return _fail(EXIT_INTERNAL, f"{type(error).__name__}: {error}\n{advice}")
    _summarise(outcome)
    return EXIT_OK if outcome.is_finished and (not outcome.errors or options.allow_errors) else EXIT_ROW_ERRORS


def _summarise(outcome: Outcome) -> None:
    folders, output = outcome.folders, _shortest(outcome.output)
    print("\n".join(outcome.summary or [f"{output}: {outcome.rows:,} rows, {outcome.errors:,} of them errors"]))
    if not outcome.is_finished:
        print("stopped at a bad row (run.on_row_error: stop); start the same command again to go on")
    elif not outcome.is_complete:
        print("this shard is done; other shards are not")
    else:
        print(f"report  {outcome.report}")
        job = output if folders.are_siblings else _shortest(folders.state)
        print(f"look    rwkv-batch report {shlex.quote(job)} --show 3")


def _shortest(path: str) -> str:
    return min(path, os.path.relpath(path), key=len)


def _fail(code: int, message: str) -> int:
    print(f"rwkv-batch: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
