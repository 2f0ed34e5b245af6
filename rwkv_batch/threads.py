"""The number of threads for matrix products on a CPU."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_OLD_QUOTA = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def usable_cores() -> int:
    """Number of cores that this process may use: those of its affinity, limited by the quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def limit_threads() -> int:
    """Limits the threads of torch and of the native kernels, which share a pool, to the number of usable cores.

    Without the limit, a container with a quota of two cores on a machine of sixty-four starts sixty-four threads, which
    wait for each other most of the time. A smaller number, from OMP_NUM_THREADS or `torch.set_num_threads`, stays.

    Returns:
        The number of threads.
    """
    threads = min(torch.get_num_threads(), usable_cores())
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    return threads


def _quota() -> float | None:
    """The control group's limit of processor time, in cores; None if there is no limit."""
    try:
        if _QUOTA.exists():
            quota, period = _QUOTA.read_text().split()
        else:
            quota, period = (path.read_text().strip() for path in _OLD_QUOTA)
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # there are no control groups, or the quota is "max": no limit
        return None
