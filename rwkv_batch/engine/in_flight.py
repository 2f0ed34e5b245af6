"""A launched step whose results are on their way to the host."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..models.model import Model
from ..models.scoring import ROWS_AT_ONCE
from ..models.upload import upload
from .host_copy import HostCopy
from .logprobs import Logprobs, TopLogprobs
from .sampler import Sampled
from .sequence import Sequence
from .step_input import ScoredToken


class Scores:
    """Log-probabilities of given tokens.

    Args:
        scored: the tokens.
        hidden: [M, C], of the step they were predicted in.
    """

    def __init__(self, scored: list[ScoredToken], hidden: Tensor, model: Model) -> None:
        self._sequences = [token.sequence for token in scored]
        places = {index: row for row, index in enumerate(dict.fromkeys(token.packed_index for token in scored))}
        rows = upload([places[token.packed_index] for token in scored], torch.int64, hidden.device)
        targets = upload([token.target for token in scored], torch.int64, hidden.device)
        hidden = hidden[upload(list(places), torch.int64, hidden.device)]
        logprobs, is_greedy = model.score(hidden, targets, rows)
        self._logprobs, self._is_greedy = HostCopy(logprobs), HostCopy(is_greedy)
        wanted = [i for i, token in enumerate(scored) if token.num_alternatives is not None]
        self._tops: list[tuple[list[int], TopLogprobs]] = []
        for start in range(0, len(wanted), ROWS_AT_ONCE):
            part = wanted[start : start + ROWS_AT_ONCE]
            counts = [scored[i].num_alternatives or 0 for i in part]
            index = upload(part, torch.int64, hidden.device)
            logits, every_row = model.logits(hidden[rows[index]]), torch.arange(len(part), device=hidden.device)
            top = TopLogprobs(logits, every_row, logprobs[index], targets[index], counts, model.ops)
            self._tops.append((part, top))

    def read(self) -> list[tuple[Sequence, Logprobs]]:
        """In the order of the tokens; waits for them."""
        pairs = zip(self._logprobs.read().tolist(), self._is_greedy.read().tolist(), strict=True)
        found = [Logprobs(logprob, greedy, 0, [], []) for logprob, greedy in pairs]
        for rows, top in self._tops:
            for i, logprobs in zip(rows, top.read(), strict=True):
                found[i] = logprobs
        return list(zip(self._sequences, found, strict=True))


@dataclass
class InFlight:
    """What a launched step will give.

    Args:
        scored: sequences whose prompt is complete and that ask for no token.
        entries: ledger entries of the rows of `sampled`.
    """

    sampled: Sampled | None
    scores: Scores | None
    scored: list[Sequence]
    entries: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
