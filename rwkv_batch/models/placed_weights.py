"""The weights of all layers, each loaded for its own placement."""

from __future__ import annotations

from collections.abc import Sequence

from ..ops import OpTable
from .files.checkpoint import Checkpoint
from .layer_stream import LayerStream
from .placement import LayerPlacement, Placement
from .weights import Weights


class PlacedWeights:
    """Reads one checkpoint for one placement.

    Args:
        num_layers: L.
        ops: the implementations for each layer, and for the head after them: L + 1 tables.
        batch_invariant: the bits of a row's product must not depend on the number of rows.

    Attributes:
        rescales: float16 is used in some layer, so that the residual stream is scaled down in all of them.
        stream: holds the streamed layers; None where no layer is streamed.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        placement: Placement,
        num_layers: int,
        ops: Sequence[OpTable],
        batch_invariant: bool = False,
    ) -> None:
        self._checkpoint = checkpoint
        self._places = placement.of_layers(num_layers)
        self._ops = tuple(ops)
        self._batch_invariant = batch_invariant
        self._made: dict[int | LayerPlacement, Weights] = {}
        self.rescales = placement.uses_float16
        streamed = [place.device for place in self._places if place.is_streamed]
        self.stream = LayerStream(streamed[0]) if streamed else None
        self.stream_numbers: dict[int, int] = {}
        """Layer → its number in the stream."""

    def at(self, i: int) -> Weights:
        """The weights of layer i, or of the head for i = L. Ask for streamed layers in their order the first time."""
        place = self._places[i]
        key = i if place.is_streamed else place
        if key not in self._made:
            stream = self.stream if place.is_streamed else None
            if stream is not None:
                self.stream_numbers[i] = stream.add_layer()
            self._made[key] = Weights(
                self._checkpoint,
                place.dtype,
                place.quantization,
                place.device,
                self._ops[i],
                self._batch_invariant,
                self.rescales,
                stream,
            )
        return self._made[key]

    @property
    def matrix_bytes(self) -> int:
        """Bytes of all matrices, on all devices and in host memory."""
        return sum(weights.matrix_bytes for weights in self._made.values())
