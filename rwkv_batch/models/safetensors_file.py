"""Reading .safetensors files: a header in JSON, and the bytes of the tensors behind it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 100_000_000
_METADATA = "__metadata__"


class FormatError(ValueError):
    """The file is no complete .safetensors file; the message says what does not fit."""


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file by name, memory-mapped and not to be written to, and its metadata.

    Raises:
        FormatError: the file is cut short, or of another format.
        OSError: the file can't be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        start = _LENGTH_BYTES + length
        if not 2 <= length <= _MOST_HEADER_BYTES or start > size:
            raise FormatError(f"a header of {length} bytes in a file of {size}")
        text = file.read(length)
    try:
        header = json.loads(text)
        entries = {name: entry for name, entry in header.items() if name != _METADATA}
        data = torch.from_file(str(path), size=size, dtype=torch.uint8)
        tensors = {name: _tensor(name, data[start:], entry) for name, entry in entries.items()}
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(f"a header that is not understood: {type(error).__name__}: {error}") from error
    return tensors, dict(header.get(_METADATA) or {})


def _tensor(name: str, data: Tensor, entry: dict[str, Any]) -> Tensor:
    if entry["dtype"] not in _DTYPES:
        raise FormatError(f"{name!r} is of the dtype {entry['dtype']!r}")
    dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    if not 0 <= begin <= end <= len(data) or end - begin != math.prod(shape) * dtype.itemsize:
        raise FormatError(f"{name!r}, {entry['dtype']} {shape}, is said to be bytes {begin} to {end} of {len(data)}")
    part = data[begin:end]
    if part.data_ptr() % dtype.itemsize:
        part = part.clone()
    return part.view(dtype).view(shape)
