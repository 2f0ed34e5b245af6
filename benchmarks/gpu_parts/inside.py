"""The process of one part, or of a share of its points: python -m benchmarks.gpu_parts.inside TASK (JSON)."""

from __future__ import annotations

import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from .context import Context
from .device import about
from .plan import PARTS
from .record import DONE, FAILED, RUNNING, UNFINISHED, Record, is_red, is_same, read, reason
from .task import Task

MODULES = {"engine-equal": "engine_equal"}
SHOWN = 12
"""Lines of checks that do not hold, and of points that failed; all of them are in the JSON."""
SHARE_THREADS = 2
"""Threads of torch on the CPU for each of several processes."""


def main() -> int:
    # As an exception, so that the processes that a part has started are ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    task = Task.from_json(sys.argv[1])
    if not task.rehearse and not torch.cuda.is_available():
        say("no CUDA device; --rehearse runs without one")
        return 2
    device = torch.device("cpu" if task.rehearse else "cuda")
    if task.rehearse or task.share:
        torch.set_num_threads(1 if task.rehearse else SHARE_THREADS)
    torch.manual_seed(0)
    facts = about(device, task.commit, task.rehearse)
    earlier = None if task.forgets else (read(task.path) or task.results_of(task.part))
    record = Record(task.path, facts, task.end - monotonic(), earlier, say, task.share, task.is_dry, task.goes_on)
    record.write(UNFINISHED, RUNNING)
    limits = _limits(task, facts)
    with tempfile.TemporaryDirectory(prefix="rwkv_batch-gpu-") as folder:
        context = Context(
            device=device,
            is_rehearsal=task.rehearse,
            is_dry=task.is_dry,
            folder=Path(folder),
            record=record,
            limits=limits,
            smoke=_results(task, "smoke", facts),
            decode=_results(task, "decode", facts),
            asked_models=task.models,
            asked_batches=task.batches,
            say=say,
        )
        status, why, table = _run(task.part, context)
    if task.part not in ("smoke", "limits") and not limits:
        record.note("limits", "not measured: those of an H200 are assumed")
    record.write(status, why, [str(facts["card"]), *table, *_remarks(record), *([why] if why else [])])
    return 0


def _run(part: str, context: Context) -> tuple[str, str, list[str]]:
    """Status of the part, why that is so, and the part's table."""
    try:
        for name in PARTS[part].needs:
            import_module(name)
    except ImportError as error:
        return UNFINISHED, f"left out: {reason(error)}", []
    try:
        table = import_module(f".{MODULES.get(part, part)}", __package__).run(context)
    except Exception as error:  # the other parts go on
        traceback.print_exc()
        return FAILED, reason(error), []
    left_out = context.record.left_out
    return (UNFINISHED, f"no time for {_shortened(left_out, ', ')}", table) if left_out else (DONE, "", table)


def _results(task: Task, part: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Points of another part, of the same card and commit."""
    found = task.results_of(part)
    return found["points"] if found and is_same(found["about"], facts) else {}


def _limits(task: Task, facts: dict[str, Any]) -> dict[str, Any]:
    """What the card was measured to do, with whatever commit."""
    found = task.results_of("limits")
    return found["points"] if found and found["about"].get("card") == facts["card"] else {}


def _remarks(record: Record) -> list[str]:
    """What a reader of the table must know beside it."""
    red = [f"RED {point}: {found.get('why', '')}" for point, found in record.points.items() if is_red(found)]
    missing = [f"FAILED {point}: {what}" for point, what in record.failed.items()]
    notes = [f"{name}: {what}" for name, what in record.notes.items()]
    return [_shortened(found, "\n") for found in (red, missing, notes) if found]


def _shortened(items: Sequence[str], between: str) -> str:
    """The first of them, and how many more there are."""
    more = [f"and {len(items) - SHOWN} more"] if len(items) > SHOWN else []
    return between.join([*items[:SHOWN], *more])


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
