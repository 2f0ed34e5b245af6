"""The layouts of Hugging Face folders of RWKV-7."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .hf_layouts import fla_layout, number, product, transformers_layout
from .stored import AS_STORED, ROW, TRANSPOSED, LayerTargets, renamed, row_of

_FLA: LayerTargets = {
    **renamed(
        {
            "attn.r_proj": "att.receptance",
            "attn.k_proj": "att.key",
            "attn.v_proj": "att.value",
            "attn.o_proj": "att.output",
            "ffn.key": "ffn.key",
            "ffn.value": "ffn.value",
        }
    ),
    **{f"attn.{name}": ((f"att.{name}", ROW),) for name in ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "k_k", "k_a")},
    # Older files stack the six x_ vectors.
    "attn.x_x": tuple((f"att.x_{c}", row_of(i)) for i, c in enumerate("rwkvag")),
    **{f"attn.{c}_lora.lora.2.bias": ((f"att.{c}0", ROW),) for c in "wav"},
    **{f"attn.{c}_lora.lora.0.weight": ((f"att.{c}1", TRANSPOSED),) for c in "wavg"},
    **{f"attn.{c}_lora.lora.2.weight": ((f"att.{c}2", TRANSPOSED),) for c in "wavg"},
    "attn.r_k": (("att.r_k", AS_STORED),),
    "ffn.x_k": (("ffn.x_k", ROW),),
}
"""Names in flash-linear-attention → canonical tensors."""


_RWKV_RS: LayerTargets = {
    **renamed(
        {
            "linear_attn.r_proj": "att.receptance",
            "linear_attn.k_proj": "att.key",
            "linear_attn.v_proj": "att.value",
            "linear_attn.o_proj": "att.output",
            "mlp.key": "ffn.key",
            "mlp.value": "ffn.value",
        }
    ),
    **{
        f"linear_attn.{name}": ((f"att.{name}", ROW),)
        for name in ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "k_k", "k_a", "w0", "a0", "v0")
    },
    **{f"linear_attn.{c}{i}": ((f"att.{c}{i}", AS_STORED),) for c in "wavg" for i in (1, 2)},
    "linear_attn.r_k": (("att.r_k", AS_STORED),),
    "mlp.x_k": (("ffn.x_k", ROW),),
}
"""Names in rwkv-rs's folders → canonical tensors."""
_LINEAR_PAIRS: LayerTargets = {f"att.{c}{i}.weight": ((f"att.{c}{i}", TRANSPOSED),) for c in "wavg" for i in (1, 2)}
"""Low-rank matrices that transformers keeps as linear layers, hence transposed."""


def _hf_ln_x_eps(config: Mapping[str, Any]) -> float | None:
    """The epsilon itself, or that of the layer norm times the size of a head."""
    return number(config, "group_norm_epsilon") or product(config, "norm_eps", "head_dim")


LAYOUTS = (
    fla_layout("rwkv7", _FLA, _hf_ln_x_eps),
    transformers_layout("rwkv7", ln_x_eps=_hf_ln_x_eps, layer=_LINEAR_PAIRS),
    fla_layout("rwkv", _RWKV_RS, _hf_ln_x_eps),
)
"""Of flash-linear-attention; of transformers, which adds a prefix to the canonical names; of rwkv-rs."""
