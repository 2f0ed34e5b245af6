"""Processed log-probabilities: those of the distribution that a token is drawn from, in place of the model's own.

They are computed in PyTorch beside the op `sample`, whatever backend serves that, and only where they are asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import OpTable
from .sample import filters_of, shape
from .selection import kept
from .slot_tables import SlotTables

_ROWS_AT_ONCE = 32
"""The number of rows that are filtered together. Sorting a row takes several numbers of 8 bytes for each token."""


class ProcessedLogits:
    """The logits that the tokens of a step are drawn from. Made before the draw, which changes the tables.

    Args:
        logits: [B, V] float32, the model's; unchanged.
        slot_index: [B] int32, as for `sample`.
    """

    def __init__(self, logits: Tensor, slot_index: Tensor, tables: SlotTables) -> None:
        index = slot_index.long() % (tables.num_slots + 1)
        integers, floats = tables.integers[index], tables.floats[index].t().contiguous()
        shaped, _ = shape(logits, index, integers, tables)
        shaped = shaped.index_fill(1, tables.unsampleable_ids, -torch.inf)
        filters = filters_of(integers, floats)
        self._kept = torch.empty(shaped.shape, dtype=torch.bool, device=shaped.device)
        for start in range(0, len(shaped), _ROWS_AT_ONCE):
            rows = torch.arange(start, min(start + _ROWS_AT_ONCE, len(shaped)), device=shaped.device)
            self._kept[rows] = kept(shaped[rows], filters.at(rows))
        peak = shaped.amax(1, keepdim=True)
        self._is_empty = peak[:, 0] == -torch.inf
        # Relative to the largest logit, so that a low temperature does not cost digits of the likely tokens.
        self._logits = shaped.sub_(peak.masked_fill(self._is_empty[:, None], 0.0)).div_(filters.temperature[:, None])

    def replace(self, logits: Tensor, token_ids: Tensor, ops: OpTable) -> Tensor:
        """Writes the processed logits into `logits`: -inf for tokens that could not be drawn.

        The tokens that were drawn count as kept: a kernel may round the limit of a filter otherwise. Where nothing was
        left to draw from, the token has the probability 1.

        Args:
            logits: [B, V] float32, overwritten.
            token_ids: [B] int64, the tokens that were drawn.

        Returns:
            [B] float64: the log-probabilities of these tokens.
        """
        own = token_ids[:, None]
        self._kept.scatter_(1, own, True)
        logits.copy_(self._logits).masked_fill_(~self._kept, -torch.inf)
        logits.scatter_(1, own, logits.gather(1, own).masked_fill(self._is_empty[:, None], 0.0))
        return logits.gather(1, own)[:, 0].double() - ops.log_normalizer(logits)
