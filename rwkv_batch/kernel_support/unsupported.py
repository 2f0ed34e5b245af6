"""Reasons why the kernels of an op cannot serve: settings without a kernel, or a compiler that fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Settings = Callable[[torch.device, torch.dtype, Mapping[str, int], torch.dtype], str | None]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of activations that every kernel package serves."""


@dataclass(frozen=True)
class UnsupportedReason:
    """The `unsupported_reason` of a module with kernels.

    Args:
        settings: the reason why no kernel is written for a device, a dtype, sizes and a dtype of the state; None where
            one is. Arguments as below. Compiles nothing.
        failure: the reason why the kernels cannot be compiled, loaded or launched with settings that `settings`
            accepts; None where they can. Same arguments.
    """

    settings: Settings
    failure: Settings

    def __call__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        sizes: Mapping[str, int],
        state_dtype: torch.dtype = torch.float32,
    ) -> str | None:
        """The reason why the kernels cannot serve, in one line; None where they can.

        Args:
            dtype: of the activations.
            sizes: letters of the architecture (C, N, V, ...) → values.
        """
        return self.settings(device, dtype, sizes, state_dtype) or self.failure(device, dtype, sizes, state_dtype)


def low_capability(device: torch.device, minimum: tuple[int, int]) -> str | None:
    """The reason why an NVIDIA GPU is too old, if its compute capability is below `minimum`."""
    found = torch.cuda.get_device_capability(device)
    if found >= minimum:
        return None
    return f"needs compute capability {'.'.join(map(str, minimum))}, found {'.'.join(map(str, found))}"


def no_kernel_for(dtype: torch.dtype, dtypes: Sequence[torch.dtype] = DTYPES, what: str = "") -> str | None:
    """The reason why a dtype is not served, if it is not one of `dtypes`. `what` has the dtype: "a state of "."""
    return None if dtype in dtypes else f"no kernel for {what}{dtype}"
