"""How many slots and tokens fit: the memory plan, made before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import CapacityError, ConfigurationError
from ..models.convert import is_quantizable
from ..models.linear import NOT_W8A8
from ..models.model import ModelFile
from ..models.placement import Placement
from .state_pool import StateLayout

MEMORY_SHARE = 0.85
"""Part of the available memory that the plan may use."""
_SLOT_LIMIT = {"cpu": 128, "cuda": 1024}
"""More rows than this do not make a step more efficient."""
_PROMPT_TOKENS = {"cpu": 512, "cuda": 4096}
"""Prompt tokens of a step, beside its decode rows, that keep the matrix products busy."""
_LOGIT_COPIES = 5
"""Tensors [B, V] float32 that live at the same time while sampling."""
_TOKEN_ROWS = 24
"""Tensors [M, C] float32 that live at the same time inside a layer."""


@dataclass(frozen=True)
class MemoryPlan:
    """Where the memory goes, in bytes."""

    available: int
    weights: int
    slot: int
    """State and logits of one slot, and one snapshot of a shared prefix."""
    workspace: int
    max_batch_size: int
    max_batch_tokens: int

    @property
    def total(self) -> int:
        return self.weights + self.workspace + self.slot * self.max_batch_size

    def __str__(self) -> str:
        return (
            f"memory: model {_size(self.weights)} + {self.max_batch_size} slots × {_size(self.slot)} + workspace "
            f"{_size(self.workspace)} ({self.max_batch_tokens} tokens a step) = {_size(self.total)} "
            f"of {_size(self.available)} available"
        )


def plan_memory(
    file: ModelFile, placement: Placement, max_batch_size: int | None = None, max_batch_tokens: int | None = None
) -> MemoryPlan:
    """Size the engine; None means as many slots and tokens as are useful and fit.

    Raises:
        ConfigurationError: a size that is not positive, or fewer tokens than slots.
        CapacityError: the model does not fit with one slot, or not with the slots asked for.
    """
    kind = placement.device.type
    layout = StateLayout(file.state_fields(placement), file.sizes["L"])
    slot = 2 * layout.record_bytes + _LOGIT_COPIES * 4 * file.sizes["V"]
    weights = _weight_bytes(file, placement)
    available = available_memory(placement.device)

    def workspace(tokens: int) -> int:
        return 4 * tokens * (_TOKEN_ROWS * max(file.sizes["C"], file.sizes["A"]) + 3 * file.sizes["F"])

    for name, value in (("max_batch_size", max_batch_size), ("max_batch_tokens", max_batch_tokens)):
        if value is not None and value < 1:
            raise ConfigurationError(f"engine.{name}: got {value}, expected a positive number or auto")
    prompt_tokens = _PROMPT_TOKENS.get(kind, 512)
    slots = max_batch_size or _SLOT_LIMIT.get(kind, 128)
    tokens = max_batch_tokens or slots + prompt_tokens
    if max_batch_size and max_batch_tokens and max_batch_tokens < max_batch_size:
        raise ConfigurationError(
            f"engine.max_batch_tokens: got {max_batch_tokens}, expected at least max_batch_size ({max_batch_size}): "
            "every running sequence needs one token of each step"
        )
    room = int(available * MEMORY_SHARE) - weights - workspace(tokens)
    fitting = room // slot
    if fitting < (max_batch_size or 1):
        wanted = MemoryPlan(available, weights, slot, workspace(tokens), max_batch_size or 1, tokens)
        raise CapacityError(
            f"not enough memory: {wanted}, of which {MEMORY_SHARE:.0%} may be used. Use fewer slots (max_batch_size), "
            "quantization: int8, a smaller model or a larger machine"
        )
    slots = min(slots, fitting, max_batch_tokens or slots)
    tokens = max_batch_tokens or slots + prompt_tokens
    return MemoryPlan(available, weights, slot, workspace(tokens), slots, tokens)


def available_memory(device: torch.device) -> int:
    """Bytes that can be allocated now: on a CPU within the control group's limit, on a GPU of the device."""
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


def _weight_bytes(file: ModelFile, placement: Placement) -> int:
    checkpoint = file.checkpoint
    total = 0
    for name in checkpoint.names:
        is_int8 = placement.quantization is not None and is_quantizable(checkpoint, name)
        is_int8 = is_int8 and not (placement.quantization == "w8a8" and name.endswith(NOT_W8A8))
        total += math.prod(checkpoint.shape(name)) * (1 if is_int8 else placement.dtype.itemsize)
    return total


def _meminfo_available() -> int:
    return _fields(Path("/proc/meminfo")).get("MemAvailable:", 8 << 20) * 1024


def _fields(path: Path) -> dict[str, int]:
    """Lines of a name and a whole number; empty where there is no such file."""
    if not path.exists():
        return {}
    words = (line.split() for line in path.read_text().splitlines())
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdigit()}


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
