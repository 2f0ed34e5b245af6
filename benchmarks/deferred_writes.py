"""Predicts what deferred state writes of RWKV-7 save on a GPU, from bytes and counted instructions.

    python -m benchmarks.deferred_writes

prints, for a decode step of B rows, the microseconds of one layer's recurrence by `engine.state_write_interval`, and
the memory of a slot. Sequences are at all places between two writes alike: of n steps, one writes the state, the others
add an update to the ring, and the ring has (n - 1) / 2 updates on average.
"""

from __future__ import annotations

import argparse
from itertools import product

from rwkv_batch.measure.table import format_lines
from rwkv_batch.roofline.cards import H100, H200, LATENCIES, Card

from .roofline import MODELS, Sizes

INTERVALS = (1, 2, 3, 4)
BATCHES = (32, 256, 1024)
STATE_BYTES = {"float32": 4, "float16": 2}
UPDATE_VECTORS = 5
TOKEN_VECTORS = 9
"""16-bit vectors that the recurrence reads and writes for a token."""
INSTRUCTIONS = {"float32": (3550, 668), "float16": (4530, 1668)}
"""State dtype → SASS instructions that the warps of a block issue for a row of one token without a ring, and for each
update of the ring; N = 64, wkv7.cu compiled for sm_90 by nvcc 13.0."""
ISSUES = 4
"""Instructions that a multiprocessor issues in a cycle."""


def bytes_of_head(size: int, number: int, interval: int) -> float:
    """Bytes that a head of a row moves for a token, on average.

    Args:
        number: bytes of a number of the state.
    """
    update = 4 * UPDATE_VECTORS * size
    state = number * size * size
    ring = update * ((interval - 1) / 2 + (interval - 1) / interval)
    return state + state / interval + ring + 2 * TOKEN_VECTORS * size


def seconds(card: Card, sizes: Sizes, rows: int, state: str, interval: int) -> tuple[float, bool]:
    """Seconds of one layer's recurrence, and whether instructions determine them and not bytes."""
    heads = rows * sizes.H
    moved = heads * bytes_of_head(sizes.N, STATE_BYTES[state], interval) / (card.copy * card.update_share)
    token, update = INSTRUCTIONS[state]
    issued = heads * (token + update * (interval - 1) / 2) / (ISSUES * card.processors * card.clock)
    return LATENCIES["recurrence"] + max(moved, issued), issued > moved


def times() -> list[list[str]]:
    """Rows of the table of times."""
    rows = []
    for (name, card), state, model, B in product(
        {"H100": H100, "H200": H200}.items(), STATE_BYTES, ("0.1B", "1.5B", "7.2B"), BATCHES
    ):
        found = [seconds(card, MODELS[model], B, state, interval) for interval in INTERVALS]
        first = found[0][0]
        marks = [f"{1e6 * time:,.1f} ({first / time:.2f} x{', issue' if issues else ''})" for time, issues in found]
        rows.append([f"{name} {state}", f"{model} B={B}", *marks])
    return rows


def memory() -> list[list[str]]:
    """Rows of the table of a slot's memory: state and ring, without the copies that shared prefixes take."""
    rows = []
    for model, (state, number) in product(("0.1B", "1.5B", "7.2B"), STATE_BYTES.items()):
        sizes = MODELS[model]
        plain = sizes.state_bytes(number)
        update = 4 * UPDATE_VECTORS * sizes.L * sizes.C
        slots = [plain + (interval - 1) * update for interval in INTERVALS]
        rows.append([model, state, *(f"{slot / 2**20:.1f} (+{slot / plain - 1:.0%})" for slot in slots)])
    return rows


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    columns = [f"n = {interval}" for interval in INTERVALS]
    print("\n".join(format_lines(["predicted us of a layer", "decode step", *columns], times())))
    print()
    print("\n".join(format_lines(["MiB of a slot", "state", *columns], memory())))


if __name__ == "__main__":
    main()
