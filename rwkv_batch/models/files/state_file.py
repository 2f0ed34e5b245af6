"""Files with an initial state, as state tuning saves them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ...errors import CheckpointError
from .web_rwkv import as_canonical_states
from .weight_files import FLOAT_DTYPES, holds_safetensors, read_pth, read_safetensors, require_tensors


def read_states(path: Path) -> dict[str, Tensor]:
    """The tensors of a file with an initial state, of a model of any size: "blocks.N.name" → tensor.

    Raises:
        CheckpointError: the file is unreadable, or its tensors have other names.
    """
    if not holds_safetensors(path):
        return require_tensors(path, read_pth(path))
    stored, metadata = read_safetensors(path)
    return as_canonical_states(path, require_tensors(path, stored), metadata)


def load_state_file(path: str | Path, num_layers: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors of a file with an initial state, in the shapes that a .pth has.

    Args:
        shapes: a tensor's name within its layer → its shape, for all tensors that each layer has.

    Raises:
        CheckpointError: the file is unreadable, or its tensors are not those of a model with these sizes.
    """
    path = Path(path)
    states = read_states(path)
    expected = {f"blocks.{i}.{name}": shape for i in range(num_layers) for name, shape in shapes.items()}
    complaint = next(
        (
            f"{name} {list(states[name].shape)} {states[name].dtype}" if name in states else f"{name} missing"
            for name, shape in expected.items()
            if name not in states or tuple(states[name].shape) != shape or states[name].dtype not in FLOAT_DTYPES
        ),
        min(states.keys() - expected.keys(), default=None),
    )
    if complaint is not None:
        tensors = ", ".join(f"blocks.N.{name} of shape {list(shape)}" for name, shape in shapes.items())
        raise CheckpointError(
            f"{path}: this state does not fit the model: found {complaint}, expected {tensors}, floats, for each of "
            f"{num_layers} layers and nothing else; use a state tuned for a model of this size"
        )
    return states
