"""Models in Hugging Face layout: a folder with config.json and .safetensors files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import CheckpointError
from .hf_names import canonical_targets, is_fla
from .weight_files import StoredTensor, read_safetensors

_MODEL_TYPES = ("rwkv", "rwkv5", "rwkv6", "rwkv7")
_INDEX = "model.safetensors.index.json"
_LAYER_NORM_EPS = 1e-5


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
    targets = canonical_targets(stored)
    canonical = {
        name: StoredTensor(tensor, restore) for source, tensor in stored.items() for name, restore in targets(source)
    }
    if config.get("tie_word_embeddings") and "head.weight" not in canonical and "emb.weight" in canonical:
        canonical["head.weight"] = canonical["emb.weight"]
    return Folder(canonical, files, config.get("norm_first", True), _ln_x_eps(config, is_fla(stored)))


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
