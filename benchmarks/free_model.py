"""Models that cost nothing, so that what is left is the engine and the job around them."""

from __future__ import annotations

from types import MappingProxyType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from rwkv_batch.engine.sampler import Sampler
from rwkv_batch.models.architecture import StateField
from rwkv_batch.models.model import Model
from rwkv_batch.models.placement import Placement
from rwkv_batch.models.scoring import SCORE
from rwkv_batch.ops import resolve

VOCAB_SIZE = 256
_MOST_ROWS, _MOST_TOKENS = 4096, 1 << 16


class FreeModel:
    """Constant logits on a vocabulary of 256, and a state of 8 bytes: for an `Engine`."""

    device = torch.device("cpu")
    ops = resolve((*Sampler.OPS, SCORE), "auto", device, torch.float32, {})
    placement = Placement(device, torch.float32, None)
    pipeline = None
    sizes = MappingProxyType({"L": 1, "V": VOCAB_SIZE})
    file = SimpleNamespace(
        sizes=sizes,
        state_fields=lambda placement, dtype: (StateField("nothing", (1,), torch.int64),),
        initial_states=lambda init_state: {},
    )

    def __init__(self) -> None:
        self._hidden, self._logits = torch.zeros(_MOST_TOKENS, 1), torch.zeros(_MOST_ROWS, VOCAB_SIZE)

    def forward(self, token_ids: Tensor, rows: Any, layers: Any) -> Tensor:
        return self._hidden[: len(token_ids)]

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        return self._logits[: len(hidden)]


class FreeOfCost(Model):
    """A model that is loaded as always, and then computes nothing: for an `LLM`, in the place of `Model`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._hidden, self._logits = torch.zeros(_MOST_TOKENS, 1), torch.zeros(_MOST_ROWS, self.sizes["V"])

    def forward(self, token_ids: Tensor, rows: Any, layers: Any) -> Tensor:
        return self._hidden[: len(token_ids)]

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        return self._logits[: len(hidden)]
