"""The input and the output of the engine: requests and completions. Token ids only, no text."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..outputs import FinishReason
from ..sampling_params import SamplingParams
from .token_scores import TokenScores

END_OF_TEXT = 0
"""Token 0 ends every RWKV text; it has no bytes."""
MIN_CHUNK = 16
"""The shortest chunk of a prompt, unless fewer tokens are left. At this length, reading and writing the state in each
step costs little beside the chunk's tokens."""


class StopMatch(NamedTuple):
    """A stop string that a token has completed."""

    row: int
    """Index of the token among those that were pushed."""
    stop_string: str
    text_bytes: int
    """Length of the text that remains, in bytes."""


class StopMatcher(Protocol):
    """Searches the texts of all slots for stop strings, token by token."""

    def start(self, slot: int, stop_strings: Any) -> None:
        """Begins a new text in this slot. `stop_strings` is `Request.stop_strings`."""

    def push(self, slots: np.ndarray, token_ids: np.ndarray) -> list[StopMatch]:
        """Appends one token to each of n texts ([n] int64 each), and returns the stop strings that are complete."""


class ConstraintBatch(Protocol):
    """Serves the constraints of many sequences in one call."""

    def accept(self, constraints: Sequence[Any], token_ids: Sequence[int]) -> None:
        """Advances each constraint by the token that its sequence has sampled."""

    def fill(self, constraints: Sequence[Any], masks: np.ndarray) -> None:
        """Writes the masks of the tokens that may come next.

        Args:
            constraints: n constraints.
            masks: [n, ceil(V / 32)] int32, contiguous, overwritten: bit i % 32 of word i // 32 is set where token i may
                come next.
        """


class Constraint(Protocol):
    """Restricts the next token of one sequence."""

    @property
    def batch(self) -> ConstraintBatch:
        """Serves this constraint, together with others that have the same `batch`."""


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One sample of one row. Immutable.

    Args:
        key: returned with the completion.
        prompt_token_ids: [T] int32, T ≥ 1, each id in [0, V).
        seed, row, sample: identify the random stream; its numbers are indexed by the position of the sampled token.
        score_start: the prompt's tokens from this index on are scored: the log-probability of each given the tokens
            before it; None scores none.
        next_token_ids: tokens that are scored too, each as the one token after the prompt.
        stop_strings: an object that the engine's `StopMatcher` understands; None if there are no stop strings.
        new_constraint: makes a constraint; called each time that the request starts.
    """

    key: Any
    prompt_token_ids: np.ndarray | Sequence[int]
    params: SamplingParams
    seed: int = 0
    row: int = 0
    sample: int = 0
    score_start: int | None = None
    next_token_ids: tuple[int, ...] = ()
    stop_strings: Hashable | None = None
    new_constraint: Callable[[], Constraint] | None = None

    @property
    def num_steps(self) -> int:
        """An estimate of the most steps that the request takes: its prompt in the shortest chunks, and every token."""
        return -(-len(self.prompt_token_ids) // MIN_CHUNK) + self.params.token_limit


@dataclass(slots=True, eq=False)
class Completion:
    """The finished result of a request.

    Attributes:
        token_ids: [n] int32, with the token that ended the completion.
        token_logprobs: [n] float64, natural logarithm, under the distribution that the engine's `logprobs_mode` names.
        text_tokens: number of leading tokens that are text: all but a token that ended the completion by its id.
        text_bytes: length of the text in bytes if a stop string has cut it; None: all bytes of the text's tokens.
        logprobs: scores of the n tokens, if `params.logprobs` asks for them.
        prompt_scores: scores of the prompt's tokens from `score_start` on, if the request has one.
        next_scores: scores of `next_token_ids`, if there are any.
    """

    request: Request
    token_ids: np.ndarray
    token_logprobs: np.ndarray
    finish_reason: FinishReason
    stop_reason: str | int | None = None
    text_tokens: int = 0
    text_bytes: int | None = None
    logprobs: TokenScores | None = None
    prompt_scores: TokenScores | None = None
    next_scores: TokenScores | None = None

    @classmethod
    def of_waiting(cls, request: Request) -> Completion:
        """The result of a request that was aborted before it started: no tokens."""
        return cls(request, np.zeros(0, np.int32), np.zeros(0), "abort")

    @property
    def key(self) -> Any:
        return self.request.key
