"""The number of threads for matrix products on a CPU."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_OLD_QUOTA = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


_num_processes = 1
"""How many processes, this one among them, divide the cores; see `share_cores`."""


def share_cores(num_processes: int) -> None:
    """Leaves this process its share of the cores, which so many processes of the same kind divide equally."""
    global _num_processes
    _num_processes = num_processes


def usable_cores() -> int:
    """Number of cores that this process may use, at least 1: its share of those of its affinity, which the quota of its
    control group limits.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return max(1, (cores if quota is None else min(cores, math.ceil(quota))) // _num_processes)


def limit_threads() -> int:
    """Limits the threads of torch to the number of usable cores, and so those of the native kernels, which use as many.

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
