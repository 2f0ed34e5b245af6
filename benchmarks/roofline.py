"""What RWKV-7 can reach at best on a card: bytes over bandwidth, operations over rate, and a floor for every launch.

    python -m benchmarks.roofline [--bandwidth 4.3] [--matrix-rate 790] [--launch 2.2] [--memory 141]

prints the limits for the published sizes. A launch takes the longest of three times: the floor of a launch, its bytes
over the copy bandwidth, and its operations over the share of the matrix peak that products reach. Launches follow one
another, so a step is their sum. Bandwidth, peak and floor are to be measured on the card (`benchmarks.gpu limits`).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from rwkv_batch.measure.table import format_lines

TERA = 1e12


@dataclass(frozen=True)
class Card:
    """What a GPU can do. The defaults are an H200's, as far as they were measured on one."""

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
    """Share of the matrix peak that the products of a step are given."""
    token_latency: float = 0.25e-6
    """Seconds that one token of one sequence takes the recurrence of one layer."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a RWKV-7 model: layers, width, width of the channel mix, vocabulary, head size."""

    L: int
    C: int
    F: int
    V: int = 65536
    N: int = 64

    @property
    def H(self) -> int:
        return self.C // self.N

    @property
    def ranks(self) -> dict[str, int]:
        """Of the low-rank pairs, by the letter in their names: the published models' rule."""

        def rank(size: float) -> int:
            return max(32, round(size / 32) * 32)

        decay = rank(1.8 * self.C**0.5)
        return {"w": decay, "a": decay, "v": rank(1.3 * self.C**0.5), "g": rank(0.6 * self.C**0.8)}

    @property
    def streamed_weights(self) -> int:
        """Numbers that every step reads: all matrices but the embedding."""
        C, F = self.C, self.F
        return self.L * (4 * C * C + 2 * C * F + 2 * C * sum(self.ranks.values())) + self.V * C

    def state_bytes(self, number: int = 4) -> int:
        """Of one sequence, with matrix states of `number` bytes each and 16-bit activations."""
        return self.L * (self.H * self.N**2 * number + 2 * self.C * 2)


MODELS = {
    "0.1B": Sizes(12, 768, 3072),
    "0.4B": Sizes(24, 1024, 4096),
    "1.5B": Sizes(24, 2048, 8192),
    "2.9B": Sizes(32, 2560, 10240),
    "7.2B": Sizes(32, 4096, 16384),
    "13.3B": Sizes(61, 4096, 16384),
}


def decode_parts(sizes: Sizes, B: int, card: Card, state_number: int = 4, weight_number: int = 2) -> dict[str, float]:
    """Seconds of a decode step of B rows, by part: nine launches a layer, then head and sampler.

    Args:
        state_number: bytes of a number of the matrix state.
        weight_number: bytes of a number of a large matrix.
    """
    L, C, F, V = sizes.L, sizes.C, sizes.F, sizes.V
    R = sum(sizes.ranks.values())
    leaves_l2 = 0.6 * card.l2 < 16 * B * C * 2

    def rows(count: int) -> int:
        """Bytes of `count` activations [B, C], where they do not stay in the cache."""
        return count * B * C * 2 if leaves_l2 else 0

    def launch(num_bytes: float, operations: float = 0.0, count: int = 1) -> float:
        products = operations / (card.matrix_rate * card.efficiency)
        return max(count * card.launch, num_bytes / card.bandwidth, products)

    def product(n_in: int, n_out: int, activations: int, number: int = weight_number) -> float:
        return launch(n_in * n_out * number + rows(activations), 2 * B * n_in * n_out)

    state = 2 * B * sizes.H * sizes.N**2 * state_number
    recurrence = max(launch(state + rows(8)), 7 * B * sizes.H * sizes.N**2 / card.lane_rate)
    matrices = product(C, 3 * C, 6) + product(C, C, 3) + product(C, F, 5) + product(F, C, 6)
    return {
        "norms and shifts": L * launch(rows(14) + 2 * 2 * C * 2 * B, count=2),
        "matrices": L * matrices,
        "low rank": L * 2 * product(C, R, 4, number=2),
        "recurrence": L * recurrence,
        "head": launch(V * C * weight_number + B * V * 4, 2 * B * C * V),
        "sampler": launch(2 * B * V * 4, count=3),
        "rest": 2 * card.launch,
    }


def decode_seconds(sizes: Sizes, B: int, card: Card, state_number: int = 4, weight_number: int = 2) -> float:
    """Seconds of a decode step of B rows."""
    return sum(decode_parts(sizes, B, card, state_number, weight_number).values())


def prefill_seconds(sizes: Sizes, num_rows: int, row_len: int, card: Card) -> float:
    """Seconds of packed prompts: the recurrence goes through a row token by token, and all heads at once."""
    tokens = num_rows * row_len
    matrices = sizes.streamed_weights - sizes.V * sizes.C
    products = 2 * matrices * tokens / (card.matrix_rate * card.efficiency)
    activations = sizes.L * 49 * sizes.C * 2 * tokens / card.bandwidth
    arithmetic = tokens * sizes.L * sizes.H * sizes.N**2 * 7 / card.lane_rate
    return products + activations + max(arithmetic, sizes.L * row_len * card.token_latency)


def max_batch(sizes: Sizes, card: Card, state_number: int = 4, reserve: float = 6e9) -> int:
    """Rows whose states, logits and activations fit beside 16-bit weights."""
    vectors = sizes.L * 18 * sizes.C
    weights = 2 * (sizes.streamed_weights + sizes.V * sizes.C + vectors)
    row = sizes.state_bytes(state_number) + sizes.V * 4 + sizes.C * 2 * 40
    return int((card.memory - weights - reserve) // row)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=__doc__.partition("\n")[0])
    parser.add_argument("--bandwidth", type=float, default=4.3, help="TB/s of a copy, read and written (4.3)")
    parser.add_argument("--matrix-rate", type=float, default=790, help="TFLOP/s of a bfloat16 product (790)")
    parser.add_argument("--launch", type=float, default=2.2, help="microseconds of a launch in a graph (2.2)")
    parser.add_argument("--memory", type=float, default=141, help="GB (141)")
    options = parser.parse_args()
    card = Card(
        options.bandwidth * TERA, options.matrix_rate * TERA, options.launch * 1e-6, memory=options.memory * 1e9
    )
    batches = (1, 16, 64, 256, 1024, 4096)
    print("decode: tokens/s (ms of a step)")
    rows = []
    for name, sizes in MODELS.items():
        for number in (4, 2):
            seconds = [decode_seconds(sizes, B, card, number) for B in batches]
            fits = [max_batch(sizes, card, number) >= B for B in batches]
            cells = [
                f"{B / s:,.0f} ({1000 * s:.2f})" if fit else "-"
                for B, s, fit in zip(batches, seconds, fits, strict=True)
            ]
            rows.append([f"{name} float{8 * number} state", *cells])
    print("\n".join(format_lines(["", *(f"B={B}" for B in batches)], rows)))
    print("\nprefill: tokens/s")
    shapes = ((1, 8192), (8, 1024), (64, 128))
    rows = [
        [name, *(f"{n * t / prefill_seconds(sizes, n, t, card):,.0f}" for n, t in shapes)]
        for name, sizes in MODELS.items()
    ]
    print("\n".join(format_lines(["", *(f"{n} x {t}" for n, t in shapes)], rows)))


if __name__ == "__main__":
    main()
