"""A program for `Child`: what it answers is the name of the task that it is asked for."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from rwkv_batch.message_process import ParentPipes
from rwkv_batch.suite.messages import Check, Checked, Done, Failed, Interrupted


def main(parent: str) -> None:
    pipes = ParentPipes(parent)
    start = pipes.receive()
    while True:
        question: Any = pipes.receive()
        name = "check" if isinstance(question, Check) else question.task.name
        if name == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif name == "ends":
            pipes.send(Failed("a device error", ends=True))
        elif name == "long":
            signal.signal(signal.SIGTERM, lambda *_: (pipes.send(Interrupted()), os._exit(0)))
            os.kill(int(parent), signal.SIGUSR2)
            time.sleep(60)
        elif name == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.kill(int(parent), signal.SIGUSR2)
            time.sleep(60)
        else:
            pipes.send(Checked((str(os.getpid()), start)) if name == "check" else Done((), None, 0.0, {}))
