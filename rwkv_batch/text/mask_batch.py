"""The masks of many constraints, filled in one call on several threads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ..threads import usable_cores
from .constraint import SLOW_SECONDS, SequenceConstraint, Vocabulary, Words, narrow

if TYPE_CHECKING:
    from xgrammar import BatchGrammarMatcher

MOST_THREADS = 8
ROWS_OF_A_THREAD = 32
"""Fewer rows are filled on the calling thread: to wake another one costs more than it saves."""


class MaskBatch:
    """Serves the constraints of one vocabulary together. One thread at a time may call.

    The interpreter's lock is released meanwhile. The time of a constraint is not known when many are served in one
    call. A call that takes as long as a slow step does is therefore repeated constraint by constraint, with a clock
    around each; and a constraint that was slow once is always served by itself.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._usual_seconds = 0.0
        """What the constraints that are not slow took together, when they were served one by one."""

    def accept(self, constraints: Sequence[SequenceConstraint], token_ids: Sequence[int]) -> None:
        """Appends one sampled token to each of n texts."""
        together = []
        for constraint, token_id in zip(constraints, token_ids, strict=True):
            if constraint.step_time.has_slow_steps:
                constraint.accept(token_id)
            elif not constraint.is_finished:
                together.append((constraint, token_id))
        if not together:
            return
        matchers = [constraint.matcher for constraint, _ in together]
        start = time.thread_time()
        accepted = self._threads[0].batch_accept_token(matchers, [token_id for _, token_id in together])
        if time.thread_time() - start > SLOW_SECONDS:
            for (constraint, token_id), is_accepted in zip(together, accepted, strict=True):
                if is_accepted:
                    constraint.matcher.rollback(1)
                constraint.accept(token_id)
            return
        for (constraint, token_id), is_accepted in zip(together, accepted, strict=True):
            constraint.note(token_id, is_accepted)

    def fill(self, constraints: Sequence[SequenceConstraint], masks: Words) -> None:
        """Writes which tokens may come next. Where no token can, end of text is allowed, so that one always is.

        A complete text ends so, even where its request bans the end of text. Any other comes to a dead end.

        Args:
            constraints: n constraints.
            masks: [n, W] int32, contiguous, overwritten: bit i % 32 of word i // 32 is set where token i is allowed.
        """
        together = []
        for row, constraint in enumerate(constraints):
            if constraint.is_open and not constraint.step_time.has_slow_steps:
                together.append(row)
            else:
                self._match(constraint, masks[row : row + 1])
        if together:
            start = time.perf_counter()
            matcher = self._threads[len(together) >= 2 * ROWS_OF_A_THREAD]
            matcher.batch_fill_next_token_bitmask([constraints[row].matcher for row in together], masks, together)
            if time.perf_counter() - start > SLOW_SECONDS + self._usual_seconds:
                seconds = [self._match(constraints[row], masks[row : row + 1]) for row in together]
                self._usual_seconds = sum(each for each in seconds if each <= SLOW_SECONDS)
        complete = {*np.flatnonzero((masks & self._only_end).any(1)).tolist()}
        narrow(constraints, masks)
        for row in np.flatnonzero(~masks.any(1)).tolist():
            constraints[row].end(row in complete)
            masks[row] = self._only_end

    @staticmethod
    def _match(constraint: SequenceConstraint, mask: Words) -> float:
        """Fills the mask [1, W] of one constraint, and returns the seconds that it took."""
        if constraint.is_open:
            return constraint.match(mask)
        mask[:] = 0
        return 0.0

    @cached_property
    def _only_end(self) -> Words:
        """[W], the mask of the end of text."""
        mask = self._vocabulary.text_words & 0
        end = self._vocabulary.eos_token_id
        mask.view("u4")[end // 32] = 1 << end % 32
        return mask

    @cached_property
    def _threads(self) -> tuple[BatchGrammarMatcher, BatchGrammarMatcher]:
        """xgrammar's objects for few constraints and for many: one thread, and as many as are of use."""
        from xgrammar import BatchGrammarMatcher

        return BatchGrammarMatcher(1), BatchGrammarMatcher(min(usable_cores(), MOST_THREADS))
