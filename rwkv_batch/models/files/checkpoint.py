"""Model files of every kind behind one face: named tensors in the layout of BlinkDL's .pth files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ...errors import CheckpointError
from ..matrices.mm8 import Mm8Weight, dequantize_mm8, quantize_mm8
from . import hub
from .chatrwkv import StoredMm8, is_converted, restore_converted
from .huggingface import read_folder
from .weight_files import FLOAT_DTYPES, StoredTensor, read_pth, read_safetensors, require_tensors

Format = Literal["pth", "converted", "safetensors", "huggingface"]

MM8_MARK = {"rwkv_batch.quantization": "mm8"}
"""Metadata of a .safetensors file whose uint8 matrices [C_out, C_in] are q of `Mm8Weight`, transposed."""
NORMALIZED_MARK = {"rwkv_batch.embedding_is_normalized": "true"}
LN_X_EPS_KEY = "rwkv_batch.ln_x_eps"

_HASH_BLOCK = 1 << 22
_TIME_STATE = re.compile(r"blocks\.(\d+)\.att\.time_state")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The named tensors of one model, memory-mapped: what isn't asked for isn't read.

    Args:
        path: the file or folder.
        format: what kind of file it is. "converted" is ChatRWKV's form for one strategy.
        dense: canonical name → tensor.
        quantized: canonical name → matrix in 8-bit form.
        files: the weight files.
        embedding_is_normalized: `blocks.0.ln0` has been applied to `emb.weight`, and is absent.
        ln_x_eps: epsilon of the group norm over heads, where the model states it.
    """

    path: Path
    format: Format
    dense: Mapping[str, StoredTensor]
    files: tuple[Path, ...]
    quantized: Mapping[str, StoredMm8] = field(default_factory=dict)
    embedding_is_normalized: bool = False
    ln_x_eps: float | None = None

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(self.dense) | frozenset(self.quantized)

    @property
    def folder(self) -> Path:
        """Where a tokenizer may lie beside the model."""
        return self.files[0].parent

    def shape(self, name: str) -> tuple[int, ...]:
        """The canonical shape; a matrix is [C_out, C_in] in every form."""
        if name in self.quantized:
            stored = self.quantized[name].stored
            return stored.out_features, stored.in_features
        return self.dense[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """As stored: torch.uint8 for a matrix in 8-bit form."""
        return torch.uint8 if name in self.quantized else self.dense[name].stored.dtype

    def tensor(self, name: str) -> Tensor:
        """A tensor on the CPU in its canonical shape. Not to be written to: where possible it is the file itself.

        Its dtype is that of the file; a matrix in 8-bit form is dequantised to float32.
        """
        mm8 = self.mm8(name)
        return self.dense[name].tensor() if mm8 is None else dequantize_mm8(mm8, torch.float32)

    def mm8(self, name: str) -> Mm8Weight | None:
        """The 8-bit form of a matrix, with float32 metadata; None if the file holds it as numbers or not at all."""
        return self.quantized[name].weight() if name in self.quantized else None

    def as_mm8(self, name: str, device: torch.device | str = "cpu") -> Mm8Weight:
        """The 8-bit form of a matrix: the file's own, or quantised now, on `device`.

        Raises:
            CheckpointError: the matrix holds a value that is not finite.
        """
        try:
            return self.mm8(name) or quantize_mm8(self.tensor(name).to(device))
        except ValueError as error:
            raise CheckpointError(f"{self.path}: {name} can't be quantised: {error}") from error

    def fingerprint(self) -> str:
        """The SHA-256 of the bytes of `files`, one after the other, in hexadecimal."""
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                while block := file.read(_HASH_BLOCK):
                    digest.update(block)
        return digest.hexdigest()


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a model without reading its weights.

    Args:
        path: a .pth file (BlinkDL's, or converted by ChatRWKV), a .safetensors file with the same names (or from
            `convert`), a folder in Hugging Face layout, or hf://owner/repo/file@revision.

    Raises:
        CheckpointError: the message says what was found, what was expected and what to do.
        ConfigurationError, MissingExtraError: a malformed hf:// address, or the extra `hub` is missing.
    """
    path = hub.download(str(path)) if str(path).startswith(hub.SCHEME) else Path(path)
    if path.is_dir():
        return _open_folder(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    entries = read_pth(path)
    if is_converted(entries):
        dense, quantized = restore_converted(path, entries)
        return Checkpoint(path, "converted", dense, (path,), quantized, embedding_is_normalized=True)
    return Checkpoint(path, "pth", _plain(path, require_tensors(path, entries)), (path,))


def load_state_file(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a state-tuning file: blocks.N.att.time_state [H, N, N] for each layer, as stored.

    Raises:
        CheckpointError: the file is unreadable or holds anything else.
    """
    path = Path(path)
    entries: Mapping[str, Any] = read_safetensors(path)[0] if path.suffix == ".safetensors" else read_pth(path)
    states = require_tensors(path, entries)
    layers = set()
    for name, state in states.items():
        match = _TIME_STATE.fullmatch(name)
        if match is None:
            raise CheckpointError(
                f"{path}: holds {name!r}; expected only blocks.N.att.time_state, as state tuning saves"
            )
        if state.dim() != 3 or state.shape[1] != state.shape[2] or state.dtype not in FLOAT_DTYPES:
            raise CheckpointError(f"{path}: {name} is {state.dtype} {tuple(state.shape)}, expected floats [H, N, N]")
        layers.add(int(match[1]))
    if layers != set(range(len(layers))):
        raise CheckpointError(f"{path}: holds states of layers {sorted(layers)}; expected every layer from 0 on")
    return states


def _open_safetensors(path: Path) -> Checkpoint:
    stored, metadata = read_safetensors(path)
    tensors = require_tensors(path, stored)
    quantized: dict[str, StoredMm8] = {}
    if MM8_MARK.items() <= metadata.items():
        for name in [name for name, tensor in tensors.items() if tensor.dtype == torch.uint8]:
            quantized[name] = _pop_mm8(path, name, tensors)
    eps = metadata.get(LN_X_EPS_KEY)
    return Checkpoint(
        path,
        "safetensors",
        _plain(path, tensors),
        (path,),
        quantized,
        embedding_is_normalized=NORMALIZED_MARK.items() <= metadata.items(),
        ln_x_eps=None if eps is None else float(eps),
    )


def _open_folder(path: Path) -> Checkpoint:
    contents = read_folder(path)
    require_tensors(path, {name: tensor.stored for name, tensor in contents.tensors.items()})
    _require_one_dtype(path, contents.tensors)
    return Checkpoint(
        path,
        "huggingface",
        contents.tensors,
        contents.files,
        embedding_is_normalized=not contents.has_input_norm,
        ln_x_eps=contents.ln_x_eps,
    )


def _pop_mm8(path: Path, name: str, tensors: dict[str, Tensor]) -> StoredMm8:
    try:
        vectors = [tensors.pop(name + suffix) for suffix in ("_mx", "_rx", "_my", "_ry")]
        return StoredMm8(Mm8Weight(tensors.pop(name).t(), *vectors))
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: {name} is not a matrix in 8-bit form ({error}); convert the model anew"
        ) from error


def _plain(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, StoredTensor]:
    dense = {name: StoredTensor(tensor) for name, tensor in tensors.items()}
    _require_one_dtype(path, dense)
    return dense


def _require_one_dtype(path: Path, dense: Mapping[str, StoredTensor]) -> None:
    """Vectors such as decays may be float32 beside 16-bit matrices; matrices of several dtypes are a mistake."""
    examples: dict[torch.dtype, str] = {}
    for name, tensor in dense.items():
        dtype = tensor.stored.dtype
        if dtype == torch.uint8:
            raise CheckpointError(
                f"{path}: {name!r} is torch.uint8 without what makes it a weight; expected float32, float16 or "
                "bfloat16, a file converted by ChatRWKV, or one from `rwkv-batch convert`"
            )
        if name.endswith(".weight") and tensor.stored.dim() == 2:
            examples.setdefault(dtype, name)
    if len(examples) > 1:
        listing = ", ".join(f"{name} is {dtype}" for dtype, name in examples.items())
        raise CheckpointError(f"{path}: matrices of several dtypes ({listing}); expected one, convert the file to it")
