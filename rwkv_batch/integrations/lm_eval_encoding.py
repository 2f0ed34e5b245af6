"""Texts of the lm-evaluation-harness as token ids, by the conventions that the model arguments name."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from functools import lru_cache

from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from ..engine.request import END_OF_TEXT
from .harness_requests import with_bos
from .lm_eval_arguments import Conventions

logger = logging.getLogger(__name__)

Pair = tuple[list[int], list[int]]


class Encoder:
    """Converts texts to contexts and continuations.

    Args:
        encode: text → token ids.
        conventions: what is put before a sequence, where it is cut, and how documents are split.

    Attributes:
        counts: the number of requests that were `truncated`; of continuations whose first bytes share a token with the
            context's last ones, `merged_at_the_border`; and of those that this left without a token of their own,
            `encoded_alone`.
    """

    def __init__(self, encode: Callable[[str], list[int]], conventions: Conventions) -> None:
        self.encode = encode
        self.counts: Counter[str] = Counter(truncated=0, merged_at_the_border=0, encoded_alone=0)
        self._conventions = conventions
        self._context = lru_cache(maxsize=1)(encode)  # the choices of a question follow one another
        self._prefix = None if conventions.prefix is None else encode(conventions.prefix)

    def opened(self, ids: list[int]) -> list[int]:
        """A sequence with what is put before it. An empty sequence is the beginning of a document, token 0."""
        if self._prefix is None:
            return with_bos(ids, self._conventions.add_bos_token)
        return [*self._prefix, *(ids or [END_OF_TEXT])]

    def split(self, context: str, continuation: str) -> Pair:
        """Token ids of a context that is not empty and of its continuation, split as the harness does.

        Spaces at the context's end move to the continuation; the text is encoded as a whole, and divided where the
        context by itself ends. Where this leaves nothing of a continuation, it is encoded by itself.
        """
        kept = context.rstrip()
        continuation = context[len(kept) :] + continuation
        context_ids, whole = self._context(kept), self.encode(kept + continuation)
        continuation_ids = whole[len(context_ids) :]
        if whole[: len(context_ids)] != context_ids:
            self._count("merged_at_the_border", "a token covers the end of a context and the start of its continuation")
        if continuation and not continuation_ids:
            self._count("encoded_alone", "a continuation merges into its context's last token, and is encoded alone")
            continuation_ids = self.encode(continuation)
        return context_ids, continuation_ids

    def cut_pair(self, context: list[int], continuation: list[int]) -> Pair:
        """A pair cut to `max_length` at the context's start. The last token does not count: it is only predicted.

        Raises:
            ValueError: the continuation alone is longer.
        """
        longest = self._conventions.max_length
        if longest is None or len(context) + len(continuation) - 1 <= longest:
            return context, continuation
        if len(continuation) > longest:
            raise ValueError(f"max_length: got {longest}, expected at least {len(continuation)} for a continuation")
        self._count("truncated", f"a request is longer than max_length ({longest})")
        return context[-(longest + 1 - len(continuation)) :], continuation

    def cut_prompt(self, prompt: list[int], max_tokens: int) -> list[int]:
        """A prompt cut at its start, so that prompt and completion fit into `max_length`."""
        longest = self._conventions.max_length
        if longest is None or len(prompt) <= (limit := max(longest - max_tokens, 1)):
            return prompt
        self._count("truncated", f"a prompt and its completion may be longer than max_length ({longest})")
        return prompt[-limit:]

    def document(self, text: str) -> list[Pair]:
        """A document as pairs of context and continuation. Chunks leave their first tokens unpredicted."""
        ids = self.encode(text)
        length = self._conventions.piece_length
        if self._conventions.rolling == "chunks":
            assert length is not None
            chunks = [ids[start : start + length] for start in range(0, len(ids), length)]
            return [(chunk[:1], chunk[1:]) for chunk in chunks]
        if length is None:
            pairs: list[Pair] = [([END_OF_TEXT], ids)] if ids else []
        else:
            windows = get_rolling_token_windows(ids, prefix_token=END_OF_TEXT, max_seq_len=length, context_len=1)
            pairs = [make_disjoint_window(window) for window in windows]
        return [([*(self._prefix or ()), *context], continuation) for context, continuation in pairs]

    def _count(self, what: str, sentence: str) -> None:
        if not self.counts[what]:
            logger.warning("%s; the results count such requests as %s", sentence, what)
        self.counts[what] += 1
