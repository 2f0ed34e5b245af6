"""Runs one part in its process; returns its status and table, also if its time ends in the middle of a point."""

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
"""The largest number of remarks of a kind, or of names of missing points, below a table. The JSON has all."""
END_SECONDS = 4.0
"""No point is started in the last seconds of a task: the last point ends, and the table is made."""
GO_ON_SECONDS = 6.0
"""The same for a process that continues a stopped one and makes the table of all points."""


class Stopped(BaseException):
    """The process got SIGTERM. A BaseException, so that handlers of a point's errors let it pass."""


def seconds_for_points(task: Task, now: float) -> float:
    """Returns for how many seconds from `now` on, by `monotonic`, points may be started."""
    return task.end - now - (GO_ON_SECONDS if task.goes_on else END_SECONDS)


def stop(*_: object) -> None:
    """Handles SIGTERM: raises an exception, so that processes started by the part are ended too.

    Raises:
        Stopped: once. Later signals are ignored, because the table is being made.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Stopped


def run_part(part: str, context: Context, end: float) -> tuple[str, str, list[str]]:
    """Runs a part; returns its status, the reason, and its table.

    Args:
        end: end of the task, by `monotonic`.
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
            table = run(context)  # measures nothing, and counts the missing points
            if monotonic() < end:  # stopped early: the parent process knows the reason
                return UNFINISHED, RUNNING, table
    except Exception as error:  # other parts still run
        traceback.print_exc()
        return FAILED, reason(error), []
    left_out = context.record.left_out
    why = f"no time was left; {len(left_out)} points were not reached: {shortened(left_out, ', ')}"
    return (UNFINISHED, why, table) if left_out else (DONE, "", table)


def shortened(items: Sequence[str], between: str) -> str:
    """Joins the first items, and the number of further ones."""
    more = [f"and {len(items) - SHOWN} more"] if len(items) > SHOWN else []
    return between.join([*items[:SHOWN], *more])
