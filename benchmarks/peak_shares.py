"""What share of a machine's measured peak a rate stands for, in matrix products and in memory traffic."""

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
"""Multiplied in 8-bit integers; all others in the dtype."""


@dataclass(frozen=True)
class Work:
    """What a model asks of the machine.

    Args:
        peak: name of the probe in the format of its matrix products.
        token_operations, head_operations: of one token's matrix products, without the head's, and the head's.
        matrix_bytes: read by every step.
        state_bytes: of one sequence; a decode step reads and writes them.
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
        """Billions of operations a second; None for a mix of tokens with and without logits."""
        if point.kind == "ragged":
            return None
        head = 0 if point.kind == "prefill" else self.head_operations
        return tokens_per_second * (self.token_operations + head) / 1e9

    def memory_rate(self, point: Point, tokens_per_second: float) -> float | None:
        """GB/s of weights and states, read and written; None where a step has no fixed number of tokens."""
        if point.kind != "decode":
            return None
        step_bytes = self.matrix_bytes + 2 * self.state_bytes * point.batch_size
        return step_bytes * tokens_per_second / point.batch_size / 1e9


def share_rows(rates: Rates, works: Mapping[str, Work], peaks: Sequence[probes.Peaks]) -> list[list[str]]:
    """Contender, point, and the shares of the best peaks that its median rate stands for."""
    rows = []
    for name, work in works.items():
        for point, values in rates[name].items():
            matrix, memory = work.matrix_rate(point, median(values)), work.memory_rate(point, median(values))
            # Where a machine has no fast products of a format, float32 can stand in for it.
            shares = [_share(matrix, peaks, work.peak, "float32"), _share(memory, peaks, probes.COPY)]
            if any(shares):
                rows.append([name, str(point), *shares])
    return rows


def _share(rate: float | None, peaks: Sequence[probes.Peaks], *names: str) -> str:
    best = max(one[name] for one in peaks for name in names)
    return f"{rate / best:.0%}" if rate is not None and best > 0 else ""
