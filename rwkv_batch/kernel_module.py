"""The protocol of a module with kernels, one for each op in the package of a backend.

The module is named like the op: `triton_kernels/wkv7.py`, `cuda_kernels/wkv7.py`, `cpu_kernels/wkv7.py` have `wkv7`.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from .kernel_support.unsupported import UnsupportedReason


class KernelModule(Protocol):
    """Every module of every backend.

    It also has the op itself: a function with the module's name. Its parameters start with those of the op's
    definition, in the same order; those that follow have defaults.
    """

    unsupported_reason: UnsupportedReason
    """The reason why the kernels cannot serve, in one line; None where they can. A call may compile kernels; a call of
    `settings` does not."""


class OptionalMembers(Protocol):
    """Members that a kernel module may have, and the meaning of leaving one out."""

    def pack(self, weight: Tensor) -> Any:
        """Packs a weight: the result has `shape` and `nbytes`, and the op's function takes it in the weight's place.

        Left out: the function takes weights as tensors.
        """

    def prefers_definition(self, dtype: torch.dtype) -> str | None:
        """The reason why an optional op is faster by its definition for activations of this dtype, if so.

        Left out: never.
        """

    rows_independent: bool
    """The bits of a row's result do not depend on the number of rows; in `linear`, where `fixed_tiles` is asked for.

    Left out: False.
    """
    writes_into: bool
    """The op's function takes `into`: a float32 tensor that the product is written to. Left out: False."""
    has_epilogue: bool
    """The op's function takes `activation`, `gate`, `out` and `dtype`, as `linear` does, where the op's definition does
    not. Left out: False."""
    defers_writes: bool
    """The op's function takes `ring`: a state is not written at every token, see `Rwkv7`. Left out: False."""


class CompiledModule(KernelModule, Protocol):
    """A module of `triton_kernels` or `cuda_kernels`, whose kernels are compiled when they are needed."""

    def specializations(self) -> list[Any]:
        """The compilations that models of the usual sizes need, for tests and for compiling ahead of time."""
