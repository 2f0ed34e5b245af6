"""Why the kernels of an op cannot serve: settings that no kernel is written for, or a compiler that fails.

Nothing here needs triton.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Settings = Callable[[torch.device, torch.dtype, Mapping[str, int], torch.dtype], str | None]


@dataclass(frozen=True)
class UnsupportedReason:
    """The `unsupported_reason` of a module with kernels.

    Args:
        settings: why no kernel is written for these arguments, if so: device, dtype, sizes and dtype of the state, as
            below. Nothing is compiled.
        failure: why the kernels cannot be compiled, loaded or launched, if so: for a device and a dtype that `settings`
            does not refuse.
    """

    settings: Settings
    failure: Callable[[torch.device, torch.dtype], str | None]

    def __call__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        sizes: Mapping[str, int],
        state_dtype: torch.dtype = torch.float32,
    ) -> str | None:
        """Why the kernels cannot serve, in one line; None where they can.

        Args:
            dtype: of the activations.
            sizes: letters of the architecture (C, N, V, ...) → values.
        """
        return self.settings(device, dtype, sizes, state_dtype) or self.failure(device, dtype)
