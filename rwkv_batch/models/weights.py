"""Loads the tensors of a checkpoint as layers use them: in their dtype and on their device, matrices as `Linear`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import Implementation, OpTable
from .blocks import LAYER_NORM_EPS, Norm
from .files.checkpoint import Checkpoint
from .layer_stream import LayerStream
from .matrices.linear import DenseLinear, FixedRowsLinear, LinearGroup
from .matrices.low_rank import LowRank, LowRankPair
from .matrices.packed import PackedLinear, can_pack
from .matrices.product import LINEAR, Activation, Linear
from .matrices.projection import Projection
from .matrices.quantization import weight_format
from .matrices.weight_format import MatrixReader
from .scoring import SCORE


class StoredPair(NamedTuple):
    """A low-rank pair as checkpoints store it."""

    source: int
    """The index of the pair's input."""
    activation: Activation | None
    down: Tensor
    """[C, R]."""
    up: Tensor
    """[R, A]."""


class Weights:
    """Reads one checkpoint for the layers of one placement.

    Args:
        dtype: of activations and dense matrices.
        quantization: the weight format of the large matrices: a name of matrices/quantization.py, or None for dense.
        ops: the implementations of matrix products.
        batch_invariant: the bits of a row's product must not depend on the number of rows.
        rescales: output matrices are scaled down with the number of their layer, so that a float16 residual stream
            stays in range.
        stream: keeps the large matrices in host memory; None where they stay on the device.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        quantization: str | None,
        device: torch.device,
        ops: OpTable,
        batch_invariant: bool = False,
        rescales: bool = False,
        stream: LayerStream | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.device = device
        self.rescales = rescales
        self._ops = ops
        self._is_streamed = stream is not None
        self._batch_invariant = batch_invariant
        self._dense_op: Implementation = ops.implementations[LINEAR.name]
        self._has_kernels = self._dense_op.function is not LINEAR.definition
        if self._has_kernels and batch_invariant:
            self._dense_op = replace(self._dense_op, function=partial(self._dense_op.function, fixed_tiles=True))
        self._format = weight_format(quantization)
        self._reader = MatrixReader(
            checkpoint,
            dtype,
            device,
            OpTable({**ops.implementations, LINEAR.name: self._dense_op}),
            self._dense,
            None if stream is None else stream.keep,
        )
        self.matrix_bytes = 0
        """Bytes of all matrices loaded so far."""

    def __contains__(self, name: str) -> bool:
        return name in self.checkpoint.names

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor in the checkpoint's shape, in `dtype` or else that of activations, on the device, contiguous."""
        return self.checkpoint.tensor(name).to(self.device, dtype or self.dtype).contiguous()

    def vector(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """`tensor`, as a vector."""
        return self.tensor(name, dtype).reshape(-1)

    def float_vector(self, name: str) -> Tensor:
        return self.vector(name, torch.float32)

    def vectors(self, *names: str) -> Tensor:
        """Vectors of C numbers, stacked: [len(names), C]."""
        return torch.stack([self.vector(name) for name in names])

    def norm(self, prefix: str, dtype: torch.dtype | None = None) -> Norm:
        """The scale and shift of the norm whose tensors are `prefix`.weight and `prefix`.bias."""
        return Norm(self.vector(prefix + ".weight", dtype), self.vector(prefix + ".bias", dtype))

    def linear(self, name: str, scale: float = 1.0) -> Linear:
        """A large matrix [C_out, C_in] in the weight format of the placement.

        Args:
            scale: multiplies the weight; a power of two.
        """
        return self._counted(self._format.load(self._reader, name, scale))

    def head(self) -> Linear:
        """The output matrix [V, C]; not packed by oneDNN where a kernel serves `score`, which reads the weight."""
        packs = not self._ops.has_kernel(SCORE.name)
        reader = replace(self._reader, make_dense=partial(self._dense, packs=packs))
        return self._counted(self._format.load(reader, "head.weight"))

    def linears(self, *names: str) -> LinearGroup:
        """Large matrices of one shape, matrix i for input i."""
        stacked = self._format.stack(self._reader, names)
        if stacked is None:
            return LinearGroup([self.linear(name) for name in names])
        self.matrix_bytes += stacked.nbytes
        return stacked

    def projection(self, names: Sequence[str], *pairs: StoredPair) -> Projection:
        """Large matrices of one shape, matrix i for input i, and low-rank pairs, for one call of the op `project`."""
        return Projection(self.linears(*names), self.low_rank(*pairs), self._batch_invariant)

    def low_rank(self, *pairs: StoredPair, op: str = "low_rank") -> LowRank:
        """Low-rank pairs for one call of an op. They are dense in every weight format.

        Args:
            op: the name of that op. Its kernels read stacked factors; where `linear` packs weights, each factor is a
                packed matrix.
        """
        down, up = LowRank.stack([pair.down for pair in pairs], [pair.up for pair in pairs])
        bounds = pairwise(accumulate((pair.down.shape[1] for pair in pairs), initial=0))
        is_stacked = self._ops.has_kernel(op) and not self._ops.packs("linear")
        made = []
        for pair, (start, end) in zip(pairs, bounds, strict=True):
            factors = down[start:end], up[start:end].t()
            if self._has_kernels and not is_stacked:
                factors = down[start:end], up[start:end].t().contiguous()
            matrices = (self._counted(self._dense(factor)) for factor in factors)
            made.append(LowRankPair(pair.source, pair.activation, *matrices))
        return LowRank(tuple(made), *((down, up) if is_stacked else (None, None)))

    def _dense(self, weight: Tensor, packs: bool = True) -> Linear:
        """The `Linear` of a dense weight, packed if its implementation takes packed weights; by oneDNN if `packs`."""
        if packs and not self._has_kernels and not self._is_streamed and can_pack(weight):
            return PackedLinear(weight)
        return DenseLinear(self._dense_op.packed(weight), self._dense_op)

    def _counted(self, linear: Linear) -> Linear:
        """Counts a matrix in `matrix_bytes`, and wraps it if it is to be batch-invariant and is not."""
        self.matrix_bytes += linear.nbytes
        return FixedRowsLinear(linear) if self._batch_invariant and not linear.rows_independent else linear

    def embedding(self) -> Tensor:
        """The embedding [V, C] after its layer norm (ln0), which is computed in float32."""
        table = self.checkpoint.tensor("emb.weight")
        if self.checkpoint.embedding_is_normalized:
            return table.to(self.device, self.dtype).contiguous()
        weight = self.checkpoint.tensor("blocks.0.ln0.weight").float()
        bias = self.checkpoint.tensor("blocks.0.ln0.bias").float()
        normed = torch.empty(table.shape, dtype=self.dtype, device=self.device)
        for start in range(0, len(table), 4096):
            rows = table[start : start + 4096].float()
            normed[start : start + 4096] = F.layer_norm(rows, rows.shape[-1:], weight, bias, LAYER_NORM_EPS)
        return normed
