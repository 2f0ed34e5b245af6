"""The process of one part, or of a share of its points: python -m benchmarks.gpu_parts.inside TASK, in JSON."""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from .context import Context
from .device import about, compiler_facts
from .part_run import run_part, seconds_for_points, shortened, stop
from .record import RUNNING, UNFINISHED, Record, is_red, is_same, read
from .task import Task


def main() -> int:
    signal.signal(signal.SIGTERM, stop)
    task = Task.from_json(sys.argv[1])
    if not task.rehearse and not torch.cuda.is_available():
        say("no CUDA device; --rehearse runs without one")
        return 2
    device = torch.device("cpu" if task.rehearse else "cuda:0")
    if task.rehearse or task.share:
        torch.set_num_threads(1)  # several such processes share the cores, and idle threads would spin on them
    torch.manual_seed(0)
    facts = about(device, task.commit, task.rehearse, task.is_dry)
    if task.part == "limits":
        facts |= compiler_facts()
    earlier = None if task.forgets else (read(task.path) or task.results_of(task.part))
    seconds = seconds_for_points(task, monotonic())
    record = Record(task.path, facts, seconds, earlier, say, task.share, task.is_dry, task.goes_on)
    record.write(UNFINISHED, RUNNING)
    limits = _limits(task, facts)
    with tempfile.TemporaryDirectory(prefix="rwkv_batch-gpu-") as folder:
        context = Context(
            device=device,
            is_rehearsal=task.rehearse,
            is_dry=task.is_dry,
            is_brief=task.is_brief,
            folder=Path(folder),
            record=record,
            limits=limits,
            smoke=_results(task, "smoke", facts),
            decode=_results(task, "decode", facts),
            asked_models=task.models,
            asked_batches=task.batches,
            say=say,
        )
        status, why, table = run_part(task.part, context, task.end)
    if task.part not in ("smoke", "limits") and not limits:
        record.note("limits", "not measured: those of an H200 are assumed")
    record.write(status, why, [str(facts["card"]), *table, *_remarks(record), *([why] if why else [])])
    return 0


def _results(task: Task, part: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Returns the points of another part, of the same card and commit."""
    found = task.results_of(part)
    return found["points"] if found and is_same(found["about"], facts) else {}


def _limits(task: Task, facts: dict[str, Any]) -> dict[str, Any]:
    """Returns the points of `limits` on the same card, of any commit."""
    found = task.results_of("limits")
    return found["points"] if found and found["about"].get("card") == facts["card"] else {}


def _remarks(record: Record) -> list[str]:
    """Formats what stands below the table: red points, failed points, notes."""
    red = [f"RED {point}: {found.get('why', '')}" for point, found in record.points.items() if is_red(found)]
    missing = [f"FAILED {point}: {what}" for point, what in record.failed.items()]
    notes = [f"{name}: {what}" for name, what in record.notes.items()]
    return [shortened(found, "\n") for found in (red, missing, notes) if found]


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
