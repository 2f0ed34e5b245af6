"""A loaded model with a few slots, which a test feeds step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwkv_batch.engine.state_pool import StatePool, pool_parts
from rwkv_batch.models.files.checkpoint import open_checkpoint
from rwkv_batch.models.model import Model, ModelFile
from rwkv_batch.models.placement import place
from rwkv_batch.models.rows import Rows
from rwkv_batch.ops import resolve


class Session:
    """A model and a state pool whose slots are all in use.

    Args:
        settings: those of `place`, or `placement`, which replaces them.
    """

    def __init__(
        self,
        path: Path,
        num_slots: int = 5,
        init_state: Path | None = None,
        ln_x_eps: float | None = None,
        batch_invariant: bool = False,
        backend: str = "auto",
        **settings: Any,
    ) -> None:
        file = ModelFile.open(open_checkpoint(path))
        if "placement" in settings:
            placement = settings["placement"]
        else:
            defaults = {} if "strategy" in settings else {"device": "cpu", "dtype": "float32"}
            placement = place(**defaults | settings, num_layers=file.sizes["L"])
        places = placement.of_layers(file.sizes["L"])
        ops = [
            resolve(file.ops_at(p, placement.head_device is not None), backend, p.device, p.dtype, file.sizes)
            for p in places
        ]
        self.model = Model(file, placement, ops, ln_x_eps, batch_invariant)
        self.pool = StatePool(pool_parts(file, placement, init_state), num_slots)
        self.pool.fill(torch.tensor(self.pool.allocate(num_slots)).to(self.model.device))

    def feed(self, tokens: Mapping[int, Sequence[int]]) -> dict[int, Tensor]:
        """Runs one step.

        Args:
            tokens: slot → token ids, in the order of the rows.

        Returns:
            Slot → logits [T, V] of all its tokens.
        """
        rows = Rows(tuple(tokens), tuple(len(ids) for ids in tokens.values()), self.model.device)
        packed = torch.tensor([token_id for ids in tokens.values() for token_id in ids])
        logits = self.model.logits(self.model.forward(packed, rows, self.pool.layers))
        return dict(zip(tokens, logits.split(list(rows.lengths)), strict=True))

    def state(self, slot: int) -> dict[str, Tensor]:
        """The slot's state: field name → [L, *shape]."""
        fields = self.pool.parts[0].layout.fields
        return {f.name: torch.stack([getattr(layer, f.name)[slot] for layer in self.pool.layers]) for f in fields}
