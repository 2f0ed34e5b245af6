"""A function called in a process of its own, for what leaves traces in a process: a CUDA context above all."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")

CODE = (
    "import pickle, sys; call = open(sys.argv[1], 'rb'); sys.path[:] = pickle.load(call); "
    "function, given = pickle.load(call); from rwkv_batch.apart import answer; answer(sys.argv[2], function, given)"
)
"""What the process runs: modules are imported from where this process has them."""


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
        call.write_bytes(pickle.dumps(sys.path) + pickle.dumps((function, given)))
        command = [sys.executable, "-c", CODE, str(call), str(answered)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if not answered.exists():
            last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
            raise RuntimeError(f"{function.__name__}: its process ended with code {done.returncode}: {last}")
        result, error = pickle.loads(answered.read_bytes())
        if error is not None:
            raise error
        return result


def answer(path: str, function: Callable[..., Any], given: dict[str, Any]) -> None:
    """Call the function, and write its result or its exception. Runs in the other process."""
    result, error = None, None
    try:
        result = function(**given)
    except Exception as raised:
        error = raised
    Path(path).write_bytes(pickle.dumps((result, error)))
