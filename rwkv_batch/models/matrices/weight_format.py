"""The contract of a weight format: how a large matrix is read, quantized, stored in memory and multiplied."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...ops import OpSpec, OpTable
from .product import Linear

if TYPE_CHECKING:
    from ..files.checkpoint import Checkpoint
    from .linear import StackedLinear


@dataclass(frozen=True)
class MatrixReader:
    """Reads matrices of one checkpoint for one placement.

    Args:
        dtype: of dense weights; a quantized weight follows the dtype of its inputs.
        device: where matrices are quantized and multiplied.
        ops: the implementations of the ops of the weight format, and of `linear`.
        make_dense: makes the `Linear` of a dense weight [C_out, C_in].
        keep: moves a weight to where it is kept, before the weight is packed: see `LayerStream.keep`. None leaves it.
    """

    checkpoint: Checkpoint
    dtype: torch.dtype
    device: torch.device
    ops: OpTable
    make_dense: Callable[[Tensor], Linear]
    keep: Callable[[Tensor], Tensor] | None = None

    def stored(self, name: str, scale: float = 1.0) -> Tensor:
        """A matrix [C_out, C_in] times `scale`, on the CPU, in the dtype of the file."""
        weight = self.checkpoint.tensor(name)
        return weight if scale == 1.0 else weight * scale

    def dense(self, name: str, scale: float = 1.0) -> Tensor:
        """A matrix [C_out, C_in] times `scale`, then in `dtype`, on `device`, contiguous."""
        return self.stored(name, scale).to(self.device, self.dtype).contiguous()

    def kept(self, weight: Tensor) -> Tensor:
        """A weight where it is kept."""
        return weight if self.keep is None else self.keep(weight)


class WeightFormat(ABC):
    """A format that large matrices have in memory: what one name of the setting `quantization` stands for."""

    device_types: tuple[str, ...] | None = None
    """The types of devices that multiply such matrices; None is all of them."""
    is_written: bool = False
    """`convert` writes files with matrices in this format."""

    def ops(self, device: torch.device) -> tuple[OpSpec, ...]:
        """The ops that multiply such matrices on a device, besides `linear`."""
        return ()

    @abstractmethod
    def bytes_per_weight(self, name: str, dtype: torch.dtype, device: torch.device) -> float:
        """Bytes of one weight of the matrix `name`, with its part of what groups of weights share, such as scales.

        Scales of rows and columns are not counted.

        Args:
            dtype: of dense weights.
        """

    @abstractmethod
    def load(self, reader: MatrixReader, name: str, scale: float = 1.0) -> Linear:
        """Load one matrix [C_out, C_in] of the reader's checkpoint.

        A matrix that the file holds in 8-bit form (mm8) is dequantized, unless this format is that form.

        Args:
            scale: multiplies the weight. The product is exact for a power of two that neither overflows nor underflows
                the dtype.

        Raises:
            CheckpointError: the matrix cannot be quantized.
        """

    def stack(self, reader: MatrixReader, names: Sequence[str]) -> StackedLinear | None:
        """Load n matrices of one shape that one call of an op multiplies; None where no op does.

        Raises:
            CheckpointError: a matrix cannot be quantized.
        """
        return None
