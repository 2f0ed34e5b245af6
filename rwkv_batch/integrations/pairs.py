"""Many (context, continuation) pairs at once: equal contexts are one row, and similar ones are neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..outputs import ScoreOutput
from ..requests import ScoreRow

if TYPE_CHECKING:
    from ..llm import LLM

MAX_CONTINUATIONS = 32
"""Continuations of one row; a context with more of them becomes several rows, which share its state all the same."""

Pair = tuple[Sequence[int], Sequence[int]]


def score_pairs(llm: LLM, pairs: Sequence[Pair]) -> Iterator[tuple[int, ScoreOutput]]:
    """(index, result) of every pair of token ids, in the order in which they finish.

    Raises:
        ValueError: a pair cannot be scored.
    """
    members: dict[bytes, list[int]] = {}
    for index, (context, _) in enumerate(pairs):
        members.setdefault(np.asarray(context, dtype=">u4").tobytes(), []).append(index)
    for indices, outputs in llm.serve_scores(_rows(pairs, members)):
        for index, output in zip(indices, outputs, strict=True):
            if output.error is not None:
                raise ValueError(f"request {index}: {output.error}")
            yield index, output


def _rows(pairs: Sequence[Pair], members: dict[bytes, list[int]]) -> Iterator[ScoreRow]:
    for context in sorted(members):
        indices = members[context]
        for start in range(0, len(indices), MAX_CONTINUATIONS):
            some = tuple(indices[start : start + MAX_CONTINUATIONS])
            yield ScoreRow(some, some[0], list(pairs[some[0]][0]), [list(pairs[index][1]) for index in some])
