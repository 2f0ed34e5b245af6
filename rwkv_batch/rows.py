"""The forms of a row outside the engine: what is to be served, what cannot be served, and what is being served."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .errors import RowError
from .sampling_params import SamplingParams

if TYPE_CHECKING:
    import numpy as np

    from .engine.logprobs import TokenScores as TokenScores
    from .engine.request import Completion as Completion
    from .engine.request import Request
    from .requests import Scoring

    TextOrIds = str | Sequence[int] | np.ndarray
    Prompt = TextOrIds | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GenerateRow:
    """One prompt to complete.

    Args:
        key: comes back with the result; no other row that is served at the same time has the same key.
        row: keys the random stream; the same row gives the same tokens wherever it runs.
        prompt: text, token ids, {"prompt_token_ids": [...]}, {"prompt": text} or {"messages": [{"role", "content"}]};
            an empty one is the beginning of a document, token 0.
    """

    key: Hashable
    row: int
    prompt: Prompt
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """Continuations of one context whose log-likelihoods are wanted; all text, or all token ids.

    Args:
        key: comes back with the result; no other row that is served at the same time has the same key.
        row: number of the row.
        context: an empty one is the beginning of a document, token 0.
        add_bos_token: put token 0 before a context that does not start with it.
        top_logprobs: also return this many most likely tokens at each of the continuations' positions; None is off.
        prompt_logprobs: the same for each token of the context after the first, and its own log-probability.
    """

    key: Hashable
    row: int
    context: TextOrIds
    continuations: Sequence[TextOrIds]
    add_bos_token: bool = False
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """A row that cannot be served, and why.

    Args:
        prompt_tokens: tokens of its prompt; None where they were not counted.
        prompt: its prompt, where that is text.
        num_continuations: how many were to be scored; 0 for a prompt.
    """

    key: Hashable
    row: int
    error: RowError
    prompt_tokens: int | None = None
    prompt: str | None = None
    num_continuations: int = 0

    @classmethod
    def of(cls, row: GenerateRow | ScoreRow, error: RowError, prompt_tokens: int | None = None) -> ErrorRow:
        """The error row in place of a row."""
        if isinstance(row, ScoreRow):
            return cls(row.key, row.row, error, prompt_tokens, num_continuations=len(row.continuations))
        return cls(row.key, row.row, error, prompt_tokens, row.prompt if isinstance(row.prompt, str) else None)


@dataclass(slots=True, eq=False)
class RowInFlight:
    """A row with the requests that serve it, and their completions as far as they have come.

    Args:
        requests: of a prompt, one for each sample; of a context, those that its continuations need, perhaps none. All
            have the same key, an integer that no other row of the model has.
        prompt: the prompt's text; None where token ids were given, and for a row that is scored.
        scoring: what the completions say about the continuations; None for a row that is completed.
        completions: once the row is finished, of all requests in the order of their `sample`.
    """

    row: GenerateRow | ScoreRow
    requests: list[Request]
    prompt: str | None = None
    scoring: Scoring | None = None
    completions: list[Completion] = field(default_factory=list)

    @property
    def key(self) -> Hashable:
        """The key under which the caller knows the row."""
        return self.row.key

    @property
    def is_complete(self) -> bool:
        return len(self.completions) == len(self.requests)


Finished = RowInFlight | ErrorRow
"""A row that has nothing more to come."""
