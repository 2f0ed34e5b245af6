"""Mathematics that the float64 references of several versions share.

Sizes: B rows, C model width, A time-mix width (H heads of N channels). A `wkv` state is [..., H, K, V]: row = key
channel, column = value channel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .variant import Tensors


def split(x: Tensor, parts: int) -> Tensor:
    """x [B, A] to [B, parts, A / parts]."""
    return x.view(x.shape[0], parts, -1)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [B, C_in] times a weight stored as [C_out, C_in]. Low-rank pairs are stored the other way round."""
    return x @ weight.T


def lerp(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """Token shift: v4 and v5 store the share of the present token, v6 and v7 that of the previous one."""
    return torch.lerp(start, end, share.flatten())


def layer_norm(x: Tensor, weights: Tensors, name: str) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), weights[f"{name}.weight"], weights[f"{name}.bias"])


def head_norm(y: Tensor, layer: Tensors, eps: float) -> Tensor:
    """Normalizes each head of y [B, H, N] on its own; returns [B, A]."""
    return F.group_norm(y.flatten(1), y.shape[1], layer["att.ln_x.weight"], layer["att.ln_x.bias"], eps)


def outer(k: Tensor, v: Tensor) -> Tensor:
    """[B, H, K] and [B, H, V] to [B, H, K, V]."""
    return k[..., :, None] * v[..., None, :]


def read(wkv: Tensor, r: Tensor) -> Tensor:
    """Sums wkv [B, H, K, V] over its key channels, weighted by r [B, H, K]; returns [B, H, V]."""
    return torch.einsum("bhkv,bhk->bhv", wkv, r)


def project(layer: Tensors, inputs: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    """Receptance, key and value, [B, A] each, of their shifted inputs "r", "k", "v"."""
    r = linear(inputs["r"], layer["att.receptance.weight"])
    k = linear(inputs["k"], layer["att.key.weight"])
    return r, k, linear(inputs["v"], layer["att.value.weight"])


def initial_matrix(heads: str) -> Callable[[Tensors], Tensors]:
    """The `initial` of a version with a matrix for each head.

    Args:
        heads: a tensor of the layer whose first axis is the heads.

    Returns:
        layer → "wkv" [H, K, V] of a fresh sequence: zeros, or the block's `time_state`, which is stored as [H, V, K].
    """

    def initial(layer: Tensors) -> Tensors:
        if "att.time_state" in layer:
            return {"wkv": layer["att.time_state"].transpose(1, 2)}
        H, A = layer[heads].shape[0], layer["att.key.weight"].shape[0]
        return {"wkv": torch.zeros(H, A // H, A // H, dtype=torch.float64)}

    return initial


def squared_relu(layer: Tensors, x: Tensor) -> Tensor:
    """The hidden layer of a channel mix, [B, F]."""
    return torch.relu(linear(x, layer["ffn.key.weight"])).square()


def gated_channel_mix(layer: Tensors, inputs: Tensors) -> Tensor:
    """The channel mix of v4, v5 and v6, of its shifted inputs "k" and "r". Returns [B, C]."""
    y = linear(squared_relu(layer, inputs["k"]), layer["ffn.value.weight"])
    return y * torch.sigmoid(linear(inputs["r"], layer["ffn.receptance.weight"]))


def centered_head_norm(y: Tensor, head: Any) -> Tensor:
    """The group norm of one token, [H, V] → [A], for the tests of kernels.

    Args:
        head: parameters of an op, with `eps` and `norm`.
    """
    centered = y - y.mean(1, keepdim=True)
    normed = centered / torch.sqrt(centered.square().mean(1, keepdim=True) + head.eps)
    return normed.flatten() * head.norm.weight + head.norm.bias
