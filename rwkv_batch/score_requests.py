"""Requests of rows to score, and where their scores are in the completions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .engine.request import END_OF_TEXT, Completion, Request
from .engine.token_scores import TokenScores
from .errors import RowError
from .rows import RowInFlight, ScoreRow
from .sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Scoring:
    """Finds the scores of a row's continuations in its completions.

    The context's hidden state scores the first token of every continuation, so one request for the context serves all
    of those. Continuation i has a second request if it has further tokens; prefix sharing computes the context only
    once. If there is only one continuation, one request does both. `Request.sample` says which request it is: 0 is the
    context's, 1 + i that of continuation i.

    Args:
        context: [T] int32 token ids, at least one.
        continuations: [T] int32 token ids each.
    """

    context: np.ndarray
    continuations: list[np.ndarray]

    def of_context(self, completions: Iterable[Completion]) -> TokenScores | None:
        """Scores of the context's tokens after the first; None if they were not asked for."""
        return next((found.prompt_scores for found in completions if found.request.sample == 0), None)

    def of_continuations(self, completions: Iterable[Completion]) -> list[TokenScores]:
        """The scores of each continuation's tokens."""
        return [TokenScores.join(parts) for parts in self.parts_of_continuations(completions)]

    def parts_of_continuations(self, completions: Iterable[Completion]) -> list[list[TokenScores]]:
        """The scores of each continuation as consecutive parts: from the context's request and from its own."""
        found = {completion.request.sample: completion for completion in completions}
        shared = found[0].next_scores if 0 in found else None
        scores, firsts = [], 0
        for i, ids in enumerate(self.continuations):
            parts = []
            if len(ids) and shared is not None:
                parts.append(shared.part(slice(firsts, firsts + 1)))
                firsts += 1
            if 1 + i in found:
                own = found[1 + i]
                parts += [part for part in (own.prompt_scores, own.next_scores) if part is not None and len(part)]
            scores.append(parts)
        return scores


class ChunkScoring(Scoring):
    """Finds the scores of a document that is scored in chunks: one request for each chunk, numbered from 1."""

    def parts_of_continuations(self, completions: Iterable[Completion]) -> list[list[TokenScores]]:
        """The scores of the document's tokens, as consecutive parts."""
        ordered = sorted(completions, key=lambda found: found.request.sample)
        both = (part for found in ordered for part in (found.prompt_scores, found.next_scores))
        return [[part for part in both if part is not None and len(part)]]


def score_requests(row: ScoreRow, encoded: Sequence[np.ndarray], key: int) -> RowInFlight:
    """Makes the requests that `Scoring` or `ChunkScoring` describes; none if there is nothing to score.

    Args:
        encoded: [T] int32 each: of the context, of the continuations and, where there is one, of the prefix.
        key: of the requests.

    Raises:
        RowError: code "bad_type": chunks are asked for, and the row is no document.
    """
    continuations = list(encoded[1 : 1 + len(row.continuations)])
    context = scored_context(row, encoded[0], encoded[-1] if row.prefix is not None else None)
    if row.chunk_tokens is not None:
        return _chunk_requests(row, context, continuations, key)
    top = row.top_logprobs
    firsts = tuple(int(ids[0]) for ids in continuations if len(ids))
    is_single = row.prompt_logprobs is None and len(firsts) == 1
    start = len(context) + (not is_single)  # the context's request scores the first token, unless there is only one
    params = _score_params(top, top)
    requests = []
    for i, ids in enumerate(continuations):
        if len(ids) > 1 or (len(ids) and is_single):
            prompt, last = np.concatenate((context, ids[:-1])), (int(ids[-1]),)
            requests.append(Request(key, prompt, params, 0, row.row, 1 + i, score_start=start, next_token_ids=last))
    if not is_single and (firsts or row.prompt_logprobs is not None):
        params = _score_params(top, row.prompt_logprobs)
        start_of_context = None if row.prompt_logprobs is None else 1
        requests.append(Request(key, context, params, row=row.row, score_start=start_of_context, next_token_ids=firsts))
    return RowInFlight(row, requests, scoring=Scoring(context, continuations))


def _chunk_requests(row: ScoreRow, start: np.ndarray, documents: list[np.ndarray], key: int) -> RowInFlight:
    """Makes one request for each chunk of a document that has a token to score.

    Args:
        start: [T] int32, what stands in front of each chunk, perhaps nothing.
        documents: [T] int32; there must be one.
    """
    if len(documents) != 1 or len(row.context) or row.prompt_logprobs is not None:
        raise RowError("bad_type", "chunk_tokens is for one document: a continuation whose context is empty")
    assert row.chunk_tokens is not None
    params = _score_params(row.top_logprobs, row.top_logprobs)
    requests, scored = [], []
    for number, first in enumerate(range(0, len(documents[0]), row.chunk_tokens), 1):
        ids = np.concatenate((start, documents[0][first : first + row.chunk_tokens]), dtype=np.int32)
        begin = max(1, len(start))
        if len(ids) > begin:
            scored.append(ids[begin:])
            last = (int(ids[-1]),)
            requests.append(Request(key, ids[:-1], params, 0, row.row, number, score_start=begin, next_token_ids=last))
    tokens = np.concatenate(scored) if scored else np.zeros(0, np.int32)
    return RowInFlight(row, requests, scoring=ChunkScoring(start, [tokens]))


def scored_context(row: ScoreRow, context: np.ndarray, prefix: np.ndarray | None) -> np.ndarray:
    """The tokens that the model reads before a row's continuations, or before each chunk of its document.

    Args:
        context: [T] int32, the row's context.
        prefix: [T] int32, the row's prefix; None where it has none.

    Returns:
        [T] int32. It is empty only in front of chunks.
    """
    read = context if prefix is None else np.concatenate((prefix, context), dtype=np.int32)
    is_empty = not len(read)
    if (is_empty and row.chunk_tokens is None) or (row.add_bos_token and (is_empty or read[0] != END_OF_TEXT)):
        read = np.concatenate(([END_OF_TEXT], read), dtype=np.int32)
    return read


@lru_cache(maxsize=256)
def _score_params(logprobs: int | None, prompt_logprobs: int | None) -> SamplingParams:
    return SamplingParams(max_tokens=0, logprobs=logprobs, prompt_logprobs=prompt_logprobs)
