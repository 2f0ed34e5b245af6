"""The program of a worker that serves no rows. The program sends the messages of a worker without a pause."""

from __future__ import annotations

from typing import Any

from rwkv_batch.job.plan import Assignment
from rwkv_batch.job.workers.messages import Ask, Begun, Committed, Event, Left, Published, Ready, Served, Taken
from rwkv_batch.message_process import ParentPipes

from .described import TAKEN_ROWS


def main(parent: str) -> None:
    """The program. The job of its `Start` is the number of rows of a message that says which rows are finished.

    Args:
        parent: as that of `local_worker.main`.
    """
    pipes = ParentPipes(parent)
    start: Any = pipes.receive()
    pipes.send(Ready())
    while True:
        pipes.send(Ask())
        message = pipes.receive()
        if not isinstance(message, Assignment):
            break
        _serve(message, start.job, pipes)
    pipes.send(Left())


def _serve(assignment: Assignment, served_rows: int, pipes: ParentPipes) -> None:
    unit = assignment.unit
    rows = list(range(unit.start, unit.stop))
    pipes.send(Begun(unit.index, 0))
    for first in range(0, len(rows), TAKEN_ROWS):
        pipes.send(Taken(rows[first : first + TAKEN_ROWS]))
    for first in range(0, len(rows), served_rows):
        pipes.send(Served(rows[first : first + served_rows], 0, 0))
    pipes.send(Event("commit", {"unit": unit.index, "rows": len(rows), "seconds": 0.1}))
    pipes.send(Committed(unit.index, len(rows)))
    fields = {"part": f"part-{unit.index:05d}.parquet", "rows": len(rows), "errors": 0, "bytes": 1, "seconds": 0.1}
    pipes.send(Event("publish", fields))
    pipes.send(Published(unit.index))
