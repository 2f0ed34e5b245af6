"""Files whose tensors have canonical names and shapes: BlinkDL's .pth, and .safetensors as `convert` writes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from ..matrices.mm8 import Mm8Weight
from .stored import MM8_SUFFIXES, Contents, StoredMm8, StoredTensor
from .weight_files import read_safetensors, require_one_dtype, require_tensors

MM8_MARK = {"rwkv_batch.quantization": "mm8"}
"""Metadata of a .safetensors file whose uint8 matrices [C_out, C_in] are q of `Mm8Weight`, transposed."""
NORMALIZED_MARK = {"rwkv_batch.embedding_is_normalized": "true"}
"""Metadata of a .safetensors file in which `blocks.0.ln0` has been applied to `emb.weight`."""
LN_X_EPS_KEY = "rwkv_batch.ln_x_eps"
"""Key of the metadata: epsilon of the group norm over heads."""


def plain_tensors(path: Path, entries: Mapping[str, Any]) -> Contents:
    """The contents of a file whose entries are the canonical tensors.

    Raises:
        CheckpointError: an entry is no dense tensor of floats, or matrices have several dtypes.
    """
    dense = {name: StoredTensor(tensor) for name, tensor in require_tensors(path, entries).items()}
    require_one_dtype(path, dense)
    return Contents(dense, (path,))


def read_canonical_safetensors(path: Path) -> Contents:
    """The contents of a .safetensors file with canonical names.

    Raises:
        CheckpointError: unreadable, not a safetensors file, cut short, or not the tensors of a model.
    """
    stored, metadata = read_safetensors(path)
    tensors = require_tensors(path, stored)
    quantized: dict[str, StoredMm8] = {}
    if MM8_MARK.items() <= metadata.items():
        for name in [name for name, tensor in tensors.items() if tensor.dtype == torch.uint8]:
            quantized[name] = _pop_mm8(path, name, tensors)
    dense = {name: StoredTensor(tensor) for name, tensor in tensors.items()}
    require_one_dtype(path, dense)
    eps = metadata.get(LN_X_EPS_KEY)
    return Contents(
        dense,
        (path,),
        quantized,
        embedding_is_normalized=NORMALIZED_MARK.items() <= metadata.items(),
        ln_x_eps=None if eps is None else float(eps),
    )


def _pop_mm8(path: Path, name: str, tensors: dict[str, Tensor]) -> StoredMm8:
    try:
        vectors = [tensors.pop(name + suffix) for suffix in MM8_SUFFIXES]
        return StoredMm8(Mm8Weight(tensors.pop(name).t(), *vectors))
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: {name} is not a matrix in 8-bit form ({error}); convert the model anew"
        ) from error
