"""RWKV-4: a scalar recurrence for each channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rwkv_batch.models.rwkv4 import Rwkv4

from .float64_parts import gated_channel_mix, lerp, project
from .variant import Reference, RwkvPackage, Tensors, Variant

SWITCHES = {"RWKV_V7_ON": "0", "RWKV_DE_VERSION": "0"}
"""Environment with which the `rwkv` package serves v4, v5 and v6."""


def initial(layer: Tensors) -> Tensors:
    zeros = torch.zeros(layer["att.key.weight"].shape[0], dtype=torch.float64)
    return {"aa": zeros, "bb": zeros, "pp": zeros - 1e30}


def time_mix(layer: Tensors, x: Tensor, old: Tensors, token: Tensors, eps: float) -> tuple[Tensor, Tensors]:
    """y = sum_i e^(k_i + w age_i) v_i / sum_i e^(k_i + w age_i); both sums are kept divided by e^pp."""
    r, k, v = project(layer, {name: lerp(old["att_shift"], x, layer[f"att.time_mix_{name}"]) for name in "rkv"})
    decay, bonus = -layer["att.time_decay"].flatten().exp(), layer["att.time_first"].flatten()

    peak = torch.maximum(old["pp"], bonus + k)
    past, present = torch.exp(old["pp"] - peak), torch.exp(bonus + k - peak)
    y = (past * old["aa"] + present * v) / (past * old["bb"] + present)

    peak = torch.maximum(old["pp"] + decay, k)
    past, present = torch.exp(old["pp"] + decay - peak), torch.exp(k - peak)
    memory = {"aa": past * old["aa"] + present * v, "bb": past * old["bb"] + present, "pp": peak}
    return torch.sigmoid(r) * y, memory


def channel_mix(layer: Tensors, x: Tensor, old: Tensors, token: Tensors) -> Tensor:
    return gated_channel_mix(layer, {name: lerp(old["ffn_shift"], x, layer[f"ffn.time_mix_{name}"]) for name in "rk"})


def token_4(x: Any, s: Tensors) -> tuple[Tensor, Tensors]:
    """Sums of e^k v and e^k over the past, each older by one decay a token; kept divided by e^pp."""
    a, b = s["aa"] * torch.exp(s["pp"]), s["bb"] * torch.exp(s["pp"])
    now, boosted = torch.exp(x["k"]), torch.exp(x["bonus"] + x["k"])
    y = (a + boosted * x["v"]) / (b + boosted)
    a, b = a * torch.exp(x["decay"]) + now * x["v"], b * torch.exp(x["decay"]) + now
    pp = torch.maximum(s["pp"] + x["decay"], x["k"])
    return torch.sigmoid(x["r"]) * y, {"aa": a / torch.exp(pp), "bb": b / torch.exp(pp), "pp": pp}


VARIANTS = (
    Variant(
        "4",
        Rwkv4,
        Reference(initial, time_mix, channel_mix),
        RwkvPackage(4.0, SWITCHES, ("att_shift", "aa", "bb", "pp", "ffn_shift")),
        launches=8,
        token_in_float64={"wkv4": token_4},
    ),
)
