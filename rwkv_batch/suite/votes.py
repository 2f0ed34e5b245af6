"""What several samples of a question say together: pass@k and maj@k."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb


def pass_at(k: int, samples: int, right: int) -> float:
    """The probability that at least one of k samples is right, drawn from these without replacement.

    It is an unbiased estimate for k new samples: 1 - C(n - c, k) / C(n, k), with n samples of which c are right.
    """
    return 1 - comb(samples - right, k) / comb(samples, k)


def majority(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer; of several, the one that came first. None is no answer, and has no vote."""
    counts = Counter(answer for answer in answers if answer is not None)
    return counts.most_common(1)[0][0] if counts else None
