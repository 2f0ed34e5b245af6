"""Ranks of tokens, and the most likely ones; see `top_tokens` in engine/logprobs.py for the definition."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from .call import INT, address, kernels, pointers
from .call import unsupported as unsupported_reason

__all__ = ["top_tokens", "unsupported_reason"]


class TopTokens(ctypes.Structure):
    """`TopTokens` of csrc/top_tokens.cpp."""

    _fields_ = (
        *((name, INT) for name in ("num_tokens", "vocab", "count")),
        *pointers("logits", "rows", "token_ids", "rank", "top_ids"),
    )


def top_tokens(logits: Tensor, rows: Tensor, token_ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As the definition, without sorting the row.

    Raises:
        ValueError: a shape, dtype or stride differs; `count` is not from 0 to V; a row or a token does not exist.
    """
    num_rows, vocab = logits.shape
    if not 0 <= count <= vocab:
        raise ValueError(f"count: got {count}, expected 0 to {vocab}")
    for name, index, size in (("rows", rows, num_rows), ("token_ids", token_ids, vocab)):
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < size:
            raise ValueError(f"{name}: got {int(index.min())} to {int(index.max())}, expected 0 to {size - 1}")
    rank = torch.empty(len(rows), dtype=torch.int64, device="cpu")
    top_ids = torch.empty(len(rows), count, dtype=torch.int64, device="cpu")
    arguments = TopTokens(
        num_tokens=len(rows),
        vocab=vocab,
        count=count,
        logits=address("logits", logits, (num_rows, vocab), torch.float32),
        rows=address("rows", rows, (len(rows),), torch.int64),
        token_ids=address("token_ids", token_ids, (len(rows),), torch.int64),
        rank=rank.data_ptr(),
        top_ids=top_ids.data_ptr(),
    )
    kernels().top_tokens(ctypes.byref(arguments))
    return rank, top_ids
