"""The memory plan: how many slots, and tokens of a step, fit. It is made before weights are loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..errors import CapacityError, ConfigurationError
from ..models.files.convert import is_quantizable
from ..models.matrices.quantization import weight_format
from ..models.model import ModelFile
from ..models.placement import LayerPlacement, Placement, stages
from ..transfer import pinned_bytes
from .available_memory import available_memory
from .recorded_sizes import RecordedSizes
from .recordings import TOP_ROWS_AT_ONCE
from .state_pool import StateLayout

MEMORY_SHARE = 0.85
"""Share of the available memory that the plan may use, unless another one is given. The rest is for what the plan
estimates too low."""
_SLOT_LIMIT = {"cpu": 128, "cuda": 1024}
"""Slots above this limit do not make a step more efficient."""
_PROMPT_TOKENS = {"cpu": 512, "cuda": 4096}
"""Prompt tokens of a step, beside its decode rows, with which the matrix products are efficient."""
_LOGIT_COPIES = 5
"""Number of [B, V] float32 tensors that are alive at the same time during sampling."""
_TOKEN_ROWS = 24
"""Number of [M, C] float32 tensors that are alive at the same time inside a layer."""
_MODULE_BYTES = 320 << 20
"""Some 200 compiled kernels on a CUDA device, with their local memory."""
_LIBRARY_BYTES = 2 * (32 << 20)
"""Two cuBLAS workspaces: of the stream that launches steps, and of the stream that records them."""
_RECORDING_BYTES = 3 << 20
"""The graph of one recording: its nodes and their arguments."""
_TOP_BYTES = 40
"""For each id of a row, while its most likely tokens are found."""


@dataclass(frozen=True)
class MemoryPlan:
    """The memory plan, in bytes. With several devices: that of the device on which the fewest slots fit."""

    available: int
    weights: int
    slot: int
    """One slot: its state, ring of deferred updates and logits, and one snapshot of a shared prefix."""
    workspace: int
    """Activations of the largest step, and once more those of recorded steps, which have memory of their own that all
    recordings share: on a CUDA device those of the largest step, on a CPU those of a decode step of all slots."""
    fixed: int
    """Compiled kernels, library workspaces, and the graphs of recorded steps."""
    max_batch_size: int
    max_batch_tokens: int
    device: str = ""
    """Name of the device; empty if there is only one."""

    @property
    def besides_slots(self) -> int:
        """Everything but the slots."""
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


def activation_bytes(sizes: Mapping[str, int], tokens: int) -> int:
    """Bytes of the activations of a step that are alive at the same time.

    Args:
        sizes: of the model, by their letters.
    """
    return 4 * tokens * (_TOKEN_ROWS * max(sizes["C"], sizes["A"]) + 3 * sizes["F"])


class _DeviceBudget:
    """The memory plan of one device.

    Args:
        needs: what the device must hold.
        is_named: the plan names the device, because there are several.
        memory_share: the share of the available memory that the plan may use.
        available: bytes that the device has free; None asks the device.
    """

    def __init__(
        self,
        file: ModelFile,
        device: torch.device,
        needs: _DeviceNeeds,
        is_named: bool,
        memory_share: float,
        available: int | None,
    ) -> None:
        self._sizes = file.sizes
        self._device = device
        self._needs = needs
        self._available = available_memory(device) if available is None else available
        self._share = memory_share
        self._name = str(device) if is_named else ""

    def plan(self, slots: int, tokens: int) -> MemoryPlan:
        """The memory plan for this many slots, and tokens of a step."""
        is_cuda = self._device.type == "cuda"
        activations = activation_bytes(self._sizes, tokens)
        top = _TOP_BYTES * min(slots, TOP_ROWS_AT_ONCE) * self._sizes["V"]
        graphs = _RECORDING_BYTES * len(RecordedSizes(slots, tokens)) if is_cuda else 0
        return MemoryPlan(
            available=self._available,
            weights=self._needs.weights,
            slot=self._needs.slot,
            workspace=activations + (max(activations, top) if is_cuda else activation_bytes(self._sizes, slots)),
            fixed=_MODULE_BYTES + _LIBRARY_BYTES + graphs if is_cuda else 0,
            max_batch_size=slots,
            max_batch_tokens=tokens,
            device=self._name,
        )

    def slots_that_fit(self, slots: int, tokens: int) -> int:
        """The number of slots that fit beside the weights and the workspace of a step of `slots` slots and `tokens`."""
        free_bytes = int(self._available * self._share) - self.plan(slots, tokens).besides_slots
        if not self._needs.slot:
            return slots if free_bytes >= 0 else 0
        return free_bytes // self._needs.slot


def plan_memory(
    file: ModelFile,
    placement: Placement,
    max_batch_size: int | None = None,
    max_batch_tokens: int | None = None,
    memory_share: float = MEMORY_SHARE,
    available: int | None = None,
    state_write_interval: int = 1,
) -> MemoryPlan:
    """Chooses the engine's sizes: those given, or as many slots and tokens as are useful and fit.

    The workspace is planned for the sizes that are wanted, and what then remains is divided by the bytes of a slot. The
    device on which the fewest slots fit decides.

    Args:
        max_batch_size: number of slots; None chooses it.
        max_batch_tokens: tokens of a step; None chooses it.
        memory_share: the share of each device's available memory that may be used, above 0 and up to 1.
        available: bytes that each device has free, for a plan of devices that are not here; None asks the devices.
        state_write_interval: above 1, each slot has a ring of updates.

    Raises:
        ConfigurationError: a size is not positive, there are fewer tokens than slots, or this version's state writes
            cannot be deferred.
        CapacityError: the model does not fit with one slot, or not with the slots asked for.
    """
    _check_sizes(max_batch_size, max_batch_tokens)
    needs = _device_needs(file, placement, state_write_interval)
    budgets = [
        _DeviceBudget(file, device, held, len(needs) > 1, memory_share, available) for device, held in needs.items()
    ]
    kind = placement.device.type
    prompt_tokens = _PROMPT_TOKENS.get(kind, 512)
    slots = max_batch_size or _SLOT_LIMIT.get(kind, 128)
    tokens = max_batch_tokens or slots + prompt_tokens
    fitting = [budget.slots_that_fit(slots, tokens) for budget in budgets]
    most = min(fitting)
    tightest = budgets[fitting.index(most)]
    if most < (max_batch_size or 1):
        wanted = tightest.plan(max_batch_size or 1, tokens)
        raise CapacityError(
            f"not enough memory: {wanted}, of which {memory_share:.0%} may be used (memory_share). Use fewer slots "
            "(max_batch_size), fewer tokens of a step (max_batch_tokens), quantization: int8, a smaller model or a "
            "larger machine"
        )
    slots = min(slots, most, max_batch_tokens or slots)
    return tightest.plan(slots, max_batch_tokens or slots + prompt_tokens)


def _check_sizes(max_batch_size: int | None, max_batch_tokens: int | None) -> None:
    for name, value in (("max_batch_size", max_batch_size), ("max_batch_tokens", max_batch_tokens)):
        if value is not None and value < 1:
            raise ConfigurationError(f"got {value}, expected a positive number, or auto (in Python None)", setting=name)
    if max_batch_size and max_batch_tokens and max_batch_tokens < max_batch_size:
        raise ConfigurationError(
            f"got {max_batch_tokens}, expected at least max_batch_size ({max_batch_size}): every running sequence "
            "needs one token of each step",
            setting="max_batch_tokens",
        )


@dataclass
class _DeviceNeeds:
    """What one device must hold, in bytes."""

    weights: int = 0
    slot: int = 0
    """For each slot: its state and ring, the snapshot of a prefix, and on the device that samples, its logits."""


def _device_needs(file: ModelFile, placement: Placement, state_write_interval: int) -> dict[torch.device, _DeviceNeeds]:
    """What each device must hold. Streamed matrices lie in host memory; the device has buffers for two layers."""
    num_layers, places = file.sizes["L"], placement.of_layers(file.sizes["L"])
    needs = {placement.device: _DeviceNeeds(slot=_LOGIT_COPIES * 4 * file.sizes["V"])}
    streamed = [0] * (num_layers + 1)
    on_host = 0
    for name in file.checkpoint.names:
        layer = _layer_of(name, num_layers)
        size = _weight_bytes(file, name, places[layer])
        if places[layer].is_streamed and is_quantizable(file.checkpoint, name):
            streamed[layer] += size
            on_host += pinned_bytes(size, places[layer].device)
        else:
            needs.setdefault(places[layer].device, _DeviceNeeds()).weights += size
    if any(streamed):
        needs.setdefault(torch.device("cpu"), _DeviceNeeds()).weights += on_host
        device = next(place.device for place in places if place.is_streamed)
        needs.setdefault(device, _DeviceNeeds()).weights += 2 * max(streamed)
    ring_bytes = 4 * math.prod(file.ring_shape(state_write_interval)) if state_write_interval > 1 else 0
    for device, dtype, layers in stages(placement, num_layers):
        layout = StateLayout(file.state_fields(placement, dtype), len(layers))
        needs.setdefault(device, _DeviceNeeds()).slot += 2 * layout.record_bytes + ring_bytes * len(layers)
    return needs


def _layer_of(name: str, num_layers: int) -> int:
    """The layer whose placement a tensor has; `num_layers` stands for the head."""
    if name.startswith("blocks."):
        return int(name.split(".")[1])
    return 0 if name.startswith("emb.") else num_layers


def _weight_bytes(file: ModelFile, name: str, place: LayerPlacement) -> int:
    form = weight_format(place.quantization if is_quantizable(file.checkpoint, name) else None)
    return math.ceil(math.prod(file.checkpoint.shape(name)) * form.bytes_per_weight(name, place.dtype, place.device))


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
