"""Products with a weight kept in 8-bit form."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .mm8 import Mm8Weight
from .product import Linear

_FEW_ROWS = 8
"""Up to so many rows, turning bytes into floats takes longer than the product, which may then as well be float32."""

_SCRATCH_BYTES = 4 << 20
"""Size of a dequantised block: small enough for a CPU's cache, large enough for a full-speed product."""


class Mm8Linear(Linear):
    """A weight kept at one byte each, multiplied without ever being dequantised as a whole.

    With c = q - 128, a whole number that every float dtype holds exactly, z[m, j] = x[m, j] ry[j] and any u[m], the
    product is taken apart into

        y[m, n] = rx[n] * (sum_j (z[m, j] - u[m]) c[j, n] + u[m] S[n] + 128.5 S2[m]) + mx[n] S0[m] + S1[m]
        S = sum_j c[j, n],   S0 = sum_j x[m, j],   S1 = sum_j x[m, j] my[j],   S2 = sum_j z[m, j]

    so that the dtype of x rounds z - u and the first sum only, and for few rows not even those: all else is float32.
    With u near the mean of z the first sum stays small where all inputs have one sign, as those of `ffn.value` do.
    Each row is divided by a power of two that keeps the sum within float16.

    Args:
        weight: its metadata are converted to float32.

    Attributes:
        centred: [C_out, C_in], int8, contiguous: q - 128.
        rx: [C_out], my, ry: [C_in], float32, as in `Mm8Weight`.
        corrections: [4, C_out], float32: what u, S2, S0 and S1 are multiplied by.
    """

    def __init__(self, weight: Mm8Weight, device: torch.device | str = "cpu") -> None:
        self.centred = (weight.q.t().contiguous().to(device) ^ 0x80).view(torch.int8)
        mx, self.rx, self.my, self.ry = (
            vector.to(device, torch.float32) for vector in (weight.mx, weight.rx, weight.my, weight.ry)
        )
        sums = self.centred.sum(1, dtype=torch.int32)
        self.corrections = torch.stack((sums * self.rx, 128.5 * self.rx, mx, torch.ones_like(mx)))
        self.out_features, self.in_features = self.centred.shape
        self.nbytes = sum(tensor.nbytes for tensor in (self.centred, self.rx, self.my, self.ry, self.corrections))

    def relocate(self, move: Callable[[Tensor], Tensor]) -> None:
        self.centred = move(self.centred)

    def product(self, x: Tensor) -> Tensor:
        exact, dtype = x.float(), torch.float32 if len(x) <= _FEW_ROWS else x.dtype
        z = exact * self.ry
        # |c| <= 128 and |z / unit| <= 128 / C_in keep the sum within 2**15, half of float16's range.
        unit = _power_of_two_above(z.abs().amax(1, keepdim=True) * (self.in_features / 128))
        z /= unit
        inputs = (z - z.mean(1, keepdim=True)).to(dtype)
        u = (z - inputs).mean(1, keepdim=True)  # with the mean of the rounding errors in it
        s0, s1 = exact.sum(1, keepdim=True) / unit, (exact @ self.my)[:, None] / unit
        row_sums = torch.cat((u, z.sum(1, keepdim=True), s0, s1), 1)
        y = torch.empty(len(x), self.out_features, dtype=x.dtype, device=x.device)
        rows = max(1, min(_SCRATCH_BYTES // (self.in_features * dtype.itemsize), self.out_features))
        scratch = torch.empty(rows, self.in_features, dtype=dtype, device=x.device)
        for start in range(0, self.out_features, rows):
            columns = slice(start, min(start + rows, self.out_features))
            block = scratch[: columns.stop - start].copy_(self.centred[columns])
            product = F.linear(inputs, block) * self.rx[columns]
            y[:, columns] = product.addmm_(row_sums, self.corrections[:, columns]).mul_(unit)
        return y


def _power_of_two_above(x: Tensor) -> Tensor:
    """The smallest power of two above each x > 0; 1 for 0."""
    return torch.ldexp(torch.ones_like(x), torch.frexp(x).exponent)
