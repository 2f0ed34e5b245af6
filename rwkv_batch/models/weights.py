"""A checkpoint's tensors as the model uses them: in the model's dtype, on its device, matrices behind `Linear`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .blocks import LAYER_NORM_EPS, Norm
from .checkpoint import Checkpoint
from .linear import DenseLinear, FixedRowsLinear, Linear, make_linear
from .packed import pack


class Weights:
    """Reads one checkpoint for one placement.

    Args:
        dtype: of activations and dense matrices.
        quantization: None or "int8" (mm8) for the large matrices.
        batch_invariant: matrix products whose rows do not depend on how many others there are.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        quantization: str | None,
        device: torch.device,
        batch_invariant: bool = False,
    ) -> None:
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.quantization = quantization
        self.device = device
        self._batch_invariant = batch_invariant
        self._linears: list[Linear] = []

    def __contains__(self, name: str) -> bool:
        return name in self.checkpoint.names

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """In the checkpoint's shape; in the model's dtype unless another is given."""
        return self.checkpoint.tensor(name).to(self.device, dtype or self.dtype)

    def vector(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        return self.tensor(name, dtype).reshape(-1)

    def float_vector(self, name: str) -> Tensor:
        return self.vector(name, torch.float32)

    def vectors(self, *names: str) -> Tensor:
        """[len(names), C]."""
        return torch.stack([self.vector(name) for name in names])

    def norm(self, prefix: str, dtype: torch.dtype | None = None) -> Norm:
        return Norm(self.vector(prefix + ".weight", dtype), self.vector(prefix + ".bias", dtype))

    def linear(self, name: str, scale: float = 1.0) -> Linear:
        """A large matrix `[C_out, C_in]`, quantised if asked. `scale` multiplies it (a power of two)."""
        linear = make_linear(
            self.checkpoint,
            name,
            dtype=self.dtype,
            quantization=self.quantization,
            device=self.device,
            scale=scale,
        )
        return self._keep(linear)

    def low_rank(self, name: str) -> Linear:
        """A low-rank factor stored [C_in, C_out], never quantised."""
        return self._keep(DenseLinear(self.tensor(name).t().contiguous()))

    def low_ranks(self, name: str) -> tuple[Linear, ...]:
        """Low-rank factors stored one after the other, [n, C_in, C_out]."""
        return tuple(self._keep(DenseLinear(factor.t().contiguous())) for factor in self.tensor(name))

    def _keep(self, linear: Linear) -> Linear:
        linear = pack(linear)
        self._linears.append(linear)
        return FixedRowsLinear(linear) if self._batch_invariant else linear

    def embedding(self) -> Tensor:
        """[V, C], already layer-normed (ln0), which is computed in float32."""
        table = self.checkpoint.tensor("emb.weight")
        if self.checkpoint.embedding_is_normalized:
            return table.to(self.device, self.dtype)
        weight = self.checkpoint.tensor("blocks.0.ln0.weight").float()
        bias = self.checkpoint.tensor("blocks.0.ln0.bias").float()
        normed = torch.empty(table.shape, dtype=self.dtype, device=self.device)
        for start in range(0, len(table), 4096):
            rows = table[start : start + 4096].float()
            normed[start : start + 4096] = F.layer_norm(rows, rows.shape[-1:], weight, bias, LAYER_NORM_EPS)
        return normed

    @property
    def matrix_bytes(self) -> int:
        """Bytes held by all matrices made so far."""
        return sum(linear.nbytes for linear in self._linears)
