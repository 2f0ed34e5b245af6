"""The implementation that is checked: a backend on a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

import torch

from ..engine.sampler import Sampler
from ..errors import BackendError
from ..kernel_module import KernelModule
from ..models.architecture import architectures
from ..models.blocks import LAYER_NORM, TAKE_ROWS
from ..models.matrices.quantization import QUANTIZATIONS, weight_format
from ..models.scoring import LOG_NORMALIZER, SCORE
from ..ops import Implementation, OpSpec, OpTable

CPU = torch.device("cpu")


class UnusableError(BackendError):
    """Kernels that are made for the settings cannot be compiled, loaded or launched; the message says why."""


@cache
def specs() -> dict[str, OpSpec]:
    """Every op of every model and of the sampler, by name."""
    found = [spec for architecture in architectures() for spec in architecture.ops]
    found += [TAKE_ROWS, LAYER_NORM, SCORE, LOG_NORMALIZER, *Sampler.OPS]
    found += [spec for name in QUANTIZATIONS for spec in weight_format(name).ops(CPU)]
    return {spec.name: spec for spec in found}


@dataclass(frozen=True)
class Target:
    """A backend on a device.

    Args:
        backend: "triton", "cuda", "cpu" or "reference"; or "auto", which chooses one for each op of a model.
    """

    backend: str
    device: torch.device

    @property
    def is_interpreted(self) -> bool:
        """Whether Triton's interpreter runs the kernels. It is slow: inputs are as small as possible."""
        return self.backend == "triton" and self.device.type == "cpu"

    def has(self, name: str) -> bool:
        """Whether the backend has an implementation of the op; it may not run on this machine."""
        if self.backend in ("auto", "reference"):
            return self.backend == "reference"
        return find_spec(f"rwkv_batch.{self.backend}_kernels.{name}") is not None

    def ops(
        self, name: str, dtype: torch.dtype = torch.bfloat16, state_dtype: torch.dtype = torch.float32, **sizes: int
    ) -> OpTable:
        """A table with this op alone.

        Args:
            sizes: letters of the architecture (C, N, V, ...) → values, for the kernel's own checks.

        Raises:
            BackendError: the backend has no such op, or is not made for these settings; the message says why.
            UnusableError: its kernels cannot be compiled, loaded or launched; the message says why.
        """
        if self.backend == "reference":
            return OpTable.of(**{name: specs()[name].definition})
        if not self.has(name):
            raise BackendError(f"no {self.backend} kernel {name!r}")
        module = cast(KernelModule, import_module(f"rwkv_batch.{self.backend}_kernels.{name}"))
        if reason := module.unsupported_reason.settings(self.device, dtype, sizes, state_dtype):
            raise BackendError(reason)
        if reason := module.unsupported_reason(self.device, dtype, sizes, state_dtype):
            raise UnusableError(reason)
        return OpTable({name: Implementation.of(name, module)})

    def op(
        self, name: str, dtype: torch.dtype = torch.bfloat16, state_dtype: torch.dtype = torch.float32, **sizes: int
    ) -> Callable[..., Any]:
        """The op's function; see `ops` for arguments and errors."""
        return getattr(self.ops(name, dtype, state_dtype, **sizes), name)
