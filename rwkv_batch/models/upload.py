"""Numbers from the host to the device, without waiting for the copy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def upload(values: Sequence[float] | np.ndarray, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of these values on the device. On a CUDA device the copy takes its turn in the queue."""
    if device.type != "cuda":
        return torch.as_tensor(values, dtype=dtype).to(device)
    pinned = torch.empty(np.shape(values), dtype=dtype, pin_memory=True)
    pinned.copy_(torch.as_tensor(values))
    return pinned.to(device, non_blocking=True)
