"""Files that ChatRWKV has converted for one strategy, brought back to the names, shapes and values of raw ones.

Converting transposes matrices, applies `ln0` to the embedding, exponentiates decays, divides two matrices of each layer
for float16, and may quantise. All of it is undone on access, except for the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from ..matrices.mm8 import Mm8Weight
from .weight_files import Restore, StoredTensor, require_tensors, same

_MARKERS = ("_strategy", "_version", "_rescale_layer")
_OLDEST_VERSION = 0.7
_MM8_SUFFIXES = ("_mx", "_rx", "_my", "_ry")
_MATRICES = tuple(f"{name}.weight" for name in ("key", "value", "receptance", "gate", "output", "head"))
_RESCALED = ("att.output.weight", "ffn.value.weight")


@dataclass(frozen=True, eq=False)
class StoredMm8:
    """A matrix that a file stores in 8-bit form, to be multiplied by `scale`."""

    stored: Mm8Weight
    scale: float = 1.0

    def weight(self) -> Mm8Weight:
        return self.stored.scaled(self.scale)


def is_converted(entries: Mapping[str, Any]) -> bool:
    return "_strategy" in entries


def restore_converted(path: Path, entries: Mapping[str, Any]) -> tuple[dict[str, StoredTensor], dict[str, StoredMm8]]:
    """Map the contents of a converted file to canonical names.

    The bonus of v5 and v6 is given as `time_faaaa` (the value that is used) even where the raw file had its logarithm,
    `time_first`.

    Returns:
        The dense tensors, and the matrices in 8-bit form. `blocks.0.ln0` is in neither.

    Raises:
        CheckpointError: converted by a version that is too old, or metadata of an 8-bit matrix is missing or misshapen.
    """
    rescale_every = _rescale_every(path, entries)
    tensors = require_tensors(path, {name: value for name, value in entries.items() if name not in _MARKERS})
    is_v4 = not any("ln_x" in name for name in tensors)
    is_v6 = any("time_maa" in name for name in tensors)
    dense: dict[str, StoredTensor] = {}
    quantized: dict[str, StoredMm8] = {}
    for name, tensor in tensors.items():
        scale = 1.0
        if rescale_every and name.endswith(_RESCALED):
            scale = 2.0 ** (int(name.split(".")[1]) // rescale_every)
        if name.endswith(_MM8_SUFFIXES):
            continue
        if tensor.dtype == torch.uint8:
            quantized[name] = StoredMm8(_mm8(path, name, tensors), scale)
        elif name.endswith(_MATRICES):
            dense[name] = StoredTensor(
                tensor, Restore(Tensor.t, same if scale == 1.0 else partial(torch.mul, other=scale))
            )
        elif name.endswith(".time_decay"):
            dense[name] = StoredTensor(tensor, _DECAY_V4 if is_v4 else _ROW if is_v6 else _DECAY_V5)
        elif name.endswith(".time_first") and not is_v4:
            dense[name.replace("time_first", "time_faaaa")] = StoredTensor(tensor, Restore(_per_head))
        elif ".time_mix_" in name or (".time_maa_" in name and tensor.dim() == 1):
            dense[name] = StoredTensor(tensor, _ROW)
        else:
            dense[name] = StoredTensor(tensor)
    return dense, quantized


def _rescale_every(path: Path, entries: Mapping[str, Any]) -> int:
    """Layers after which the matrices' divisor doubles; 0 for never."""
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
    missing = [name + suffix for suffix in _MM8_SUFFIXES if name + suffix not in tensors]
    if missing:
        raise CheckpointError(f"{path}: {name} is in 8-bit form, but {', '.join(missing)} are missing")
    vectors = (tensors[name + suffix].reshape(-1) for suffix in _MM8_SUFFIXES)
    try:
        return Mm8Weight(tensors[name], *vectors)
    except ValueError as error:
        raise CheckpointError(f"{path}: {name}: {error}") from error


def _row(stored: Tensor) -> Tensor:
    """[C], or [H, N, 1] → [1, 1, C]."""
    return stored.reshape(1, 1, -1)


def _per_head(stored: Tensor) -> Tensor:
    """[H, 1, 1] → [H], and [H, N, 1] → [H, N]."""
    return stored[:, 0, 0] if stored.shape[1] == 1 else stored[..., 0]


def _log_of_negative(values: Tensor) -> Tensor:
    """-exp(d) → d."""
    return torch.log(-values)


def _log_of_negative_log(values: Tensor) -> Tensor:
    """exp(-exp(d)) → d."""
    return torch.log(-torch.log(values))


_ROW = Restore(_row)
_DECAY_V4 = Restore(values=_log_of_negative)
_DECAY_V5 = Restore(_per_head, _log_of_negative_log)
