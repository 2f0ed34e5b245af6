"""A model file of any format, as named tensors in the layout of BlinkDL's .pth files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ...checksum import sha256_of
from ...errors import CheckpointError
from ..matrices.mm8 import Mm8Weight, dequantize_mm8, quantize_mm8
from . import hub, remote
from .formats import read_checkpoint
from .huggingface import weight_files
from .stored import Contents
from .weight_files import first_bytes


@dataclass(frozen=True, eq=False, kw_only=True)
class Checkpoint(Contents):
    """The named tensors of one model, memory-mapped: data that nobody asks for are not read.

    Args:
        path: the file or folder.
        format: the name of an entry of `formats.FORMATS`. "converted" is ChatRWKV's form for one strategy.
    """

    path: Path
    format: str

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(self.dense) | frozenset(self.quantized)

    @property
    def folder(self) -> Path:
        """The folder of the weight files, where a tokenizer may lie beside them."""
        return self.files[0].parent

    def shape(self, name: str) -> tuple[int, ...]:
        """The canonical shape; a matrix is [C_out, C_in] in every form.

        Raises:
            CheckpointError: the stored shape has no canonical one.
        """
        if name in self.quantized:
            stored = self.quantized[name].stored
            return stored.out_features, stored.in_features
        try:
            return self.dense[name].shape
        except (RuntimeError, IndexError) as error:
            found = list(self.dense[name].stored.shape)
            raise CheckpointError(
                f"{self.path}: {name} is stored in shape {found}, which no checkpoint of this format has ({error}); "
                "fetch or convert it again"
            ) from error

    def dtype(self, name: str) -> torch.dtype:
        """The dtype in the file: torch.uint8 for a matrix in 8-bit form."""
        return torch.uint8 if name in self.quantized else self.dense[name].stored.dtype

    @cached_property
    def matrix_dtype(self) -> torch.dtype:
        """The dtype of most numbers in dense matrices; float64 counts as float32. Matrices may have several."""
        return max(self._matrix_numbers, key=self._matrix_numbers.__getitem__, default=torch.float32)

    @property
    def other_dtypes(self) -> list[torch.dtype]:
        """The dtypes of dense matrices besides `matrix_dtype`."""
        return [dtype for dtype in self._matrix_numbers if dtype != self.matrix_dtype]

    @cached_property
    def _matrix_numbers(self) -> dict[torch.dtype, int]:
        """Dtype → numbers of all dense matrices that have it."""
        counts: dict[torch.dtype, int] = {}
        for name, tensor in self.dense.items():
            if name.endswith(".weight") and tensor.stored.dim() == 2:
                dtype = torch.float32 if tensor.stored.dtype == torch.float64 else tensor.stored.dtype
                counts[dtype] = counts.get(dtype, 0) + tensor.stored.numel()
        return counts

    def tensor(self, name: str) -> Tensor:
        """A tensor on the CPU in its canonical shape. Not to be written to: its memory may be that of the mapped file.

        Its dtype is that of the file; a matrix in 8-bit form is dequantized to float32.
        """
        mm8 = self.mm8(name)
        return self.dense[name].tensor() if mm8 is None else dequantize_mm8(mm8, torch.float32)

    def mm8(self, name: str) -> Mm8Weight | None:
        """The 8-bit form of a matrix, with float32 metadata; None if the file holds it in floats or not at all."""
        return self.quantized[name].weight() if name in self.quantized else None

    def as_mm8(self, name: str, device: torch.device | str = "cpu") -> Mm8Weight:
        """The 8-bit form of a matrix: the file's own, or quantized now, on `device`.

        Raises:
            CheckpointError: the matrix holds a value that is not finite.
        """
        try:
            return self.mm8(name) or quantize_mm8(self.tensor(name).to(device))
        except ValueError as error:
            raise CheckpointError(f"{self.path}: {name} can't be quantized: {error}") from error

    def fingerprint(self) -> str:
        """The SHA-256 of the bytes of `files`, one after the other, in hexadecimal."""
        return _sha256(self.files)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a model without reading its weights.

    Args:
        path: a .pth file (BlinkDL's, or converted by ChatRWKV), a safetensors file with the same names (or from
            `convert`, or web-rwkv's .st), a folder in Hugging Face layout or a file of one, or an address: hf://owner/
            repo for a repository in that layout, hf://owner/repo/file for a file; then @revision; s3://bucket/name for
            a file or a folder in an object store, and gs:// and az:// likewise.

    Raises:
        CheckpointError: the message says what was found, what was expected and what to do.
        ConfigurationError, MissingExtraError: a malformed address, or the extra `hub` or `object-store` is missing.
    """
    path = _local(path)
    format_name, contents = read_checkpoint(path)
    return Checkpoint(**vars(contents), path=path, format=format_name)


def sha256_of_model(path: str | Path) -> str:
    """The SHA-256 of a model's weight files, in hexadecimal; nothing in them is interpreted.

    Args:
        path: as for `open_checkpoint`. Of a folder, the weight files count one after the other, in the order of their
            names.

    Raises:
        CheckpointError, ConfigurationError, MissingExtraError: as for `open_checkpoint`.
    """
    path = _local(path)
    if os.path.isdir(path):
        return _sha256(weight_files(path))
    first_bytes(path)
    return _sha256((path,))


def _local(path: str | Path) -> Path:
    if str(path).startswith(hub.SCHEME):
        return hub.download(str(path))
    return remote.download(str(path)) if remote.is_remote(path) else Path(path)


def _sha256(files: Iterable[Path]) -> str:
    with ExitStack() as stack:
        return sha256_of(*(stack.enter_context(path.open("rb")) for path in files))
