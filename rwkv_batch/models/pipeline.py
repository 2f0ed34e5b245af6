"""Runs a model whose layers have several devices or dtypes, or are streamed: stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ..ops import OpTable
from .architecture import Architecture, LayerState
from .placed_weights import PlacedWeights
from .placement import Placement, stages
from .rows import Rows


class Pipeline:
    """The layers of a placement with several stages. Activations are copied from stage to stage.

    Args:
        ops: the implementations for each layer.
    """

    def __init__(
        self, architecture: Architecture, placement: Placement, ops: Sequence[OpTable], weights: PlacedWeights
    ) -> None:
        num_layers = architecture.sizes["L"]
        self._architecture = architecture
        self._ops = tuple(ops)
        self._placement = placement
        self._stages = stages(placement, num_layers)
        self._stream_numbers = weights.stream_numbers
        self.stream = weights.stream

    def step(self, token_ids: Tensor, rows: Rows, state: Sequence[LayerState]) -> Tensor:
        """`Architecture.step`, with arguments and result on the device that samples, the result in the head's dtype."""
        x: Tensor | None = None
        first: Tensor | None = None
        for device, dtype, layers in self._stages:
            here, ids = rows.on(device), token_ids.to(device)
            with current_device(device):
                x = self._embedded(ids) if x is None else x.to(device, dtype)
                first = None if first is None else first.to(device, dtype)
                for i in layers:
                    with self._arrived(i):
                        first = self._architecture.layer(i, x, first, ids, state[i], here, self._ops[i])
        assert x is not None
        return x.to(self._placement.device, self._placement.dtype)

    def _embedded(self, token_ids: Tensor) -> Tensor:
        return self._ops[0].take_rows(self._architecture.embedding, token_ids)

    def _arrived(self, i: int) -> AbstractContextManager[None]:
        """Context in which the matrices of layer i are on its device."""
        number = self._stream_numbers.get(i)
        return nullcontext() if self.stream is None or number is None else self.stream.running(number)


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Context in which `device` is this thread's current CUDA device, for kernel launches, events and streams.

    Without effect for devices of other types.
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
