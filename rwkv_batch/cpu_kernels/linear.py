"""Products with dense weights; see `linear` in models/matrices/product.py for the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from .build import library
from .call import unsupported as unsupported_reason
from .products import Epilogue, PackedWeight, multiply_rows, pack_panels, prefers_definition

__all__ = ["linear", "pack", "prefers_definition", "rows_independent", "unsupported_reason", "writes_into"]

rows_independent = True
writes_into = True


def pack(weight: Tensor) -> PackedWeight:
    """Packs a weight [C_out, C_in] or [n, C_out, C_in] for `linear`."""
    in_pairs = weight.dtype == torch.bfloat16 and library().has_bfloat16_pairs()
    return pack_panels(weight, inputs=2 if in_pairs else 1)


def linear(
    x: Tensor,
    weight: PackedWeight,
    activation: str | None = None,
    gate: Tensor | None = None,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
    fixed_tiles: bool = False,
    into: Tensor | None = None,
) -> Tensor:
    """As the definition, with a weight from `pack`; the epilogue is float32, rounded once.

    A row's bits never depend on M, whatever `fixed_tiles` is. `into`: a float32 tensor that the result is written to.
    """
    if x.dtype != weight.dtype:
        raise ValueError(f"x: got {x.dtype}, expected the weight's dtype {weight.dtype}")
    return multiply_rows("linear", x, weight, Epilogue(activation, gate, out, dtype, into))
