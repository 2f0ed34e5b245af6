"""Low-rank pairs C → R → A, several at once: RWKV-6 and 7 make their data-dependent parameters with them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from ...ops import OpSpec
from .product import Activation, Linear


class LowRankPair(NamedTuple):
    """One pair of factors, with a nonlinearity in between."""

    source: int
    """Which of the inputs it takes."""
    activation: Activation | None
    down: Linear
    """C → R."""
    up: Linear
    """R → A."""


class LowRank(NamedTuple):
    """n pairs that are computed together."""

    pairs: tuple[LowRankPair, ...]
    down: Tensor | None
    """[ΣR, C]: all `down` below one another, for kernels; None where another form of the pairs serves."""
    up: Tensor | None
    """[ΣR, A]: all `up`, transposed, below one another."""

    @property
    def starts(self) -> tuple[int, ...]:
        """Row of `down` and `up` at which each pair starts, and where the last one ends."""
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
