"""Files whose tensors have canonical names and shapes: BlinkDL's .pth, and .safetensors as `convert` writes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from ..matrices.mm8 import Mm8Weight
from .prefixes import without_prefix
from .stored import MM8_SUFFIXES, Contents, StoredMm8, StoredTensor
from .weight_files import require_floats, require_tensors

LAYOUT_MARK = {"rwkv_batch.layout": "canonical"}
"""Metadata of every .safetensors file that `convert` writes: names and shapes are canonical, not web-rwkv's."""
MM8_MARK = {"rwkv_batch.quantization": "mm8"}
"""Metadata of a .safetensors file whose uint8 matrices [C_out, C_in] are q of `Mm8Weight`, transposed."""
NORMALIZED_MARK = {"rwkv_batch.embedding_is_normalized": "true"}
"""Metadata of a .safetensors file in which `blocks.0.ln0` has been applied to `emb.weight`."""
LN_X_EPS_KEY = "rwkv_batch.ln_x_eps"
"""Key of the metadata: epsilon of the group norm over heads."""


def plain_tensors(path: Path, entries: Mapping[str, Any]) -> Contents:
    """The contents of a file whose entries are the canonical tensors, each perhaps with the same prefix.

    Raises:
        CheckpointError: an entry is no dense tensor of floats.
    """
    names = without_prefix(path, entries)
    tensors = require_tensors(path, {names[name]: value for name, value in entries.items()})
    dense = {name: StoredTensor(tensor) for name, tensor in tensors.items()}
    require_floats(path, dense)
    return Contents(dense, (path,))


def safetensors_contents(path: Path, stored: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Contents:
    """The contents of a .safetensors file with canonical names.

    Raises:
        CheckpointError: not the tensors of a model, or metadata of `convert` that it does not write.
    """
    names = without_prefix(path, stored)
    tensors = require_tensors(path, {names[name]: tensor for name, tensor in stored.items()})
    quantized: dict[str, StoredMm8] = {}
    if MM8_MARK.items() <= metadata.items():
        for name in [name for name, tensor in tensors.items() if tensor.dtype == torch.uint8]:
            quantized[name] = _pop_mm8(path, name, tensors)
    dense = {name: StoredTensor(tensor) for name, tensor in tensors.items()}
    require_floats(path, dense)
    return Contents(
        dense,
        (path,),
        quantized,
        embedding_is_normalized=NORMALIZED_MARK.items() <= metadata.items(),
        ln_x_eps=_ln_x_eps(path, metadata.get(LN_X_EPS_KEY)),
    )


def _ln_x_eps(path: Path, text: str | None) -> float | None:
    try:
        eps = None if text is None else float(text)
    except ValueError:
        eps = 0.0
    if eps is not None and not 0 < eps < 1:
        raise CheckpointError(
            f"{path}: the metadata {LN_X_EPS_KEY} are {text!r}, expected a number between 0 and 1; convert the model "
            "anew"
        )
    return eps


def _pop_mm8(path: Path, name: str, tensors: dict[str, Tensor]) -> StoredMm8:
    try:
        vectors = [tensors.pop(name + suffix) for suffix in MM8_SUFFIXES]
        return StoredMm8(Mm8Weight(tensors.pop(name).t(), *vectors))
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: {name} is not a matrix in 8-bit form ({error}); convert the model anew"
        ) from error
