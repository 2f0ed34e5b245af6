"""The forms of a row outside the engine: a row to serve, an error row, and a row in flight."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from sys import getsizeof
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import RowError
from .sampling_params import SamplingParams

if TYPE_CHECKING:
    from .engine.request import Completion as Completion
    from .engine.request import Request
    from .engine.token_scores import TokenScores as TokenScores
    from .score_requests import Scoring
    from .text.constraint_compiler import RowConstraint

    TextOrIds = str | Sequence[int] | np.ndarray
    Prompt = TextOrIds | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GenerateRow:
    """One prompt to complete.

    Args:
        key: returned with the result; no other row that is served at the same time has the same key.
        row: number of the row. It selects the random stream: the same row gives the same tokens in any batch.
        prompt: text, token ids, {"prompt_token_ids": [...]}, {"prompt": text} or {"messages": [{"role", "content"}]};
            an empty one is the beginning of a document, token 0.
    """

    key: Hashable
    row: int
    prompt: Prompt
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """Continuations of one context to score; all are text, or all are token ids.

    Args:
        key: returned with the result; no other row that is served at the same time has the same key.
        row: number of the row.
        context: an empty one is the beginning of a document, token 0.
        add_bos_token: put token 0 before a context that does not start with it.
        prefix: text or token ids in front of the context, encoded by itself; after token 0, where that is added. None
            is no prefix, and so is an empty one.
        chunk_tokens: the continuation is a document, which is scored in chunks of this many tokens. Each chunk starts
            from a fresh state, after the prefix and token 0 as above. Where there is neither, the first token of a
            chunk is its context, and has no score. The context is empty then. None scores a document as a whole.
        answer: index of the right continuation, where it is known. The model does not see it.
        top_logprobs: also return this many most likely tokens at each of the continuations' positions; None is off.
        prompt_logprobs: the same for each token of the context after the first, and that token's log-probability.
    """

    key: Hashable
    row: int
    context: TextOrIds
    continuations: Sequence[TextOrIds]
    add_bos_token: bool = False
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    prefix: TextOrIds | None = None
    chunk_tokens: int | None = None
    answer: int | None = None


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """A row that cannot be served, with the reason.

    Args:
        prompt_tokens: number of tokens of its prompt; None if they were not counted.
        prompt: its prompt, if that is text.
        num_continuations: number of continuations that were to be scored; 0 for a prompt.
    """

    key: Hashable
    row: int
    error: RowError
    prompt_tokens: int | None = None
    prompt: str | None = None
    num_continuations: int = 0

    def __post_init__(self) -> None:
        # The traceback has the frames of the calls, whose variables hold the prompts and token ids of many rows.
        self.error.__traceback__ = self.error.__cause__ = self.error.__context__ = None

    @classmethod
    def of(cls, row: GenerateRow | ScoreRow, error: RowError, prompt_tokens: int | None = None) -> ErrorRow:
        """The error row that replaces a row."""
        if isinstance(row, ScoreRow):
            return cls(row.key, row.row, error, prompt_tokens, num_continuations=len(row.continuations))
        return cls(row.key, row.row, error, prompt_tokens, row.prompt if isinstance(row.prompt, str) else None)


@dataclass(slots=True, eq=False)
class RowInFlight:
    """A row with its requests and the completions that have come so far.

    Args:
        requests: for a prompt one for each sample; for a row to score those that `Scoring` describes, perhaps none. All
            have the same key, an integer that no other row of the model has.
        prompt: the prompt's text; None if token ids were given, and for a row to score.
        scoring: finds the scores of the continuations in the completions; None for a prompt.
        completions: sorted by `Request.sample` once the row is finished.
        constraint: of the requests; None if the texts are free. They may start when it is compiled.
    """

    row: GenerateRow | ScoreRow
    requests: list[Request]
    prompt: str | None = None
    scoring: Scoring | None = None
    completions: list[Completion] = field(default_factory=list)
    constraint: RowConstraint | None = None
    _num_bytes: int | None = None

    @property
    def key(self) -> Hashable:
        """The key under which the caller knows the row."""
        return self.row.key

    @property
    def num_bytes(self) -> int:
        """An estimate of the bytes that the row holds before its requests start."""
        if self._num_bytes is None:
            arrays = {id(request.prompt_token_ids): 4 * len(request.prompt_token_ids) for request in self.requests}
            self._num_bytes = input_bytes(self.row) + ROW_BYTES * len(self.requests) + sum(arrays.values())
        return self._num_bytes

    @property
    def is_complete(self) -> bool:
        return len(self.completions) == len(self.requests)


Finished = RowInFlight | ErrorRow
"""A finished row: all its completions have come, or it is an error row."""


ROW_BYTES = 1000
"""Estimate of the bytes that a row holds beside its texts and token ids."""
_INTEGER_BYTES = 36


def input_bytes(row: GenerateRow | ScoreRow | ErrorRow) -> int:
    """An estimate of the bytes that a row's texts and ids hold, as they were given."""
    if isinstance(row, ScoreRow):
        return ROW_BYTES + _bytes_of(row.context) + sum(map(_bytes_of, row.continuations))
    return ROW_BYTES + _bytes_of(row.prompt)


def held_bytes(row: Finished) -> int:
    """An estimate of the bytes that a row in flight, or an error row, holds before its requests start."""
    return input_bytes(row) if isinstance(row, ErrorRow) else row.num_bytes


def _bytes_of(value: Any) -> int:
    """An estimate of the bytes of a text, of token ids, or of messages."""
    if isinstance(value, (str, np.ndarray)):
        return getsizeof(value)
    if isinstance(value, Mapping):
        return sum(map(_bytes_of, value.values()))
    if isinstance(value, (list, tuple)):
        return _INTEGER_BYTES * len(value) if value and isinstance(value[0], int) else sum(map(_bytes_of, value))
    return max(int(getattr(value, "nbytes", 0)), _INTEGER_BYTES)


def text_arrays(completions: Sequence[Completion]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arguments of `Detokenizer.utf8` for the texts of n completions.

    Returns:
        token_ids [N] int32, of all texts one after the other; offsets [n + 1] int64, where each text begins in them;
        limits [n] int64, the bytes of each text; -1: all bytes of its tokens.
    """
    parts = [found.token_ids[: found.text_tokens] for found in completions]
    token_ids = np.concatenate(parts, dtype=np.int32, casting="same_kind") if parts else np.zeros(0, np.int32)
    limits = [-1 if found.text_bytes is None else found.text_bytes for found in completions]
    return token_ids, np.cumsum([0, *map(len, parts)], dtype=np.int64), np.array(limits, np.int64)


def id_array(value: object) -> np.ndarray | None:
    """The numpy array of an array of numpy or torch, of any shape and dtype; None for any other value."""
    if isinstance(value, np.ndarray):
        return value
    if not hasattr(value, "detach"):  # a method of torch's tensors
        return None
    tensor: Any = value
    array: np.ndarray = (tensor.float() if tensor.dtype.is_floating_point else tensor).numpy(force=True)
    return array


def is_integer(value: object) -> bool:
    """Whether this is an integer of Python or numpy, and not True or False."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
