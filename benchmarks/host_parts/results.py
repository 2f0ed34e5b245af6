"""Results of a model and a sampler that compute nothing: constants in tensors made beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .device import SimulatedDevice

VOCAB_SIZE = 257
"""Vocabulary size of the bundled model: a byte's id is its value + 1, and 0 is the end of text."""
TOKEN_BYTES = (None, *(bytes([value]) for value in range(256)))
POSITION = 2
"""The column of a slot's position in the integers of the slot tables."""
MOST_ROWS, MOST_TOKENS = 4096, 1 << 16
TEXT = b"the quick brown fox jumps over the lazy dog,\n\nand then it sleeps under the old oak tree.\n\n"
"""Row i of every step gets token i of this text, repeated. It has no colon, so no stop string matches."""


class FreeResults:
    """The results of a step. `forward` launches it on the device.

    Args:
        device: the device on which steps are launched.
        texts: [n, T], sampled by slot and position: slot i gets the tokens of text i % n. None: row i of every step
            gets token i of `TEXT`.
    """

    def __init__(self, device: SimulatedDevice, vocab_size: int = VOCAB_SIZE, texts: Tensor | None = None) -> None:
        self._device = device
        self._texts = texts
        text = torch.tensor([byte + 1 for byte in TEXT])
        self._hidden = torch.zeros(MOST_TOKENS, 1)
        self._logits = torch.zeros(1, vocab_size).expand(MOST_ROWS, vocab_size)
        self._token_ids = text.repeat(MOST_ROWS // len(text) + 1)[:MOST_ROWS].clone()
        self._logprobs = torch.full((MOST_TOKENS,), -1.0, dtype=torch.float64)
        self._is_greedy = torch.zeros(MOST_TOKENS, dtype=torch.bool)
        self._ranks = torch.full((MOST_ROWS,), 2)
        self._top_ids = torch.arange(1, 33).repeat(MOST_ROWS, 1)
        self.ops: dict[str, Callable[..., Any]] = {
            "sample": self.sample,
            "top_tokens": self.top_tokens,
            "score": self.score,
        }
        """Op → the function that replaces it."""

    def forward(self, token_ids: Tensor, rows: Any) -> Tensor:
        """Launches a step. Makes the tensors of its rows that the kernels of every model read."""
        for name in ("slot_index", "cu_seqlens", "token_rows"):
            getattr(rows, name)
        self._device.launch()
        return self._hidden[: len(token_ids)]

    def logits(self, hidden: Tensor) -> Tensor:
        return self._logits[: len(hidden)]

    def sample(self, logits: Tensor, slot_index: Tensor, tables: Any, *rest: Any) -> tuple[Tensor, Tensor]:
        logprobs = self._logprobs[: len(slot_index)]
        if self._texts is None:
            return self._token_ids[: len(slot_index)], logprobs
        slots, integers = slot_index.numpy(), tables.integers.numpy()
        position = integers[slots, POSITION]
        integers[slots, POSITION] += 1
        return torch.from_numpy(self._texts.numpy()[slots % len(self._texts), position]), logprobs

    def top_tokens(self, logits: Tensor, rows: Tensor, token_ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
        return self._ranks[: len(rows)], self._top_ids[: len(rows), :count]

    def score(self, hidden: Tensor, head: Any, targets: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return self._logprobs[: len(targets)], self._is_greedy[: len(targets)]
