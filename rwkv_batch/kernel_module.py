"""The contract of a module with kernels: what the package of a backend has for one op.

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
    """Why the kernels cannot serve, in one line; None where they can. Asking may compile; `settings` never compiles."""


class OptionalMembers(Protocol):
    """What a kernel module may have as well, and what it means to leave a member out."""

    def pack(self, weight: Tensor) -> Any:
        """A weight → the packed weight, with `shape` and `nbytes`, that the op's function takes in its place.

        Left out: the function takes weights as tensors.
        """

    def prefers_definition(self, dtype: torch.dtype) -> str | None:
        """Why an optional op is faster by its definition for activations of this dtype, if so.

        Left out: never.
        """

    rows_independent: bool
    """The bits of a row's result do not depend on the number of rows; in `linear`, where `fixed_tiles` is asked for.

    Left out: False.
    """
    writes_into: bool
    """The op's function takes `into`: a float32 tensor that the product is written to. Left out: False."""


class CompiledModule(KernelModule, Protocol):
    """A module of `triton_kernels` or `cuda_kernels`, whose kernels are compiled when they are needed."""

    def specializations(self) -> list[Any]:
        """What is compiled for models of the usual sizes, for tests and for compiling ahead of time."""
