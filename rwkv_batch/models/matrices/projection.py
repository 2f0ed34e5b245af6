"""The op `project`: products of interpolated inputs with matrices of one shape, and with low-rank pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ...ops import OpSpec, OpTable
from .linear import LinearGroup
from .low_rank import LowRank


class Projection(NamedTuple):
    """The matrices that multiply the interpolated inputs of a time mix."""

    matrices: LinearGroup
    """n matrices [A, C]; matrix i multiplies input i."""
    low_rank: LowRank
    fixed_tiles: bool = False
    """A kernel computes a row with the same bits for every M."""


def project(inputs: Tensor, p: Projection, ops: OpTable) -> tuple[Sequence[Tensor], Tensor]:
    """The products of the matrices and of the low-rank pairs.

    Args:
        inputs: [m, M, C].
        ops: serves `low_rank`.

    Returns:
        n tensors [M, A], and the pairs' results [pairs, M, A]; dtype of `inputs`.
    """
    return p.matrices(inputs[: len(p.matrices)]), ops.low_rank(inputs, p.low_rank)


PROJECT = OpSpec("project", project, optional=True, is_recorded=False)
