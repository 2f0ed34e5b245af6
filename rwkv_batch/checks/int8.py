"""Checks of the products with int8 weights: mm8 against the decoded matrix, w8a8 and w8a16 bit by bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..models.matrices import w8a8_linear
from ..models.matrices.mm8 import Mm8Weight, quantize_mm8
from ..models.matrices.mm8_linear import Mm8Linear
from .comparisons import Checks, poisoned
from .limits import mm8_tolerance
from .products import Product
from .target import Target

DEFINITIONS = {"w8a8": w8a8_linear.w8a8, "w8a16": w8a8_linear.w8a16}


def check_mm8(target: Target, product: Product, dtype: torch.dtype, tokens: Iterable[int]) -> Checks:
    """Compares results with float64 products of the decoded matrix."""
    checks, table = Checks(), target.ops("mm8", dtype)
    torch.manual_seed(0)
    weight = quantize_mm8(torch.randn(product.N, product.K, device=target.device) * product.K**-0.5)
    layer, exact = Mm8Linear(weight, target.device, table.implementations["mm8"]), _decoded(weight)
    for x in _inputs(target, product, dtype, tokens):
        with poisoned():
            y = layer(x)
        checks.close_in_norm(_name(product, x), y, x.double() @ exact.t(), mm8_tolerance(dtype))
    return checks


def check_whole_numbers(target: Target, op: str, product: Product, dtype: torch.dtype, tokens: Iterable[int]) -> Checks:
    """Compares results of `w8a8` or `w8a16` with the definition on the host, whose sums are exact."""
    checks, table = Checks(), target.ops(op, dtype)
    torch.manual_seed(0)
    q = torch.randint(-127, 128, (product.N, product.K), device=target.device, dtype=torch.int8)
    scale, packed = torch.rand(product.N, device=target.device), table.pack(op, q)
    for x in _inputs(target, product, dtype, tokens):
        with poisoned():
            y = getattr(table, op)(x, packed, scale)
        checks.same(_name(product, x), y, DEFINITIONS[op](x.cpu(), q.cpu(), scale.cpu()))
    return checks


def _inputs(target: Target, product: Product, dtype: torch.dtype, tokens: Iterable[int]) -> Iterator[Tensor]:
    """Inputs [M, K]; those of a value matrix are squared ReLUs."""
    for M in tokens:
        x = torch.randn(M, product.K, device=target.device)
        yield (x.relu().square() if product.use == "value" else x).to(dtype)


def _name(product: Product, x: Tensor) -> str:
    return f"{product.use} {product.N} x {product.K}, M={len(x)}"


def _decoded(w: Mm8Weight) -> Tensor:
    """The matrix [N, K] that an 8-bit form encodes, float64."""
    q, mx, rx, my, ry = (tensor.double() for tensor in (w.q, w.mx, w.rx, w.my, w.ry))
    return ((q + 0.5) * ry[:, None] * rx + my[:, None] + mx).t()
