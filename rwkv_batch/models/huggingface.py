"""Models in Hugging Face layout: a folder with config.json and .safetensors files.

Two families of names are known: that of transformers (RWKV-4, and RWKV-5 and 6 in the same style) and that of
flash-linear-attention (RWKV-6 and 7). Both are mapped to canonical names, shapes and orientations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from .weight_files import StoredTensor, read_safetensors

_MODEL_TYPES = ("rwkv", "rwkv5", "rwkv6", "rwkv7")
_INDEX = "model.safetensors.index.json"
_LAYER_NORM_EPS = 1e-5

Targets = tuple[tuple[str, Callable[[Tensor], Tensor] | None], ...]
"""The canonical tensors that one stored tensor gives, each with what makes it."""


@dataclass(frozen=True, eq=False)
class Folder:
    """The contents of a folder in Hugging Face layout.

    Args:
        files: the weight files, in order of name.
        has_input_norm: whether the embedding is layer-normed before the first layer.
        ln_x_eps: epsilon of the group norm over heads, where config.json states it.
    """

    tensors: dict[str, StoredTensor]
    files: tuple[Path, ...]
    has_input_norm: bool
    ln_x_eps: float | None


def read_folder(folder: Path) -> Folder:
    """Open the weights of a folder; tensors of unknown names keep them.

    Raises:
        CheckpointError: no config.json, no .safetensors, another kind of model, or a setting that rwkv_batch lacks.
    """
    config = _config(folder)
    files = _weight_files(folder)
    stored: dict[str, Tensor] = {}
    for file in files:
        tensors, _ = read_safetensors(file)
        if repeated := stored.keys() & tensors.keys():
            raise CheckpointError(f"{file}: {min(repeated)!r} is in another file of the folder too")
        stored |= tensors
    uses_fla = any(name.startswith("model.layers.") for name in stored)
    targets = _fla_targets(stored) if uses_fla else _transformers_target
    canonical = {
        name: StoredTensor(tensor, restore) for source, tensor in stored.items() for name, restore in targets(source)
    }
    if config.get("tie_word_embeddings") and "head.weight" not in canonical and "emb.weight" in canonical:
        canonical["head.weight"] = canonical["emb.weight"]
    return Folder(canonical, files, config.get("norm_first", True), _ln_x_eps(config, uses_fla))


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder}: has no config.json; expected a folder in Hugging Face layout, or the path of a .pth or "
            ".safetensors file"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); fetch it again") from error
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type not in _MODEL_TYPES:
        raise CheckpointError(f"{path}: model_type is {model_type!r}, expected one of {', '.join(_MODEL_TYPES)}")
    expected = {
        "attn": None,
        "quantization_config": None,
        "hidden_act": "sqrelu",
        "norm_eps": _LAYER_NORM_EPS,
        "layer_norm_epsilon": _LAYER_NORM_EPS,
    }
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"{path}: {key} is {config[key]!r}; only {json.dumps(value)} is supported")
    return config


def _weight_files(folder: Path) -> tuple[Path, ...]:
    index = folder / _INDEX
    if index.is_file():
        try:
            names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{index}: not an index of safetensors files ({error!r}); fetch it again") from error
        strange = [name for name in names if not isinstance(name, str) or Path(name).name != name]
        if strange or not names:
            raise CheckpointError(f"{index}: names the files {strange}; expected files of the same folder")
        return tuple(folder / name for name in sorted(names))
    files = tuple(sorted(folder.glob("*.safetensors")))
    if len(files) == 1:
        return files
    if files:
        raise CheckpointError(f"{folder}: {len(files)} .safetensors files without {_INDEX}; add it, or name one file")
    if any(folder.glob("*.bin")):
        raise CheckpointError(
            f"{folder}: holds its weights as pickle (.bin), expected .safetensors; convert it with "
            "from_pretrained(...).save_pretrained(..., safe_serialization=True)"
        )
    raise CheckpointError(f"{folder}: holds no .safetensors file")


def _ln_x_eps(config: Mapping[str, Any], uses_fla: bool) -> float | None:
    """As the model's own code computes it from the settings in config.json."""
    if uses_fla and config["model_type"] == "rwkv7" and "norm_eps" in config and "head_dim" in config:
        return config["norm_eps"] * config["head_dim"]
    if uses_fla and config["model_type"] == "rwkv6" and "norm_eps" in config:
        return config["norm_eps"]
    if "head_size_divisor" in config and "layer_norm_epsilon" in config:
        return config["layer_norm_epsilon"] * config["head_size_divisor"] ** 2
    return None


