"""Workloads of random prompts: of one length or of many, to be completed or to be scored."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import partial

from ..engine.request import Request
from ..sampling_params import SamplingParams

SPREAD = 1.0
"""Standard deviation of the logarithm of ragged lengths: one length in six is more than 2.7 times the median."""
LONGEST = 8
"""Ragged lengths are at most this many times their mean."""


@dataclass(frozen=True)
class Workload:
    """Random prompts of one length, each completed with the same number of sampled tokens."""

    num_prompts: int
    input_len: int
    output_len: int

    @property
    def params(self) -> SamplingParams:
        return _sampling(self.output_len)

    def prompts(self, vocab_size: int) -> list[list[int]]:
        """The token ids of the prompts: uniform over the vocabulary without the end of text, the same at every call."""
        draw = random.Random(0)
        return [draw.choices(range(1, vocab_size), k=self.input_len) for _ in range(self.num_prompts)]

    def requests(self, vocab_size: int) -> list[Request]:
        """A request for each prompt, in the order of arrival."""
        prompts = self.prompts(vocab_size)
        return [Request(index, prompt, self.params, row=index) for index, prompt in enumerate(prompts)]


@dataclass(frozen=True)
class RaggedWorkload(Workload):
    """Random prompts and completions of log-normal lengths with a long tail, as in texts and chats.

    `input_len` and `output_len` are the means.
    """

    def requests(self, vocab_size: int) -> list[Request]:
        draw = random.Random(1)
        inputs, outputs = (ragged_lengths(mean, self.num_prompts, draw) for mean in (self.input_len, self.output_len))
        tokens = partial(draw.choices, range(1, vocab_size))
        return [
            Request(row, tokens(k=length), _sampling(count), row=row)
            for row, (length, count) in enumerate(zip(inputs, outputs, strict=True))
        ]


@dataclass(frozen=True)
class ScoreWorkload(Workload):
    """Random prompts of one length, whose tokens are scored, all but the first. Give 0 for `output_len`."""

    def requests(self, vocab_size: int) -> list[Request]:
        params = SamplingParams(max_tokens=0, prompt_logprobs=0)
        prompts = self.prompts(vocab_size)
        return [Request(row, prompt, params, row=row, score_start=1) for row, prompt in enumerate(prompts)]


WORKLOADS = {"fixed": Workload, "ragged": RaggedWorkload, "score": ScoreWorkload}


def ragged_lengths(mean: int, count: int, draw: random.Random) -> list[int]:
    """`count` whole numbers, log-normal with this mean, cut at 1 and at `LONGEST` times the mean."""
    location = math.log(mean) - SPREAD**2 / 2
    return [min(max(round(draw.lognormvariate(location, SPREAD)), 1), LONGEST * mean) for _ in range(count)]


def _sampling(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=1.0, top_p=0.85, ignore_eos=True)
