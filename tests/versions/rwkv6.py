"""RWKV-6: a decay and interpolations that depend on the input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkv_batch.models.rwkv6 import Rwkv6

from .float64_parts import gated_channel_mix, initial_matrix, lerp, linear, split
from .rwkv4 import SWITCHES
from .rwkv5 import FIELDS, token_5, wkv_5
from .variant import Reference, RwkvPackage, Tensors, Variant


def time_mix(layer: Tensors, x: Tensor, old: Tensors, token: Tensors, eps: float) -> tuple[Tensor, Tensors]:
    """The time mix of 5.2, but the decay and the shares of the token shift depend on the input."""
    probe = torch.tanh(lerp(x, old["att_shift"], layer["att.time_maa_x"]) @ layer["att.time_maa_w1"])
    offsets = torch.einsum("bjr,jrc->jbc", split(probe, 5), layer["att.time_maa_w2"])
    inputs = {
        name: torch.lerp(x, old["att_shift"], layer[f"att.time_maa_{name}"].flatten() + offset)
        for name, offset in zip("wkvrg", offsets, strict=True)
    }
    log_rate = torch.tanh(inputs["w"] @ layer["att.time_decay_w1"]) @ layer["att.time_decay_w2"]
    decay = torch.exp(-torch.exp(layer["att.time_decay"].flatten() + log_rate))
    y, wkv = wkv_5(layer, inputs, split(decay, old["wkv"].shape[1]), old["wkv"], eps)
    return y * F.silu(linear(inputs["g"], layer["att.gate.weight"])), {"wkv": wkv}


def channel_mix(layer: Tensors, x: Tensor, old: Tensors, token: Tensors) -> Tensor:
    return gated_channel_mix(layer, {name: lerp(x, old["ffn_shift"], layer[f"ffn.time_maa_{name}"]) for name in "rk"})


VARIANTS = (
    Variant(
        "6.0",
        Rwkv6,
        Reference(initial_matrix("att.time_faaaa"), time_mix, channel_mix),
        RwkvPackage(6.0, SWITCHES, FIELDS),
        sizes={"Rw": 48},
        launches=14,
        token_in_float64={"wkv6": token_5},
    ),
)
