"""The command `eval`: a suite of tasks, evaluated with many checkpoints."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from ..errors import Stopped
from ..job.messages import printable
from ..job.stopping import StopSignals
from .child import Child
from .config import Suite
from .load import load_suite
from .lock import alone_in
from .messages import Start
from .run import SuiteRun
from .tasks import HarnessTask

EXIT_OK = 0
EXIT_FAILED = 3
EXIT_STOPPED = 75


def evaluate(
    path: str, models: Sequence[str], *, output: str | None = None, interval: float | None = None, dry_run: bool = False
) -> int:
    """Runs a suite, or what is left of it, and prints its table.

    Args:
        path: the suite file.
        models: what `--models` names.
        output: replaces the suite's `output.path`.
        interval: seconds between two looks for new checkpoints; None looks once.
        dry_run: check everything, and say what is done and what is not.

    Returns:
        The exit code.

    Raises:
        ConfigurationError: the suite, a checkpoint or a task is wrong; nothing has been evaluated.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    stop = StopSignals(is_command=True)
    try:
        with stop:
            with stop.interruptible():
                suite = load_suite(path, output)
            if dry_run:
                with closing(_child(suite)) as child:
                    _say_what_is_left(SuiteRun(suite, models, child, stop, _progress))
                return EXIT_OK
            with alone_in(suite.output), closing(_child(suite)) as child:
                run = SuiteRun(suite, models, child, stop, _progress, interval)
                lines = run.run()
    except Stopped:
        _progress("stopped; start the same command again to go on")
        return EXIT_STOPPED
    print(printable("\n".join(lines)))
    failures = list(run.failures())
    for failure in failures:
        _progress(failure)
    return EXIT_FAILED if failures else EXIT_OK


def _child(suite: Suite) -> Child:
    harness_tasks = tuple(task for task in suite.tasks if isinstance(task, HarnessTask))
    return Child(Start(suite.model, suite.engine, harness_tasks))


def _say_what_is_left(run: SuiteRun) -> None:
    """Checks everything, and prints a line for each pair of a checkpoint and a task."""
    pairs = run.look()
    run.check_harness(pairs)
    rows: list[tuple[Any, ...]] = [("model", "task", "")]
    for pair in pairs:
        state = "done" if run.is_done(pair) else "changed since its result" if run.is_changed(pair) else "to do"
        rows.append((pair.checkpoint.id, pair.task.name, state))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{model:{widths[0]}}  {task:{widths[1]}}  {state}".rstrip() for model, task, state in rows]
    print(printable("\n".join(lines)))


def _progress(line: str) -> None:
    print(printable(f"rwkv_batch: {line}"), file=sys.stderr, flush=True)
