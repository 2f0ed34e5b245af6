"""One part in its process: its status and table, also where its time is over in the midst of a point."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Sequence
from importlib import import_module
from time import monotonic
from typing import TYPE_CHECKING

from .plan import PARTS
from .record import DONE, FAILED, LEFT_OUT, RUNNING, UNFINISHED, reason
from .task import Task

if TYPE_CHECKING:
    from .context import Context

MODULES = {"engine-equal": "engine_equal"}
SHOWN = 12
"""Lines of a kind that a table has below it, and names of points that are missing; all of them are in the JSON."""
END_SECONDS = 4.0
"""Before a task's end, from which on no point is started: a point may go on, and the table is made."""
GO_ON_SECONDS = 6.0
"""The same for a process that goes on where others stopped: it has just started, and makes the table of all."""


class Stopped(BaseException):
    """The process was told to end. It passes through what handles errors of a point."""


def seconds_for_points(task: Task, now: float) -> float:
    """How long points may be started, from `now` on, by `monotonic`."""
    return task.end - now - (GO_ON_SECONDS if task.goes_on else END_SECONDS)


def stop(*_: object) -> None:
    """The handler of SIGTERM: an exception, so that the processes that a part has started are ended too.

    Raises:
        Stopped: once. What follows is the table, which is not to be interrupted.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Stopped


def run_part(part: str, context: Context, end: float) -> tuple[str, str, list[str]]:
    """Status of the part, why that is so, and the part's table.

    Args:
        end: of the task, by `monotonic`.
    """
    try:
        for name in PARTS[part].needs:
            import_module(name)
    except ImportError as error:
        return UNFINISHED, f"{LEFT_OUT}{reason(error)}", []
    try:
        run = import_module(f".{MODULES.get(part, part)}", __package__).run
        try:
            table = run(context)
        except Stopped:
            context.record.close()
            table = run(context)  # nothing is measured any more: it counts what is missing
            if monotonic() < end:  # the process was stopped for another reason, which the parent process knows
                return UNFINISHED, RUNNING, table
    except Exception as error:  # the other parts go on
        traceback.print_exc()
        return FAILED, reason(error), []
    left_out = context.record.left_out
    why = f"no time was left; {len(left_out)} points were not reached: {shortened(left_out, ', ')}"
    return (UNFINISHED, why, table) if left_out else (DONE, "", table)


def shortened(items: Sequence[str], between: str) -> str:
    """The first of them, and how many more there are."""
    more = [f"and {len(items) - SHOWN} more"] if len(items) > SHOWN else []
    return between.join([*items[:SHOWN], *more])
