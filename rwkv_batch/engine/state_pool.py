"""The only owner of recurrent memory: one preallocated block of P slots, each one contiguous record."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..models.architecture import LayerState, StateField

_ALIGNMENT = 64


class StateLayout:
    """Where each field of each layer lies in a slot's record.

    Fields are laid out one after the other as [L, *shape], each at a multiple of 64 bytes.
    """

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
        """The fields of a block [P, record_bytes] uint8 as tensors [P, L, *shape] that share its memory."""
        views = {}
        for field in self.fields:
            size = self.num_layers * math.prod(field.shape) * field.dtype.itemsize
            start = self.offsets[field.name]
            flat = block[:, start : start + size].view(field.dtype)
            views[field.name] = flat.view(len(block), self.num_layers, *field.shape)
        return views

    def initial_record(self, overrides: Mapping[str, Sequence[Tensor]], device: torch.device) -> Tensor:
        """The record of a fresh sequence, [record_bytes] uint8.

        Args:
            overrides: field name → one tensor a layer, instead of the field's initial value.
        """
        record = torch.zeros(1, self.record_bytes, dtype=torch.uint8)
        views = self.views(record)
        for field in self.fields:
            views[field.name].fill_(field.initial_value)
            for layer, value in enumerate(overrides.get(field.name, ())):
                views[field.name][0, layer] = value
        return record[0].to(device)


class StatePool:
    """P slots. A slot is free or belongs to one sequence; what it holds is reset when it is given out.

    Args:
        initial_record: [record_bytes] uint8, what a fresh slot holds; lives on the pool's device.
    """

    def __init__(self, layout: StateLayout, num_slots: int, initial_record: Tensor) -> None:
        self.layout = layout
        self.num_slots = num_slots
        self._initial_record = initial_record
        self._block = torch.zeros(num_slots, layout.record_bytes, dtype=torch.uint8, device=initial_record.device)
        self._free = list(range(num_slots))
        views = layout.views(self._block)
        self.layers = [
            LayerState(**{name: view[:, layer] for name, view in views.items()}) for layer in range(layout.num_layers)
        ]

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, record: Tensor | None = None) -> int:
        """Take the lowest free slot, holding `record` or, without one, the state of a fresh sequence.

        Args:
            record: [record_bytes] uint8 on the pool's device or in pinned host memory.
        """
        slot = heapq.heappop(self._free)
        self._block[slot].copy_(self._initial_record if record is None else record, non_blocking=True)
        return slot

    def free(self, slot: int) -> None:
        """Give a slot back."""
        heapq.heappush(self._free, slot)

    def record(self, slot: int) -> Tensor:
        """The slot's own memory, [record_bytes] uint8: other sequences can start from a copy of it."""
        return self._block[slot]

    def resized(self, num_slots: int) -> StatePool:
        """A pool of the same layout whose slots are all free; this one gives up its memory first."""
        self._block = torch.empty(0, dtype=torch.uint8)
        self.layers = []
        if self._initial_record.is_cuda:
            torch.cuda.empty_cache()
        return StatePool(self.layout, num_slots, self._initial_record)

    def check_integrity(self, used: Iterable[int]) -> None:
        """Assert that free and used slots partition the pool.

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
