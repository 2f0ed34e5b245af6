"""Layouts of Hugging Face folders: tensor names, shapes and orientations, mapped to the canonical ones.

A version lists its layouts (`Architecture.hugging_face`). Most follow one of two styles. One keeps the structure of the
canonical names and changes words and a few tensors, as transformers does. The other names the parts of a layer as other
language models do, as flash-linear-attention does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import CheckpointError
from ..schema import LAYER_TENSOR
from .stored import AS_STORED, LayerTargets, Targets, renamed

EpsilonOf = Callable[[Mapping[str, Any]], float | None]
"""The contents of config.json → epsilon of the group norm over heads, None where the folder does not state it.

Raises CheckpointError for a setting that is no number above 0.
"""


def _no_epsilon(config: Mapping[str, Any]) -> float | None:
    return None


def number(config: Mapping[str, Any], key: str) -> float | None:
    """A setting of config.json that is a number above 0; None where it is absent or null.

    Raises:
        CheckpointError: it is anything else.
    """
    value = config.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 2**31:
        raise CheckpointError(f"config.json: {key} is {str(value)[:80]!r}, expected a number above 0")
    return float(value)


def product(config: Mapping[str, Any], *keys: str) -> float | None:
    """The product of settings of config.json; None where one of them is absent."""
    factors = [number(config, key) for key in keys]
    return None if None in factors else math.prod(factor for factor in factors if factor is not None)


@dataclass(frozen=True)
class HfLayout:
    """The layout of one kind of Hugging Face folder.

    Args:
        model_type: the `model_type` in config.json.
        targets: a tensor's name without prefix → the canonical tensors. Unknown names stay as they are.
        ln_x_eps: reads the epsilon of the group norm over heads from config.json.
    """

    model_type: str
    targets: Callable[[str], Targets]
    ln_x_eps: EpsilonOf = _no_epsilon


_TRANSFORMERS_WORDS = {"embeddings": "emb", "pre_ln": "ln0", "attention": "att", "feed_forward": "ffn"}


def transformers_layout(
    model_type: str,
    words: Mapping[str, str] | None = None,
    ln_x_eps: EpsilonOf = _no_epsilon,
    layer: LayerTargets | None = None,
) -> HfLayout:
    """A layout in the style of transformers: blocks.0.attention.time_mix_key → blocks.0.att.time_mix_k.

    Args:
        words: word between the dots of a name → canonical word, in addition to `_TRANSFORMERS_WORDS`.
        layer: the tensors of a layer that differ in more than words, named without `blocks.N.`.
    """
    canonical = _TRANSFORMERS_WORDS | dict(words or {})

    def targets(name: str) -> Targets:
        name = ".".join(canonical.get(word, word) for word in name.split("."))
        match = LAYER_TENSOR.fullmatch(name)
        if match is None or layer is None or match[2] not in layer:
            return ((name, AS_STORED),)
        return tuple((f"blocks.{match[1]}.{ours}", restore) for ours, restore in layer[match[2]])

    return HfLayout(model_type, targets, ln_x_eps)


_TOP = {
    "embeddings.weight": "emb.weight",
    "embed_tokens.weight": "emb.weight",
    "embedding_norm.weight": "blocks.0.ln0.weight",
    "embedding_norm.bias": "blocks.0.ln0.bias",
    "norm.weight": "ln_out.weight",
    "norm.bias": "ln_out.bias",
    "lm_head.weight": "head.weight",
}
_NORMS = renamed(
    {
        "pre_norm": "ln0",
        "attn_norm": "ln1",
        "ffn_norm": "ln2",
        "attn.g_norm": "att.ln_x",
        "input_layernorm": "ln1",
        "post_attention_layernorm": "ln2",
        "linear_attn.g_norm": "att.ln_x",
    },
    ("weight", "bias"),
)


def fla_layout(model_type: str, layer: LayerTargets, ln_x_eps: EpsilonOf = _no_epsilon) -> HfLayout:
    """A layout whose layers are named `layers.N.`, in the style of flash-linear-attention.

    Args:
        layer: the tensors of a layer but for the norms, named without `layers.N.`.
    """
    known = {**_NORMS, **layer}

    def targets(name: str) -> Targets:
        match = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
        if match is None or match[2] not in known:
            return ((_TOP.get(name, name), AS_STORED),)
        return tuple((f"blocks.{match[1]}.{ours}", restore) for ours, restore in known[match[2]])

    return HfLayout(model_type, targets, ln_x_eps)
