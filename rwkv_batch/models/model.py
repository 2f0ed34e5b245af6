"""A model: a checkpoint that is loaded and placed. It turns token ids into logits and updates states of a pool."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError, ConfigurationError
from ..ops import OpSpec, OpTable
from .architecture import Architecture, LayerState, StateField, architectures, identify
from .blocks import LAYER_NORM, TAKE_ROWS, Norm
from .files.checkpoint import Checkpoint
from .files.state_file import load_state_file
from .matrices.linear import RemoteLinear
from .matrices.quantization import weight_format
from .pipeline import Pipeline
from .placed_weights import PlacedWeights
from .placement import LayerPlacement, Placement
from .rows import Rows
from .schema import numeric_shape
from .scoring import LOG_NORMALIZER, SCORE, scoring_op


@dataclass(frozen=True)
class ModelFile:
    """A checkpoint with its version and sizes, which are known without reading the weights."""

    checkpoint: Checkpoint
    architecture: type[Architecture]
    sizes: dict[str, int]

    @classmethod
    def open(cls, checkpoint: Checkpoint) -> ModelFile:
        """Identify the version; raises CheckpointError where none matches."""
        return cls(checkpoint, *identify(checkpoint))

    @property
    def ops(self) -> tuple[OpSpec, ...]:
        """The ops of a model whose matrices are dense."""
        return (TAKE_ROWS, *self.architecture.ops, LAYER_NORM, SCORE, LOG_NORMALIZER)

    def ops_at(self, place: LayerPlacement, head_is_remote: bool = False) -> tuple[OpSpec, ...]:
        """The ops of the layers at a placement, and those of the head if the head has this placement.

        Args:
            head_is_remote: the head's matrix is on another device, which sends its results to this one.
        """
        scoring = scoring_op(place.quantization, head_is_remote)
        products = weight_format(place.quantization).ops(place.device)
        return (TAKE_ROWS, *self.architecture.ops, LAYER_NORM, scoring, LOG_NORMALIZER, *products)

    def state_fields(self, placement: Placement, dtype: torch.dtype | None = None) -> tuple[StateField, ...]:
        """The state that a layer keeps for one sequence.

        Args:
            dtype: of the layer's activations; None takes the placement's.
        """
        return self.architecture.state_fields(self.sizes, dtype or placement.dtype, placement.state_dtype)

    def ring_shape(self, state_write_interval: int) -> tuple[int, ...]:
        """The shape of a slot's ring of updates in one layer, see `LayerState`.

        Raises:
            ConfigurationError: this version's state writes cannot be deferred.
        """
        update = self.architecture.update_shape(self.sizes)
        if update is None:
            raise ConfigurationError(
                f"got {state_write_interval}, expected 1: only RWKV-7 defers state writes, and this model is "
                f"{self.architecture.name}",
                setting="state_write_interval",
            )
        return state_write_interval - 1, *update

    def initial_states(self, init_state: str | Path | None) -> dict[str, Sequence[Tensor]]:
        """The state fields that do not start at their initial value: name → one tensor for each layer.

        Args:
            init_state: a file with the initial state; None takes the checkpoint's own, if it has one.

        Raises:
            CheckpointError: the file's tensors do not fit this model, or some layers of the checkpoint have none.
        """
        shapes = {
            name: numeric_shape(shape, self.sizes) for name, shape in self.architecture.schema.initial_state.items()
        }
        stored = self._own_initial_state(shapes) if init_state is None else self._read_initial_state(init_state, shapes)
        if not stored:
            return {}
        layers = [{name: stored[f"blocks.{i}.{name}"] for name in shapes} for i in range(self.sizes["L"])]
        states = [self.architecture.initial_state(layer) for layer in layers]
        return {field: [state[field] for state in states] for field in states[0]}

    def _own_initial_state(self, names: Collection[str]) -> dict[str, Tensor]:
        wanted = [f"blocks.{i}.{name}" for i in range(self.sizes["L"]) for name in names]
        present = [name for name in wanted if name in self.checkpoint.names]
        if present and present != wanted:
            raise CheckpointError(
                f"{self.checkpoint.path}: holds {len(present)} of {len(wanted)} tensors "
                f"{', '.join(f'blocks.N.{name}' for name in names)}, {present[0]} the first; expected all or none; add "
                "the missing ones, or take them out and pass init_state"
            )
        return {name: self.checkpoint.tensor(name) for name in present}

    def _read_initial_state(self, path: str | Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        if not shapes:
            able = ", ".join(version.name for version in architectures() if version.schema.initial_state)
            raise CheckpointError(
                f"{path}: {self.architecture.name} cannot start from a stored state; use a model of {able}"
            )
        return load_state_file(path, self.sizes["L"], shapes)


class Model:
    """One loaded checkpoint.

    Args:
        ops: implementations of `ModelFile.ops_at`: one table for all; or one for each layer, one for the head and,
            where logits leave the head's device, one for what follows.
        ln_x_eps: epsilon of the group norm over heads; None takes the checkpoint's own, or the version's default.
        batch_invariant: a row's results do not depend, bit for bit, on the other rows of the step.
    """

    def __init__(
        self,
        file: ModelFile,
        placement: Placement,
        ops: OpTable | Sequence[OpTable],
        ln_x_eps: float | None = None,
        batch_invariant: bool = False,
    ) -> None:
        checkpoint = file.checkpoint
        self.file = file
        self.placement = placement
        self.sizes = file.sizes
        self.ln_x_eps = ln_x_eps or checkpoint.ln_x_eps or file.architecture.default_ln_x_eps
        num_layers = file.sizes["L"]
        tables = (ops,) * (num_layers + 1) if isinstance(ops, OpTable) else tuple(ops)
        self.ops = tables[-1]
        weights = PlacedWeights(checkpoint, placement, num_layers, tables, batch_invariant)
        self.architecture = file.architecture(weights, file.sizes, self.ln_x_eps)
        norm, head = weights.at(num_layers).norm("ln_out"), weights.at(num_layers).head()
        self._norm = Norm(*(part.to(placement.device) for part in norm))
        self._head = RemoteLinear(head, placement.head_device) if placement.head_device else head
        self.matrix_bytes = weights.matrix_bytes
        is_split = bool(placement.layers)
        self.pipeline = Pipeline(self.architecture, placement, tables, weights) if is_split else None

    @property
    def device(self) -> torch.device:
        return self.placement.device

    @torch.inference_mode()
    def forward(self, token_ids: Tensor, rows: Rows, layers: list[LayerState]) -> Tensor:
        """Advance every row through its tokens; the layers' states are updated in place.

        Args:
            token_ids: [M] int64, each in [0, V).

        Returns:
            [M, C]: the input of `logits` and `score`.
        """
        if self.pipeline is not None:
            return self.pipeline.step(token_ids, rows, layers)
        return self.architecture.step(token_ids, rows, layers, self.ops)

    @torch.inference_mode()
    def score(self, hidden: Tensor, targets: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of `targets`, predicted by the rows `rows` of hidden [m, C]: `models.scoring.score`."""
        x = self.ops.layer_norm(hidden, self._norm)
        return self.ops.score(x, self._head, targets, rows, self.ops)

    @torch.inference_mode()
    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """[n, C] → [n, V] float32, which the caller may write to.

        Args:
            out: [n, V] float32, where the result is written.
        """
        x = self.ops.layer_norm(hidden, self._norm)
        if out is None:
            return self._head(x, dtype=torch.float32)
        self._head.write(x, out)
        return out
