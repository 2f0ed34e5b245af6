"""How many threads the products of a CPU may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_OLD_QUOTA = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def usable_cores() -> int:
    """Cores that this process may keep busy: within its affinity, and within the quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def limit_threads() -> int:
    """Let torch and the native kernels, which share a pool of threads, use no more threads than there are usable cores.

    A container with a quota of two cores on a machine of sixty-four would else start sixty-four threads, which wait for
    each other most of the time. Fewer threads, as OMP_NUM_THREADS or `torch.set_num_threads` say, stay fewer.

    Returns:
        The number of threads.
    """
    threads = min(torch.get_num_threads(), usable_cores())
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    return threads


def _quota() -> float | None:
    """Cores' worth of time that the control group grants; None where there is no limit."""
    try:
        if _QUOTA.exists():
            quota, period = _QUOTA.read_text().split()
        else:
            quota, period = (path.read_text().strip() for path in _OLD_QUOTA)
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # no control groups; or "max", no limit
        return None
