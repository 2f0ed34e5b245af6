"""What goes into the engine and what comes out: token ids only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ..outputs import FinishReason
from ..sampling_params import SamplingParams
from .logprobs import Logprobs

END_OF_TEXT = 0
"""Token 0 ends every RWKV text; it has no bytes."""
MIN_CHUNK = 16
"""Prompt tokens that a row is fed at a time, where it has them: enough to make moving its state in and out cheap."""


class StopMonitor(Protocol):
    """Collects one sequence's text, and watches it for a stop string."""

    @property
    def watches(self) -> bool:
        """There is something to look for: every token must be pushed as it comes."""

    def extend(self, token_ids: Sequence[int]) -> None:
        """Take all tokens at once, where nothing is looked for."""

    def push(self, token_id: int) -> str | None:
        """Take the next sampled token; returns the stop string that now ends the text, if one does."""

    def text(self) -> str:
        """The text so far, cut at the stop string."""


class Constraint(Protocol):
    """Says which tokens may come next in one sequence."""

    def allowed(self, mask: Tensor) -> None:
        """Fill `mask` [V] bool: True where a token may come next."""

    def accept(self, token_id: int) -> None: ...


@dataclass(frozen=True)
class Request:
    """One sample of one row. Immutable.

    Args:
        key: comes back with the completion.
        prompt: the prompt's text, passed through.
        prompt_token_ids: at least one id, each in [0, V).
        seed, row, sample: key the random stream, together with the position of the sampled token.
        score_start: prompt positions from here on are scored, with the log-probability of each given those before it;
            None scores none.
        next_token_ids: tokens that are scored too, each as the one token after the prompt.
        new_monitor, new_constraint: make what watches and what restricts one run of this request.
    """

    key: Any
    prompt_token_ids: list[int]
    params: SamplingParams
    prompt: str | None = None
    seed: int = 0
    row: int = 0
    sample: int = 0
    score_start: int | None = None
    next_token_ids: tuple[int, ...] = ()
    new_monitor: Callable[[], StopMonitor] | None = None
    new_constraint: Callable[[], Constraint] | None = None

    @property
    def num_steps(self) -> int:
        """About the most steps that it takes: those of a prompt fed in the shortest chunks, and of every token."""
        return -(-len(self.prompt_token_ids) // MIN_CHUNK) + self.params.max_tokens


@dataclass
class Completion:
    """The finished result of a request."""

    request: Request
    token_ids: list[int] = field(default_factory=list)
    token_logprobs: list[float] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)
    """One per token, where `params.logprobs` asks for them."""
    prompt_scores: list[Logprobs] = field(default_factory=list)
    """One per prompt position from `score_start` on, then one for each of `next_token_ids`."""
    finish_reason: FinishReason = "length"
    stop_reason: str | int | None = None
    monitor: StopMonitor | None = None
    """What has watched the tokens; None where the request has none."""

    @property
    def key(self) -> Any:
        return self.request.key
