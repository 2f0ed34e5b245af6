"""Numbers from the host to the device, without waiting for the copy; and the host memory that such copies need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def upload(values: Sequence[float] | np.ndarray, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of these values on the device. On a CUDA device the copy takes its turn in the queue."""
    host = torch.as_tensor(values, dtype=dtype)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def pinned_bytes(num_bytes: int, device: torch.device) -> int:
    """Host memory that a buffer of this size takes, for copies from and to `device`.

    For a CUDA device the buffer is pinned, and torch's allocator of pinned memory rounds sizes up to a power of two.
    """
    return 1 << (num_bytes - 1).bit_length() if device.type == "cuda" and num_bytes else num_bytes
