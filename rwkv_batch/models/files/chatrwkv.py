"""Files that ChatRWKV has converted for one strategy, restored to canonical names, shapes and values.

Converting transposes matrices, applies `ln0` to the embedding, exponentiates decays, divides two matrices of each layer
for float16, and may quantize. All of it is undone on access, except for the embedding. A version states how its vectors
are restored (`Architecture.chatrwkv`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from ..architecture import architectures
from ..matrices.mm8 import Mm8Weight
from ..schema import LAYER_TENSOR, Schema
from .stored import AS_STORED, MM8_SUFFIXES, Contents, LayerTargets, Restore, StoredMm8, StoredTensor, Targets, same
from .weight_files import require_tensors

_MARKERS = ("_strategy", "_version", "_rescale_layer")
_OLDEST_VERSION = 0.7
_MATRICES = tuple(f"{name}.weight" for name in ("key", "value", "receptance", "gate", "output", "head"))
_RESCALED = ("att.output.weight", "ffn.value.weight")


def is_converted(entries: Mapping[str, Any]) -> bool:
    """Tells whether the entries of a PyTorch file are in ChatRWKV's converted form."""
    return "_strategy" in entries


def restore_converted(path: Path, entries: Mapping[str, Any]) -> Contents:
    """Map the contents of a converted file to canonical names; `blocks.0.ln0` is absent.

    Raises:
        CheckpointError: converted by a version that is too old, or metadata of an 8-bit matrix is missing or misshapen.
    """
    rescale_every = _rescale_every(path, entries)
    tensors = require_tensors(path, {name: value for name, value in entries.items() if name not in _MARKERS})
    names = [name for name in tensors if not name.endswith(MM8_SUFFIXES)]
    layer = _layer_targets(names)
    dense: dict[str, StoredTensor] = {}
    quantized: dict[str, StoredMm8] = {}
    for name in names:
        scale = _scale(name, rescale_every)
        if tensors[name].dtype == torch.uint8:
            quantized[name] = StoredMm8(_mm8(path, name, tensors), scale)
        elif name.endswith(_MATRICES):
            values = same if scale == 1.0 else partial(torch.mul, other=scale)
            dense[name] = StoredTensor(tensors[name], Restore(Tensor.t, values))
        else:
            dense |= {target: StoredTensor(tensors[name], restore) for target, restore in _targets(name, layer)}
    return Contents(dense, (path,), quantized, embedding_is_normalized=True)


def _scale(name: str, rescale_every: int) -> float:
    """The number by which a matrix was divided."""
    match = LAYER_TENSOR.fullmatch(name)
    is_rescaled = rescale_every > 0 and match is not None and match[2] in _RESCALED
    return 2.0 ** min(int(match[1]) // rescale_every, 100) if is_rescaled and match else 1.0


def _layer_targets(names: Collection[str]) -> LayerTargets:
    """The rules of the version whose schema differs least from the names that its rules give."""

    def distance(version: tuple[Schema, LayerTargets]) -> tuple[int, int]:
        schema, layer = version
        canonical = {target for name in names for target, _ in _targets(name, layer)}
        return schema.match_names(canonical, embedding_is_normalized=True).name_distance

    return min(((v.schema, v.chatrwkv) for v in architectures() if v.chatrwkv is not None), key=distance)[1]


def _targets(name: str, layer: LayerTargets) -> Targets:
    match = LAYER_TENSOR.fullmatch(name)
    if match is None or match[2] not in layer:
        return ((name, AS_STORED),)
    return tuple((f"blocks.{match[1]}.{ours}", restore) for ours, restore in layer[match[2]])


def _rescale_every(path: Path, entries: Mapping[str, Any]) -> int:
    """The number of layers after which the divisor of the rescaled matrices doubles; 0 for never."""
    version, rescale_every = entries.get("_version"), entries.get("_rescale_layer")
    try:
        is_known = float(version) >= _OLDEST_VERSION  # type: ignore[arg-type]
    except (TypeError, ValueError):
        is_known = False
    if not is_known or not isinstance(rescale_every, int) or rescale_every < 0:
        raise CheckpointError(
            f"{path}: converted by ChatRWKV with _version {version!r} and _rescale_layer {rescale_every!r}, expected "
            f"version {_OLDEST_VERSION} or newer and a whole number; convert it anew, or use the original .pth"
        )
    return rescale_every


def _mm8(path: Path, name: str, tensors: Mapping[str, Tensor]) -> Mm8Weight:
    missing = [name + suffix for suffix in MM8_SUFFIXES if name + suffix not in tensors]
    if missing:
        raise CheckpointError(f"{path}: {name} is in 8-bit form, but {', '.join(missing)} are missing")
    vectors = (tensors[name + suffix].reshape(-1) for suffix in MM8_SUFFIXES)
    try:
        return Mm8Weight(tensors[name], *vectors)
    except ValueError as error:
        raise CheckpointError(f"{path}: {name}: {error}") from error
