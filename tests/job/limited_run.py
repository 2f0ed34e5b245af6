"""Runs a job, as `rwkv-batch run` does, in a process that may allocate only so many MiB beside its modules.

Arguments: the MiB, "fake" or "real" for the engine, and those of the command.
"""

from __future__ import annotations

import resource
import sys

import pyarrow.parquet  # noqa: F401 - what is imported later would count as the job's memory
import torch  # noqa: F401

from job import fake_llm
from rwkv_batch import run

if __name__ == "__main__":
    mebibytes, engine, *arguments = sys.argv[1:]
    if engine == "fake":
        sys.modules["rwkv_batch.llm"] = fake_llm
    else:
        import rwkv_batch.llm  # noqa: F401
    with open("/proc/self/status", encoding="ascii") as file:
        (held,) = (int(line.split()[1]) << 10 for line in file if line.startswith("VmData:"))
    limit = held + (int(mebibytes) << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    sys.exit(run.main(arguments))
