"""The base class of versions whose layers keep a matrix [K, V] for each head: v5, v6 and v7."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .architecture import Architecture, StateField
from .schema import Shapes

TIME_STATE: Shapes = {"att.time_state": ("H", "N", "N")}
"""The matrices that state tuning stores for a layer (row = value channel)."""


class MatrixStateArchitecture(Architecture):
    """A version whose state of one layer is a matrix [K, V] for each head and two token-shift rows."""

    @classmethod
    def refine_sizes(cls, sizes: dict[str, int]) -> str | None:
        """Set N = A / H where no tensor has N as an axis. The heads must tile the attention width A."""
        width, heads = sizes["A"], sizes["H"]
        size = sizes.setdefault("N", max(width // heads, 1))
        return None if heads * size == width else f"{heads} heads of {size} do not make an attention width of {width}"

    @classmethod
    def state_fields(
        cls, sizes: Mapping[str, int], dtype: torch.dtype, state_dtype: torch.dtype
    ) -> tuple[StateField, ...]:
        head_size = sizes["N"]
        return (
            StateField("wkv", (sizes["H"], head_size, head_size), state_dtype),
            StateField("att_shift", (sizes["C"],), dtype),
            StateField("ffn_shift", (sizes["C"],), dtype),
        )

    @classmethod
    def initial_state(cls, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"wkv": stored["att.time_state"].float().transpose(-1, -2)}
