"""Functions of all harness adapters: scoring of pairs, token 0, and random streams of requests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..engine.request import END_OF_TEXT
from ..outputs import ScoreOutput
from ..rows import ScoreRow

if TYPE_CHECKING:
    from ..llm import LLM

MAX_CONTINUATIONS = 32
"""Limit of a row's continuations. A context with more becomes several rows, which share the context as a prefix."""

Pair = tuple[Sequence[int], Sequence[int]]


def score_pairs(llm: LLM, pairs: Sequence[Pair]) -> Iterator[tuple[int, ScoreOutput]]:
    """Scores (context, continuation) pairs of token ids: (index, result) in the order in which they finish.

    Pairs with equal contexts become one row. Rows are sorted by context, so that shared prefixes are found together.

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


def with_bos(ids: list[int], add_bos_token: bool) -> list[int]:
    """A sequence with token 0 before it, unless it starts with token 0. An empty sequence always becomes token 0."""
    if not ids or (add_bos_token and ids[0] != END_OF_TEXT):
        return [END_OF_TEXT, *ids]
    return ids


def random_stream(text: str, occurrence: int) -> int:
    """The random stream of a request, from its text. Its position among other requests does not matter.

    Args:
        text: the request's prompt and settings.
        occurrence: number of earlier requests with the same text, so that repetitions differ.
    """
    digest = hashlib.sha256(f"{occurrence} {text}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
