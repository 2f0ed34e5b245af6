"""Scoring: log-probabilities of given tokens, from logits of a few positions at a time, never all [tokens, V]."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace

import torch
from torch import Tensor

from ..ops import OpSpec, OpTable
from .matrices.product import Linear

ROWS_AT_ONCE = 64
"""The number of positions whose logits are in memory at the same time."""


def log_normalizer(logits: Tensor) -> Tensor:
    """log sum exp of each row: [B, V] float32 → [B] float64."""
    peak = logits.amax(1, keepdim=True)
    return peak[:, 0].double() + (logits - peak).exp_().sum(1).double().log()


LOG_NORMALIZER = OpSpec("log_normalizer", log_normalizer, optional=True, is_recorded=False)


def score(x: Tensor, head: Linear, targets: Tensor, rows: Tensor, ops: OpTable) -> tuple[Tensor, Tensor]:
    """Log-probabilities of n targets.

    Args:
        x: [m, C], the layer-normed inputs of the head.
        head: the output matrix [V, C].
        targets: [n] int64.
        rows: [n] int64, ascending: the row of `x` that predicts each target.
        ops: the implementation of `LOG_NORMALIZER`, which this definition calls.

    Returns:
        The log-probabilities, [n] float64, natural logarithm. And [n] bool: the target is the most likely token, which
        is the first of those with the largest logit.
    """
    logprobs = torch.empty(len(targets), dtype=torch.float64, device=x.device)
    greedy = torch.empty(len(targets), dtype=torch.bool, device=x.device)
    places = rows.tolist()
    for start in range(0, len(x), ROWS_AT_ONCE):
        part = slice(bisect_left(places, start), bisect_left(places, start + ROWS_AT_ONCE))
        logits, own = head(x[start : start + ROWS_AT_ONCE], dtype=torch.float32), targets[part]
        row = rows[part] - start
        logprobs[part] = logits[row, own].double() - ops.log_normalizer(logits)[row]
        greedy[part] = logits.argmax(1)[row] == own
    return logprobs, greedy


SCORE = OpSpec("score", score, optional=True, is_recorded=False)


def scoring_op(quantization: str | None, is_remote: bool) -> OpSpec:
    """`SCORE` for a head. Its kernels read only a dense weight on the device of their inputs.

    Args:
        quantization: of the head's matrix.
        is_remote: the head's matrix is on another device than its inputs.
    """
    if is_remote:
        return replace(SCORE, definition_only="the head's matrix is on another device")
    if quantization is not None:
        return replace(SCORE, definition_only=f"the head's matrix is {quantization}, expected a dense one")
    return SCORE
