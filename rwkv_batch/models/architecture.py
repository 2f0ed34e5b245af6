"""The interface between RWKV versions and everything else: a version is one class in one file, with all its facts."""

from __future__ import annotations

import pkgutil
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..ops import OpSpec, OpTable
from .files.hf_layouts import HfLayout
from .files.stored import LayerTargets
from .random_weights import RandomWeights
from .rows import Rows
from .schema import Match, Schema

if TYPE_CHECKING:
    # These modules read checkpoints. Reading asks the versions for their facts, so they import this module.
    from .files.checkpoint import Checkpoint
    from .placed_weights import PlacedWeights
    from .weights import Weights


@dataclass(frozen=True)
class StateField:
    """A tensor of the state that a layer keeps for each sequence."""

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
"""The state of one layer for all slots: each `StateField.name` as an attribute, [P, *shape].

Where state writes are deferred, also `ring`, [P, n - 1, *update_shape] float32: updates that the states lack. n is the
number of tokens after which a state is written.
"""


@dataclass(frozen=True)
class Refusal:
    """A family of checkpoints that rwkv_batch recognizes and cannot run.

    Args:
        family: its name.
        tensors: matches a part of a tensor's name that only this family has.
        reason: completes the sentence "this is <family>, ..." and names models that can be run instead.
    """

    family: str
    tensors: re.Pattern[str]
    reason: str


