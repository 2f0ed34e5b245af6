"""Tensors as model files store them, and the rules that give canonical tensors: BlinkDL's names, shapes and values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..matrices.mm8 import Mm8Weight


def same(tensor: Tensor) -> Tensor:
    return tensor


class Restore(NamedTuple):
    """A rule that gives a canonical tensor: a view of the stored tensor, then new values of the same shape."""

    view: Callable[[Tensor], Tensor] = same
    values: Callable[[Tensor], Tensor] = same


def row_of(i: int) -> Restore:
    """Row i of [n, C] → [1, 1, C]."""
    return Restore(lambda stored: stored[i].reshape(1, 1, -1))


AS_STORED = Restore()
TRANSPOSED = Restore(Tensor.t)
SWAPPED = Restore(lambda stored: stored.transpose(-1, -2))
"""[..., a, b] → [..., b, a]."""
ROW = Restore(lambda stored: stored.reshape(1, 1, -1))
"""[C] or [H, N, 1] → [1, 1, C]."""

Targets = tuple[tuple[str, Restore], ...]
"""The canonical tensors that one stored tensor gives: name and rule of each."""
LayerTargets = Mapping[str, Targets]
"""A stored tensor's name within its layer → the canonical tensors, named within the layer as well."""


def renamed(pairs: Mapping[str, str], kinds: Iterable[str] = ("weight",)) -> dict[str, Targets]:
    """Tensors that differ in name only.

    Args:
        pairs: stored → canonical name, both without their last word.
        kinds: the last words.
    """
    return {f"{theirs}.{kind}": ((f"{ours}.{kind}", AS_STORED),) for theirs, ours in pairs.items() for kind in kinds}


def as_rows(*names: str) -> dict[str, Targets]:
    """Vectors that differ from [1, 1, C] in shape only."""
    return {name: ((name, ROW),) for name in names}


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor as a file stores it: memory-mapped, not to be written to."""

    stored: Tensor
    restore: Restore = AS_STORED

    @property
    def shape(self) -> tuple[int, ...]:
        """The canonical shape, found without reading the data."""
        return tuple(self.restore.view(self.stored).shape)

    def tensor(self) -> Tensor:
        """The canonical tensor."""
        return self.restore.values(self.restore.view(self.stored))


MM8_SUFFIXES = ("_mx", "_rx", "_my", "_ry")
"""Appended to the name of a matrix in 8-bit form: the names of the vectors of `Mm8Weight`, in its order."""


@dataclass(frozen=True, eq=False)
class StoredMm8:
    """A matrix that a file stores in 8-bit form, to be multiplied by `scale`."""

    stored: Mm8Weight
    scale: float = 1.0

    def weight(self) -> Mm8Weight:
        return self.stored.scaled(self.scale)


@dataclass(frozen=True, eq=False)
class Contents:
    """The contents of a model file or folder.

    Args:
        dense: canonical name → tensor.
        files: the weight files.
        quantized: canonical name → matrix in 8-bit form.
        embedding_is_normalized: `blocks.0.ln0` has been applied to `emb.weight`, and is absent.
        ln_x_eps: epsilon of the group norm over heads, where the model states it.
    """

    dense: Mapping[str, StoredTensor]
    files: tuple[Path, ...]
    quantized: Mapping[str, StoredMm8] = field(default_factory=dict)
    embedding_is_normalized: bool = False
    ln_x_eps: float | None = None
