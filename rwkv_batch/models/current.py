"""The device that CUDA work without a device of its own goes to: kernel launches, events, streams."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Makes `device` the current CUDA device inside, for this thread; does nothing where it is no CUDA device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
