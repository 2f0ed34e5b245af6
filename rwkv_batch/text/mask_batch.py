"""The masks of many constrained sequences in one call, on several threads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..threads import usable_cores

if TYPE_CHECKING:
    from llguidance import LLExecutor

    from .constraint import SequenceConstraint, Vocabulary


MOST_THREADS = 8


class MaskBatch:
    """Serves the constraints of one vocabulary in one call. The calls release Python's lock."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        word, bit = divmod(vocabulary.eos_token_id, 32)
        self._end = word, np.array(1 << bit, np.uint32).view(np.int32)

    @cached_property
    def _executor(self) -> LLExecutor:
        from llguidance import LLExecutor

        return LLExecutor(min(usable_cores(), MOST_THREADS))

    def accept(self, constraints: Sequence[SequenceConstraint], token_ids: Sequence[int]) -> None:
        """Advances each constraint by the token that its sequence has sampled."""
        given: list[Any] = [
            (constraint, token_id)
            for constraint, token_id in zip(constraints, token_ids, strict=True)
            if not constraint.is_finished
        ]
        answers = self._executor.consume_token_par([(constraint.matcher, token_id) for constraint, token_id in given])
        for (constraint, token_id), is_accepted in zip(given, answers, strict=True):
            constraint.note(token_id, is_accepted)

    def fill(self, constraints: Sequence[SequenceConstraint], masks: NDArray[np.int32]) -> None:
        """Writes the masks of the tokens that may come next. Where no token can, end of text is allowed.

        So a complete text ends even where its request bans the end of text.

        Args:
            constraints: n constraints.
            masks: [n, ceil(V / 32)] int32, contiguous, overwritten: bit i % 32 of word i // 32 is set where token i may
                come next.
        """
        is_open = np.array([not (each.is_finished or each.work.is_exceeded) for each in constraints])
        matchers = [(constraints[row].matcher, row) for row in np.flatnonzero(is_open).tolist()]
        if matchers:
            self._executor.unsafe_compute_mask_ptr(matchers, masks.ctypes.data, masks.strides[0], len(masks))
        for matcher, row in matchers:
            if matcher.is_error():
                mask = constraints[row].mask_after_error()
                is_open[row] = mask is not None
                masks[row] = 0 if mask is None else np.frombuffer(mask, np.int32)[: masks.shape[1]]
        masks[~is_open] = 0
        word, bit = self._end
        is_complete = (masks[:, word] & bit).astype(bool)
        for mask, constraint in zip(masks, constraints, strict=True):
            if constraint.permitted is not None:
                mask &= constraint.permitted
        is_empty = ~masks.any(axis=1)
        for row in np.flatnonzero(is_empty & is_open & ~is_complete).tolist():
            constraints[row].work.is_stuck = True
        masks[is_empty, word] = bit
