"""The program of a worker whose model computes nothing: see `benchmarks.host_parts`. It notes what it has used."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rwkv_batch.job.serve import UnitServer
from rwkv_batch.job.workers import local_worker
from rwkv_batch.job.workers.worker import JobWorker

from ..host_parts import driver
from ..host_parts.device import SimulatedDevice

SETTINGS = "RWKV_BATCH_BENCHMARK_WORKER"
"""Variable of the environment: a JSON object with `step_ms`, and the `folder` in which a worker notes what it used."""


def main(parent: str) -> None:
    """The program.

    Args:
        parent: as that of `local_worker.main`.
    """
    settings = json.loads(os.environ[SETTINGS])
    device = SimulatedDevice(settings["step_ms"] / 1000)
    usage = Usage(device, Path(settings["folder"]))
    with (
        driver.free_jobs(device, recorded=False),
        device.delays(driver.COPY),
        patch.object(UnitServer, "__init__", usage.noting_the_load(UnitServer.__init__)),
        patch.object(JobWorker, "run", usage.noting_the_end(JobWorker.run)),
    ):
        local_worker.main(parent)


class Usage:
    """What a worker uses between the load of its model and its end.

    Args:
        device: of the worker.
        folder: gets a file for each worker.
    """

    def __init__(self, device: SimulatedDevice, folder: Path) -> None:
        self._device, self._folder = device, folder
        self._ready = self._clock = self._cpu = self._waited = 0.0

    def noting_the_load(self, load: Any) -> Any:
        def noted(*args: Any, **kwargs: Any) -> None:
            load(*args, **kwargs)
            self._clock = time.perf_counter()
            self._ready, self._cpu, self._waited = time.time(), time.process_time(), waited_seconds()

        return noted

    def noting_the_end(self, run: Any) -> Any:
        def noted(worker: JobWorker) -> None:
            run(worker)
            found = {
                "pid": os.getpid(),
                "ready": self._ready,
                "end": time.time(),
                "cpu_seconds": time.process_time() - self._cpu,
                "waited_seconds": waited_seconds() - self._waited,
                "steps": self._device.num_steps,
                "step_seconds": self._device.num_steps * self._device.step_seconds,
                "device_seconds": self._device.wall_seconds,
                "start_seconds": (self._device.first_launch or self._clock) - self._clock,
            }
            (self._folder / f"worker-{os.getpid()}.json").write_text(json.dumps(found))

        return noted


def waited_seconds() -> float:
    """Seconds that this thread was ready to run and had no core; 0 where Linux does not say."""
    path = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
    return int(path.read_text().split()[1]) / 1e9 if path.exists() else 0.0
