"""What the processes of the tests of process_pool.py answer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any


def answers(shared: Any) -> Callable[[Any], Any]:
    """Answers a call with `shared`, its argument and the id of the process. Some arguments fail."""
    if shared == "broken":
        raise ValueError("no such model")

    def answer(argument: Any) -> Any:
        if argument == "hang":
            while True:
                time.sleep(60)
        if argument == "die":
            os._exit(3)
        if argument == "raise":
            raise ValueError("no such row")
        if argument == "allocate":
            return len(bytearray(2 << 30))
        print("what a library prints is no answer")
        return shared, argument, os.getpid()

    return answer
