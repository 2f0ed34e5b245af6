"""The op `low_rank`: products with pairs of factors C → R → A, for the data-dependent parameters of RWKV-6 and 7."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from ...ops import OpSpec
from .product import Activation, Linear


class LowRankPair(NamedTuple):
    """A pair of factors, with an activation between them."""

    source: int
    """The index of the pair's input."""
    activation: Activation | None
    down: Linear
    """C → R."""
    up: Linear
    """R → A."""


class LowRank(NamedTuple):
    """n pairs of factors that one call of an op multiplies."""

    pairs: tuple[LowRankPair, ...]
    down: Tensor | None
    """[ΣR, C]: the `down` of all pairs, one below the other, as kernels read them; None where no kernel does."""
    up: Tensor | None
    """[ΣR, A]: the transposed `up` of all pairs, one below the other; None as `down`."""

    @property
    def starts(self) -> tuple[int, ...]:
        """The rows of `down` and `up` at which the pairs start, and the row after the last pair."""
        return tuple(accumulate((pair.down.out_features for pair in self.pairs), initial=0))

    @staticmethod
    def stack(downs: Sequence[Tensor], ups: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The factors as checkpoints store them, [C, R_j] and [R_j, A] → [ΣR, C] and [ΣR, A]."""
        return torch.cat([factor.t() for factor in downs]), torch.cat(list(ups))


def low_rank(inputs: Tensor, p: LowRank) -> Tensor:
    """up_j(act_j(down_j(inputs[source_j]))) for each pair j.

    Args:
        inputs: [m, M, C].

    Returns:
        [n, M, A], dtype of `inputs`.
    """
    return torch.stack([pair.up(pair.down(inputs[pair.source], pair.activation)) for pair in p.pairs])


LOW_RANK = OpSpec("low_rank", low_rank, optional=True)
