"""The program of a worker on the coordinator's machine. It ends when the coordinator ends."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from typing import Any

from ...message_process import ParentPipes
from ...threads import share_cores
from .messages import Start, Stop
from .worker import JobWorker


def main(parent: str) -> None:
    """The program.

    Args:
        parent: the process whose end ends this one.
    """
    # A signal to all processes of a group is for the coordinator, which then tells its workers.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    pipes = ParentPipes(parent)
    start: Start = pipes.receive()
    logging.basicConfig(format=f"%(asctime)s %(levelname)s worker {start.number}: %(message)s", level=logging.WARNING)
    share_cores(start.num_processes)
    if start.cuda_index is not None:
        import torch

        torch.cuda.set_device(start.cuda_index)
    worker = JobWorker(start, pipes.send)
    signal.signal(signal.SIGTERM, lambda *_: worker.take(Stop()))
    threading.Thread(target=_read, args=(pipes, worker), name="rwkv_batch-messages", daemon=True).start()
    worker.run()
    sys.stderr.flush()
    os._exit(0)  # threads and a broken device may keep an orderly end from coming


def _read(pipes: Any, worker: JobWorker) -> None:
    """The loop of a thread."""
    try:
        while True:
            worker.take(pipes.receive())
    except EOFError:
        os._exit(0)
