"""The seam between RWKV versions and everything else. A version is one class in one file; nothing else asks which."""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..ops import OpSpec, OpTable
from .files.checkpoint import Checkpoint
from .placed_weights import PlacedWeights
from .random_weights import RandomWeights
from .rows import Rows
from .schema import Match, Schema

DEFAULT_LN_X_EPS = 64e-5


@dataclass(frozen=True)
class StateField:
    """One tensor of the state that a layer keeps for each sequence."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    initial_value: float = 0.0


class RecurrenceCost(NamedTuple):
    """The work of the recurrence for one token, which benchmarks compare with a device's limits."""

    operations: int
    """float32 instructions for each number of the recurrent state."""
    vectors: int
    """Activations [A] that are read and written."""


LayerState = SimpleNamespace
"""The state of one layer for all slots: each `StateField.name` as an attribute, [P, *shape]."""


class Architecture(ABC):
    """One version of RWKV with its weights.

    Args:
        weights: the checkpoint's tensors, converted and placed.
        sizes: letters → values, as the schema read them from the tensor shapes.
        ln_x_eps: epsilon of the group norm over heads.
    """

    name: ClassVar[str]
    schema: ClassVar[Schema]
    ops: ClassVar[tuple[OpSpec, ...]]
    random_weights: ClassVar[RandomWeights]
    """How tests and benchmarks draw a checkpoint. Loading and serving do not need it."""
    recurrence_cost: ClassVar[RecurrenceCost]
    """What benchmarks predict a step's time from. Loading and serving do not need it."""

    def __init__(self, weights: PlacedWeights, sizes: Mapping[str, int], ln_x_eps: float) -> None:
        self.sizes = dict(sizes)
        self.ln_x_eps = ln_x_eps
        self.rescales = weights.rescales
        self.embedding = weights.at(0).embedding()

    @classmethod
    def refine_sizes(cls, sizes: dict[str, int]) -> str | None:
        """Derive what is not an axis of any tensor (heads, head size); returns why the sizes can't be right, if so."""
        return None

    @classmethod
    @abstractmethod
    def state_fields(
        cls, sizes: Mapping[str, int], dtype: torch.dtype, state_dtype: torch.dtype
    ) -> tuple[StateField, ...]:
        """What one layer keeps for one sequence.

        Args:
            dtype: of activations, hence of token-shift rows.
            state_dtype: of matrix states.
        """

    @classmethod
    def initial_wkv(cls, stored: Tensor) -> Tensor:
        """A layer's `time_state` [H, N, N] as checkpoints store it (row = value channel) → [H, K, V]."""
        return stored.float().transpose(-1, -2)

    @abstractmethod
    def layer(
        self, i: int, x: Tensor, first: Tensor | None, token_ids: Tensor, state: LayerState, rows: Rows, ops: OpTable
    ) -> Tensor | None:
        """Advance every row through its tokens in layer i.

        Args:
            x: [M, C], the residual stream. **Updated in place.**
            first: what layer 0 returned; None in layer 0.
            token_ids: [M] int64, packed.
            state: **updated in place** in the rows' slots.

        Returns:
            [M, ...]: what later layers need of the first one, if anything; handed on.
        """

    def step(self, token_ids: Tensor, rows: Rows, state: list[LayerState], ops: OpTable) -> Tensor:
        """Advance every row through its tokens in all layers, which are on one device and of one dtype.

        Args:
            token_ids: [M] int64, packed.
            state: one namespace a layer; **updated in place** in the rows' slots.

        Returns:
            [M, C]: the residual stream after the last layer, before the output norm.
        """
        x, first = self.embedding[token_ids], None
        for i, s in enumerate(state):
            first = self.layer(i, x, first, token_ids, s, rows, ops)
        return x


_registered: list[type[Architecture]] = []


def register(*versions: type[Architecture]) -> None:
    """Add versions that are defined outside this package, for example in a plug-in.

    From then on `architectures()` lists them, so that their checkpoints are identified and loaded like all others.
    Registering a version again changes nothing.
    """
    _registered.extend(version for version in dict.fromkeys(versions) if version not in _registered)


def architectures() -> list[type[Architecture]]:
    """Every version: those of the `rwkv*.py` files of this package, then those that were registered."""
    package = import_module(__package__ or "rwkv_batch.models")
    found: list[type[Architecture]] = []
    for module in sorted(info.name for info in pkgutil.iter_modules(package.__path__) if info.name.startswith("rwkv")):
        found.extend(import_module(f"{package.__name__}.{module}").ARCHITECTURES)
    return found + _registered


def identify(checkpoint: Checkpoint) -> tuple[type[Architecture], dict[str, int]]:
    """The one version whose tensors these are, with the sizes read from their shapes.

    Raises:
        CheckpointError: no version matches; the nearest ones are listed with what differs.
    """
    if any(".qkv." in name or name.startswith("qkv") for name in checkpoint.names):
        raise CheckpointError(
            f"{checkpoint.path}: this is RWKV-7b (DeepEmbed attention), whose key/value cache grows with every token; "
            "rwkv_batch keeps a state of fixed size for each sequence, so use a v4, v5, v6, v7 or v7 DeepEmbed model"
        )
    near: list[tuple[int, str, str]] = []
    for architecture in architectures():
        match = architecture.schema.match(checkpoint.names, checkpoint.shape, checkpoint.embedding_is_normalized)
        complaint = match.describe() or _size_complaint(architecture, match)
        if not complaint:
            return architecture, match.sizes
        near.append((match.num_complaints, architecture.name, complaint))
    near.sort()
    listing = "\n".join(f"  {name}: {complaint}" for _, name, complaint in near[:3])
    raise CheckpointError(
        f"{checkpoint.path}: no RWKV version has these tensors; the nearest are\n{listing}\n"
        "Expected a checkpoint in BlinkDL's layout, ChatRWKV's converted form, or a Hugging Face RWKV-4/6/7 folder."
    )


def _size_complaint(architecture: type[Architecture], match: Match) -> str | None:
    if match.sizes["L"] == 0:
        return "no layers"
    return architecture.refine_sizes(match.sizes)


def describe_sizes(sizes: Mapping[str, int]) -> dict[str, Any]:
    """The sizes by name, for reports."""
    names = {
        "L": "n_layer",
        "C": "n_embd",
        "A": "n_att",
        "H": "n_head",
        "N": "head_size",
        "F": "n_ffn",
        "V": "vocab_size",
    }
    return {name: sizes[letter] for letter, name in names.items() if letter in sizes}
