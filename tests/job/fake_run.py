"""The real command with the fake engine: python fake_run.py JOB.yaml …; prints its peak memory when it ends.

FAKE_PACE has the times of its claim, in seconds: "beat stale poll say". Where NO_CLAIM is set it makes and heeds none.
Whatever started it, it finds the default action of every signal, and SIGHUP ignored where FAKE_NOHUP is set.
"""

import os
import signal
import sys
import time

from job import fake_llm

sys.modules["rwkv_batch.llm"] = fake_llm

from rwkv_batch.job import claiming  # noqa: E402
from rwkv_batch.job.output.storage import LocalStorage  # noqa: E402
from rwkv_batch.job.stopping import SIGNALS  # noqa: E402
from rwkv_batch.job.workers import devices, local, ray_cluster  # noqa: E402
from rwkv_batch.run import main  # noqa: E402

local.PROGRAM = "job.fake_worker"
ray_cluster.PROGRAM = "job.fake_ray_worker"
devices._num_gpus = lambda: 0  # to ask takes an import of torch
for number in SIGNALS:
    signal.signal(number, signal.SIG_DFL)
if "FAKE_NOHUP" in os.environ:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
if "FAKE_PACE" in os.environ:
    beat, stale, poll, say = map(float, os.environ["FAKE_PACE"].split())
    claiming.PACE = claiming.Pace(beat, stale, poll, say)
if "NO_CLAIM" in os.environ:
    setattr(claiming.ClaimedShard, "__enter__", lambda self: self)  # noqa: B010
    setattr(claiming.ClaimedShard, "__exit__", lambda *_: None)  # noqa: B010
if "STUCK_DISK" in os.environ:
    write = LocalStorage._write
    LocalStorage._write = lambda self, file, data: time.sleep(3600) if "seg-" in file.name else write(self, file, data)

if __name__ == "__main__":
    code = main()
    with open("/proc/self/status") as file:
        print(next(line for line in file if line.startswith("VmHWM")))
    sys.exit(code)
