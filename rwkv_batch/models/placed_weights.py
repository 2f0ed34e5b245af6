"""The weights of every layer, each for the placement that it has."""

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
        ops: who serves each layer, and the head after them: L + 1 tables.
        batch_invariant: matrix products whose rows do not depend on how many others there are.

    Attributes:
        rescales: float16 is used somewhere, so that the residual stream is kept small everywhere.
        stream: of the layers that are streamed; None where none are.
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
        """The weights of layer i; of the head for i = L. Streamed layers are first asked for in their order."""
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
        """Bytes of all matrices, wherever they are."""
        return sum(weights.matrix_bytes for weights in self._made.values())
