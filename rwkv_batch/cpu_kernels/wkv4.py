"""RWKV-4's recurrence; see `wkv4` in models/rwkv4.py for the definition."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .call import INT, address, call, pointers, pool_address, struct
from .call import unsupported as unsupported_reason

__all__ = ["unsupported_reason", "wkv4"]

Wkv4 = struct(
    "Wkv4",
    ("width", INT),
    ("slot_stride", INT),
    *pointers("r", "k", "v", "decay", "bonus", "aa", "bb", "pp", "out"),
)


def wkv4(
    r: Tensor, k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, aa: Tensor, bb: Tensor, pp: Tensor, rows: Any
) -> Tensor:
    """As the definition; products and state in float32. Slot -1 is padding: its output is 0, and no state changes."""
    shape, dtype, width = (rows.num_tokens, r.shape[1]), r.dtype, r.shape[1]
    out = torch.empty_like(r)
    states = {name: pool_address(name, s, (width,), torch.float32) for name, s in (("aa", aa), ("bb", bb), ("pp", pp))}
    call(
        "wkv4",
        dtype,
        Wkv4,
        rows,
        width=width,
        slot_stride=states["aa"][1],
        r=address("r", r, shape, dtype),
        k=address("k", k, shape, dtype),
        v=address("v", v, shape, dtype),
        decay=address("decay", decay, (width,), torch.float32),
        bonus=address("bonus", bonus, (width,), torch.float32),
        out=out.data_ptr(),
        **{name: start for name, (start, _) in states.items()},
    )
    return out
