"""Reads .pth and .safetensors files: named tensors, memory-mapped, or an error that describes the file."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...dtypes import DTYPES, torch_dtype
from ...errors import CheckpointError, looked_up, one_of
from ...user_files import reason_of, require_regular
from .stored import StoredTensor

FLOAT_DTYPES = (*(torch_dtype(name) for name in DTYPES), torch.float64)
"""Dtypes that weights and states come in. They are cast to the dtype in which a model runs."""

_MIN_TORCH = (2, 10)
_LFS_POINTER = b"version https://git-lfs"
_ZIP = b"PK\x03\x04"
_GGUF = b"GGUF"


def read_pth(path: Path) -> dict[str, Any]:
    """The entries of a PyTorch file by name, memory-mapped where its format allows.

    Only tensors, numbers and strings are unpickled, by PyTorch's own restricted loader.

    Raises:
        CheckpointError: unreadable, not a PyTorch file, cut short, or it holds other objects.
    """
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _MIN_TORCH:
        raise CheckpointError(
            f"{path}: reading a PyTorch file safely needs torch 2.10 or newer, this is {torch.__version__}; "
            "upgrade torch or use the model's .safetensors file"
        )
    is_zip = first_bytes(path).startswith(_ZIP)
    try:
        entries = torch.load(path, map_location="cpu", mmap=is_zip, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_unpickling_complaint(path, str(error))) from error
    except Exception as error:  # PyTorch's loader raises errors of many classes where the bytes are damaged
        raise CheckpointError(
            f"{path}: not a readable PyTorch file; expected a .pth of named tensors (a TorchScript archive is none). "
            "If a download or copy was cut short, fetch the file again"
        ) from error
    if not isinstance(entries, dict) or not all(isinstance(name, str) for name in entries):
        raise CheckpointError(f"{path}: holds a {type(entries).__name__}, expected a dict from names to tensors")
    return entries


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a .safetensors file, memory-mapped, and its metadata.

    Raises:
        CheckpointError: unreadable, not a safetensors file, or cut short.
    """
    from safetensors import SafetensorError, safe_open

    first_bytes(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file ({error}). If a download or copy was cut short, "
            "fetch the file again"
        ) from error


def require_tensors(path: Path, entries: Mapping[str, Any]) -> dict[str, Tensor]:
    """Check that all entries are dense tensors of a dtype that weights come in.

    Raises:
        CheckpointError: names the first entry that isn't.
    """
    if not entries:
        raise CheckpointError(f"{path}: holds no tensors")
    if nested := [name for name, value in entries.items() if isinstance(value, Mapping)]:
        raise CheckpointError(
            f"{path}: {nested[0]!r} is a dict, as in a training checkpoint; expected named tensors. If the weights are "
            f"in there, save them alone: torch.save(torch.load(...)[{nested[0]!r}], ...)"
        )
    for name, value in entries.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            kind = value.layout if isinstance(value, Tensor) else type(value).__name__
            raise CheckpointError(f"{path}: {name!r} is a {kind}, expected dense tensors only")
        if value.device.type != "cpu":
            raise CheckpointError(f"{path}: {name!r} has no data (device {value.device}); save the model with its data")
        if value.dtype not in (*FLOAT_DTYPES, torch.uint8):
            raise CheckpointError(
                f"{path}: {name!r} is {value.dtype}, expected {one_of(DTYPES)}; convert the file first"
            )
    return {name: value.detach() for name, value in entries.items()}


def require_floats(path: Path, dense: Mapping[str, StoredTensor]) -> None:
    """Check that no tensor is one of bytes.

    Raises:
        CheckpointError: names the first that is.
    """
    for name, tensor in dense.items():
        if tensor.stored.dtype == torch.uint8:
            raise CheckpointError(
                f"{path}: {name!r} is torch.uint8 without the scales that make weights of bytes; expected "
                "float32, float16 or bfloat16, a file converted by ChatRWKV, or one from `rwkv-batch convert`"
            )


def holds_safetensors(path: Path) -> bool:
    """Tells whether a file has the format of .safetensors, whatever its suffix is: `.st` is common too.

    Such a file starts with the length of its header in 8 bytes, and the header is a JSON object.

    Raises:
        CheckpointError: as for `first_bytes`.
    """
    start = first_bytes(path)
    return path.suffix == ".safetensors" or (start[8:9] == b"{" and not start.startswith(_ZIP))


def first_bytes(path: Path) -> bytes:
    """The first bytes of a file.

    Raises:
        CheckpointError: unreadable, no regular file, empty, a Git LFS pointer, or of a format that is never read.
    """
    try:
        require_regular(path)
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{_shown(path)}: can't be read ({reason_of(error)}){looked_up(path)}; expected a model file, or "
            f"hf://owner/repo/file{_hint(path)}"
        ) from error
    if not start:
        raise CheckpointError(f"{path}: the file is empty; fetch it again")
    if start == _LFS_POINTER:
        raise CheckpointError(f"{path}: a Git LFS pointer, not the model itself; run `git lfs pull` in its folder")
    if start.startswith(_GGUF):
        raise CheckpointError(
            f"{path}: a GGUF file, the format of llama.cpp, which rwkv_batch does not read; use the .pth or the "
            ".safetensors from which it was made, with `quantization: int8` for weights of one byte"
        )
    return start


def _shown(path: Path) -> str:
    """The path as text that any terminal can print."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def _hint(path: Path) -> str:
    """What a path that does not exist is likely to mean."""
    is_repository = re.fullmatch(r"[\w-]+/[\w.-]+", str(path)) is not None
    return f". A repository of the Hugging Face hub is written hf://{path}" if is_repository else ""


def _unpickling_complaint(path: Path, reason: str) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", reason)
    if found is None:
        return f"{path}: neither a PyTorch file nor a safetensors file; expected a .pth of named tensors"
    return (
        f"{path}: holds the Python object {found[1]}; expected plain tensors, nothing else is ever unpickled. "
        "Save its tensors alone, as a dict, or use a .safetensors file"
    )
