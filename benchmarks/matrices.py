"""The matrices that a layer of any version multiplies its tokens with, read from the version's schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rwkv_batch.models.schema import Schema

_NOT_MULTIPLIED = {"V", "RR", "H"}
"""Axes of tables, in which a token looks up its row, and of parameters of heads."""


class Matrix(NamedTuple):
    """Sizes of one product: [B, n_in] → [B, n_out]."""

    name: str
    n_out: int
    n_in: int

    @property
    def numbers(self) -> int:
        return self.n_out * self.n_in

    @property
    def is_factor(self) -> bool:
        """A factor of a low-rank pair, which is stored as [n_in, n_out]; large matrices are stored as [n_out, n_in]."""
        return not self.name.endswith(".weight")


def layer_matrices(schema: Schema, sizes: Mapping[str, int]) -> list[Matrix]:
    """The matrices of one layer; a tensor of three axes holds several of one name.

    Args:
        sizes: letter → size.
    """
    found = []
    for name, shape in schema.layer.items():
        if isinstance(shape, str) or _NOT_MULTIPLIED & set(shape):
            continue
        *count, first, second = (axis if isinstance(axis, int) else sizes[axis] for axis in shape)
        n_out, n_in = (first, second) if name.endswith(".weight") else (second, first)
        found += [Matrix(name, n_out, n_in)] * (count[0] if count else 1)
    return found
