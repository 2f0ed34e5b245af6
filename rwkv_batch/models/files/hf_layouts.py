"""Layouts of Hugging Face folders: tensor names, shapes and orientations, mapped to the canonical ones.

A version lists its layouts (`Architecture.hugging_face`). Most follow one of two styles: that of transformers, in which
tensors differ from the canonical ones in name only, and that of flash-linear-attention, which transposes, stacks and
reorders some.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .stored import AS_STORED, LayerTargets, Targets, renamed

EpsilonOf = Callable[[Mapping[str, Any]], float | None]
"""The contents of config.json → epsilon of the group norm over heads, None where the folder does not state it."""


def _no_epsilon(config: Mapping[str, Any]) -> float | None:
    return None


@dataclass(frozen=True)
class HfLayout:
    """The layout of one kind of Hugging Face folder.

    Args:
        model_type: the `model_type` in config.json.
        targets: a tensor's name → the canonical tensors. Unknown names stay as they are.
        ln_x_eps: reads the epsilon of the group norm over heads from config.json.
    """

    model_type: str
    targets: Callable[[str], Targets]
    ln_x_eps: EpsilonOf = _no_epsilon


_TRANSFORMERS_WORDS = {"embeddings": "emb", "pre_ln": "ln0", "attention": "att", "feed_forward": "ffn"}


def transformers_layout(
    model_type: str, words: Mapping[str, str] | None = None, ln_x_eps: EpsilonOf = _no_epsilon
) -> HfLayout:
    """A layout in the style of transformers: rwkv.blocks.0.attention.time_mix_key → blocks.0.att.time_mix_k.

    Args:
        words: word between the dots of a name → canonical word, in addition to `_TRANSFORMERS_WORDS`.
    """
    canonical = _TRANSFORMERS_WORDS | dict(words or {})

    def targets(name: str) -> Targets:
        parts = name.removeprefix("rwkv.").split(".")
        return ((".".join(canonical.get(word, word) for word in parts), AS_STORED),)

    return HfLayout(model_type, targets, ln_x_eps)


_FLA_TOP = {
    "model.embeddings.weight": "emb.weight",
    "model.norm.weight": "ln_out.weight",
    "model.norm.bias": "ln_out.bias",
    "lm_head.weight": "head.weight",
}
_FLA_NORMS = renamed(
    {"pre_norm": "ln0", "attn_norm": "ln1", "ffn_norm": "ln2", "attn.g_norm": "att.ln_x"}, ("weight", "bias")
)


def fla_layout(model_type: str, layer: LayerTargets, ln_x_eps: EpsilonOf = _no_epsilon) -> HfLayout:
    """A layout in the style of flash-linear-attention.

    Args:
        layer: the tensors of a layer but for the norms, named without `model.layers.N.`.
    """
    known = {**_FLA_NORMS, **layer}

    def targets(name: str) -> Targets:
        match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
        if match is None or match[2] not in known:
            return ((_FLA_TOP.get(name, name), AS_STORED),)
        return tuple((f"blocks.{match[1]}.{ours}", restore) for ours, restore in known[match[2]])

    return HfLayout(model_type, targets, ln_x_eps)
