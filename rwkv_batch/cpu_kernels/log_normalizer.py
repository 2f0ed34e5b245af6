"""log sum exp of each row; see `log_normalizer` in models/scoring.py for the definition."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from .call import INT, address, kernels, pointers
from .call import unsupported as unsupported_reason

__all__ = ["log_normalizer", "unsupported_reason"]


class Normalize(ctypes.Structure):
    """`Normalize` of csrc/select.cpp."""

    _fields_ = (("num_rows", INT), ("vocab", INT), *pointers("logits", "out"))


def log_normalizer(logits: Tensor) -> Tensor:
    """As the definition. Sums of 64 numbers are float32; their sum is float64."""
    out = torch.empty(len(logits), dtype=torch.float64, device="cpu")
    start = address("logits", logits, logits.shape, torch.float32)
    arguments = Normalize(num_rows=len(logits), vocab=logits.shape[1], logits=start, out=out.data_ptr())
    kernels().log_normalizer(ctypes.byref(arguments))
    return out
