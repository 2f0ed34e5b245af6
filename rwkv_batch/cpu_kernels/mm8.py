"""Products with 8-bit weights; see `mm8` in models/matrices/mm8_linear.py for the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from .call import address
from .call import unsupported as unsupported_reason
from .products import Epilogue, PackedWeight, multiply_rows, pack_panels

__all__ = ["has_epilogue", "mm8", "pack", "rows_independent", "unsupported_reason", "writes_into"]

rows_independent = True
writes_into = True
has_epilogue = True


def pack(centred: Tensor) -> PackedWeight:
    """Packs centred bytes [C_out, C_in] for `mm8`."""
    return pack_panels(centred)


def mm8(
    x: Tensor,
    centred: PackedWeight,
    rx: Tensor,
    my: Tensor,
    ry: Tensor,
    corrections: Tensor,
    activation: str | None = None,
    gate: Tensor | None = None,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
    into: Tensor | None = None,
) -> Tensor:
    """As the definition, then the epilogue of `linear`, with bytes from `pack`; rounded once.

    Products and sums are float32, corrections float64.
    """
    c_out, c_in = centred.shape
    address("corrections", corrections, (4, c_out), torch.float32)
    fields = {
        "scale": address("rx", rx, (c_out,), torch.float32),
        "minimum": corrections[2].data_ptr(),
        "input_scale": address("ry", ry, (c_in,), torch.float32),
        "input_minimum": address("my", my, (c_in,), torch.float32),
    }
    return multiply_rows("mm8", x, centred, Epilogue(activation, gate, out, dtype, into), [fields])
