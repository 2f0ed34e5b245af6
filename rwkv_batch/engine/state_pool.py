"""The state pool: owns all recurrent states, as one preallocated block of P slots, each a contiguous record."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.architecture import LayerState, StateField
from ..models.model import ModelFile
from ..models.placement import Placement, stages
from ..transfer import pinned_bytes

_ALIGNMENT = 64


class StateLayout:
    """The layout of a slot's record: one field after the other as [L, *shape], each at a multiple of 64 bytes."""

    def __init__(self, fields: Sequence[StateField], num_layers: int) -> None:
        self.fields = tuple(fields)
        self.num_layers = num_layers
        self.offsets: dict[str, int] = {}
        end = 0
        for field in self.fields:
            self.offsets[field.name] = end
            size = num_layers * math.prod(field.shape) * field.dtype.itemsize
            end += -(-size // _ALIGNMENT) * _ALIGNMENT
        self.record_bytes = end

    def views(self, block: Tensor) -> dict[str, Tensor]:
        """The fields of a block [P, record_bytes] uint8, as tensors [P, L, *shape] that share the block's memory."""
        views = {}
        for field in self.fields:
            size = self.num_layers * math.prod(field.shape) * field.dtype.itemsize
            start = self.offsets[field.name]
            flat = block[:, start : start + size].view(field.dtype)
            views[field.name] = flat.view(len(block), self.num_layers, *field.shape)
        return views

    def initial_record(self, overrides: Mapping[str, Sequence[Tensor]], device: torch.device) -> Tensor:
        """The record of the initial state, [record_bytes] uint8.

        Args:
            overrides: field name → one tensor for each layer, in place of the field's initial value.
        """
        record = torch.zeros(1, self.record_bytes, dtype=torch.uint8, device="cpu")
        views = self.views(record)
        for field in self.fields:
            views[field.name].fill_(field.initial_value)
            for layer, value in enumerate(overrides.get(field.name, ())):
                views[field.name][0, layer] = value
        return record[0].to(device)


class PoolPart(NamedTuple):
    """Consecutive layers whose states lie in one block: on one device, with one dtype."""

    layout: StateLayout
    initial_record: Tensor
    """[record_bytes] uint8, the initial state, on the device of the block."""
    ring_shape: tuple[int, ...] | None = None
    """The shape of a slot's ring in one layer; None where no state write is deferred."""


class Record(tuple[Tensor, ...]):
    """One slot's state: [record_bytes] uint8 for each part of the pool."""

    def clone(self) -> Record:
        """A copy on the same devices."""
        return Record(part.clone() for part in self)

    def to_host(self) -> Record:
        """An asynchronous copy in pinned host memory, ordered by the current stream. So is the copy back."""
        return Record(_copy_to_host(part) for part in self)


def _copy_to_host(part: Tensor) -> Tensor:
    if not part.is_cuda:
        return part.clone()
    return torch.empty(part.shape, dtype=part.dtype, device="cpu", pin_memory=True).copy_(part, non_blocking=True)


def pool_parts(
    file: ModelFile, placement: Placement, init_state: str | Path | None = None, state_write_interval: int = 1
) -> list[PoolPart]:
    """Groups the layers of a model by device and dtype. A layer's state lies on the layer's device.

    Args:
        init_state: a state file that every sequence starts from; None takes the checkpoint's own.
        state_write_interval: the number of tokens after which a decoding sequence's state is written.

    Raises:
        ConfigurationError: this version's state writes cannot be deferred.
    """
    initial = file.initial_states(init_state)
    ring_shape = file.ring_shape(state_write_interval) if state_write_interval > 1 else None
    parts = []
    for device, dtype, layers in stages(placement, file.sizes["L"]):
        layout = StateLayout(file.state_fields(placement, dtype), len(layers))
        own = {name: values[layers.start : layers.stop] for name, values in initial.items()}
        parts.append(PoolPart(layout, layout.initial_record(own, device), ring_shape))
    return parts


class StatePool:
    """P slots, each free or owned by one sequence. A slot is reset when it is given out, not when it is freed.

    Where state writes are deferred, each slot also has a ring of updates, which is no part of its record: states are
    copied at the end of a prompt, and then the ring is empty. `Scheduler.deferred` counts the updates in it, so that a
    slot's old updates mean nothing to its next sequence.

    Args:
        parts: the parts of the model's layers, in order; one part if all layers are on one device and of one dtype.
    """

    def __init__(self, parts: Sequence[PoolPart], num_slots: int) -> None:
        self.parts = tuple(parts)
        self.num_slots = num_slots
        self._initial_record = Record(part.initial_record for part in parts)
        self._blocks = [
            torch.zeros(num_slots, part.layout.record_bytes, dtype=torch.uint8, device=part.initial_record.device)
            for part in parts
        ]
        self._free = list(range(num_slots))
        self.layers: list[LayerState] = []
        for (layout, _, ring_shape), block in zip(parts, self._blocks, strict=True):
            views = layout.views(block)
            if ring_shape is not None:
                views["ring"] = torch.zeros(
                    num_slots, layout.num_layers, *ring_shape, dtype=torch.float32, device=block.device
                )
            self.layers += [
                LayerState(**{name: view[:, layer] for name, view in views.items()})
                for layer in range(layout.num_layers)
            ]

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def record_bytes(self) -> int:
        """Size of one slot, in all parts together."""
        return sum(part.layout.record_bytes for part in self.parts)

    @property
    def host_record_bytes(self) -> int:
        """Size of a copy of one slot in host memory."""
        return sum(pinned_bytes(part.layout.record_bytes, part.initial_record.device) for part in self.parts)

    def allocate(self, count: int) -> list[int]:
        """Takes the lowest free slots. They hold old states until `fill`."""
        return [heapq.heappop(self._free) for _ in range(count)]

    def fill(self, slot_index: Tensor, record: Record | None = None) -> None:
        """Copies `record` into slots; without a record, the initial state.

        Args:
            slot_index: [n] int64, no slot twice.
            record: on the devices of the parts, or in pinned host memory.
        """
        for block, part in zip(self._blocks, record or self._initial_record, strict=True):
            index = slot_index.to(block.device)  # blocking, because a block in host memory uses the index at once
            words = part.to(block.device, non_blocking=True).view(torch.int64)
            block.view(torch.int64).index_copy_(0, index, words.expand(len(index), -1))

    def free(self, slots: Iterable[int]) -> None:
        """Gives slots back."""
        for slot in slots:
            heapq.heappush(self._free, slot)

    def free_all(self) -> None:
        """Gives all slots back."""
        self._free = list(range(self.num_slots))

    def record(self, slot: int) -> Record:
        """The slot's record, as a view of its memory. Its sequence is at the end of its prompt: the ring is empty."""
        return Record(block[slot] for block in self._blocks)

    def check_integrity(self, used: Iterable[int]) -> None:
        """Asserts that free and used slots partition the pool.

        Raises:
            AssertionError: a slot has leaked, is used twice, or is used and free.
        """
        used = list(used)
        assert len(set(used)) == len(used), f"slots used twice: {sorted(used)}"
        assert len(set(self._free)) == len(self._free), f"slots freed twice: {sorted(self._free)}"
        both = set(used) & set(self._free)
        assert not both, f"slots both used and free: {sorted(both)}"
        leaked = set(range(self.num_slots)) - set(used) - set(self._free)
        assert not leaked, f"slots neither used nor free: {sorted(leaked)}"
