"""Folders in Hugging Face layout, made of canonical checkpoints.

The names and orders here are written down by hand from the packages that save such folders. They do not come from the
version files, so a wrong name map there does not pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SIZES: dict[str, Any] = {"n_layer": 2, "n_embd": 128, "n_ffn": 192, "vocab": 50}


def to_transformers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of RwkvForCausalLM."""
    longer = {"k": "key", "v": "value", "r": "receptance", "g": "gate"}
    theirs = {}
    for name, tensor in tensors.items():
        if name == "head.weight":
            theirs[name] = tensor
            continue
        name = name.replace("emb.", "embeddings.").replace("ln0", "pre_ln")
        name = name.replace(".att.", ".attention.").replace(".ffn.", ".feed_forward.")
        if "time_mix_" in name:
            name = name[:-1] + longer[name[-1]]
        theirs[f"rwkv.{name}"] = tensor
    return theirs


def _fla_top(tensors: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    theirs["model.embeddings.weight"] = tensors["emb.weight"]
    theirs["lm_head.weight"] = tensors["head.weight"]
    for kind in ("weight", "bias"):
        theirs[f"model.norm.{kind}"] = tensors[f"ln_out.{kind}"]
        theirs[f"model.layers.0.pre_norm.{kind}"] = tensors[f"blocks.0.ln0.{kind}"]
        for i in range(SIZES["n_layer"]):
            for ours, name in (("ln1", "attn_norm"), ("ln2", "ffn_norm"), ("att.ln_x", "attn.g_norm")):
                theirs[f"model.layers.{i}.{name}.{kind}"] = tensors[f"blocks.{i}.{ours}.{kind}"]


def to_fla_v6(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """RWKV6ForCausalLM. Its five interpolations are ordered r, w, k, v, g; BlinkDL's w, k, v, r, g."""
    theirs: dict[str, Tensor] = {}
    _fla_top(tensors, theirs)
    for i in range(SIZES["n_layer"]):
        att, ffn, to = f"blocks.{i}.att.", f"blocks.{i}.ffn.", f"model.layers.{i}."
        for ours, letter in (("receptance", "r"), ("key", "k"), ("value", "v"), ("gate", "g")):
            theirs[f"{to}attn.{letter}_proj.linear.weight"] = tensors[f"{att}{ours}.weight"]
        theirs[f"{to}attn.o_proj.weight"] = tensors[f"{att}output.weight"]
        theirs[f"{to}attn.bonus"] = tensors[f"{att}time_faaaa"]
        theirs[f"{to}attn.x_proj.0.mu"] = tensors[f"{att}time_maa_x"].view(-1)
        w, k, v, r, g = tensors[f"{att}time_maa_w1"].chunk(5, dim=1)
        theirs[f"{to}attn.x_proj.0.linear.weight"] = torch.cat((r, w, k, v, g), dim=1).t()
        w, k, v, r, g = tensors[f"{att}time_maa_w2"]
        theirs[f"{to}attn.x_proj.2.weight"] = torch.cat((r, w, k, v, g), dim=0).t()
        theirs[f"{to}attn.x_bias"] = torch.stack([tensors[f"{att}time_maa_{m}"].view(-1) for m in "rwkvg"])
        theirs[f"{to}attn.w_proj.linear.lora.0.weight"] = tensors[f"{att}time_decay_w1"].t()
        theirs[f"{to}attn.w_proj.linear.lora.2.weight"] = tensors[f"{att}time_decay_w2"].t()
        theirs[f"{to}attn.w_proj.linear.lora.2.bias"] = tensors[f"{att}time_decay"].view(-1)
        for ours in ("key", "receptance"):
            theirs[f"{to}ffn.{ours}.linear.weight"] = tensors[f"{ffn}{ours}.weight"]
            theirs[f"{to}ffn.{ours}.mu"] = tensors[f"{ffn}time_maa_{ours[0]}"].view(-1)
        theirs[f"{to}ffn.value.weight"] = tensors[f"{ffn}value.weight"]
    return theirs


def to_fla_v7(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """RWKV7ForCausalLM."""
    theirs: dict[str, Tensor] = {}
    _fla_top(tensors, theirs)
    for i in range(SIZES["n_layer"]):
        att, ffn, to = f"blocks.{i}.att.", f"blocks.{i}.ffn.", f"model.layers.{i}."
        for ours, letter in (("receptance", "r"), ("key", "k"), ("value", "v"), ("output", "o")):
            theirs[f"{to}attn.{letter}_proj.weight"] = tensors[f"{att}{ours}.weight"]
        for m in "rwkvag":
            theirs[f"{to}attn.x_{m}"] = tensors[f"{att}x_{m}"]
        for name in ("k_k", "k_a"):
            theirs[f"{to}attn.{name}"] = tensors[f"{att}{name}"].view(-1)
        theirs[f"{to}attn.r_k"] = tensors[f"{att}r_k"]
        for m in "wavg":
            if f"{att}{m}1" in tensors:
                theirs[f"{to}attn.{m}_lora.lora.0.weight"] = tensors[f"{att}{m}1"].t()
                theirs[f"{to}attn.{m}_lora.lora.2.weight"] = tensors[f"{att}{m}2"].t()
            if f"{att}{m}0" in tensors:
                theirs[f"{to}attn.{m}_lora.lora.2.bias"] = tensors[f"{att}{m}0"].view(-1)
        theirs[f"{to}ffn.x_k"] = tensors[f"{ffn}x_k"].view(-1)
        for ours in ("key", "value"):
            theirs[f"{to}ffn.{ours}.weight"] = tensors[f"{ffn}{ours}.weight"]
    return theirs


def to_fla_v7_of_old(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first form of RWKV7ForCausalLM stacked the six interpolations."""
    theirs = to_fla_v7(tensors)
    for i in range(SIZES["n_layer"]):
        rows = [theirs.pop(f"model.layers.{i}.attn.x_{m}").view(-1) for m in "rwkvag"]
        theirs[f"model.layers.{i}.attn.x_x"] = torch.stack(rows)
    return theirs


def to_official_v7(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rwkv7ForCausalLM: BlinkDL's names behind a prefix, and a value residual in layer 0 that nothing reads."""
    theirs = {name if name == "head.weight" else f"rwkv7.{name}": tensor for name, tensor in tensors.items()}
    return theirs | {
        f"rwkv7.blocks.0.att.{name}": torch.zeros_like(tensors[f"blocks.1.att.{name}"]) for name in ("v0", "v1", "v2")
    }


def to_interim_v7(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The form before the official one: low-rank matrices are linear layers, hence transposed."""
    theirs = {}
    for name, tensor in tensors.items():
        if name.split(".")[-1] in {f"{c}{i}" for c in "wavg" for i in (1, 2)}:
            name, tensor = f"{name}.weight", tensor.t()
        theirs[name if name == "head.weight" else f"model.{name.replace('emb.', 'embeddings.')}"] = tensor
    return theirs


def to_rwkv_rs_v7(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """RwkvForCausalLM of rwkv-rs: vectors have one axis."""
    words = {"ln1": "input_layernorm", "ln2": "post_attention_layernorm", "att": "linear_attn", "ffn": "mlp"}
    parts = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "ln_x": "g_norm"}
    theirs = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"blocks\.(\d+)\.(\w+)\.(.+)", name)
        if match is None:
            name = {"emb.weight": "model.embed_tokens.weight", "head.weight": "lm_head.weight"}.get(name, name)
            name = name.replace("ln_out", "model.norm")
        elif match[2] == "ln0":
            name = f"model.embedding_norm.{match[3]}"
        else:
            last = match[3].split(".")
            if match[2] == "att":
                last[0] = parts.get(last[0], last[0])
            name = f"model.layers.{match[1]}.{words[match[2]]}.{'.'.join(last)}"
        theirs[name] = tensor.reshape(-1) if tensor.shape[:2] == (1, 1) else tensor
    return theirs


Rename = Callable[[dict[str, Tensor]], dict[str, Tensor]]
FLA_EPS = {"norm_eps": 1e-5}
FAMILIES: dict[str, tuple[str, Rename, dict[str, Any], float | None]] = {
    "transformers v4": ("4", to_transformers, {"model_type": "rwkv", "layer_norm_epsilon": 1e-5}, None),
    "transformers v5": (
        "5.2",
        to_transformers,
        {"model_type": "rwkv5", "layer_norm_epsilon": 1e-5, "head_size_divisor": 8},
        64e-5,
    ),
    "transformers v6": ("6.0", to_transformers, {"model_type": "rwkv6"}, None),
    "fla v6": ("6.0", to_fla_v6, {"model_type": "rwkv6", "hidden_act": "sqrelu", **FLA_EPS}, 1e-5),
    "fla v7": ("7.0", to_fla_v7, {"model_type": "rwkv7", "head_dim": 64, "attn": None, **FLA_EPS}, 64e-5),
    "official v7": (
        "7.0",
        to_official_v7,
        {"model_type": "rwkv7", "head_dim": 64, "num_heads": 2, "hidden_act": "relu2", **FLA_EPS},
        64e-5,
    ),
    "interim v7": ("7.0", to_interim_v7, {"model_type": "rwkv7", "group_norm_epsilon": 3e-4}, 3e-4),
    "rwkv-rs v7": (
        "7.0",
        to_rwkv_rs_v7,
        {
            "model_type": "rwkv",
            "architecture_version": "rwkv7",
            "group_norm_epsilon": 64e-5,
            "layer_norm_epsilon": 1e-5,
        },
        64e-5,
    ),
    "fla v7 of old": ("7.0", to_fla_v7_of_old, {"model_type": "rwkv7"}, None),
}
