"""Process that measures its own time from its start to the first step of a job."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from importlib import import_module
from time import monotonic
from typing import Any


def main(arguments: Sequence[str]) -> None:
    """Runs a job up to its first step; prints a JSON object with the seconds of `import torch` and of everything.

    Args:
        arguments: the driver's module, `time.monotonic()` from before the process was started, the job file, and the
            folder for its output.
    """
    name, started, job, out = arguments
    before = monotonic()
    import torch  # noqa: F401

    torch_seconds = monotonic() - before
    owner, method = import_module(f".{name}", __package__).FORWARD

    def first_step(*args: Any, **kwargs: Any) -> None:
        print(json.dumps({"torch": torch_seconds, "total": monotonic() - float(started)}), flush=True)
        os._exit(0)

    setattr(owner, method, first_step)
    run = import_module("rwkv_batch.run")
    raise SystemExit(run.main([job, "-o", f"output.path={out}"]) or "the job ended without a step")
