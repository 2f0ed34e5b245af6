"""Converts a model to one .safetensors file with canonical names, with matrices in 8-bit form on request."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from ...errors import ConfigurationError, one_of
from ..matrices.quantization import QUANTIZATIONS, weight_format
from .canonical import LAYOUT_MARK, LN_X_EPS_KEY, MM8_MARK, NORMALIZED_MARK
from .checkpoint import Checkpoint, open_checkpoint
from .stored import MM8_SUFFIXES

_DTYPE_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
}
_ALIGNMENT = 64


class _Entry(NamedTuple):
    """A tensor of the file to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def convert(source: str | Path, destination: str | Path, quantization: str | None = None) -> Path:
    """Write the model `source` to the .safetensors file `destination`, with one matrix in memory at a time.

    The file appears under its name only when it is complete.

    Args:
        source: any path or address that `open_checkpoint` takes.
        destination: replaced if it exists.
        quantization: "int8" stores every large matrix but the embeddings in 8-bit form (mm8); None keeps all
            tensors as they are in `source`.

    Returns:
        The path of the file written.

    Raises:
        ConfigurationError: `destination` is no .safetensors file, in no folder, or is `source`; unknown quantization.
        CheckpointError: `source` cannot be opened, or holds a value that is not finite.
    """
    destination = Path(destination)
    if destination.suffix != ".safetensors":
        raise ConfigurationError(f"destination: got {str(destination)!r}, expected a path that ends in .safetensors")
    if not destination.parent.is_dir():
        raise ConfigurationError(f"destination: {destination.parent} is not a folder; create it first")
    written = [name for name in QUANTIZATIONS if weight_format(name).is_written]
    if quantization is not None and quantization not in written:
        expected = one_of(["null", *map(repr, written)])
        raise ConfigurationError(f"quantization: got {quantization!r}, expected {expected}")
    checkpoint = open_checkpoint(source)
    if destination.exists() and any(destination.samefile(file) for file in checkpoint.files):
        raise ConfigurationError(f"destination: {destination} is the source itself; expected another path")
    quantized = set(checkpoint.quantized)
    if quantization is not None:
        quantized.update(name for name in checkpoint.dense if is_quantizable(checkpoint, name))
    entries = [entry for name in sorted(checkpoint.names) for entry in _entries(checkpoint, name, name in quantized)]
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            offsets = _write_header(file, entries, _metadata(checkpoint, bool(quantized)))
            for name in sorted(checkpoint.names):
                for stored_name, tensor in _tensors(checkpoint, name, name in quantized):
                    file.seek(offsets[stored_name])
                    file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, destination)
    finally:
        temporary.unlink(missing_ok=True)
    return destination


def is_quantizable(checkpoint: Checkpoint, name: str) -> bool:
    """Tells whether a tensor is a matrix [C_out, C_in] of a product. Embeddings are none: they are looked up."""
    return name.endswith(".weight") and "emb" not in name and len(checkpoint.shape(name)) == 2


def _entries(checkpoint: Checkpoint, name: str, is_quantized: bool) -> Iterator[_Entry]:
    shape = checkpoint.shape(name)
    if not is_quantized:
        yield _Entry(name, checkpoint.dtype(name), shape)
        return
    yield _Entry(name, torch.uint8, shape)
    for suffix, axis in zip(MM8_SUFFIXES, (0, 0, 1, 1), strict=True):
        yield _Entry(name + suffix, torch.float32, (shape[axis],))


def _tensors(checkpoint: Checkpoint, name: str, is_quantized: bool) -> Iterator[tuple[str, Tensor]]:
    if not is_quantized:
        yield name, checkpoint.tensor(name)
        return
    mm8 = checkpoint.as_mm8(name)
    yield name, mm8.q.t()
    yield from zip((name + suffix for suffix in MM8_SUFFIXES), (mm8.mx, mm8.rx, mm8.my, mm8.ry), strict=True)


def _metadata(checkpoint: Checkpoint, is_quantized: bool) -> dict[str, str]:
    metadata = {"format": "pt", **LAYOUT_MARK}
    if is_quantized:
        metadata |= MM8_MARK
    if checkpoint.embedding_is_normalized:
        metadata |= NORMALIZED_MARK
    if checkpoint.ln_x_eps is not None:
        metadata[LN_X_EPS_KEY] = repr(checkpoint.ln_x_eps)
    return metadata


def _write_header(file: BinaryIO, entries: list[_Entry], metadata: dict[str, str]) -> dict[str, int]:
    """Write a safetensors header; returns each tensor's offset in the file, in bytes.

    Wider dtypes come first and the data start at a multiple of 64 bytes, so that every mapped tensor is aligned.
    """
    header: dict[str, object] = {"__metadata__": metadata}
    begins, end = {}, 0
    for entry in sorted(entries, key=lambda entry: -entry.dtype.itemsize):
        begins[entry.name], end = end, end + entry.nbytes
        header[entry.name] = {
            "dtype": _DTYPE_CODES[entry.dtype],
            "shape": entry.shape,
            "data_offsets": [begins[entry.name], end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    return {name: 8 + len(text) + begin for name, begin in begins.items()}
