"""A function called in a process of its own, for what leaves traces in a process: a CUDA context above all."""

from __future__ import annotations

import math
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from .process import Process

Result = TypeVar("Result")


def call_apart(function: Callable[..., Result], **given: Any) -> Result:
    """The function's result.

    Args:
        function: of a module, by whose name the process finds it.
        given: its arguments; they and the result must be possible to pickle.

    Raises:
        Exception: whatever the function raises.
        RuntimeError: the process ended without an answer; the message has the last line that it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        call, answered = Path(folder, "call"), Path(folder, "answer")
        call.write_bytes(pickle.dumps((function, given)))
        paths = {"call": str(call), "answered": str(answered)}
        ended = Process(f"{__name__}:answer", paths, math.inf, Path(folder)).wait()
        if not answered.exists():
            last = (ended.log.strip().splitlines() or ["it printed nothing"])[-1]
            raise RuntimeError(f"{function.__name__}: its process ended with code {ended.code}: {last}")
        result, error = pickle.loads(answered.read_bytes())
        if error is not None:
            raise error
        return result


def answer(call: str, answered: str) -> None:
    """Call the function of the file `call`, and write its result or its exception. Runs in the other process."""
    function, given = pickle.loads(Path(call).read_bytes())
    result, error = None, None
    try:
        result = function(**given)
    except Exception as raised:
        error = raised
    Path(answered).write_bytes(pickle.dumps((result, error)))
