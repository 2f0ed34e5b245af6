"""RWKV-7, and its variant with DeepEmbed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkv_batch.models.rwkv7 import Rwkv7, Rwkv7DeepEmbed

from .float64_parts import (
    centered_head_norm,
    head_norm,
    initial_matrix,
    lerp,
    linear,
    outer,
    project,
    read,
    split,
    squared_relu,
)
from .rwkv5 import FIELDS
from .variant import Reference, RwkvPackage, Tensors, Variant

SIZES = {"Rw": 32, "Ra": 24, "Rv": 16, "Rg": 40}


def time_mix(layer: Tensors, x: Tensor, old: Tensors, token: Tensors, eps: float) -> tuple[Tensor, Tensors]:
    """S' = w S - (a kk)^T (kk S) + k^T v, y = r S', where w scales the rows: S forgets part of what kk finds in it.

    From the first block on, `token` has "v_first" [B, A].
    """
    inputs = {name: lerp(x, old["att_shift"], layer[f"att.x_{name}"]) for name in "rwkvag"}

    def low_rank(name: str, activation: Callable[[Tensor], Tensor]) -> Tensor:
        return activation(inputs[name] @ layer[f"att.{name}1"]) @ layer[f"att.{name}2"]

    def rate(name: str, activation: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.sigmoid(layer[f"att.{name}0"].flatten() + low_rank(name, activation))

    r, k, v = project(layer, inputs)
    w = torch.exp(-math.exp(-0.5) * rate("w", torch.tanh))
    a = rate("a", torch.nn.Identity())
    if "v_first" in token:
        v = torch.lerp(v, token["v_first"], rate("v", torch.nn.Identity()))
    else:
        token["v_first"] = v
    kk = k * layer["att.k_k"].flatten()
    k = k * (1 + (a - 1) * layer["att.k_a"].flatten())

    r, w, k, v, a, kk = (split(vector, old["wkv"].shape[1]) for vector in (r, w, k, v, a, kk))
    kk = F.normalize(kk, dim=-1)
    wkv = w[..., None] * old["wkv"] - outer(a * kk, read(old["wkv"], kk)) + outer(k, v)
    bonus = (r * k * layer["att.r_k"]).sum(-1, keepdim=True) * v
    y = head_norm(read(wkv, r), layer, eps) + bonus.flatten(1)
    return y * low_rank("g", torch.sigmoid), {"wkv": wkv}


def channel_mix(layer: Tensors, x: Tensor, old: Tensors, token: Tensors) -> Tensor:
    return linear(squared_relu(layer, lerp(x, old["ffn_shift"], layer["ffn.x_k"])), layer["ffn.value.weight"])


def deep_channel_mix(layer: Tensors, x: Tensor, old: Tensors, token: Tensors) -> Tensor:
    hidden = squared_relu(layer, lerp(x, old["ffn_shift"], layer["ffn.x_k"]))
    return linear(hidden * deep_embedding(layer, x, token), layer["ffn.value.weight"])


def deep_embedding(layer: Tensors, x: Tensor, token: Tensors) -> Tensor:
    """DeepEmbed's scale of each hidden channel: x, not shifted, goes through an [R, R] matrix of the token's own."""
    R = layer["ffn.s1"].shape[1]
    own = layer["ffn.s_emb.weight"][token["ids"]] + linear(token["embedding"], layer["ffn.s_emb_x.weight"])
    middle = torch.einsum("bi,bij->bj", x @ layer["ffn.s1"], own.view(-1, R, R))
    return middle @ layer["ffn.s2"] + layer["ffn.s0"].flatten()


def token_7(x: Any, s: Tensors) -> tuple[Tensor, Tensors]:
    head, state = x["head"], s["state"]
    v, rate = x["v"], torch.sigmoid(head.a0 + x["a"])
    if x["v_first"] is not None:
        v = v + (x["v_first"] - v) * torch.sigmoid(head.v0 + x["v_gate"])
    decay = torch.exp(-math.exp(-0.5) * torch.sigmoid(head.w0 + x["w"]))
    removal, k = x["k"] * head.k_k, x["k"] * (1 + (rate - 1) * head.k_a)
    r, v, rate, decay, removal, k = (y.view(head.r_k.shape) for y in (x["r"], v, rate, decay, removal, k))
    removal = removal / removal.norm(dim=1, keepdim=True)
    removed = torch.einsum("hk,hkv->hv", removal, state)
    state = decay[:, :, None] * state + torch.einsum("hk,hv->hkv", k, v)
    state = state - torch.einsum("hk,hv->hkv", removal * rate, removed)
    own = (r * k * head.r_k).sum(1, keepdim=True) * v
    y = centered_head_norm(torch.einsum("hk,hkv->hv", r, state), head)
    return (y + own.flatten()) * x["g"], {"state": state}


def package(deep_embed: bool) -> RwkvPackage:
    switches = {"RWKV_V7_ON": "1", "RWKV_DE_VERSION": str(int(deep_embed))}
    return RwkvPackage(7.0, switches, FIELDS, transposed=("wkv",))


VARIANTS = (
    Variant(
        "7.0",
        Rwkv7,
        Reference(initial_matrix("att.r_k"), time_mix, channel_mix),
        package(deep_embed=False),
        sizes=SIZES,
        has_own_width=False,
        launches=8,
        token_in_float64={"wkv7": token_7},
    ),
    Variant(
        "7.0de",
        Rwkv7DeepEmbed,
        Reference(initial_matrix("att.r_k"), time_mix, deep_channel_mix),
        package(deep_embed=True),
        sizes=SIZES,
        has_own_width=False,
        launches=9,
        token_in_float64={"wkv7": token_7},
    ),
)
