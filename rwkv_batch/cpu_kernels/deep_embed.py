"""The gate of DeepEmbed; see `deep_embed` in models/rwkv7.py for the definition."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from .call import DTYPES, INT, address, pointers, run
from .call import unsupported as unsupported_reason
from .products import prefers_definition

__all__ = ["deep_embed", "prefers_definition", "unsupported_reason"]


class DeepEmbed(ctypes.Structure):
    """`DeepEmbed` of csrc/deep_embed.cpp."""

    _fields_ = (
        *((name, INT) for name in ("num_rows", "table_rows", "rank", "width")),
        *pointers("low", "table", "token_ids", "s0", "turned", "gate"),
    )


def deep_embed(normed: Tensor, token_ids: Tensor, p: Any) -> Tensor:
    """As the definition; the factors are weights that `linear` has packed. Three calls.

    Raises:
        IndexError: a token is none of the table.
        ValueError: a tensor is not as the definition says.
    """
    (pair,) = p.factors.pairs
    num_rows, table_rows, dtype = len(normed), len(p.table), normed.dtype
    rank, width = pair.down.out_features, pair.up.out_features
    low = pair.down(normed)
    turned, gate = torch.empty_like(low), torch.empty(num_rows, width, dtype=dtype)
    arguments = DeepEmbed(
        num_rows=num_rows,
        table_rows=table_rows,
        rank=rank,
        width=width,
        low=address("low", low, (num_rows, rank), dtype),
        table=address("table", p.table, (table_rows, rank * rank), dtype),
        token_ids=address("token_ids", token_ids, (num_rows,), torch.int64),
        s0=address("s0", p.s0, (width,), dtype),
        turned=turned.data_ptr(),
        gate=gate.data_ptr(),
    )
    if wrong := run(f"deep_embed_{DTYPES[dtype]}", arguments):
        raise IndexError(f"token_ids: got {int(token_ids[wrong - 1])} at {wrong - 1}, expected 0 to {table_rows - 1}")
    result: Tensor = pair.up(turned, out=gate)
    return result
