"""Models in Hugging Face layout: a folder with config.json and .safetensors files."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import CheckpointError
from ...user_files import read_json, reason_of
from ..architecture import architectures
from ..schema import Schema
from .hf_layouts import HfLayout
from .stored import Contents, StoredTensor
from .weight_files import read_safetensors, require_one_dtype, require_tensors

_INDEX = "model.safetensors.index.json"
_LAYER_NORM_EPS = 1e-5


def read_folder(folder: Path) -> Contents:
    """Open the weights of a folder. Tensors whose names are unknown keep them.

    Raises:
        CheckpointError: no config.json, no .safetensors, another kind of model, or a setting that rwkv_batch lacks.
    """
    config = _read_config(folder)
    candidates = _candidates(folder, config)
    _check_settings(folder, config)
    files = _weight_files(folder)
    stored: dict[str, Tensor] = {}
    for file in files:
        tensors, _ = read_safetensors(file)
        if repeated := stored.keys() & tensors.keys():
            raise CheckpointError(f"{file}: {min(repeated)!r} is in another file of the folder too")
        stored |= tensors
    is_normalized = not config.get("norm_first", True)
    stored = require_tensors(folder, stored)
    layout = _choose(candidates, stored.keys(), is_normalized)
    canonical = {
        name: StoredTensor(tensor, restore)
        for source, tensor in stored.items()
        for name, restore in layout.targets(source)
    }
    if config.get("tie_word_embeddings") and "head.weight" not in canonical and "emb.weight" in canonical:
        canonical["head.weight"] = canonical["emb.weight"]
    require_one_dtype(folder, canonical)
    return Contents(canonical, files, embedding_is_normalized=is_normalized, ln_x_eps=layout.ln_x_eps(config))


def _candidates(folder: Path, config: Any) -> list[tuple[Schema, HfLayout]]:
    """All layouts, each with the schema of its version; those with the `model_type` of the config.json come first."""
    layouts = [(version.schema, layout) for version in architectures() for layout in version.hugging_face]
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type not in [layout.model_type for _, layout in layouts]:
        known = ", ".join(dict.fromkeys(layout.model_type for _, layout in layouts))
        raise CheckpointError(f"{folder / 'config.json'}: model_type is {model_type!r}, expected one of {known}")
    return sorted(layouts, key=lambda candidate: candidate[1].model_type != model_type)


def _choose(
    candidates: Iterable[tuple[Schema, HfLayout]], names: Collection[str], embedding_is_normalized: bool
) -> HfLayout:
    """The layout whose canonical names differ least from the schema of its version; of several, the first.

    The names decide, not the `model_type`: folders exist whose config.json states another version than their tensors
    have.
    """

    def distance(candidate: tuple[Schema, HfLayout]) -> tuple[int, int]:
        schema, layout = candidate
        canonical = {target for name in names for target, _ in layout.targets(name)}
        return schema.match_names(canonical, embedding_is_normalized).name_distance

    return min(candidates, key=distance)[1]


def _read_config(folder: Path) -> Any:
    path = folder / "config.json"
    try:
        return read_json(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder}: has no config.json; expected a folder in Hugging Face layout, or the path of a .pth or "
            ".safetensors file"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not JSON ({reason_of(error)}); fetch it again") from error


def _check_settings(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises CheckpointError for a setting that changes the model in a way that rwkv_batch does not compute."""
    expected = {
        "attn": None,
        "quantization_config": None,
        "hidden_act": "sqrelu",
        "norm_eps": _LAYER_NORM_EPS,
        "layer_norm_epsilon": _LAYER_NORM_EPS,
    }
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise CheckpointError(
                f"{folder / 'config.json'}: {key} is {config[key]!r}; only {json.dumps(value)} is supported"
            )


def _weight_files(folder: Path) -> tuple[Path, ...]:
    index = folder / _INDEX
    if index.is_file():
        try:
            names = set(read_json(index)["weight_map"].values())
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
