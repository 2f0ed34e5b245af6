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
from .prefixes import without_prefix
from .stored import Contents, StoredTensor
from .weight_files import read_safetensors, require_floats, require_tensors

_CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
_LAYER_NORM_EPS = 1e-5


def folder_around(path: Path, names: Collection[str]) -> Path | None:
    """The folder in Hugging Face layout that a .safetensors file is a part of; None for a file that stands alone.

    Args:
        names: of the file's tensors. A file with canonical names stands alone.
    """
    folder = path.parent
    if "emb.weight" in names or not (folder / _CONFIG).is_file():
        return None
    return folder if path in weight_files(folder) else None


def read_folder(folder: Path) -> Contents:
    """Open the weights of a folder. A tensor of an unknown name keeps its name, without a prefix that all names share.

    Raises:
        CheckpointError: no config.json, no .safetensors, another kind of model, or a setting that rwkv_batch lacks.
    """
    config = _read_config(folder)
    candidates = _candidates(folder, config)
    _check_settings(folder, config)
    files = weight_files(folder)
    stored: dict[str, Tensor] = {}
    for file in files:
        tensors, _ = read_safetensors(file)
        if repeated := stored.keys() & tensors.keys():
            raise CheckpointError(f"{file}: {min(repeated)!r} is in another file of the folder too")
        stored |= tensors
    is_normalized = not config.get("norm_first", True) or bool(config.get("embedding_layer_norm_fused"))
    names = without_prefix(folder, stored)
    stored = require_tensors(folder, {names[name]: tensor for name, tensor in stored.items()})
    layout = _choose(candidates, stored.keys(), is_normalized)
    canonical = {
        name: StoredTensor(tensor, restore)
        for source, tensor in stored.items()
        for name, restore in layout.targets(source)
    }
    if config.get("tie_word_embeddings") and "head.weight" not in canonical and "emb.weight" in canonical:
        canonical["head.weight"] = canonical["emb.weight"]
    require_floats(folder, canonical)
    try:
        ln_x_eps = layout.ln_x_eps(config)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return Contents(canonical, files, embedding_is_normalized=is_normalized, ln_x_eps=ln_x_eps)


def _candidates(folder: Path, config: Any) -> list[tuple[Schema, HfLayout]]:
    """All layouts, each with the schema of its version; those with the `model_type` of the config.json come first."""
    layouts = [(version.schema, layout) for version in architectures() for layout in version.hugging_face]
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type not in [layout.model_type for _, layout in layouts]:
        known = ", ".join(dict.fromkeys(layout.model_type for _, layout in layouts))
        raise CheckpointError(
            f"{folder / _CONFIG}: model_type is {repr(model_type)[:80]}, expected one of {known}. "
            "Hybrids of RWKV and attention are not supported: their cache grows with every token"
        )
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
    if not (folder / _CONFIG).is_file():
        raise CheckpointError(
            f"{folder}: has no config.json; expected a folder in Hugging Face layout, or the path of a .pth or "
            ".safetensors file"
        )
    return _read_json(folder / _CONFIG)


def _read_json(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not JSON ({reason_of(error)}); fetch it again") from error


def _check_settings(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises CheckpointError for a setting that changes the model in a way that rwkv_batch does not compute."""
    expected: dict[str, tuple[object, ...]] = {
        "attn": (),
        "quantization_config": (),
        "hidden_act": ("sqrelu", "relu2"),
        "norm_eps": (_LAYER_NORM_EPS,),
        "layer_norm_epsilon": (_LAYER_NORM_EPS,),
    }
    for key, values in expected.items():
        value = config.get(key)
        if value is not None and value not in values:
            only = json.dumps(values[0] if values else None)
            what = " (a hybrid of RWKV and attention, whose cache grows with every token)" if key == "attn" else ""
            raise CheckpointError(f"{folder / _CONFIG}: {key} is {value!r}{what}; only {only} is supported")


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The weight files of a folder, in the order of their names.

    Raises:
        CheckpointError: there is none, or it is not clear which ones they are.
    """
    index = folder / _INDEX
    if index.is_file():
        try:
            names = set(_read_json(index)["weight_map"].values())
        except (KeyError, AttributeError, TypeError) as error:
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
