"""The time of a step on a GPU, predicted from the launches that the real code makes; and limits of it, by formula.

    python -m benchmarks.roofline [--card h100] [--limits FILE] [--parts decode mixed prefill documents bars …]

runs a step of the engine without a device, notes its launches, and prints the time that they take on a card. The model
of time is in `rwkv_batch/roofline/predict.py`, the figures of the cards are in `rwkv_batch/roofline/cards.py`;
docs/explanation/prediction.md explains both.

The functions of this module are limits by formula, which the parts of `benchmarks.gpu` compare their figures with. A
launch takes the longest of its floor, its bytes over the copy bandwidth, and its operations over the share of the
matrix peak that products reach. The formulas know nothing of the launches that the code makes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from .matrices import Matrix, layer_matrices

if TYPE_CHECKING:
    from rwkv_batch.models.architecture import Architecture

TERA = 1e12
ADDED = ("att.output.weight", "ffn.value.weight")
"""Matrices whose products are added to the residual stream."""
NORM_VECTORS = 7
"""Vectors [C] that the two norms of a layer read and write for each token, besides the interpolations."""
PROMPT_VECTORS = 49
"""Vectors [C] that a layer of RWKV-7 reads and writes for each token of a prompt."""


@dataclass(frozen=True)
class Card:
    """The limits of a GPU. The defaults are an H200's, as far as they were measured on one."""

    bandwidth: float = 4.3 * TERA
    """Bytes/s of a large copy, read and written."""
    matrix_rate: float = 790 * TERA
    """Operations/s of a large bfloat16 product."""
    launch: float = 2.2e-6
    """Seconds from one launch to the next inside a CUDA graph."""
    memory: float = 141e9
    """Bytes."""
    l2: float = 50e6
    """Bytes."""
    lane_rate: float = 29.6 * TERA
    """float32 instructions/s of all lanes."""
    efficiency: float = 0.8
    """Share of the matrix peak that the products of a step are assumed to reach."""
    token_latency: float = 0.25e-6
    """Seconds of the recurrence of one layer for one token of one sequence."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model: layers, width, width of the channel mix, vocabulary, head size; and its version.

    The version's class states the tensors and the state of a layer and the cost of the recurrence. Properties import
    it, so that the command that starts the parts of `benchmarks.gpu` does not wait for torch.

    Args:
        version: the `name` of an `Architecture`.
    """

    L: int
    C: int
    F: int
    V: int = 65536
    N: int = 64
    version: str = "rwkv7"

    @property
    def H(self) -> int:
        return self.C // self.N

    @cached_property
    def architecture(self) -> type[Architecture]:
        from rwkv_batch.models.architecture import version_named

        return version_named(self.version)

    @cached_property
    def letters(self) -> dict[str, int]:
        """The size of every letter in the version's schema; widths of low-rank pairs are those of published models."""
        from rwkv_batch.models.random_weights import complete_sizes

        return complete_sizes(self.architecture, L=self.L, C=self.C, F=self.F, V=self.V, N=self.N)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors of a checkpoint."""
        from rwkv_batch.models.random_weights import draws

        return {name: tuple(draw.shape) for name, draw in draws(self.architecture, self.letters).items()}

    @property
    def ranks(self) -> dict[str, int]:
        """Widths of RWKV-7's low-rank pairs, by the letter in their names."""
        return {letter: self.letters[f"R{letter}"] for letter in "wavg"}

    @cached_property
    def matrices(self) -> list[Matrix]:
        """The large matrices of a layer, then the factors of its low-rank pairs."""
        found = layer_matrices(self.architecture.schema, self.letters)
        return sorted(found, key=lambda matrix: matrix.is_factor)

    @cached_property
    def num_vectors(self) -> int:
        """Number of tensors in a layer that have about C numbers."""
        return sum(isinstance(shape, str) or shape == ("H", "N") for shape in self.architecture.schema.layer.values())

    @cached_property
    def num_shares(self) -> int:
        """Number of interpolations of the token shift in a layer. Their shares are the vectors [C] that no norm has."""
        layer = self.architecture.schema.layer
        return sum(shape == "C" and not name.startswith("ln") for name, shape in layer.items())

    @property
    def streamed_weights(self) -> int:
        """Number of weights that every step reads: all matrices but the embedding."""
        return self.L * sum(matrix.numbers for matrix in self.matrices) + self.V * self.C

    @cached_property
    def recurrent_numbers(self) -> int:
        """Number of elements in the recurrent state of one sequence and layer."""
        return self._state_numbers(recurrent=True)

    def state_bytes(self, number: int = 4) -> int:
        """Bytes of the state of one sequence, with `number` bytes for each recurrent number and 16-bit activations."""
        return self.L * (self.recurrent_numbers * number + self._state_numbers(recurrent=False) * 2)

    def _state_numbers(self, recurrent: bool) -> int:
        """Token-shift rows have the dtype of activations, which tells them from the recurrent fields."""
        import torch

        fields = self.architecture.state_fields(self.letters, torch.bfloat16, torch.float32)
        return sum(math.prod(field.shape) for field in fields if (field.dtype == torch.float32) == recurrent)


