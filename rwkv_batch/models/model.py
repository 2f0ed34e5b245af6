"""A checkpoint, loaded and placed: token ids in, logits out, state in a pool that somebody else owns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..ops import OpSpec, OpTable
from .architecture import DEFAULT_LN_X_EPS, Architecture, LayerState, StateField, identify
from .blocks import Norm, layer_norm
from .files.checkpoint import Checkpoint, load_state_file
from .matrices.linear import RemoteLinear
from .matrices.quantization import weight_format
from .pipeline import Pipeline
from .placed_weights import PlacedWeights
from .placement import LayerPlacement, Placement
from .rows import Rows
from .scoring import LOG_NORMALIZER, SCORE, scoring_op


@dataclass(frozen=True)
class ModelFile:
    """What a checkpoint is, known without reading its weights."""

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
        return (*self.architecture.ops, SCORE, LOG_NORMALIZER)

    def ops_at(self, place: LayerPlacement, head_is_remote: bool = False) -> tuple[OpSpec, ...]:
        """The ops of the layers at a placement, and those of the head if it is there.

        Args:
            head_is_remote: the head's matrix is on another device, and results come here.
        """
        scoring = scoring_op(place.quantization, head_is_remote)
        products = weight_format(place.quantization).ops(place.device)
        return (*self.architecture.ops, scoring, LOG_NORMALIZER, *products)

    def state_fields(self, placement: Placement, dtype: torch.dtype | None = None) -> tuple[StateField, ...]:
        """What a layer keeps for one sequence.

        Args:
            dtype: of the layer's activations; None takes the placement's.
        """
        return self.architecture.state_fields(self.sizes, dtype or placement.dtype, placement.state_dtype)

    def initial_states(self, init_state: str | Path | None) -> dict[str, Sequence[Tensor]]:
        """State fields that do not start at their default: the checkpoint's `time_state`, or that of a separate file.

        Raises:
            CheckpointError: the file's tensors do not fit this model.
        """
        names = [f"blocks.{i}.att.time_state" for i in range(self.sizes["L"])]
        stored: Mapping[str, Tensor]
        if init_state is None:
            present = [n for n in names if n in self.checkpoint.names]
            if not present:
                return {}
            if present != names:
                raise CheckpointError(
                    f"{self.checkpoint.path}: {len(present)} of {len(names)} layers have a time_state, {present[0]} "
                    "the first; expected all or none; add the missing ones, or take them out and pass init_state"
                )
            stored = {n: self.checkpoint.tensor(n) for n in names}
        else:
            stored = load_state_file(init_state)
            self._check_states(stored, names, init_state)
        return {"wkv": [self.architecture.initial_wkv(stored[n]) for n in names]}

    def _check_states(self, stored: Mapping[str, Tensor], names: Sequence[str], path: str | Path) -> None:
        if "H" not in self.sizes:
            raise CheckpointError(
                f"{path}: {self.architecture.name} has no matrix state to start from; use v5, v6 or v7"
            )
        shape = (self.sizes["H"], self.sizes["N"], self.sizes["N"])
        wrong = [n for n in names if n not in stored or tuple(stored[n].shape) != shape]
        extra = sorted(set(stored) - set(names))
        if wrong or extra:
            found = (
                f"{wrong[0]} {list(stored[wrong[0]].shape) if wrong[0] in stored else 'missing'}" if wrong else extra[0]
            )
            raise CheckpointError(
                f"{path}: this state does not fit the model: found {found}, expected {len(names)} tensors "
                f"blocks.N.att.time_state of shape {list(shape)}; use a state tuned for a model of this size"
            )


class Model:
    """One loaded checkpoint.

    Args:
        ops: implementations of `ModelFile.ops_at`: one table for all; or one for each layer, one for the head and,
            where logits leave the head's device, one for what follows.
        ln_x_eps: epsilon of the group norm over heads; None takes the checkpoint's own, or 64e-5.
        batch_invariant: a row's results do not depend, bit for bit, on what else is in the step.
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
        self.ln_x_eps = ln_x_eps or checkpoint.ln_x_eps or DEFAULT_LN_X_EPS
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
            [M, C]: what `logits` takes.
        """
        if self.pipeline is not None:
            return self.pipeline.step(token_ids, rows, layers)
        return self.architecture.step(token_ids, rows, layers, self.ops)

    @torch.inference_mode()
    def score(self, hidden: Tensor, targets: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of `targets`, predicted by the rows `rows` of hidden [m, C]: `models.scoring.score`."""
        x = layer_norm(hidden, self._norm)
        return self.ops.score(x, self._head, targets, rows, self.ops)

    @torch.inference_mode()
    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """[n, C] → [n, V] float32, which the caller may write to.

        Args:
            out: [n, V] float32, kept by the caller: the result is written there.
        """
        x = layer_norm(hidden, self._norm)
        if out is None:
            return self._head(x, dtype=torch.float32)
        self._head.write(x, out)
        return out
