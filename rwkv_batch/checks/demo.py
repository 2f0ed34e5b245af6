"""Check of the demo model, from token ids to token ids: greedy tokens and log-probabilities against known ones."""

from __future__ import annotations

from collections.abc import Sized

import torch

from ..demo.known import known
from ..errors import BackendError
from ..llm import LLM
from ..sampling_params import SamplingParams
from .comparisons import Checks
from .limits import MODEL_LOGPROB_ERROR
from .target import Target, specs


def check_demo(target: Target, dtype: str, num_tokens: int, longest: int) -> Checks:
    """Compares completions and scores of all prompts.

    Greedy tokens are compared up to the first whose lead over the second most likely token is within twice the limit of
    a log-probability's error.

    Args:
        num_tokens: tokens of each completion.
        longest: prompts with more tokens are left out.
    """
    checks, limit = Checks(), MODEL_LOGPROB_ERROR[dtype]
    llm = _load(target, dtype)
    entries = [entry for entry in known() if len(entry.prompt_ids) <= longest]
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": entry.prompt_ids} for entry in entries], params)
    num_others = worst = 0.0
    for entry, output in zip(entries, outputs, strict=True):
        token_ids, right_ids = output.outputs[0].token_ids, entry.token_ids[:num_tokens]
        _expect_as_many("tokens of a completion", token_ids, right_ids)
        for given, right, lead in zip(token_ids, right_ids, entry.leads[:num_tokens], strict=True):
            if lead <= 2 * limit:
                break
            num_others += given != right
    scores = llm.score([(entry.prompt_ids, entry.token_ids[:num_tokens]) for entry in entries])
    for entry, score in zip(entries, scores, strict=True):
        right_logprobs = entry.logprobs[:num_tokens]
        _expect_as_many("log-probabilities", score.token_logprobs, right_logprobs)
        errors = [abs(a - b) for a, b in zip(score.token_logprobs, right_logprobs, strict=True)]
        worst = max(worst, *errors)
    checks.at_most("number of other greedy tokens", num_others, 0)
    checks.at_most("log-probability", worst, limit)
    return checks


def _load(target: Target, dtype: str) -> LLM:
    try:
        return LLM("demo", tokenizer=None, device=str(target.device), dtype=dtype, backend=target.backend)
    except BackendError:
        for name in filter(target.has, specs()):
            target.ops(name, getattr(torch, dtype))  # raises UnusableError if that is the reason
        raise


def _expect_as_many(what: str, given: Sized, right: Sized) -> None:
    if len(given) != len(right):
        raise AssertionError(f"{what}: got {len(given)}, expected {len(right)}")
