"""Bytes and memory that a step cannot do without, by the sizes of the model."""

from __future__ import annotations

from ..roofline import Sizes


def necessary_bytes(sizes: Sizes, num_rows: int, state_number: int = 4, weight_number: int = 2) -> float:
    """Bytes that a decode step cannot avoid to move.

    These are: every weight but the embedding once; each row's state, read once and written once; each row of the
    embedding; and each row of logits, float32, written once and read once, because the sampler must know the largest
    logit before it draws. Activations are not among them: in principle the cache keeps them.
    """
    vectors = 2 * sizes.L * sizes.num_vectors * sizes.C
    factors = sizes.L * sum(matrix.numbers for matrix in sizes.matrices if matrix.is_factor)
    weights = (sizes.streamed_weights - factors) * weight_number + 2 * factors + vectors
    row = 2 * sizes.state_bytes(state_number) + 2 * sizes.C + 2 * 4 * sizes.V
    return weights + num_rows * row


def memory_needed(sizes: Sizes, num_rows: int, state_number: int, reserve: float = 2e9) -> float:
    """Bytes of 16-bit weights with the embedding, and of the states, logits and activations of so many rows."""
    weights = 2 * (sizes.streamed_weights + sizes.V * sizes.C + sizes.L * sizes.num_vectors * sizes.C)
    row = sizes.state_bytes(state_number) + sizes.V * 4 + sizes.C * 2 * 40
    return weights + num_rows * row + reserve
