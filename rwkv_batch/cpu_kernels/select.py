"""From logits to token ids; see `select` in engine/selection.py for the definition."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from .call import INT, address, kernels, pointers
from .call import unsupported as unsupported_reason

__all__ = ["select", "unsupported_reason"]

_FILTERS = {
    "temperature": torch.float32,
    "filter_temperature": torch.float32,
    "top_p": torch.float64,
    "min_p": torch.float64,
    "top_k": torch.int64,
    "greedy": torch.bool,
    "untempered": torch.bool,
}


class Select(ctypes.Structure):
    """`Select` of csrc/select.cpp."""

    _fields_ = (
        ("num_rows", INT),
        ("vocab", INT),
        *pointers("logits", "temperature", "filter_temperature", "top_p", "min_p", "uniform"),
        *pointers("top_k", "greedy", "untempered", "token_ids"),
    )


def select(logits: Tensor, filters: Any, uniform: Tensor, normalizer: Tensor | None = None) -> Tensor:
    """As the definition. `normalizer` is not used: the kernel sums the masses of all rows in any case."""
    num_rows, vocab = logits.shape
    token_ids = torch.empty(num_rows, dtype=torch.int64, device="cpu")
    given = {name: address(f"filters.{name}", getattr(filters, name), (num_rows,), t) for name, t in _FILTERS.items()}
    arguments = Select(
        num_rows=num_rows,
        vocab=vocab,
        logits=address("logits", logits, (num_rows, vocab), torch.float32),
        uniform=address("uniform", uniform, (num_rows,), torch.float64),
        token_ids=token_ids.data_ptr(),
        **given,
    )
    kernels().select_tokens(ctypes.byref(arguments))
    return token_ids