MODELS = {
    "0.1B": Sizes(12, 768, 3072),
    "0.4B": Sizes(24, 1024, 4096),
    "1.5B": Sizes(24, 2048, 8192),
    "2.9B": Sizes(32, 2560, 10240),
    "7.2B": Sizes(32, 4096, 16384),
    "13.3B": Sizes(61, 4096, 16384),
}


def decode_parts(sizes: Sizes, B: int, card: Card, state_number: int = 4, weight_number: int = 2) -> dict[str, float]:
    """Seconds of a decode step of B rows, by part: nine launches a layer of RWKV-7, then head and sampler.

    Activations have 16 bits. A product reads its inputs and writes its outputs; a product that is added to the residual
    stream reads that too. Matrices of the time mix with inputs of their own share a launch, and so do low-rank pairs.

    Args:
        state_number: bytes of a number of the recurrent state.
        weight_number: bytes of a number of a large matrix.
    """
    L, C, V = sizes.L, sizes.C, sizes.V
    cost = sizes.architecture.recurrence_cost
    leaves_l2 = 0.6 * card.l2 < 16 * B * C * 2

    def activations(numbers: float) -> float:
        """Bytes of B rows of activations, where they do not stay in the cache."""
        return B * numbers * 2 if leaves_l2 else 0

    def launch(num_bytes: float, operations: float = 0.0, count: int = 1) -> float:
        products = operations / (card.matrix_rate * card.efficiency)
        return max(count * card.launch, num_bytes / card.bandwidth, products)

    def product(matrices: list[Matrix]) -> float:
        """One launch of matrices that have inputs of their own."""
        weights = sum(matrix.numbers for matrix in matrices)
        numbers = sum(m.n_in + m.n_out * (2 if m.name in ADDED else 1) for m in matrices)
        return launch(weights * weight_number + activations(numbers), 2 * B * weights)

    large = [matrix for matrix in sizes.matrices if not matrix.is_factor]
    together = [matrix for matrix in large if matrix.name.startswith("att.") and matrix.name not in ADDED]
    factors = sum(matrix.numbers for matrix in sizes.matrices if matrix.is_factor)
    wide_sides = sum(max(matrix.n_in, matrix.n_out) for matrix in sizes.matrices if matrix.is_factor)
    low_rank = launch(factors * 2 + activations(wide_sides), 2 * B * factors, count=2)
    state = sizes.recurrent_numbers
    recurrence = launch(2 * B * state * state_number + activations(cost.vectors * C))
    return {
        "norms and shifts": L * launch(activations((sizes.num_shares + NORM_VECTORS) * C) + 2 * 2 * C * 2 * B, count=2),
        "matrices": L * (product(together) + sum(product([matrix]) for matrix in large if matrix not in together)),
        "low rank": L * low_rank if factors else 0.0,
        "recurrence": L * max(recurrence, cost.operations * B * state / card.lane_rate),
        "head": launch(V * C * weight_number + B * V * 4, 2 * B * C * V),
        "sampler": launch(2 * B * V * 4, count=3),
        "rest": 2 * card.launch,
    }


def decode_seconds(sizes: Sizes, B: int, card: Card, state_number: int = 4, weight_number: int = 2) -> float:
    """Seconds of a decode step of B rows."""
    return sum(decode_parts(sizes, B, card, state_number, weight_number).values())


def prefill_seconds(sizes: Sizes, num_rows: int, row_len: int, card: Card) -> float:
    """Seconds of packed prompts. The recurrence advances all heads and rows at once, token by token."""
    tokens = num_rows * row_len
    matrices = sizes.streamed_weights - sizes.V * sizes.C
    products = 2 * matrices * tokens / (card.matrix_rate * card.efficiency)
    activations = sizes.L * PROMPT_VECTORS * sizes.C * 2 * tokens / card.bandwidth
    operations = sizes.architecture.recurrence_cost.operations
    arithmetic = tokens * sizes.L * sizes.recurrent_numbers * operations / card.lane_rate
    return products + activations + max(arithmetic, sizes.L * row_len * card.token_latency)


def max_batch(sizes: Sizes, card: Card, state_number: int = 4, reserve: float = 6e9) -> int:
    """Number of rows whose states, logits and activations fit beside 16-bit weights."""
    vectors = sizes.L * sizes.num_vectors * sizes.C
    weights = 2 * (sizes.streamed_weights + sizes.V * sizes.C + vectors)
    row = sizes.state_bytes(state_number) + sizes.V * 4 + sizes.C * 2 * 40
    return int((card.memory - weights - reserve) // row)


def main() -> None:
    """Predicts from recorded launches; see roofline_parts/command.py."""
    from .roofline_parts import command  # which imports this module

    command.main()


if __name__ == "__main__":
    main()
