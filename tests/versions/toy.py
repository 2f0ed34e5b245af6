"""The toy version, which proves that a version needs its own file and a module here, and nothing else.

It has no kernels: its definition serves it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_batch.models.architecture import register

from .float64_parts import lerp, linear, project, squared_relu
from .toy_model import Toy
from .variant import Reference, Tensors, Variant


def initial(layer: Tensors) -> Tensors:
    return {"total": torch.zeros(layer["att.key.weight"].shape[0], dtype=torch.float64)}


def time_mix(layer: Tensors, x: Tensor, old: Tensors, token: Tensors, eps: float) -> tuple[Tensor, Tensors]:
    r, k, v = project(layer, {name: lerp(x, old["att_shift"], layer[f"att.share_{name}"]) for name in "rkv"})
    total = old["total"] * torch.exp(-torch.exp(layer["att.log_decay"])) + k * v
    return total / (1 + torch.exp(-r)), {"total": total}


def channel_mix(layer: Tensors, x: Tensor, old: Tensors, token: Tensors) -> Tensor:
    hidden = squared_relu(layer, lerp(x, old["ffn_shift"], layer["ffn.share_k"]))
    return linear(hidden, layer["ffn.value.weight"])


register(Toy)
VARIANTS = (Variant("toy", Toy, Reference(initial, time_mix, channel_mix), kernels=frozenset()),)
