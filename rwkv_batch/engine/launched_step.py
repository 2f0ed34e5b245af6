"""A launched step, whose results are on their way to the host."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..models.model import Model
from ..models.scoring import ROWS_AT_ONCE
from ..transfer import HostCopy
from .booking import BookedRows
from .logprobs import TokenScores, TopLogprobs
from .sampler import Sampled
from .step_input import ScoreInput


class Scores:
    """Log-probabilities of given tokens, on their way to the host.

    Args:
        scored: the tokens.
        hidden: [M, C], of the step that predicts them.

    Attributes:
        are_finite: all log-probabilities that `read` has found are numbers.
    """

    def __init__(self, scored: ScoreInput, hidden: Tensor, model: Model) -> None:
        self.parts = scored.parts
        self.are_finite = True
        hidden = hidden[scored.hidden_index]
        logprobs, is_greedy = model.score(hidden, scored.targets, scored.rows)
        self._logprobs, self._is_greedy = HostCopy(logprobs), HostCopy(is_greedy)
        self._tops: list[TopLogprobs] = []
        count = max((part.num_alternatives or 0 for part in scored.parts), default=0)
        for start in range(0, len(scored.asking), ROWS_AT_ONCE):
            tokens = scored.asking[start : start + ROWS_AT_ONCE]
            logits = model.logits(hidden[scored.rows[tokens]])
            every_row = torch.arange(len(tokens), device=hidden.device)
            self._tops.append(
                TopLogprobs(logits, every_row, logprobs[tokens], scored.targets[tokens], count, model.ops)
            )

    def read(self) -> list[TokenScores]:
        """One for each part; waits for them."""
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
    """What a step gives once it is done."""

    sampled_slots: np.ndarray
    """[n] int64: slots of the rows that get a token."""
    sampled: Sampled | None
    """Their tokens; None where n is 0."""
    scores: Scores | None
    """None where no token is scored."""


class LaunchedStep(NamedTuple):
    """A step's results, and whose they are."""

    results: StepResults
    sampled: BookedRows
    """Whose tokens are sampled."""
    score_owners: list[int]
    """The owner of each part of the scores."""
    complete: np.ndarray
    """Slots of the sequences that end with this step's scores: they ask for no token."""
    complete_owners: np.ndarray
