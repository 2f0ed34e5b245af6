"""RWKV-5.0, 5.1 and 5.2: a matrix for each head."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkv_batch.models.rwkv5 import Rwkv50, Rwkv51, Rwkv52

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
)
from .rwkv4 import SWITCHES, channel_mix
from .variant import Reference, RwkvPackage, Tensors, Variant

FIELDS = ("att_shift", "wkv", "ffn_shift")


def time_mix(layer: Tensors, x: Tensor, old: Tensors, token: Tensors, eps: float) -> tuple[Tensor, Tensors]:
    """The decay is one number a head in 5.0 and 5.1, one a channel in 5.2; 5.0 has no gate."""
    names = [name for name in "rkvg" if f"att.time_mix_{name}" in layer]
    inputs = {name: lerp(old["att_shift"], x, layer[f"att.time_mix_{name}"]) for name in names}
    decay = torch.exp(-layer["att.time_decay"].reshape(old["wkv"].shape[1], -1).exp())
    y, wkv = wkv_5(layer, inputs, decay, old["wkv"], eps)
    if "g" in inputs:
        y = y * F.silu(linear(inputs["g"], layer["att.gate.weight"]))
    return y, {"wkv": wkv}


def wkv_5(layer: Tensors, inputs: Tensors, decay: Tensor, wkv: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y = r (S + u k^T v), S' = w S + k^T v, where u and the decay w ([B, H, K], or broadcast to it) scale the rows.

    Returns:
        y [B, A], normalized, and S' [B, H, K, V].
    """
    H = wkv.shape[1]
    # `time_faaaa` is the bonus itself, the older `time_first` its logarithm.
    bonus = layer["att.time_faaaa"] if "att.time_faaaa" in layer else layer["att.time_first"].exp()
    r, k, v = (split(vector, H) for vector in project(layer, inputs))
    present = outer(k, v)
    y = read(wkv + bonus.reshape(H, -1, 1) * present, r)
    return head_norm(y, layer, eps), decay[..., None] * wkv + present


def token_5(x: Any, s: Tensors) -> tuple[Tensor, Tensors]:
    """v5, and v6 where there is a `w`."""
    head, state = x["head"], s["state"]
    r, k, v = (x[name].view(head.bonus.shape) for name in "rkv")
    decay = torch.exp(-torch.exp(head.decay + x["w"].view_as(k))) if "w" in x else head.decay
    present = torch.einsum("hk,hv->hkv", k, v)
    y = torch.einsum("hk,hkv->hv", r, state + head.bonus[:, :, None] * present)
    y = centered_head_norm(y, head)
    return y if x["g"] is None else y * F.silu(x["g"]), {"state": decay[:, :, None] * state + present}


REFERENCE = Reference(initial_matrix("att.time_decay"), time_mix, channel_mix)
VARIANTS = tuple(
    Variant(
        name,
        architecture,
        REFERENCE,
        RwkvPackage(float(name), SWITCHES, FIELDS),
        launches=8,
        token_in_float64={"wkv5": token_5},
    )
    for name, architecture in (("5.0", Rwkv50), ("5.1", Rwkv51), ("5.2", Rwkv52))
)
