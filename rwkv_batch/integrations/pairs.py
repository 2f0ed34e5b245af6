"""Many (context, continuation) pairs at once: equal contexts are one row, and similar ones are neighbours."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..outputs import ScoreOutput
from ..rows import ScoreRow

if TYPE_CHECKING:
    from ..llm import LLM

ASSISTANT = "Assistant:"
"""The end of a prompt in RWKV's chat format; the answer after it starts with a space."""
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


def random_stream(text: str, occurrence: int) -> int:
    """The random stream of a request: the same wherever it stands among others, another one for each repetition."""
    digest = hashlib.sha256(f"{occurrence} {text}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
