"""A launched step, with the copies of its results to the host in flight."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..models.model import Model
from ..models.scoring import ROWS_AT_ONCE
from ..transfer import HostCopy
from .booking import SampledRows
from .logprobs import TopLogprobs, TopTensors
from .sampler import Sampled
from .step_input import ScoreInput
from .token_scores import TokenScores


class Scores:
    """The log-probabilities of given tokens (prompt tokens, `next_token_ids`), with their copies to the host in flight.

    Args:
        scored: the tokens, and the hidden states that predict them.
        hidden: [M, C], all hidden states of the step.

    Attributes:
        are_finite: all log-probabilities are finite; known after `read`.
    """

    def __init__(self, scored: ScoreInput, hidden: Tensor, model: Model) -> None:
        self.parts = scored.parts
        self.are_finite = True
        hidden = hidden[scored.hidden_index]
        logprobs, is_greedy = model.score(hidden, scored.targets, scored.rows)
        self._logprobs, self._is_greedy = HostCopy(logprobs), HostCopy(is_greedy)
        self._tops: list[TopLogprobs] = []
        count = max((part.num_alternatives or 0 for part in scored.parts), default=0)
        for start in range(0, len(scored.with_alternatives), ROWS_AT_ONCE):
            tokens = scored.with_alternatives[start : start + ROWS_AT_ONCE]
            logits = model.logits(hidden[scored.rows[tokens]])
            every_row = torch.arange(len(tokens), device=hidden.device)
            found = TopTensors.of(logits, every_row, logprobs[tokens], scored.targets[tokens], count, model.ops)
            self._tops.append(TopLogprobs(found))

    def read(self) -> list[TokenScores]:
        """Waits for the scores, and returns those of each part."""
        logprobs, is_greedy = self._logprobs.read().numpy(), self._is_greedy.read().numpy()
        self.are_finite = bool(np.isfinite(logprobs).all())
        tops = TokenScores.join([top.read() for top in self._tops])
        found = []
        start = start_of_top = 0
        for part in self.parts:
            count = len(part.targets)
            if part.num_alternatives is None:
                found.append(TokenScores(logprobs[start : start + count], is_greedy[start : start + count]))
            else:
                found.append(tops.part(slice(start_of_top, start_of_top + count), part.num_alternatives))
                start_of_top += count
            start += count
        return found


class StepResults(NamedTuple):
    """The results of one step, to be read when its copies have arrived."""

    sampled_slots: np.ndarray
    """[n] int64: slots of the rows that sample a token."""
    sampled: Sampled | None
    """The sampled tokens; None if n is 0."""
    scores: Scores | None
    """None if no token is scored."""


class LaunchedStep(NamedTuple):
    """A step's results and the sequences that they belong to."""

    results: StepResults
    sampled: SampledRows
    score_owners: list[int]
    """The owner number of each part of the scores."""
    complete: np.ndarray
    """[n] int64: slots of the sequences that end with this step because they sample no token."""
    complete_owners: np.ndarray
    """[n] int64: their owner numbers."""
