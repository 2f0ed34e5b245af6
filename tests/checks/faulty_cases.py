"""Functions that processes of tests call in place of a case, with the arguments of `rwkv_batch.checks.worker.check`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from time import sleep
from typing import Any


def right(name: str, backend: str, device: str, worst_error: float = 0.5) -> dict[str, Any]:
    return {"status": "ok", "worst_error": worst_error, "limit": 1.0}


def hang(name: str, backend: str, device: str) -> None:
    """Never ends, nor does the process that it starts. The id of that process is written to the file `device`."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1e6)"])
    unfinished = Path(device + ".tmp")
    unfinished.write_text(str(child.pid))
    unfinished.rename(device)
    sleep(1e6)


def abort(name: str, backend: str, device: str) -> None:
    print("the last words", file=sys.stderr, flush=True)
    os.abort()


def leave(name: str, backend: str, device: str) -> None:
    raise ValueError(f"of {name}")
