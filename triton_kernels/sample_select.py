"""Second kernel of `sample`: one program a row filters, draws, and updates the slot's tables.

A row without filters is drawn in two steps, a tile by the tiles' masses and then a token inside the tile. A row with
filters is drawn from the tokens that a cut keeps, which sample_cut.py finds.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from .philox import uniform
from .sample_cut import (
    ONE,
    Cut,
    Near,
    Scale,
    Sizes,
    Source,
    collect_near,
    find_at_mass,
    find_cut,
    fraction_of,
    goals_of,
    key_of,
    total_kept_mass,
)
from .sample_row import (
    DECAY,
    IS_MASKED,
    IS_PENALIZED,
    LOG2E,
    NONE,
    NUM_FLOATS,
    NUM_INTEGERS,
    NUM_SEEN,
    POSITION,
    SKIPS_UNCOUNTED,
    STREAM,
    Row,
    Seen,
    load_filters,
    load_lengths,
)


@triton.jit
def draw_filtered(row, near, peaks, peak, total, fraction, filters, SIZES: tl.constexpr):
    """Id of a token drawn from what the filters keep.

    Args:
        near: a buffer for CAP tokens.
        peaks: pointer to the tiles' largest logits.
        peak, total: the row's largest logit, and the sum of exp((logit - peak) / filter_temperature), int64 in units
            of 1 / ONE.
        fraction: the uniform number, float64 in [0, 1).
    """
    scale = Scale(peak, filters.filter_temperature)
    goals = goals_of(filters, total)
    source, size, key = collect_near(row, near, peaks, scale, filters, goals, SIZES)
    cut = find_cut(source, size, key, scale, filters, goals, SIZES)
    scale = Scale(peak, filters.temperature)
    target = fraction_of(total_kept_mass(source, 0, size, cut, scale, SIZES), fraction)
    return find_at_mass(source, 0, size, target, cut, scale, SIZES)


@triton.jit
def draw_from_all(row, near, tiles, peaks, totals, peak, fraction, temperature, SIZES: tl.constexpr):
    """Id of a token drawn from the whole row: first a tile, then a token inside it.

    Args:
        tiles: numbers of the tiles, padded to a power of two.
        peaks, totals: of each tile, the largest logit and the sum of exp((logit - largest) / temperature).
    """
    mass = totals * tl.exp2((peaks - peak) * (LOG2E / temperature)) * ONE
    reached = tl.cumsum(mass.to(tl.int64), 0)
    target = fraction_of(tl.max(reached, 0), fraction)
    tile = tl.sum((reached <= target).to(tl.int32), 0)
    before = tl.max(tl.where(reached <= target, reached, 0), 0)
    tile_mass = tl.max(tl.where(tiles == tile, reached, 0), 0) - before
    rest = (target - before).to(tl.float64) / tile_mass.to(tl.float64)
    tile_peak = tl.max(tl.where(tiles == tile, peaks, float("-inf")), 0)
    source = Source(row, near, False)
    scale = Scale(tile_peak, temperature)
    begin, end = tile * SIZES.TILE, tile * SIZES.TILE + SIZES.TILE
    cut = Cut(key_of(tile_peak * 0.0 + float("-inf")), NONE)
    inside = fraction_of(total_kept_mass(source, begin, end, cut, scale, SIZES), rest)
    return find_at_mass(source, begin, end, inside, cut, scale, SIZES)


@triton.jit
def load_tiles(sums, tiles, NUM_TILES: tl.constexpr):
    """The largest logit of each tile, and the sum of exp((logit - largest) / temperature)."""
    peaks = tl.load(sums + tiles, mask=tiles < NUM_TILES, other=float("-inf"))
    totals = tl.load(sums + NUM_TILES + tiles, mask=tiles < NUM_TILES, other=0.0)
    return peaks, totals


@triton.jit
def log_normalizer(sums, tiles, NUM_TILES: tl.constexpr):
    """Logarithm of the sum of exp(logit) over the row, float64, from the sums of its tiles."""
    peaks, totals = load_tiles(sums, tiles, NUM_TILES)
    peak = tl.max(peaks, 0)
    total = tl.sum(totals * tl.exp2((peaks - peak) * LOG2E), 0)
    return peak.to(tl.float64) + tl.log(total.to(tl.float64))


@triton.jit
def put_back(logits, saved, p_ids, length, LIST: tl.constexpr):
    """Restore the logits of the listed ids. Of an id that several lists name, the first list saved the true logit:
    lists are restored in the opposite order.
    """
    for start in range(0, length, LIST):
        entry = start + tl.arange(0, LIST)
        ids = tl.load(p_ids + entry, mask=entry < length, other=0)
        tl.store(logits + ids, tl.load(saved + entry, mask=entry < length, other=0.0), mask=entry < length)


@triton.jit
def count(token, length, integers, floats, seen, p_uncounted, width, LIST: tl.constexpr):
    """Decay the counts of the slot's seen ids, then count the token; append it where it is new and there is room.

    Args:
        length: how many ids the slot has seen, read before a barrier: one thread changes it here.
    """
    decay = tl.load(floats + DECAY).to(tl.float32)
    is_skipped = (tl.load(integers + SKIPS_UNCOUNTED) > 0) & (tl.load(p_uncounted + token) != 0)
    increment = tl.where(is_skipped, 0.0, 1.0)
    num_found = 0
    for start in range(0, length, LIST):
        entry = start + tl.arange(0, LIST)
        is_token = tl.load(seen.ids + entry, mask=entry < length, other=-1) == token
        counts = tl.load(seen.count + entry, mask=entry < length, other=0.0) * decay
        tl.store(seen.count + entry, counts + tl.where(is_token, increment, 0.0), mask=entry < length)
        tl.store(seen.generated + entry, tl.full([LIST], 1, tl.uint8), mask=is_token)
        num_found += tl.sum(is_token.to(tl.int32), 0)
    if (num_found == 0) & (length < width):
        tl.store(seen.ids + length, token)
        tl.store(seen.count + length, increment)
        tl.store(seen.generated + length, 1)
        tl.store(integers + NUM_SEEN, (length + 1).to(tl.int64))


@triton.jit(do_not_specialize=["seen_width", "bias_width", "stop_width"])
def select_kernel(
    p_logits,
    p_slot,
    p_integers,
    p_floats,
    p_last_token,
    p_seen_ids,
    p_seen_count,
    p_seen_generated,
    p_bias_ids,
    p_stops,
    p_mask,
    p_sampleable,
    p_uncounted,
    p_saved,
    p_sums,
    p_first,
    p_near_logits,
    p_near_ids,
    p_token,
    p_logprob,
    seen_width,
    bias_width,
    stop_width,
    V: tl.constexpr,
    NUM_TILES: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    CAP: tl.constexpr,
    LIST: tl.constexpr,
):
    """Grid [B]. The pointers are those of `sample`'s tensors, as shape_kernel has left them.

    A program reads the row and the slot's lists, and changes both in the end. All threads take part in each read, and
    the compiler does not order reads of one thread against writes of another: barriers do.
    """
    program = tl.program_id(0).to(tl.int64)
    slot = tl.load(p_slot + program).to(tl.int64)
    if slot < 0:
        tl.store(p_token + program, 0)
        tl.store(p_logprob + program, 0.0)
        return
    integers = p_integers + slot * NUM_INTEGERS
    floats = p_floats + slot * NUM_FLOATS
    logits = p_logits + program * V
    filters = load_filters(integers, floats, V)
    is_filtered = (filters.top_p < 1) | (filters.top_k > 0) | (filters.min_p > 0)

    tiles = tl.arange(0, triton.next_power_of_2(NUM_TILES))
    sums = p_sums + program * (4 * NUM_TILES)
    peaks, totals = load_tiles(sums + 2 * NUM_TILES, tiles, NUM_TILES)
    peak = tl.max(peaks, 0)
    masses = totals * tl.exp2((peaks - peak) * (LOG2E / filters.filter_temperature))
    is_finite = tl.sum((masses < float("inf")).to(tl.int32), 0) == masses.shape[0]  # NaN is not
    # All threads take part in the passes below, and must agree on every limit. A sum of integers is the same in all
    # threads. A sum of floats is not: the compiler fuses the product above with the addition of a neighbor's product.
    total = tl.sum(tl.where(masses < float("inf"), masses * ONE, 0.0).to(tl.int64), 0)
    first = tl.load(p_first + program * NUM_TILES + tiles, mask=tiles < NUM_TILES, other=NONE)

    num_masked = tl.where(tl.load(integers + IS_MASKED) > 0, V, 0)
    row = Row(logits, p_sampleable, p_mask + slot * tl.cdiv(V, 32), num_masked)
    near = Near(p_near_logits + program * CAP, p_near_ids + program * CAP)
    SIZES: tl.constexpr = Sizes(V, TILE, CHUNK, BLOCK, CAP)
    token = tl.min(tl.where(peaks == peak, first, NONE), 0)
    has_mass = is_finite & (total > 0)
    if has_mass & (filters.is_greedy == 0):
        fraction = uniform(integers + STREAM, tl.load(integers + POSITION))
        if is_filtered:
            token = draw_filtered(row, near, sums + 2 * NUM_TILES, peak, total, fraction, filters, SIZES)
        else:
            token = draw_from_all(row, near, tiles, peaks, totals, peak, fraction, filters.temperature, SIZES)
    token = tl.where(has_mass & (token < V), token, 0)

    position = tl.load(integers + POSITION)
    num_seen, num_biases, num_stops = load_lengths(integers)
    saved = p_saved + program * (seen_width + bias_width + stop_width)
    tl.debug_barrier()  # all threads have read the row and the tables; now they change
    put_back(logits, saved + seen_width + bias_width, p_stops + slot * stop_width, num_stops, LIST)
    tl.debug_barrier()
    put_back(logits, saved + seen_width, p_bias_ids + slot * bias_width, num_biases, LIST)
    tl.debug_barrier()
    put_back(logits, saved, p_seen_ids + slot * seen_width, num_seen, LIST)
    tl.debug_barrier()
    normalizer = log_normalizer(sums, tiles, NUM_TILES)
    tl.store(p_logprob + program, tl.load(logits + token).to(tl.float64) - normalizer)
    tl.store(p_token + program, token.to(tl.int64))
    tl.store(p_last_token + slot, token.to(tl.int64))
    tl.store(integers + POSITION, position + 1)
    if tl.load(integers + IS_PENALIZED) > 0:
        seen_start = slot * seen_width
        seen = Seen(p_seen_ids + seen_start, p_seen_count + seen_start, p_seen_generated + seen_start)
        count(token, num_seen, integers, floats, seen, p_uncounted, seen_width, LIST)