class Architecture(ABC):
    """One version of RWKV with its weights.

    Args:
        weights: the checkpoint's tensors, converted and placed.
        sizes: letters → values, as the schema read them from the tensor shapes.
        ln_x_eps: epsilon of the group norm over heads.
    """

    name: ClassVar[str]
    """Stands in reports and error messages."""
    schema: ClassVar[Schema]
    """The tensors of this version's checkpoints."""
    ops: ClassVar[tuple[OpSpec, ...]]
    """The ops that `layer` calls."""
    hugging_face: ClassVar[tuple[HfLayout, ...]] = ()
    """The layouts of this version's Hugging Face folders."""
    chatrwkv: ClassVar[LayerTargets | None] = None
    """The layer tensors that ChatRWKV's conversion changes, besides large matrices; None: it converts no such model."""
    refused: ClassVar[tuple[Refusal, ...]] = ()
    """Families of related checkpoints that cannot be run."""
    default_ln_x_eps: ClassVar[float] = 64e-5
    """Epsilon of the group norm over heads where neither the checkpoint nor the user states it."""

    random_weights: ClassVar[RandomWeights]
    """How tests and benchmarks draw a checkpoint. Loading and serving do not need it."""
    recurrence_cost: ClassVar[RecurrenceCost]
    """The basis of predictions of a step's time in benchmarks. Loading and serving do not need it."""

    layers: list[Any]
    """The result of `load_layer` for each layer."""

    def __init__(self, weights: PlacedWeights, sizes: Mapping[str, int], ln_x_eps: float) -> None:
        self.sizes = dict(sizes)
        self.ln_x_eps = ln_x_eps
        self.rescales = weights.rescales
        self.embedding = weights.at(0).embedding()
        self.layers = [self.load_layer(weights.at(i), i) for i in range(sizes["L"])]

    @classmethod
    def refine_sizes(cls, sizes: dict[str, int]) -> str | None:
        """Adds the sizes that follow from others and are not known yet; returns what is wrong with the sizes, if so.

        Called with the sizes that a checkpoint's tensors have, and with those of a checkpoint to be drawn. By default A
        and F, which estimates of memory need besides C and V, are C where the schema lacks them.
        """
        sizes.setdefault("A", sizes["C"])
        sizes.setdefault("F", sizes["C"])
        return None

    @classmethod
    @abstractmethod
    def state_fields(
        cls, sizes: Mapping[str, int], dtype: torch.dtype, state_dtype: torch.dtype
    ) -> tuple[StateField, ...]:
        """The state that one layer keeps for one sequence.

        Args:
            dtype: of activations, hence of token-shift rows.
            state_dtype: of matrix states.
        """

    @classmethod
    def update_shape(cls, sizes: Mapping[str, int]) -> tuple[int, ...] | None:
        """The shape of what a token changes a layer's state by, where the state's writes can be deferred; else None."""
        return None

    @classmethod
    def initial_state(cls, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state fields of one layer in which every sequence starts; the others start at their initial value.

        By default the tensor `att.x` is the field `x`.

        Args:
            stored: the tensors of `schema.initial_state`, by name.
        """
        return {name.split(".")[-1]: tensor for name, tensor in stored.items()}

    @abstractmethod
    def load_layer(self, weights: Weights, i: int) -> Any:
        """The parameters of layer i, kept as `layers[i]`."""

    @abstractmethod
    def layer(
        self, i: int, x: Tensor, first: Tensor | None, token_ids: Tensor, state: LayerState, rows: Rows, ops: OpTable
    ) -> Tensor | None:
        """Advance every row through its tokens in layer i.

        Args:
            x: [M, C], the residual stream. **Updated in place.**
            first: the tensor that layer 0 returned; None in layer 0.
            token_ids: [M] int64, packed.
            state: **updated in place** in the rows' slots.

        Returns:
            [M, ...]: the tensor of layer 0 that later layers take as `first`; None if they take none.
        """

    def step(self, token_ids: Tensor, rows: Rows, state: list[LayerState], ops: OpTable) -> Tensor:
        """Advance every row through its tokens in all layers, which are on one device and of one dtype.

        Args:
            token_ids: [M] int64, packed.
            state: of each layer; **updated in place** in the rows' slots.

        Returns:
            [M, C]: the residual stream after the last layer, before the output norm.
        """
        x, first = ops.take_rows(self.embedding, token_ids), None
        for i, s in enumerate(state):
            first = self.layer(i, x, first, token_ids, s, rows, ops)
        return x


_registered: list[type[Architecture]] = []


def register(*versions: type[Architecture]) -> None:
    """Add versions that are defined outside this package, for example in a plug-in.

    Their checkpoints are then identified and loaded like those of all other versions, in this process; each worker
    process registers them itself. Registering a version again changes nothing.
    """
    _registered.extend(version for version in dict.fromkeys(versions) if version not in _registered)


def architectures() -> list[type[Architecture]]:
    """Every version: those of the `rwkv*.py` files of this package, then those that were registered."""
    package = import_module(__package__ or "rwkv_batch.models")
    found: list[type[Architecture]] = []
    for module in sorted(info.name for info in pkgutil.iter_modules(package.__path__) if info.name.startswith("rwkv")):
        found.extend(import_module(f"{package.__name__}.{module}").ARCHITECTURES)
    return found + _registered


def version_named(name: str) -> type[Architecture]:
    """The version whose `name` this is; raises KeyError if there is none."""
    return {version.name: version for version in architectures()}[name]


def identify(checkpoint: Checkpoint) -> tuple[type[Architecture], dict[str, int]]:
    """The version of a checkpoint, with the sizes read from the shapes of its tensors.

    Raises:
        CheckpointError: the checkpoint is of a refused family; or no version matches, and the message states how it
            differs from the nearest ones, or what kind of names it has instead.
    """
    near: list[_Near] = []
    for architecture in architectures():
        for refusal in architecture.refused:
            if any(map(refusal.tensors.search, checkpoint.names)):
                raise CheckpointError(f"{checkpoint.path}: this is {refusal.family}, {refusal.reason}")
        match = architecture.schema.match(checkpoint.names, checkpoint.shape, checkpoint.embedding_is_normalized)
        complaint = match.describe() or _size_complaint(architecture, match)
        if not complaint:
            return architecture, match.sizes
        near.append(_Near(match.num_complaints, architecture.name, complaint))
    raise CheckpointError(f"{checkpoint.path}: no RWKV version has these tensors; {_difference(checkpoint, near)}")


class _Near(NamedTuple):
    """A version that a checkpoint is not of."""

    num_complaints: int
    name: str
    complaint: str


def _difference(checkpoint: Checkpoint, near: list[_Near]) -> str:
    """How a checkpoint of no version differs from the nearest ones: at most three, of those that share its names."""
    expected = (
        "Expected a checkpoint in BlinkDL's layout, ChatRWKV's converted form, web-rwkv's, or a Hugging Face folder "
        "of RWKV."
    )
    names = sorted(checkpoint.names)
    if any(name.startswith("layers.") or ".layers." in name for name in names):
        expected = (
            "These are names of a Hugging Face folder: pass the folder with its config.json instead of one of its "
            "files, or hf://owner/repo for a repository. If it is a folder already, it is none of a version of RWKV "
            "that rwkv_batch runs."
        )
    elif any("lora_" in name for name in names):
        expected = "These are names of an adapter (LoRA): merge it into its model first."
    near = sorted(near)
    alike = [one for one in near if one.num_complaints < len(names)] or near
    lines = "\n".join(f"  {one.name}: {one.complaint}" for one in alike[:3])
    examples = ", ".join(repr(name[:100]) for name in names[:2])
    return f"it has {len(names)}, such as {examples}; the nearest are\n{lines}\n{expected}"


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
