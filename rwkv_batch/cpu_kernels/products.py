"""Packed weights of the native products, and calls that multiply rows with several of them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .build import library
from .call import DTYPES, INT, address, pointers, run

ACTIVATIONS = {None: 0, "squared_relu": 1, "sigmoid": 2, "tanh": 3}


class Product(ctypes.Structure):
    """`Product` of csrc/product.h."""

    _fields_ = (
        ("inputs", INT),
        ("outputs", INT),
        *pointers("x", "weight", "scale", "minimum", "input_scale", "input_minimum", "weight_sums"),
        ("levels", INT),
        ("activation", INT),
        *pointers("gate", "out", "y"),
        ("y_is_float", INT),
    )


class Products(ctypes.Structure):
    """`Products` of csrc/product.h."""

    _fields_ = (*pointers("products"), ("count", INT), ("rows", INT))


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """n matrices [C_out, C_in], packed for the native products.

    Args:
        panels: [n, ⌈C_out / PANEL⌉, ⌈C_in / k⌉, PANEL, k], with k inputs to a unit; padded with zeros.
        shape: [C_out, C_in], or [n, C_out, C_in].
        dtype: of the matrices before they were packed.
    """

    panels: Tensor
    shape: torch.Size
    dtype: torch.dtype

    @cached_property
    def addresses(self) -> tuple[int, ...]:
        """The address of each matrix."""
        stride = self.panels.stride(0) * self.panels.itemsize
        return tuple(self.panels.data_ptr() + i * stride for i in range(len(self.panels)))

    @property
    def nbytes(self) -> int:
        return self.panels.nbytes

    def product(self, which: int = 0, **fields: Any) -> Product:
        """The struct of a product with matrix `which`; tensors behind addresses in `fields` must outlive the call."""
        return Product(inputs=self.shape[-1], outputs=self.shape[-2], weight=self.addresses[which], **fields)


def pack_panels(weight: Tensor, inputs: int = 1) -> PackedWeight:
    """Packs a matrix, or several of one shape, on the CPU.

    Args:
        weight: [C_out, C_in] or [n, C_out, C_in].
        inputs: neighboring inputs of an output channel that are stored together.
    """
    width = library().panel_width()  # output channels of a panel on this processor
    c_out, c_in = weight.shape[-2:]
    padded = F.pad(weight.view(-1, c_out, c_in), (0, -c_in % inputs, 0, -c_out % width))
    n, outputs, units = len(padded), padded.shape[1] // width, padded.shape[2] // inputs
    panels = padded.view(n, outputs, width, units, inputs).transpose(2, 3)
    if weight.dtype == torch.bfloat16 and inputs == 1:  # both halves of a panel in one word: see csrc/kinds.h
        panels = panels.reshape(n, outputs, units, 2, width // 2).transpose(3, 4)
    return PackedWeight(panels.contiguous(), weight.shape, weight.dtype)


class PackedInt8(NamedTuple):
    """An int8 weight, or n of one shape, with the sums of its rows."""

    weight: PackedWeight
    sums: Tensor
    """[C_out] or [n, C_out] int32."""

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.sums.nbytes


def pack_int8(q: Tensor, inputs: int) -> PackedInt8:
    """Packs an int8 weight [C_out, C_in] or [n, C_out, C_in]."""
    return PackedInt8(pack_panels(q, inputs), q.sum(-1, dtype=torch.int32))


def multiply(name: str, dtype: torch.dtype, rows: int, products: Sequence[Product]) -> None:
    """Runs the kernel `name` for inputs of `dtype` on several products that share their number of rows."""
    if rows:
        array = (Product * len(products))(*products)
        run(f"{name}_{DTYPES[dtype]}", Products(ctypes.addressof(array), len(products), rows), array)


class Epilogue(NamedTuple):
    """The steps after a product: activation, gate, and where the result goes."""

    activation: str | None = None
    gate: Tensor | None = None
    """[M, C_out], dtype of the inputs; with a single matrix only."""
    out: Tensor | None = None
    """As `gate`; the result is added to it."""
    dtype: torch.dtype | None = None
    """Dtype of the result; that of the inputs where None."""
    into: Tensor | None = None
    """float32: the result is written to it; to a new tensor where None."""


def multiply_rows(
    kernel: str,
    x: Tensor,
    weight: PackedWeight,
    epilogue: Epilogue,
    fields: Sequence[Mapping[str, int | None]] | None = None,
) -> Tensor:
    """act(x W^T) * gate, or that added to `out`, in float32 and rounded once.

    Args:
        x: [M, C_in], or [n, M, C_in] where the weight holds n matrices.
        fields: further fields of each matrix's `Product`: scales and the like of 8-bit weights.

    Raises:
        ValueError: a shape, a dtype or an activation does not fit; the message says which.
    """
    activation, gate, out, dtype, into = epilogue
    if len(weight.shape) == 3 and (gate is not None or out is not None):
        raise ValueError("gate, out: got one beside several matrices, expected them with a single matrix only")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: got {activation!r}, expected one of {', '.join(map(str, ACTIVATIONS))}")
    *count, c_out, c_in = weight.shape
    rows = x.shape[-2] if x.dim() == len(weight.shape) else -1
    x = x.contiguous()
    address("x", x, (*count, rows, c_in), x.dtype)
    shape = (*count, rows, c_out)
    wanted = dtype or x.dtype
    address("into", into, shape, torch.float32)
    if out is not None:
        y = out
    elif into is not None:
        y, wanted = into, torch.float32
    else:
        y = torch.empty(shape, dtype=x.dtype if wanted == x.dtype else torch.float32, device="cpu")
    x_bytes, y_bytes = rows * c_in * x.itemsize, rows * c_out * y.itemsize
    after = {
        "activation": ACTIVATIONS[activation],
        "gate": address("gate", gate, shape, x.dtype),
        "out": address("out", out, shape, x.dtype),
        "y_is_float": y.dtype == torch.float32,
    }
    products = [
        weight.product(i, x=x.data_ptr() + i * x_bytes, y=y.data_ptr() + i * y_bytes, **after, **own)
        for i, own in enumerate(fields or [{}] * len(weight.addresses))
    ]
    multiply(kernel, x.dtype, rows, products)
    return y if out is not None or y.dtype == wanted else y.to(wanted)


def multiply_integers(kernel: str, levels: int, x: Tensor, q: PackedInt8, scale: Tensor, epilogue: Epilogue) -> Tensor:
    """`multiply_rows` for an int8 weight, with inputs quantized to integers from -levels to levels.

    Args:
        scale: [C_out] or [n, C_out] float32.
    """
    address("scale", scale, tuple(q.sums.shape), torch.float32)
    channel_bytes = q.shape[-2] * scale.itemsize
    starts = range(0, scale.nbytes, channel_bytes)
    fields = [
        {"scale": scale.data_ptr() + start, "weight_sums": q.sums.data_ptr() + start, "levels": levels}
        for start in starts
    ]
    return multiply_rows(kernel, x, q.weight, epilogue, fields)


def prefers_definition(dtype: torch.dtype) -> str | None:
    """The reason why products with dense weights are faster by the definition, if so."""
    if dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        return "oneDNN multiplies bfloat16 with this processor's matrix units"
    return None
