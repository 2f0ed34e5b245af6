"""Converts tokens/s to shares of the machine's measured peaks, in matrix products and in memory traffic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rwkv_batch.engine.engine import Engine
from rwkv_batch.measure.variants import Variant

from . import probes
from .bare_products import matrices, operations
from .timing import Rates
from .workloads import Point

INTEGER_QUANTIZATIONS = ("w8a8",)
"""Quantizations whose products are of 8-bit integers; all others multiply in the dtype."""


@dataclass(frozen=True)
class Work:
    """Operations and bytes that a model needs.

    Args:
        peak: the probe that measures products in the number format of the model.
        token_operations: of the matrix products of one token, without the head's.
        head_operations: of the head's product for one token.
        matrix_bytes: what every step reads of weights.
        state_bytes: the state of one sequence. A decode step reads and writes it.
    """

    peak: str
    token_operations: int
    head_operations: int
    matrix_bytes: int
    state_bytes: int

    @classmethod
    def of(cls, path: Path, engine: Engine, variant: Variant) -> Work:
        found = matrices(path)
        body = operations(found, with_head=False)
        return cls(
            peak="int8" if variant.quantization in INTEGER_QUANTIZATIONS else engine.model.placement.dtype_name,
            token_operations=body,
            head_operations=operations(found, with_head=True) - body,
            matrix_bytes=engine.model.matrix_bytes,
            state_bytes=engine.pool.record_bytes,
        )

    def matrix_rate(self, point: Point, tokens_per_second: float) -> float | None:
        """Returns billions of operations a second; None for points that mix tokens with and without logits."""
        if point.kind == "ragged":
            return None
        head = 0 if point.kind == "prefill" else self.head_operations
        return tokens_per_second * (self.token_operations + head) / 1e9

    def memory_rate(self, point: Point, tokens_per_second: float) -> float | None:
        """Returns GB/s of weights and states, read and written; None for points whose steps vary in size."""
        if point.kind != "decode":
            return None
        step_bytes = self.matrix_bytes + 2 * self.state_bytes * point.batch_size
        return step_bytes * tokens_per_second / point.batch_size / 1e9


def share_rows(rates: Rates, works: Mapping[str, Work], peaks: Sequence[probes.Peaks]) -> list[list[str]]:
    """Makes table rows: contender, point, and the shares of the peaks that it reaches, medians of the rounds.

    Args:
        peaks: of each round.
    """
    rows = []
    for name, work in works.items():
        for point, values in rates[name].items():
            matrix, memory = ([rate(point, value) for value in values] for rate in (work.matrix_rate, work.memory_rate))
            # Some machines multiply float32 faster than the number format itself; then float32 is the peak.
            shares = [_share(matrix, peaks, work.peak, "float32"), _share(memory, peaks, probes.READ)]
            if any(shares):
                rows.append([name, str(point), *shares])
    return rows


def _share(rates: Sequence[float | None], peaks: Sequence[probes.Peaks], *names: str) -> str:
    """The median of each round's rate divided by the best of the named peaks in that round; empty without either."""
    best = [max(one[name] for name in names) for one in peaks]
    shares = [rate / peak for rate, peak in zip(rates, best, strict=True) if rate is not None and peak > 0]
    return f"{median(shares):.0%}" if shares else ""
