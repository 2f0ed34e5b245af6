"""The process of a job whose workers compute nothing: `python -m benchmarks.scaling_parts.free_coordinator JOB`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rwkv_batch import run
from rwkv_batch.job.workers import local
from rwkv_batch.job.workers.coordinator import Coordinator

from . import free_worker


def main(arguments: list[str]) -> int:
    """Runs the job. Notes the processor seconds of this process beside what its workers note."""
    spent: dict[str, float] = {}
    serve = Coordinator.serve

    def watched(coordinator: Any) -> None:
        start, cpu = time.time(), time.process_time()
        try:
            serve(coordinator)
        finally:
            spent.update(start=start, end=time.time(), serving_cpu_seconds=time.process_time() - cpu)

    with patch.object(local, "PROGRAM", free_worker.__name__), patch.object(Coordinator, "serve", watched):
        code = run.main(arguments)
    folder = Path(json.loads(os.environ[free_worker.SETTINGS])["folder"])
    (folder / "coordinator.json").write_text(json.dumps({**spent, "cpu_seconds": time.process_time()}))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
