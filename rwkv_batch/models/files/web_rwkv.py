"""Files in the layout of web-rwkv (Ai00, RWKV-Runner): safetensors, mostly named `.st`, with other names and shapes.

Its converter makes all numbers float16. It renames `time_faaaa` to `time_first` and `time_maa` to `time_mix`. It swaps
the last two axes of low-rank matrices and of initial states. It repeats the decays and bonuses of v5.1 for each channel
of a head, so that the file is one of v5.2 with the same numbers. v4 is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...errors import CheckpointError
from ..schema import LAYER_TENSOR
from .canonical import LAYOUT_MARK
from .prefixes import without_prefix
from .stored import AS_STORED, SWAPPED, Contents, StoredTensor
from .weight_files import require_floats, require_tensors

SUFFIX = ".st"
"""The usual suffix of such files."""

_LOW_RANK = {f"att.{letter}{i}" for letter in "wagv" for i in (1, 2)}
"""The low-rank matrices of v7, whose names say nothing about the layout."""
_SWAPPED = _LOW_RANK | {
    "att.time_maa_w1",
    "att.time_maa_w2",
    "att.time_decay_w1",
    "att.time_decay_w2",
    "att.time_state",
}
"""The tensors of a layer whose last two axes are swapped, by their canonical names."""


def is_web_rwkv(path: Path, stored: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    """Tells whether the tensors of a safetensors file are in web-rwkv's layout.

    Raises:
        CheckpointError: all low-rank matrices are square, so that nothing in the file tells.
    """
    if LAYOUT_MARK.items() <= metadata.items():
        return False
    names = without_prefix(path, stored)
    shapes = {name: tuple(stored[full].shape) for full, name in names.items()}
    layer = {match[2] for match in map(LAYER_TENSOR.fullmatch, shapes) if match}
    if "att.time_mix_x" in layer or ({"att.time_first", "att.gate.weight"} <= layer and "att.time_maa_x" not in layer):
        return True
    if "att.w1" not in layer or "emb.weight" not in shapes:
        return False
    return _has_swapped_pairs(path, shapes)


def _has_swapped_pairs(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Tells the layout of a v7 model by its low-rank matrices: [C, R] and [R, C], or swapped."""
    width = (0, *shapes["emb.weight"])[-1]
    matches = ((LAYER_TENSOR.fullmatch(name), shape) for name, shape in shapes.items())
    pairs = {(match[2][-1], shape) for match, shape in matches if match and match[2] in _LOW_RANK and len(shape) == 2}
    plain, swapped = (
        any(shape[0] != shape[1] and shape[axis if which == "1" else 1 - axis] == width for which, shape in pairs)
        for axis in (0, 1)
    )
    if plain or swapped or not pairs:
        return swapped and not plain
    if path.suffix == SUFFIX:
        return True
    raise CheckpointError(
        f"{path}: all low-rank matrices are square, so that nothing tells whether they are stored as in a .pth or, as "
        f"web-rwkv does, transposed; name the file *{SUFFIX} if it is web-rwkv's, or use the .pth"
    )


def read_web_rwkv(path: Path, stored: Mapping[str, Tensor]) -> Contents:
    """The contents of a file in web-rwkv's layout, with canonical names and shapes.

    Raises:
        CheckpointError: an entry is no dense tensor of floats.
    """
    names = without_prefix(path, stored)
    tensors = require_tensors(path, {names[full]: tensor for full, tensor in stored.items()})
    has_shares = any(name.endswith(".att.time_mix_x") for name in tensors)
    dense = {}
    for name, tensor in tensors.items():
        canonical = name.replace(".time_mix_", ".time_maa_") if has_shares else name
        canonical = canonical.replace(".att.time_first", ".att.time_faaaa")
        match = LAYER_TENSOR.fullmatch(canonical)
        is_swapped = match is not None and match[2] in _SWAPPED
        dense[canonical] = StoredTensor(tensor, SWAPPED if is_swapped else AS_STORED)
    require_floats(path, dense)
    return Contents(dense, (path,))


def as_canonical_states(path: Path, states: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """The states of a safetensors file, as a .pth has them: [H, V, K].

    web-rwkv's files hold [H, K, V] under the same names. Its converter writes float16, and the suffix is `.st`.

    Raises:
        CheckpointError: the suffix says one layout, and the number format the other.
    """
    if LAYOUT_MARK.items() <= metadata.items():
        return dict(states)
    has_suffix = path.suffix == SUFFIX
    is_half = all(state.dtype == torch.float16 for state in states.values())
    if has_suffix != is_half:
        raise CheckpointError(
            f"{path}: nothing tells whether these states are stored as in a .pth or, as web-rwkv does, transposed: "
            f"web-rwkv writes float16 to *{SUFFIX}, others write .safetensors or another number format. If web-rwkv or "
            f"Ai00 made the file, name it *{SUFFIX} and keep float16; else save it as a .pth"
        )
    return {name: state.transpose(-1, -2) if is_half and state.dim() == 3 else state for name, state in states.items()}
