"""The matrix products of a model alone: the shortest time that a step could take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_ELEMENTWISE = ("time_decay", "time_first", "time_faaaa", "r_k")
"""Tensors [H, N] that are no matrices: the model uses them elementwise."""
_ROWS_HINT = 32


class Matrix(NamedTuple):
    """Sizes of one product: [B, n_in] → [B, n_out]."""

    name: str
    n_out: int
    n_in: int


def matrices(path: Path) -> list[Matrix]:
    """Lists every matrix that multiplies a token. The head comes last, because not every token needs it."""
    stored: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    found = []
    for name, tensor in stored.items():
        shape = [size for size in tensor.shape if size > 1]
        if len(shape) < 2 or name == "emb.weight" or name.endswith(_ELEMENTWISE):
            continue
        n_out, n_in = shape[-2:] if name.endswith(".weight") else shape[:-3:-1]
        found += [Matrix(name, n_out, n_in)] * (shape[0] if len(shape) == 3 else 1)
    return sorted(found, key=lambda matrix: matrix.name == "head.weight")


def operations(found: list[Matrix], *, with_head: bool) -> int:
    """Counts the operations of one token: two for each number of each matrix."""
    return sum(2 * m.n_out * m.n_in for m in found if with_head or m.name != "head.weight")


class BareProducts:
    """All products of one token of `batch_size` rows, with random numbers, in the order of the model.

    Args:
        dtype: "float32" or "bfloat16".
    """

    def __init__(self, found: list[Matrix], dtype: str, batch_size: int) -> None:
        kind = getattr(torch, dtype)
        inputs = {m.n_in: torch.randn(batch_size, m.n_in).to(kind) for m in found}
        self._products = [(_packed(torch.randn(m.n_out, m.n_in).to(kind)), inputs[m.n_in]) for m in found]

    @torch.inference_mode()
    def seconds(self) -> float:
        """Returns the seconds of one pass over all products."""
        start = perf_counter()
        for multiply, x in self._products:
            multiply(x)
        return perf_counter() - start


def _packed(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Packs a weight for oneDNN where torch offers that; returns the product with it."""
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)
        product = torch.ops.mkldnn._linear_pointwise
        product(weight[:1], packed, None, "none", [], "")
    except (AttributeError, RuntimeError):
        return lambda x: F.linear(x, weight)
    return lambda x: product(x, packed, None, "none", [], "")
