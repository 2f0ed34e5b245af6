"""First kernel of `sample`: sums over tiles of a row, before and after penalties, biases and bans."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from .sample_row import (
    FREQUENCY,
    IS_MASKED,
    LOG2E,
    NONE,
    NUM_FLOATS,
    NUM_INTEGERS,
    PRESENCE,
    REPETITION,
    Row,
    Seen,
    load_filters,
    load_lengths,
    only_sampleable,
)


@triton.jit
def find_listed(p_ids, entry, length, low, high):
    """Ids of some entries of a list, and which of them are listed and lie in [low, high)."""
    ids = tl.load(p_ids + entry, mask=entry < length, other=-1)
    return ids, (ids >= low) & (ids < high)


@triton.jit
def exchange(logits, saved, ids, entry, old, new, here):
    """Write new logits, and save the old ones: `select_kernel` restores them."""
    tl.store(saved + entry, old, mask=here)
    tl.store(logits + ids, new, mask=here)


@triton.jit
def penalize(logits, saved, seen, length, floats, low, high, LIST: tl.constexpr):
    """Apply the presence, frequency and repetition penalties to the seen ids in [low, high)."""
    presence = tl.load(floats + PRESENCE).to(tl.float32)
    frequency = tl.load(floats + FREQUENCY).to(tl.float32)
    repetition = tl.load(floats + REPETITION).to(tl.float32)
    for start in range(0, length, LIST):
        entry = start + tl.arange(0, LIST)
        ids, here = find_listed(seen.ids, entry, length, low, high)
        old = tl.load(logits + ids, mask=here, other=0.0)
        count = tl.load(seen.count + entry, mask=here, other=0.0)
        generated = tl.load(seen.generated + entry, mask=here, other=0).to(tl.float32)
        new = tl.where(old > 0, old / repetition, old * repetition) - count * frequency - generated * presence
        exchange(logits, saved, ids, entry, old, new, here)


@triton.jit
def add_biases(logits, saved, p_ids, p_bias, length, low, high, LIST: tl.constexpr):
    """Add biases to the listed ids in [low, high)."""
    for start in range(0, length, LIST):
        entry = start + tl.arange(0, LIST)
        ids, here = find_listed(p_ids, entry, length, low, high)
        old = tl.load(logits + ids, mask=here, other=0.0)
        exchange(logits, saved, ids, entry, old, old + tl.load(p_bias + entry, mask=here, other=0.0), here)


@triton.jit
def ban(logits, saved, p_ids, length, low, high, LIST: tl.constexpr):
    """Set the logits of the listed ids in [low, high) to -inf."""
    for start in range(0, length, LIST):
        entry = start + tl.arange(0, LIST)
        ids, here = find_listed(p_ids, entry, length, low, high)
        old = tl.load(logits + ids, mask=here, other=0.0)
        exchange(logits, saved, ids, entry, old, tl.full([LIST], float("-inf"), tl.float32), here)


@triton.jit
def total_mass(x, peak, scale):
    """Sum of exp2((x - peak) * scale); NaN where x has NaN or +inf, 0 where all of it is -inf."""
    return tl.sum(tl.exp2((x - tl.where(peak == float("-inf"), 0.0, peak)) * scale), 0)


@triton.jit(do_not_specialize=["seen_width", "bias_width", "stop_width"])
def shape_kernel(
    p_logits,
    p_slot,
    p_integers,
    p_floats,
    p_seen_ids,
    p_seen_count,
    p_seen_generated,
    p_bias_ids,
    p_biases,
    p_stops,
    p_mask,
    p_sampleable,
    p_saved,
    p_sums,
    p_first,
    seen_width,
    bias_width,
    stop_width,
    V: tl.constexpr,
    TILE: tl.constexpr,
    LIST: tl.constexpr,
):
    """Grid [B, tiles]: a program takes one tile of one row.

    It leaves in p_sums, for each tile, the largest logit and the mass of the given logits, then those of the shaped
    ones; and in p_first the first id with the largest shaped logit.
    """
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    slot = tl.load(p_slot + row).to(tl.int64)
    if slot < 0:
        return
    integers = p_integers + slot * NUM_INTEGERS
    floats = p_floats + slot * NUM_FLOATS
    logits = p_logits + row * V
    low = tile * TILE
    high = tl.minimum(low + TILE, V)
    i = low + tl.arange(0, TILE)
    num_tiles = tl.num_programs(1)
    sums = p_sums + row * (4 * num_tiles) + tile

    x = tl.load(logits + i, mask=i < V, other=float("-inf"))
    peak = tl.max(x, 0)
    tl.store(sums, peak)
    tl.store(sums + num_tiles, total_mass(x, peak, LOG2E))

    num_seen, num_biases, num_stops = load_lengths(integers)
    saved = p_saved + row * (seen_width + bias_width + stop_width)
    is_changed = num_seen + num_biases + num_stops > 0
    if is_changed:
        tl.debug_barrier()  # all threads have read the tile
    if num_seen > 0:
        seen_start = slot * seen_width
        seen = Seen(p_seen_ids + seen_start, p_seen_count + seen_start, p_seen_generated + seen_start)
        penalize(logits, saved, seen, num_seen, floats, low, high, LIST)
        tl.debug_barrier()
    if num_biases > 0:
        bias = slot * bias_width
        add_biases(logits, saved + seen_width, p_bias_ids + bias, p_biases + bias, num_biases, low, high, LIST)
        tl.debug_barrier()
    if num_stops > 0:
        stops = p_stops + slot * stop_width
        ban(logits, saved + seen_width + bias_width, stops, num_stops, low, high, LIST)
        tl.debug_barrier()

    num_masked = tl.where(tl.load(integers + IS_MASKED) > 0, V, 0)
    row_of_slot = Row(logits, p_sampleable, p_mask + slot * tl.cdiv(V, 32), num_masked)
    if is_changed:
        x = tl.load(logits + i, mask=i < V, other=float("-inf"))
    x = only_sampleable(x, row_of_slot, low, V, TILE)
    filter_temperature = load_filters(integers, floats, V).filter_temperature
    peak = tl.max(x, 0)
    tl.store(sums + 2 * num_tiles, peak)
    tl.store(sums + 3 * num_tiles, total_mass(x, peak, LOG2E / filter_temperature))
    tl.store(p_first + row * num_tiles + tile, tl.min(tl.where(x == peak, i, NONE), 0))