# transformers

_TRANSFORMERS_TOP = {"rwkv.embeddings.weight": "emb.weight"}
_TRANSFORMERS_WORDS = {
    "pre_ln": "ln0",
    "attention": "att",
    "feed_forward": "ffn",
    "time_mix_key": "time_mix_k",
    "time_mix_value": "time_mix_v",
    "time_mix_receptance": "time_mix_r",
    "time_mix_gate": "time_mix_g",
}


def _transformers_target(name: str) -> Targets:
    """rwkv.blocks.0.attention.time_mix_key → blocks.0.att.time_mix_k. Tensors are stored as in BlinkDL's files."""
    words = name.removeprefix("rwkv.").split(".")
    return ((_TRANSFORMERS_TOP.get(name) or ".".join(_TRANSFORMERS_WORDS.get(word, word) for word in words), None),)


# flash-linear-attention


def _row(stored: Tensor) -> Tensor:
    return stored.reshape(1, 1, -1)


def _row_of(i: int, stored: Tensor) -> Tensor:
    return stored[i].reshape(1, 1, -1)


def _transposed(stored: Tensor) -> Tensor:
    return stored.t()


_FLA_V6_ORDER = "rwkvg"
_V6_ORDER = "wkvrg"
_TO_V6_ORDER = [_FLA_V6_ORDER.index(letter) for letter in _V6_ORDER]


def _maa_w1(stored: Tensor) -> Tensor:
    """[5 R, C] → [C, 5 R], the five blocks in canonical order."""
    width = stored.shape[1]
    return stored.reshape(5, -1, width)[_TO_V6_ORDER].reshape(-1, width).t()


def _maa_w2(stored: Tensor) -> Tensor:
    """[C, 5 R] → [5, R, C]."""
    return stored.reshape(len(stored), 5, -1)[:, _TO_V6_ORDER].permute(1, 2, 0)


def _renamed(pairs: Mapping[str, str], kinds: Iterable[str]) -> dict[str, Targets]:
    return {f"{theirs}.{kind}": ((f"{ours}.{kind}", None),) for theirs, ours in pairs.items() for kind in kinds}


_FLA_TOP: dict[str, str] = {
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
    "attn.x_proj.0.mu": (("att.time_maa_x", _row),),
    "attn.x_proj.0.linear.weight": (("att.time_maa_w1", _maa_w1),),
    "attn.x_proj.2.weight": (("att.time_maa_w2", _maa_w2),),
    "attn.x_bias": tuple((f"att.time_maa_{m}", partial(_row_of, i)) for i, m in enumerate(_FLA_V6_ORDER)),
    "attn.w_proj.linear.lora.0.weight": (("att.time_decay_w1", _transposed),),
    "attn.w_proj.linear.lora.2.weight": (("att.time_decay_w2", _transposed),),
    "attn.w_proj.linear.lora.2.bias": (("att.time_decay", _row),),
    "attn.bonus": (("att.time_faaaa", None),),
    "ffn.key.mu": (("ffn.time_maa_k", _row),),
    "ffn.receptance.mu": (("ffn.time_maa_r", _row),),
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
    **{f"attn.{name}": ((f"att.{name}", _row),) for name in ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "k_k", "k_a")},
    # Older files stack the six x_ vectors.
    "attn.x_x": tuple((f"att.x_{m}", partial(_row_of, i)) for i, m in enumerate("rwkvag")),
    **{f"attn.{m}_lora.lora.2.bias": ((f"att.{m}0", _row),) for m in "wav"},
    **{f"attn.{m}_lora.lora.0.weight": ((f"att.{m}1", _transposed),) for m in "wavg"},
    **{f"attn.{m}_lora.lora.2.weight": ((f"att.{m}2", _transposed),) for m in "wavg"},
    "attn.r_k": (("att.r_k", None),),
    "ffn.x_k": (("ffn.x_k", _row),),
}


def _fla_targets(names: Iterable[str]) -> Callable[[str], Targets]:
    layer = _FLA_V6 if any(name.endswith("attn.x_bias") for name in names) else _FLA_V7

    def targets(name: str) -> Targets:
        match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
        if match is None or match[2] not in layer:
            return ((_FLA_TOP.get(name, name), None),)
        return tuple((f"blocks.{match[1]}.{ours}", restore) for ours, restore in layer[match[2]])

    return targets
