"""What the embedded API returns. Names and shapes follow vLLM's offline API."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class Logprob:
    """One token's log-probability under the model's own distribution: before penalties, biases and temperature."""

    logprob: float
    rank: int
    """1 is the most likely token."""
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    """One sample of one prompt."""

    index: int
    """Sample number, from 0."""
    text: str
    token_ids: list[int]
    """Sampled ids, with the one that ended the completion."""
    cumulative_logprob: float
    """Sum of the sampled tokens' log-probabilities (natural logarithm, the model's own distribution)."""
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: FinishReason
    stop_reason: str | int | None
    """The stop string, or the token id (0 is end of text) that ended the completion; None otherwise."""
    token_logprobs: list[float] = field(default_factory=list)
    """Log-probability of each of `token_ids`."""


@dataclass
class RequestOutput:
    """All samples of one prompt."""

    prompt: str | None
    """The prompt's text; None where token ids were given."""
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    error_code: str | None = None
    error: str | None = None


@dataclass
class ScoreOutput:
    """The log-likelihood of one continuation."""

    logprob: float
    """Sum over the continuation's tokens, natural logarithm."""
    is_greedy: bool
    """Every token of the continuation is the most likely one."""
    token_logprobs: list[float]
    num_tokens: int
    token_ids: list[int] = field(default_factory=list)
    """The continuation's tokens."""
    top_logprobs: list[dict[int, Logprob]] | None = None
    """For each token the most likely ones in its place, and itself; None where they were not asked for."""
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    """The same for each token of the context; None for the first one, and where they were not asked for."""
    error_code: str | None = None
    error: str | None = None
