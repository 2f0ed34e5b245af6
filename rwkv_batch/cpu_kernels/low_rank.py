"""Low-rank pairs, all in two calls; see `low_rank` in models/matrices/low_rank.py for the definition."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .call import address
from .call import unsupported as unsupported_reason
from .products import ACTIVATIONS, multiply, prefers_definition

__all__ = ["low_rank", "prefers_definition", "unsupported_reason"]


def low_rank(inputs: Tensor, p: Any) -> Tensor:
    """As the definition; the factors are weights that `linear` has packed."""
    num_inputs, rows, width = inputs.shape
    dtype = inputs.dtype
    address("inputs", inputs, (num_inputs, rows, width), dtype)
    out_features = p.pairs[0].up.out_features
    for j, pair in enumerate(p.pairs):
        shapes = tuple(pair.down.weight.shape), tuple(pair.up.weight.shape)
        rank = pair.down.out_features
        if shapes != ((rank, width), (out_features, rank)) or pair.source >= num_inputs:
            raise ValueError(
                f"pair {j}: got factors {shapes} of input {pair.source}, expected [R, {width}] and [{out_features}, R] "
                f"of one of {num_inputs} inputs"
            )
        if not dtype == pair.down.weight.dtype == pair.up.weight.dtype:
            raise ValueError(f"pair {j}: got {pair.down.weight.dtype}, {pair.up.weight.dtype}, expected {dtype}")
    hidden = torch.empty(rows * sum(pair.down.out_features for pair in p.pairs), dtype=dtype, device="cpu")
    out = torch.empty(len(p.pairs), rows, out_features, dtype=dtype, device="cpu")
    downs, ups = [], []
    between = hidden.data_ptr()
    for j, pair in enumerate(p.pairs):
        x = inputs.data_ptr() + pair.source * rows * width * inputs.itemsize
        downs.append(pair.down.weight.product(x=x, y=between, activation=ACTIVATIONS[pair.activation]))
        ups.append(pair.up.weight.product(x=between, y=out[j].data_ptr()))
        between += rows * pair.down.out_features * inputs.itemsize
    multiply("linear", dtype, rows, downs)
    multiply("linear", dtype, rows, ups)
    return out
