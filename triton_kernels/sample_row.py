"""A row as both kernels of `sample` read it: columns of the slot tables, filters, and the ids that may be sampled."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

# Columns of the slot tables; a test compares them with engine/slot_tables.py.
NUM_FLOATS = tl.constexpr(8)
TEMPERATURE = tl.constexpr(0)
TOP_P = tl.constexpr(1)
MIN_P = tl.constexpr(2)
PRESENCE = tl.constexpr(3)
FREQUENCY = tl.constexpr(4)
REPETITION = tl.constexpr(5)
DECAY = tl.constexpr(6)

NUM_INTEGERS = tl.constexpr(16)
TOP_K = tl.constexpr(0)
UNTEMPERED = tl.constexpr(1)
POSITION = tl.constexpr(2)
MIN_TOKENS = tl.constexpr(3)
IS_PENALIZED = tl.constexpr(4)
SKIPS_UNCOUNTED = tl.constexpr(5)
NUM_SEEN = tl.constexpr(6)
NUM_BIASES = tl.constexpr(7)
NUM_STOPS = tl.constexpr(8)
IS_MASKED = tl.constexpr(9)
STREAM = tl.constexpr(10)

MIN_TEMPERATURE = tl.constexpr(1e-6)
LOG2E = tl.constexpr(1.4426950408889634)
NONE = tl.constexpr(2**31 - 1)
"""Above every id and every place in a list."""


class Row(NamedTuple):
    """The logits of a row, and the masks that apply when they are read."""

    logits: Any
    """Pointer to V logits, float32."""
    sampleable: Any
    """Pointer to ceil(V / 32) words, a bit for each id of the vocabulary: whether the id may be sampled."""
    mask: Any
    """Pointer to as many words, the same for the slot."""
    num_masked: Any
    """Number of ids that `mask` applies to: V, or 0 where the slot has no mask."""


class Seen(NamedTuple):
    """Pointers to a slot's list of seen tokens: ids, decayed counts, and whether each was generated."""

    ids: Any
    count: Any
    generated: Any


class Filters(NamedTuple):
    """The settings that shape a row's distribution. A filter that keeps all tokens is off."""

    temperature: Any
    """float32, of the draw; 1 where the row is greedy."""
    filter_temperature: Any
    """float32, at which the filters see the probabilities."""
    top_p: Any
    """float64; 1 is off."""
    min_p: Any
    """float64; 0 is off."""
    top_k: Any
    """int32; 0 is off."""
    is_untempered: Any
    is_greedy: Any


@triton.jit
def load_lengths(integers):
    """Lengths of the slot's three lists that change this row: seen ids, biases, stops; int32 each.

    Args:
        integers: the slot's row of the table.
    """
    num_seen = tl.where(tl.load(integers + IS_PENALIZED) > 0, tl.load(integers + NUM_SEEN), 0)
    num_biases = tl.load(integers + NUM_BIASES)
    is_early = tl.load(integers + POSITION) < tl.load(integers + MIN_TOKENS)
    num_stops = tl.where(is_early, tl.load(integers + NUM_STOPS), 0)
    return num_seen.to(tl.int32), num_biases.to(tl.int32), num_stops.to(tl.int32)


@triton.jit
def load_filters(integers, floats, V: tl.constexpr):
    """The `Filters` of a slot."""
    temperature = tl.load(floats + TEMPERATURE).to(tl.float32)
    top_p = tl.load(floats + TOP_P)
    min_p = tl.load(floats + MIN_P)
    top_k = tl.load(integers + TOP_K)
    is_greedy = temperature < MIN_TEMPERATURE
    temperature = tl.where(is_greedy, 1.0, temperature)
    top_k = tl.where((top_k > 0) & (top_k < V), top_k, 0).to(tl.int32)
    is_filtered = (top_p < 1) | (top_k > 0) | (min_p > 0)
    is_untempered = is_filtered & (tl.load(integers + UNTEMPERED) > 0)
    filter_temperature = tl.where(is_untempered, 1.0, temperature)
    return Filters(temperature, filter_temperature, top_p, min_p, top_k, is_untempered, is_greedy)


@triton.jit
def only_sampleable(x, row, start, V: tl.constexpr, SIZE: tl.constexpr):
    """Logits of the ids in [start, start + SIZE), -inf where they may not be sampled.

    Args:
        x: the logits.
        start: a multiple of 32, as is SIZE.
    """
    word = start // 32 + tl.arange(0, SIZE // 32)
    words = tl.load(row.sampleable + word, mask=word * 32 < V, other=0)
    words &= tl.load(row.mask + word, mask=word * 32 < row.num_masked, other=-1)
    bits = (words[:, None] >> tl.arange(0, 32)[None, :]) & 1
    return tl.where(tl.reshape(bits, [SIZE]) != 0, x, float("-inf"))


@triton.jit
def load_sampleable(row, start, V: tl.constexpr, SIZE: tl.constexpr):
    """Logits of the ids in [start, start + SIZE) as `only_sampleable`; and the ids."""
    i = start + tl.arange(0, SIZE)
    x = tl.load(row.logits + i, mask=i < V, other=float("-inf"))
    return only_sampleable(x, row, start, V, SIZE), i
