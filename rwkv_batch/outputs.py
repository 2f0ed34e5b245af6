"""Results of the library. Names and shapes follow vLLM's offline API. All log-probabilities are natural logarithms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class Logprob:
    """A token's log-probability, under the distribution that `logprobs_mode` of `LLM` names.

    Attributes:
        logprob: the log-probability.
        rank: the token's place among all tokens by probability; 1 is the most likely.
        decoded_token: the token's text; None where there is no tokenizer, or where `detokenize` is False.
    """

    logprob: float
    rank: int
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    """One sample of one prompt.

    Attributes:
        index: number of the sample, from 0.
        text: the completion's text; "" where there is no tokenizer, or where `detokenize` is False.
        token_ids: sampled token ids, the one that ended the completion included.
        cumulative_logprob: sum of `token_logprobs`; NaN where `finish_reason` is "error".
        logprobs: for each of `token_ids` the sampled token, which is the first entry, and the most likely ones, by
            token id; None where `SamplingParams.logprobs` is None.
        finish_reason: "stop" (end of text, stop string or stop token), "length" (max_tokens), "abort" or "error".
        stop_reason: the stop string or the token id that ended the completion, 0 for end of text; else None.
        token_logprobs: log-probability of each of `token_ids`, under the distribution that `logprobs_mode` names.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: FinishReason
    stop_reason: str | int | None
    token_logprobs: list[float] = field(default_factory=list)

    def finished(self) -> bool:
        """Whether the sample is finished: True, as there are no other results."""
        return self.finish_reason is not None


@dataclass
class RequestOutput:
    """All samples of one prompt.

    Attributes:
        prompt: the prompt's text; None where token ids were given.
        prompt_token_ids: the prompt's token ids.
        prompt_logprobs: for each of `prompt_token_ids` the most likely tokens and the prompt's own, by token id; None
            for the first one, and in place of the list where `SamplingParams.prompt_logprobs` is None.
        outputs: one for each sample, in order of `index`; a single one with `finish_reason` "error" where the prompt
            could not be served.
        error_code: the error code where the prompt could not be served; else None.
        error: the reason in a sentence where the prompt could not be served; else None.
        request_id: a number, as text, that no other result of this `LLM` has; "" where the caller chose the key.
        finished: whether all samples are finished: True, as there are no other results.
        metrics, num_cached_tokens, lora_request: None; vLLM's results have these attributes.
    """

    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    error_code: str | None = None
    error: str | None = None
    request_id: str = field(default="", compare=False)
    finished: bool = True
    metrics: None = None
    num_cached_tokens: int | None = None
    lora_request: None = None


@dataclass
class ScoreOutput:
    """The log-likelihood of one continuation.

    Attributes:
        logprob: sum of `token_logprobs`.
        is_greedy: every token of the continuation is the most likely one in its place.
        token_logprobs: log-probability of each token of the continuation.
        num_tokens: number of tokens of the continuation.
        token_ids: the continuation's tokens.
        top_logprobs: for each of `token_ids` the most likely tokens and the token itself, by token id; None where they
            were not asked for.
        prompt_logprobs: the same for each token of the context; None for the first one, and in place of the list where
            they were not asked for.
        error_code: the error code where the pair could not be scored; else None.
        error: the reason in a sentence where the pair could not be scored; else None.
    """

    logprob: float
    is_greedy: bool
    token_logprobs: list[float]
    num_tokens: int
    token_ids: list[int] = field(default_factory=list)
    top_logprobs: list[dict[int, Logprob]] | None = None
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    error_code: str | None = None
    error: str | None = None
