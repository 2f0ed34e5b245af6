"""Products of int8 by int8; see `w8a8` in models/w8a8_linear.py for the definition."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .build import library
from .call import unsupported as unsupported_reason
from .products import PackedWeight, multiply_rows, pack_panels

__all__ = ["pack", "unsupported_reason", "w8a8"]


class PackedInt8(NamedTuple):
    """An int8 weight with the sums of its rows."""

    weight: PackedWeight
    sums: Tensor
    """[C_out] int32."""

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.sums.nbytes


def pack(q: Tensor) -> PackedInt8:
    """Lay out an int8 weight [C_out, C_in] for `w8a8`."""
    return PackedInt8(pack_panels(q, inputs=library().int8_inputs()), q.sum(1, dtype=torch.int32))


def w8a8(
    x: Tensor,
    q: PackedInt8,
    scale: Tensor,
    activation: str | None = None,
    gate: Tensor | None = None,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """As the definition, with a weight from `pack`. Sums are exact; what follows is float32 up to the one rounding."""
    return multiply_rows(
        "w8a8", x, q.weight, activation, gate, out, dtype, scale=scale.data_ptr(), weight_sums=q.sums.data_ptr()
    )
