"""How many slots and tokens fit: the memory plan, made before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import CapacityError, ConfigurationError
from ..models.files.convert import is_quantizable
from ..models.matrices.quantization import weight_format
from ..models.model import ModelFile
from ..models.placement import LayerPlacement, Placement, stages
from ..transfer import pinned_bytes
from .decode_graph import bucket_sizes
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
_MODULE_BYTES = 320 << 20
"""Compiled kernels with their local memory: some 200 of them, on a CUDA device."""
_LIBRARY_BYTES = 2 * (32 << 20)
"""Workspaces of cuBLAS: one for steps that are launched, one for steps that are recorded."""
_RECORDING_BYTES = 3 << 20
"""One recorded step: its nodes and their arguments."""


@dataclass(frozen=True)
class MemoryPlan:
    """Where the memory goes, in bytes; on the device that is full first, where the model is on several."""

    available: int
    weights: int
    slot: int
    """State and logits of one slot, and one snapshot of a shared prefix."""
    workspace: int
    """Activations of a step; those of the largest recorded step too, which has memory of its own."""
    fixed: int
    """Compiled kernels, workspaces of libraries, and what recorded steps take besides activations."""
    max_batch_size: int
    max_batch_tokens: int
    device: str = ""
    """Named where there are several."""

    @property
    def besides_slots(self) -> int:
        """All but the slots."""
        return self.weights + self.workspace + self.fixed

    @property
    def total(self) -> int:
        return self.besides_slots + self.slot * self.max_batch_size

    def __str__(self) -> str:
        kernels = f" + kernels and recorded steps {_size(self.fixed)}" if self.fixed else ""
        return (
            f"memory: model {_size(self.weights)} + {self.max_batch_size} slots × {_size(self.slot)} + workspace "
            f"{_size(self.workspace)} ({self.max_batch_tokens} tokens a step){kernels} = {_size(self.total)} "
            f"of {_size(self.available)} available{self.device and ' on ' + self.device}"
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
    demands = _demands(file, placement)
    available = {device: available_memory(device) for device in demands}

    def workspace(device: torch.device, slots: int, tokens: int) -> int:
        rows = tokens + (slots if device.type == "cuda" else 0)
        return 4 * rows * (_TOKEN_ROWS * max(file.sizes["C"], file.sizes["A"]) + 3 * file.sizes["F"])

    def fixed(device: torch.device, slots: int) -> int:
        if device.type != "cuda":
            return 0
        return _MODULE_BYTES + _LIBRARY_BYTES + _RECORDING_BYTES * len(bucket_sizes(slots))

    for name, value in (("max_batch_size", max_batch_size), ("max_batch_tokens", max_batch_tokens)):
        if value is not None and value < 1:
            raise ConfigurationError(f"got {value}, expected a positive number or auto", setting=name)
    prompt_tokens = _PROMPT_TOKENS.get(kind, 512)
    slots = max_batch_size or _SLOT_LIMIT.get(kind, 128)
    tokens = max_batch_tokens or slots + prompt_tokens
    if max_batch_size and max_batch_tokens and max_batch_tokens < max_batch_size:
        raise ConfigurationError(
            f"got {max_batch_tokens}, expected at least max_batch_size ({max_batch_size}): every running sequence "
            "needs one token of each step",
            setting="max_batch_tokens",
        )

    def plan(device: torch.device, slots: int, tokens: int) -> MemoryPlan:
        demand, where = demands[device], str(device) if len(demands) > 1 else ""
        sizes = workspace(device, slots, tokens), fixed(device, slots)
        return MemoryPlan(available[device], demand.weights, demand.slot, *sizes, slots, tokens, where)

    fitting = {}
    for device, demand in demands.items():
        room = int(available[device] * MEMORY_SHARE) - plan(device, slots, tokens).besides_slots
        fitting[device] = room // demand.slot if demand.slot else slots if room >= 0 else 0
    tightest = min(fitting, key=lambda device: fitting[device])
    if fitting[tightest] < (max_batch_size or 1):
        wanted = plan(tightest, max_batch_size or 1, tokens)
        raise CapacityError(
            f"not enough memory: {wanted}, of which {MEMORY_SHARE:.0%} may be used. Use fewer slots (max_batch_size), "
            "fewer tokens of a step (max_batch_tokens), quantization: int8, a smaller model or a larger machine"
        )
    slots = min(slots, fitting[tightest], max_batch_tokens or slots)
    return plan(tightest, slots, max_batch_tokens or slots + prompt_tokens)


@dataclass
class _Demand:
    """Bytes wanted of one device."""

    weights: int = 0
    slot: int = 0


def _demands(file: ModelFile, placement: Placement) -> dict[torch.device, _Demand]:
    """What each device must hold. Streamed matrices are in host memory; on the device two layers take turns."""
    num_layers, places = file.sizes["L"], placement.of_layers(file.sizes["L"])
    demands = {placement.device: _Demand(slot=_LOGIT_COPIES * 4 * file.sizes["V"])}
    streamed = [0] * (num_layers + 1)
    on_host = 0
    for name in file.checkpoint.names:
        layer = _layer_of(name, num_layers)
        size = _weight_bytes(file, name, places[layer])
        if places[layer].is_streamed and is_quantizable(file.checkpoint, name):
            streamed[layer] += size
            on_host += pinned_bytes(size, places[layer].device)
        else:
            demands.setdefault(places[layer].device, _Demand()).weights += size
    if any(streamed):
        demands.setdefault(torch.device("cpu"), _Demand()).weights += on_host
        device = next(place.device for place in places if place.is_streamed)
        demands.setdefault(device, _Demand()).weights += 2 * max(streamed)
    for device, dtype, layers in stages(placement, num_layers):
        layout = StateLayout(file.state_fields(placement, dtype), len(layers))
        demands.setdefault(device, _Demand()).slot += 2 * layout.record_bytes
    return demands


def _layer_of(name: str, num_layers: int) -> int:
    """The layer whose placement a tensor follows; `num_layers` for the head's."""
    if name.startswith("blocks."):
        return int(name.split(".")[1])
    return 0 if name.startswith("emb.") else num_layers


def _weight_bytes(file: ModelFile, name: str, place: LayerPlacement) -> int:
    form = weight_format(place.quantization if is_quantizable(file.checkpoint, name) else None)
    return math.prod(file.checkpoint.shape(name)) * form.bytes_per_weight(name, place.dtype, place.device)


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
