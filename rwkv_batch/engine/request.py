"""What goes into the engine and what comes out: token ids only."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from ..outputs import FinishReason
from ..sampling_params import SamplingParams
from .logprobs import TokenScores

END_OF_TEXT = 0
"""Token 0 ends every RWKV text; it has no bytes."""
MIN_CHUNK = 16
"""Prompt tokens that a row is fed at a time, where it has them: enough to make moving its state in and out cheap."""


class StopMatch(NamedTuple):
    """A stop string that a token has completed."""

    row: int
    """The token's place among those that were pushed."""
    stop_string: str
    text_bytes: int
    """Bytes of the text that remain."""


class StopMatcher(Protocol):
    """Looks for stop strings in the texts of all slots."""

    def start(self, slot: int, stop_strings: Any) -> None:
        """A new text begins in this slot. `stop_strings` is what the request brings."""

    def push(self, slots: np.ndarray, token_ids: np.ndarray) -> list[StopMatch]:
        """One token for each of n slots, [n] int64 each; the stop strings that they complete."""


class Constraint(Protocol):
    """Says which tokens may come next in one sequence."""

    def allowed(self, mask: Tensor) -> None:
        """Fill `mask` [V] bool: True where a token may come next."""

    def accept(self, token_id: int) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One sample of one row. Immutable.

    Args:
        key: comes back with the completion.
        prompt_token_ids: [T] int32, T ≥ 1, each id in [0, V).
        seed, row, sample: key the random stream, together with the position of the sampled token.
        score_start: prompt positions from here on are scored, with the log-probability of each given those before it;
            None scores none.
        next_token_ids: tokens that are scored too, each as the one token after the prompt.
        stop_strings: what the engine's `StopMatcher` looks for; None where there are no stop strings.
        new_constraint: makes what restricts one run of this request.
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
        """About the most steps that it takes: those of a prompt fed in the shortest chunks, and of every token."""
        return -(-len(self.prompt_token_ids) // MIN_CHUNK) + self.params.max_tokens


@dataclass(slots=True, eq=False)
class Completion:
    """The finished result of a request.

    Attributes:
        token_ids: [n] int32, with the token that ended the completion.
        token_logprobs: [n] float64, natural logarithm, under the model's own distribution.
        text_tokens: how many leading tokens are text: all, but for a token that ended the completion by its id.
        text_bytes: bytes of the text, where a stop string has cut it; None: all bytes of the text's tokens.
        logprobs: of the n tokens, where `params.logprobs` asks for them.
        prompt_scores: of the prompt's tokens from `score_start` on, where the request has one.
        next_scores: of `next_token_ids`, where there are any.
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

    @property
    def key(self) -> Any:
        return self.request.key
