"""The definition of the 8-bit form, in float64, that everything which handles it is compared with."""

from __future__ import annotations

from torch import Tensor

from rwkv_batch.models.matrices.mm8 import Mm8Weight


def definition(w: Mm8Weight) -> Tensor:
    """The weight [C_out, C_in] that an 8-bit form stands for."""
    q, mx, rx, my, ry = (tensor.double() for tensor in (w.q, w.mx, w.rx, w.my, w.ry))
    return ((q + 0.5) * ry[:, None] * rx + my[:, None] + mx).t()
