"""What a model file, or a file with an initial state, holds. Weights are not loaded."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..dtypes import dtype_name
from ..engine.sizing import plan_memory
from ..engine.state_pool import StateLayout
from ..errors import CapacityError, CheckpointError, RwkvBatchError
from ..model_summary import DEMO_MODEL
from ..models.architecture import describe_sizes
from ..models.files.checkpoint import open_checkpoint
from ..models.files.state_file import read_states
from ..models.model import ModelFile
from ..models.placement import Placement
from ..text.chat import ChatSettings, open_chat
from ..text.load_tokenizer import load_tokenizer

MEMORIES = (8, 24, 80)
"""GiB of the GPUs for which slots are planned."""
STATE_NAME = re.compile(r"blocks\.(\d+)\.(.*state.*)")
"""The name of a tensor in a file with an initial state: layer, and name in the layer."""
LARGEST_STATE = 2 << 30
"""Bytes of the largest file that is read as an initial state."""

Found = dict[str, Any]


def inspect_weights(path: str) -> Found:
    """Describes a model, or a file with an initial state.

    Args:
        path: as `model.path` of a job, or a file with an initial state.

    Raises:
        CheckpointError: it is neither.
    """
    checkpoint = open_checkpoint(DEMO_MODEL if path == "demo" else path)
    try:
        file = ModelFile.open(checkpoint)
    except CheckpointError:
        found = _state(Path(path))
        if found is None:
            raise
        return found
    return _model(file)


def _model(file: ModelFile) -> Found:
    checkpoint = file.checkpoint
    dtype = checkpoint.matrix_dtype
    fields = file.state_fields(Placement(torch.device("cuda"), dtype, None))
    return {
        "kind": "model",
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "version": file.architecture.name,
        "parameters": sum(math.prod(checkpoint.shape(name)) for name in checkpoint.names),
        "sizes": describe_sizes(file.sizes),
        "dtype": dtype_name(dtype),
        "state_bytes": StateLayout(fields, file.sizes["L"]).record_bytes,
        "state_fields": {
            field.name: {"shape": list(field.shape), "dtype": dtype_name(field.dtype)} for field in fields
        },
        "has_initial_state": bool(file.architecture.schema.initial_state) and _has_own_state(file),
        "tokenizer": _tokenizer(file),
        "chat": _chat(file),
        "slots": {
            name: _slots(file, quantization) for name, quantization in ((dtype_name(dtype), None), ("int8", "int8"))
        },
    }


def _has_own_state(file: ModelFile) -> bool:
    return any(f"blocks.0.{name}" in file.checkpoint.names for name in file.architecture.schema.initial_state)


def _slots(file: ModelFile, quantization: str | None) -> dict[str, int]:
    """The slots that the memory plan gives to a GPU of each size, with all memory free; 0: the model is too big."""
    place = Placement(torch.device("cuda"), file.checkpoint.matrix_dtype, quantization)
    found = {}
    for size in MEMORIES:
        try:
            found[f"{size} GiB"] = plan_memory(file, place, available=size << 30).max_batch_size
        except CapacityError:
            found[f"{size} GiB"] = 0
    return found


def _tokenizer(file: ModelFile) -> str:
    try:
        found = load_tokenizer("auto", vocab_size=file.sizes["V"], model_path=file.checkpoint.path)
    except RwkvBatchError as error:
        return f"none: {error}"
    return "none" if found is None else found.name


def _chat(file: ModelFile) -> str:
    try:
        found = open_chat(ChatSettings(), file.checkpoint.path)
    except RwkvBatchError as error:
        return f"none: {error}"
    return f"{found.name} ({found.origin})" if found.origin else found.name


def _state(path: Path) -> Found | None:
    """Describes a file with an initial state; None where it is none."""
    try:
        if os.path.getsize(path) > LARGEST_STATE:
            return None
        states = read_states(path)
    except (OSError, CheckpointError):
        return None
    parts = [STATE_NAME.fullmatch(name) for name in states]
    if not states or None in parts:
        return None
    layers = {int(part[1]) for part in parts if part}
    tensors = {
        part[2]: {"shape": list(tensor.shape), "dtype": dtype_name(tensor.dtype)}
        for part, tensor in zip(parts, states.values(), strict=True)
        if part
    }
    return {"kind": "state", "path": str(path), "layers": len(layers), "tensors": tensors}


def describe(found: Found) -> Iterator[str]:
    """Yields lines for a terminal."""
    if found["kind"] == "state":
        yield f"state      {found['path']}"
        yield f"layers     {found['layers']}"
        for name, tensor in found["tensors"].items():
            yield f"tensor     {name} {tensor['shape']} {tensor['dtype']}, for each layer"
        return
    yield f"model      {found['path']} ({found['format']})"
    yield f"version    {found['version']}, {found['parameters']:,} parameters, {found['dtype']}"
    yield f"sizes      {', '.join(f'{name} {size:,}' for name, size in found['sizes'].items())}"
    fields = ", ".join(f"{name} {field['shape']} {field['dtype']}" for name, field in found["state_fields"].items())
    yield f"state      {found['state_bytes']:,} bytes for each sequence; of a layer: {fields}"
    if found["has_initial_state"]:
        yield "           the file has an initial state, with which each sequence begins"
    yield f"tokenizer  {found['tokenizer']}"
    yield f"chat       {found['chat']}"
    for name, slots in found["slots"].items():
        shown = ", ".join(
            f"{memory}: {count:,}" if count else f"{memory}: too small" for memory, count in slots.items()
        )
        yield f"slots      {name} on a GPU with {shown}"
    yield "           as max_batch_size: auto chooses them where all memory is free; more than 1,024 are of no use"
