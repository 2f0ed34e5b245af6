"""The weight format "int8": the op `mm8`, products with a weight in ChatRWKV's 8-bit form."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops import Implementation, OpSpec
from .mm8 import Mm8Weight
from .product import Linear, OpLinear
from .weight_format import MatrixReader, WeightFormat

_FEW_ROWS = 8
"""With at most this many rows, the conversion of bytes to floats takes longer than the product. The product may then be
float32 at no cost."""

_SCRATCH_BYTES = 4 << 20
"""Bytes of a block of dequantized weights: few enough for a CPU's cache, and enough for a product at full speed."""


def mm8(x: Tensor, centred: Tensor, rx: Tensor, my: Tensor, ry: Tensor, corrections: Tensor) -> Tensor:
    """x W^T for a weight in 8-bit form, without dequantizing the whole weight.

    The weight is w[n, j] = (q[j, n] + 0.5) ry[j] rx[n] + my[j] + mx[n], with an input channel j and an output channel
    n. With c = q - 128, which every float dtype holds exactly, and z[m, j] = x[m, j] ry[j], the product is

        y[m, n] = rx[n] * (sum_j z[m, j] c[j, n] + 128.5 S2[m]) + mx[n] S0[m] + S1[m]
        S0 = sum_j x[m, j],   S1 = sum_j x[m, j] my[j],   S2 = sum_j z[m, j]

    Only the sum over z c is a matrix product, in the dtype of x. Its rounding errors grow with the magnitude of z and
    of the sum, and both are large where all inputs have one sign, such as the squared ReLUs before `ffn.value`.
    Therefore each row is centered: a number u[m] near the mean of z is subtracted. For any u,

        sum_j z[m, j] c[j, n] = sum_j (z[m, j] - u[m]) c[j, n] + u[m] S[n],   S = sum_j c[j, n]

    The dtype of x rounds z - u and the first sum on the right; all other terms are float32. With few rows everything is
    float32. Each row is divided by a power of two that keeps the first sum within float16.

    Args:
        x: [M, C_in], any float dtype.
        centred: [C_out, C_in], int8, contiguous: c, transposed.
        rx: [C_out], my, ry: [C_in], float32, as in `Mm8Weight`.
        corrections: [4, C_out], float32: the factors of u, S2, S0 and S1, which are rx S, 128.5 rx, mx and 1.

    Returns:
        [M, C_out], dtype of `x`.
    """
    out_features, in_features = centred.shape
    exact, dtype = x.float(), torch.float32 if len(x) <= _FEW_ROWS else x.dtype
    z = exact * ry
    # |c| <= 128, and |z / unit| <= 128 / C_in: with a mean taken out of z, the sum is at most 2**15, which is half of
    # float16's range.
    unit = _power_of_two_above(z.abs().amax(1, keepdim=True) * (in_features / 128))
    z /= unit
    inputs = (z - z.mean(1, keepdim=True)).to(dtype)
    u = (z - inputs).mean(1, keepdim=True)  # the mean of z and of the rounding errors of `inputs`
    s0, s1, s2 = exact.sum(1, keepdim=True) / unit, (exact @ my)[:, None] / unit, z.sum(1, keepdim=True)
    row_sums = torch.cat((u, s2, s0, s1), 1)
    y = torch.empty(len(x), out_features, dtype=x.dtype, device=x.device)
    rows = max(1, min(_SCRATCH_BYTES // (in_features * dtype.itemsize), out_features))
    scratch = torch.empty(rows, in_features, dtype=dtype, device=x.device)
    for start in range(0, out_features, rows):
        columns = slice(start, min(start + rows, out_features))
        block = scratch[: columns.stop - start].copy_(centred[columns])
        product = F.linear(inputs, block) * rx[columns]
        y[:, columns] = product.addmm_(row_sums, corrections[:, columns]).mul_(unit)
    return y


MM8 = OpSpec("mm8", mm8, optional=True)
MM8_DEFINITION = Implementation(mm8)


class Mm8Linear(OpLinear):
    """A weight in 8-bit form, one byte a weight. The epilogue is a part of `op` where `op` has one.

    Args:
        weight: its ranges and minima are converted to float32.
        op: what serves `mm8`.
        keep: moves the bytes to where they are kept, before they are packed: see `LayerStream.keep`.

    Attributes:
        weight: `centred` of `mm8`, or its packed weight.
        rx, my, ry, corrections: as `mm8` takes them.
    """

    def __init__(
        self,
        weight: Mm8Weight,
        device: torch.device | str = "cpu",
        op: Implementation = MM8_DEFINITION,
        keep: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        centred = (weight.q.t().contiguous().to(device) ^ 0x80).view(torch.int8)
        mx, rx, my, ry = (
            vector.to(device, torch.float32).contiguous() for vector in (weight.mx, weight.rx, weight.my, weight.ry)
        )
        sums = centred.sum(1, dtype=torch.int32)
        corrections = torch.stack((sums * rx, 128.5 * rx, mx, torch.ones_like(mx)))
        packed = op.packed(keep(centred) if keep is not None else centred)
        super().__init__(op, packed, centred.shape, rx, my, ry, corrections)
        self.rx, self.my, self.ry, self.corrections = rx, my, ry, corrections


class Mm8Format(WeightFormat):
    """ChatRWKV's 8-bit form, `Mm8Weight`: one byte a weight."""

    is_written = True

    def ops(self, device: torch.device) -> tuple[OpSpec, ...]:
        return (MM8,)

    def bytes_per_weight(self, name: str, dtype: torch.dtype, device: torch.device) -> int:
        return 1

    def load(self, reader: MatrixReader, name: str, scale: float = 1.0) -> Linear:
        weight = reader.checkpoint.as_mm8(name, reader.device).scaled(scale)
        return Mm8Linear(weight, reader.device, reader.ops.implementations[MM8.name], reader.keep)


FORMAT = Mm8Format()


def _power_of_two_above(x: Tensor) -> Tensor:
    """The smallest power of two above each x > 0; 1 for 0."""
    return torch.ldexp(torch.ones_like(x), torch.frexp(x).exponent)
