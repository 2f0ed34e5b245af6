"""The matrix products of a model alone: the shortest time that a step could take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkv_batch.models.files.checkpoint import open_checkpoint
from rwkv_batch.models.model import ModelFile

from .matrices import Matrix, layer_matrices

_ROWS_HINT = 32


def matrices(path: Path) -> list[Matrix]:
    """Lists every matrix that multiplies a token. The head comes last, because not every token needs it."""
    file = ModelFile.open(open_checkpoint(path))
    found = [
        matrix._replace(name=f"blocks.{i}.{matrix.name}")
        for i in range(file.sizes["L"])
        for matrix in layer_matrices(file.architecture.schema, file.sizes)
    ]
    present = [matrix for matrix in found if matrix.name in file.checkpoint.names]
    return [*present, Matrix("head.weight", file.sizes["V"], file.sizes["C"])]


def operations(found: list[Matrix], *, with_head: bool) -> int:
    """Counts the operations of one token: two for each number of each matrix."""
    return sum(2 * m.numbers for m in found if with_head or m.name != "head.weight")


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
