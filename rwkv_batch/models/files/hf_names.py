"""Hugging Face's tensor names, mapped to the canonical names, shapes and orientations.

Two families are known: that of transformers (RWKV-4, and RWKV-5 and 6 in the same style), whose tensors differ in name
only, and that of flash-linear-attention (RWKV-6 and 7), which transposes, stacks and reorders some.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from .weight_files import AS_STORED, Restore

Targets = tuple[tuple[str, Restore], ...]
"""The canonical tensors that one stored tensor gives, and how each is got from it."""


def is_fla(names: Iterable[str]) -> bool:
    return any(name.startswith("model.layers.") for name in names)


def canonical_targets(names: Iterable[str]) -> Callable[[str], Targets]:
    """Choose the map for a model with these names. Names that it doesn't know stay as they are."""
    names = set(names)
    if not is_fla(names):
        return _from_transformers
    layer = _FLA_V6 if any(name.endswith(".attn.x_bias") for name in names) else _FLA_V7

    def from_fla(name: str) -> Targets:
        match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
        if match is None or match[2] not in layer:
            return ((_FLA_TOP.get(name, name), AS_STORED),)
        return tuple((f"blocks.{match[1]}.{ours}", restore) for ours, restore in layer[match[2]])

    return from_fla


_TRANSFORMERS_WORDS = {
    "embeddings": "emb",
    "pre_ln": "ln0",
    "attention": "att",
    "feed_forward": "ffn",
    "time_mix_key": "time_mix_k",
    "time_mix_value": "time_mix_v",
    "time_mix_receptance": "time_mix_r",
    "time_mix_gate": "time_mix_g",
}


def _from_transformers(name: str) -> Targets:
    """rwkv.blocks.0.attention.time_mix_key → blocks.0.att.time_mix_k."""
    words = name.removeprefix("rwkv.").split(".")
    return ((".".join(_TRANSFORMERS_WORDS.get(word, word) for word in words), AS_STORED),)


_FLA_V6_ORDER = "rwkvg"
_V6_ORDER = "wkvrg"


def _row(stored: Tensor) -> Tensor:
    """[C] → [1, 1, C]."""
    return stored.reshape(1, 1, -1)


def _row_of(i: int) -> Restore:
    """Row i of [n, C] → [1, 1, C]."""
    return Restore(lambda stored: stored[i].reshape(1, 1, -1))


def _five_blocks(stored: Tensor) -> Tensor:
    """[C, 5 R] → [5, R, C]."""
    return stored.t().view(5, -1, len(stored))


def _reordered(values: Tensor) -> Tensor:
    """Bring five blocks, stacked along the first axis, into canonical order."""
    return values[[_FLA_V6_ORDER.index(letter) for letter in _V6_ORDER]]


def _reordered_columns(values: Tensor) -> Tensor:
    """The same for [C, 5 R]."""
    return _reordered(values.t().view(5, -1, len(values))).flatten(0, 1).t()


_ROW = Restore(_row)
_TRANSPOSED = Restore(Tensor.t)
_TIME_MAA_W1 = Restore(Tensor.t, _reordered_columns)
_TIME_MAA_W2 = Restore(_five_blocks, _reordered)


def _renamed(pairs: Mapping[str, str], kinds: Iterable[str]) -> dict[str, Targets]:
    return {f"{theirs}.{kind}": ((f"{ours}.{kind}", AS_STORED),) for theirs, ours in pairs.items() for kind in kinds}


_FLA_TOP = {
    "model.embeddings.weight": "emb.weight",
    "model.norm.weight": "ln_out.weight",
    "model.norm.bias": "ln_out.bias",
    "lm_head.weight": "head.weight",
}
_FLA_NORMS = _renamed(
    {"pre_norm": "ln0", "attn_norm": "ln1", "ffn_norm": "ln2", "attn.g_norm": "att.ln_x"}, ("weight", "bias")
)
_FLA_V6: dict[str, Targets] = {
    **_FLA_NORMS,
    **_renamed(
        {
            "attn.r_proj.linear": "att.receptance",
            "attn.k_proj.linear": "att.key",
            "attn.v_proj.linear": "att.value",
            "attn.g_proj.linear": "att.gate",
            "attn.o_proj": "att.output",
            "ffn.key.linear": "ffn.key",
            "ffn.value": "ffn.value",
            "ffn.receptance.linear": "ffn.receptance",
        },
        ("weight",),
    ),
    "attn.x_proj.0.mu": (("att.time_maa_x", _ROW),),
    "attn.x_proj.0.linear.weight": (("att.time_maa_w1", _TIME_MAA_W1),),
    "attn.x_proj.2.weight": (("att.time_maa_w2", _TIME_MAA_W2),),
    "attn.x_bias": tuple((f"att.time_maa_{m}", _row_of(i)) for i, m in enumerate(_FLA_V6_ORDER)),
    "attn.w_proj.linear.lora.0.weight": (("att.time_decay_w1", _TRANSPOSED),),
    "attn.w_proj.linear.lora.2.weight": (("att.time_decay_w2", _TRANSPOSED),),
    "attn.w_proj.linear.lora.2.bias": (("att.time_decay", _ROW),),
    "attn.bonus": (("att.time_faaaa", AS_STORED),),
    "ffn.key.mu": (("ffn.time_maa_k", _ROW),),
    "ffn.receptance.mu": (("ffn.time_maa_r", _ROW),),
}
_FLA_V7: dict[str, Targets] = {
    **_FLA_NORMS,
    **_renamed(
        {
            "attn.r_proj": "att.receptance",
            "attn.k_proj": "att.key",
            "attn.v_proj": "att.value",
            "attn.o_proj": "att.output",
            "ffn.key": "ffn.key",
            "ffn.value": "ffn.value",
        },
        ("weight",),
    ),
    **{f"attn.{name}": ((f"att.{name}", _ROW),) for name in ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "k_k", "k_a")},
    # Older files stack the six x_ vectors.
    "attn.x_x": tuple((f"att.x_{m}", _row_of(i)) for i, m in enumerate("rwkvag")),
    **{f"attn.{m}_lora.lora.2.bias": ((f"att.{m}0", _ROW),) for m in "wav"},
    **{f"attn.{m}_lora.lora.0.weight": ((f"att.{m}1", _TRANSPOSED),) for m in "wavg"},
    **{f"attn.{m}_lora.lora.2.weight": ((f"att.{m}2", _TRANSPOSED),) for m in "wavg"},
    "attn.r_k": (("att.r_k", AS_STORED),),
    "ffn.x_k": (("ffn.x_k", _ROW),),
}
