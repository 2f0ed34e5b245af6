"""The memory that can be allocated now, on a device or on the host."""

from __future__ import annotations

from pathlib import Path

import torch


def available_memory(device: torch.device) -> int:
    """Bytes that can be allocated now: on a CUDA device its free memory, on a CPU within the control group's limit.

    A control group's usage includes cached pages of files. The kernel frees the inactive ones when memory is needed, so
    they count as available.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = [_meminfo_available()]
    for group, limit, usage, cache in (
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        total, used = _number(Path(group, limit)), _number(Path(group, usage))
        if total is not None and used is not None:
            reclaimable = _fields(Path(group, "memory.stat")).get(cache, 0)
            free.append(max(total - used + reclaimable, 0))
    return min(free)


def _meminfo_available() -> int:
    return _fields(Path("/proc/meminfo")).get("MemAvailable:", 8 << 20) * 1024


def _fields(path: Path) -> dict[str, int]:
    """Reads a file whose lines are a name and a whole number; {} if there is no such file."""
    if not path.exists():
        return {}
    words = (line.split() for line in path.read_text().splitlines())
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdigit()}


def _number(path: Path) -> int | None:
    """Reads a file that is one whole number; None if there is no such file, or no number ("max": no limit)."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
