"""Second kernel of `sample`: one program a row filters, draws, and brings the slot up to date. Nothing is sorted.

A filter keeps a prefix of the tokens ranked by logit, so that it comes down to a cut: the smallest logit kept, and
among the tokens that have just that logit the last id kept. The cut is searched by cutting in eight the range of
logits, read as integers that order like them; each pass counts or weighs the tokens above the pivots.
The passes go over a source: the tokens near the top of the row, compacted, or the whole row where those are too many.
Masses are integers, so that no sum depends on its order.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from .philox import uniform
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
    load_filters,
    load_lengths,
    load_sampleable,
)

ONE = tl.constexpr(2.0**44)
"""Mass of the most likely token: 2^18 of it fit into int64."""
FAR = tl.constexpr(31.0)
"""Tokens whose logit is so much below the largest, in units of temperature, have no mass."""
NEAR = tl.constexpr(12.0)
"""How far below the largest logit the tokens are that are compacted first."""
ATTEMPTS = tl.constexpr(4)
"""How often compaction is tried."""
PIVOTS = tl.constexpr(8)
LOG2_PIVOTS = tl.constexpr(3)


@triton.jit
def order(x):
    """float32 → int32 that orders alike."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def mass_of(x, peak, temperature):
    return (tl.exp2((x - peak) * (LOG2E / temperature)) * ONE).to(tl.int64)


@triton.jit
def fraction_of(total, fraction):
    """The integer in [0, total) that lies at `fraction`, float64 in [0, 1); total is not 0."""
    return tl.minimum((total.to(tl.float64) * fraction).to(tl.int64), total - 1)


@triton.jit
def compact(row, peaks, threshold, near, V: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr, CAP: tl.constexpr):
    """Write logits from `threshold` up, and their ids, to `near` in the order of ids; as many as there is room for.

    Args:
        peaks: the largest logit of each tile of the row.

    Returns:
        How many there are.
    """
    logits, sampleable, mask, num_masked = row
    near_logits, near_ids = near
    count = 0
    for start in range(0, V, CHUNK):
        if tl.load(peaks + start // TILE) >= threshold:
            x, i = load_sampleable(logits, start, sampleable, mask, num_masked, V, CHUNK)
            is_near = (x >= threshold).to(tl.int32)
            place = count + tl.cumsum(is_near, 0) - 1
            has_place = (is_near > 0) & (place < CAP)
            tl.store(near_logits + place, x, mask=has_place)
            tl.store(near_ids + place, i, mask=has_place)
            count += tl.sum(is_near, 0)
    return count


@triton.jit
def read(source, start, end, V: tl.constexpr, BLOCK: tl.constexpr):
    """Logits and ids of one block of a source; -inf after its end, or V's."""
    row, near, is_compact = source
    if is_compact:
        i = start + tl.arange(0, BLOCK)
        near_logits, near_ids = near
        x = tl.load(near_logits + i, mask=i < end, other=float("-inf"))
        ids = tl.load(near_ids + i, mask=i < end, other=NONE)
    else:
        logits, sampleable, mask, num_masked = row
        x, ids = load_sampleable(logits, start, sampleable, mask, num_masked, V, BLOCK)
    return x, ids


@triton.jit
def kept_mass(x, ids, cut, last, peak, temperature):
    """Mass of each token, 0 for those that the cut drops."""
    key = order(x)
    is_kept = (key > cut) | ((key == cut) & (ids <= last))
    return tl.where(is_kept, mass_of(x, peak, temperature), 0)


@triton.jit
def total_mass(source, begin, end, cut, last, peak, temperature, V: tl.constexpr, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.int64)
    for start in range(begin, end, BLOCK):
        x, ids = read(source, start, end, V, BLOCK)
        total += kept_mass(x, ids, cut, last, peak, temperature)
    return tl.sum(total, 0)


@triton.jit
def locate(source, begin, end, target, cut, last, peak, temperature, V: tl.constexpr, BLOCK: tl.constexpr):
    """Id of the first token at which the mass kept so far is above the target."""
    found = NONE
    before = target * 0
    start = begin
    while start < end:
        x, ids = read(source, start, end, V, BLOCK)
        mass = kept_mass(x, ids, cut, last, peak, temperature)
        found = tl.min(tl.where(before + tl.cumsum(mass, 0) > target, ids, NONE), 0)
        before += tl.sum(mass, 0)
        start = tl.where(found < NONE, end, start + BLOCK)
    return found


@triton.jit
def search(
    source,
    size,
    needed,
    low,
    at_low,
    high,
    peak,
    temperature,
    BY_MASS: tl.constexpr,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The largest key such that the tokens from there up number, or weigh, at least `needed`.

    Args:
        low: the key of the cut up to now; tokens below it are not there.
        at_low: number or mass of the tokens that the cut keeps, at least `needed`.
        high: a key above all.

    Returns:
        The key; number or mass from there up; number or mass above it.
    """
    above = at_low * 0
    while high - low > 1:
        pivots = low + (((high - low) * tl.arange(0, PIVOTS)) >> LOG2_PIVOTS)
        amount = tl.zeros([PIVOTS, BLOCK], tl.int64)
        for start in range(0, size, BLOCK):
            x, _ = read(source, start, size, V, BLOCK)
            if BY_MASS:
                # Tokens that the cut drops are counted at the pivot `low` only, and there `at_low` is right already.
                each = mass_of(x, peak, temperature)
            else:
                each = tl.full([BLOCK], 1, tl.int64)
            amount += tl.where(order(x)[None, :] >= pivots.to(tl.int32)[:, None], each[None, :], 0)
        found = tl.sum(amount, 1)
        is_enough = found >= needed
        at_low = tl.min(tl.where(is_enough, found, at_low), 0)
        above = tl.max(tl.where(is_enough, above, found), 0)
        low = tl.max(tl.where(is_enough, pivots, low), 0)
        high = tl.min(tl.where(is_enough, high, pivots), 0)
    return low, at_low, above


@triton.jit
def nth_equal(source, size, key, n, V: tl.constexpr, BLOCK: tl.constexpr):
    """Id of the n-th token, counted from 1, that has this key."""
    found = NONE
    before = 0
    for start in range(0, size, BLOCK):
        x, ids = read(source, start, size, V, BLOCK)
        is_equal = (order(x) == key).to(tl.int32)
        rank = before + tl.cumsum(is_equal, 0)
        found = tl.minimum(found, tl.min(tl.where((is_equal > 0) & (rank == n), ids, NONE), 0))
        before += tl.sum(is_equal, 0)
    return found


@triton.jit
def draw_filtered(
    row,
    near,
    peaks,
    peak,
    total,
    fraction,
    temperature,
    filter_temperature,
    top_p,
    top_k,
    min_p,
    is_untempered,
    V: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    CAP: tl.constexpr,
):
    """Draw from what the filters keep.

    Args:
        row: how to read the row.
        near: room for CAP logits and ids.
        peaks: the tiles' largest logits.
        peak, total: the row's largest logit, and the sum of exp((logit - peak) / filter_temperature).
        fraction: the uniform number.
    """
    min_p_reach = -filter_temperature * tl.log(tl.where(min_p > 0, min_p, 1.0)).to(tl.float32)
    is_cut = (top_k > 0) | (min_p > 0)
    takes_all = is_untempered | (is_cut == 0)  # top-p takes its share of all, not of what top-k and min-p left
    of_all = tl.maximum((top_p * total.to(tl.float64) * ONE).to(tl.int64), 1)

    farthest = FAR * tl.maximum(temperature, filter_temperature)
    reach = tl.minimum(NEAR * filter_temperature, tl.where(min_p > 0, min_p_reach, farthest))
    too_near = reach * 0.0
    too_far = too_near + float("inf")
    num_near = 0
    is_compact = False
    attempt = 0
    while attempt < ATTEMPTS:
        num_near = compact(row, peaks, peak - reach, near, V, TILE, CHUNK, CAP)
        tl.debug_barrier()
        if num_near > CAP:
            too_far = reach
            reach = 0.5 * (reach + too_near)
        else:
            is_compact = (
                (reach >= farthest) | ((top_k > 0) & (num_near >= top_k)) | ((min_p > 0) & (min_p_reach <= reach))
            )
            if takes_all & (top_p < 1):
                lowest = order(peak - reach)
                mass = total_mass((row, near, True), 0, num_near, lowest, NONE, peak, filter_temperature, V, BLOCK)
                is_compact |= mass >= of_all
            if is_compact:
                attempt = ATTEMPTS
            else:
                too_near = reach
                reach = tl.where(too_far == float("inf"), farthest, 0.5 * (reach + too_far))
        attempt += 1
        tl.debug_barrier()

    source = row, near, is_compact
    size = tl.where(is_compact, num_near, V)
    cut = order(tl.where(is_compact, peak - reach, float("-inf")))
    last = NONE
    high = order(peak).to(tl.int64) + 1
    if (top_k > 0) & (top_k <= size):
        at_low = size.to(tl.int64)
        key, count, above = search(
            source, size, top_k, cut.to(tl.int64), at_low, high, peak, temperature, False, V, BLOCK
        )
        cut = key.to(tl.int32)
        if count > top_k:
            last = nth_equal(source, size, cut, top_k - above, V, BLOCK)
    if min_p > 0:
        key = order(peak - min_p_reach)
        last = tl.where(key > cut, NONE, last)
        cut = tl.maximum(key, cut)
    if top_p < 1:
        mass = total_mass(source, 0, size, cut, last, peak, filter_temperature, V, BLOCK)
        needed = tl.where(takes_all, of_all, tl.maximum((top_p * mass.to(tl.float64)).to(tl.int64), 1))
        if mass >= needed:
            key, _, _ = search(
                source, size, needed, cut.to(tl.int64), mass, high, peak, filter_temperature, True, V, BLOCK
            )
            last = tl.where(key > cut, NONE, last)
            cut = key.to(tl.int32)

    target = fraction_of(total_mass(source, 0, size, cut, last, peak, temperature, V, BLOCK), fraction)
    return locate(source, 0, size, target, cut, last, peak, temperature, V, BLOCK)


@triton.jit
def draw_from_all(
    row,
    near,
    tiles,
    peaks,
    totals,
    peak,
    fraction,
    temperature,
    V: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Draw from the whole row: first a tile, then a token inside it.

    Args:
        peaks, totals: of each tile, the largest logit and the sum of exp((logit - largest) / temperature).
    """
    mass = totals * tl.exp2((peaks - peak) * (LOG2E / temperature)) * ONE
    reached = tl.cumsum(mass.to(tl.int64), 0)
    target = fraction_of(tl.max(reached, 0), fraction)
    tile = tl.sum((reached <= target).to(tl.int32), 0)
    before = tl.max(tl.where(reached <= target, reached, 0), 0)
    own = tl.max(tl.where(tiles == tile, reached, 0), 0) - before
    rest = (target - before).to(tl.float64) / own.to(tl.float64)
    tile_peak = tl.max(tl.where(tiles == tile, peaks, float("-inf")), 0)
    source = row, near, False
    begin, end = tile * TILE, tile * TILE + TILE
    cut = order(tile_peak * 0.0 + float("-inf"))
    inside = fraction_of(total_mass(source, begin, end, cut, NONE, tile_peak, temperature, V, BLOCK), rest)
    return locate(source, begin, end, inside, cut, NONE, tile_peak, temperature, V, BLOCK)


@triton.jit
def put_back(logits, saved, p_ids, length, LIST: tl.constexpr):
    for start in range(0, length, LIST):
        entry = start + tl.arange(0, LIST)
        ids = tl.load(p_ids + entry, mask=entry < length, other=0)
        tl.store(logits + ids, tl.load(saved + entry, mask=entry < length, other=0.0), mask=entry < length)


@triton.jit
def count(token, length, integers, floats, p_ids, p_count, p_generated, p_uncounted, width, LIST: tl.constexpr):
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
        is_own = tl.load(p_ids + entry, mask=entry < length, other=-1) == token
        counts = tl.load(p_count + entry, mask=entry < length, other=0.0) * decay
        tl.store(p_count + entry, counts + tl.where(is_own, increment, 0.0), mask=entry < length)
        tl.store(p_generated + entry, tl.full([LIST], 1, tl.uint8), mask=is_own)
        num_found += tl.sum(is_own.to(tl.int32), 0)
    if (num_found == 0) & (length < width):
        tl.store(p_ids + length, token)
        tl.store(p_count + length, increment)
        tl.store(p_generated + length, 1)
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
    program = tl.program_id(0).to(tl.int64)
    slot = tl.load(p_slot + program).to(tl.int64)
    if slot < 0:
        tl.store(p_token + program, 0)
        tl.store(p_logprob + program, 0.0)
        return
    integers = p_integers + slot * NUM_INTEGERS
    floats = p_floats + slot * NUM_FLOATS
    logits = p_logits + program * V
    temperature, filter_temperature, top_p, min_p, top_k, is_untempered, is_greedy = load_filters(integers, floats, V)
    is_filtered = (top_p < 1) | (top_k > 0) | (min_p > 0)

    tiles = tl.arange(0, triton.next_power_of_2(NUM_TILES))
    sums = p_sums + program * (4 * NUM_TILES)
    peaks = tl.load(sums + 2 * NUM_TILES + tiles, mask=tiles < NUM_TILES, other=float("-inf"))
    totals = tl.load(sums + 3 * NUM_TILES + tiles, mask=tiles < NUM_TILES, other=0.0)
    peak = tl.max(peaks, 0)
    total = tl.sum(totals * tl.exp2((peaks - peak) * (LOG2E / filter_temperature)), 0)
    first = tl.load(p_first + program * NUM_TILES + tiles, mask=tiles < NUM_TILES, other=NONE)

    num_masked = tl.where(tl.load(integers + IS_MASKED) > 0, V, 0)
    row = logits, p_sampleable, p_mask + slot * tl.cdiv(V, 32), num_masked
    near = p_near_logits + program * CAP, p_near_ids + program * CAP
    token = tl.min(tl.where(peaks == peak, first, NONE), 0)
    has_mass = (total > 0.5) & (total < float("inf"))
    if has_mass & (is_greedy == 0):
        fraction = uniform(integers + STREAM, tl.load(integers + POSITION))
        if is_filtered:
            token = draw_filtered(
                row,
                near,
                sums + 2 * NUM_TILES,
                peak,
                total,
                fraction,
                temperature,
                filter_temperature,
                top_p,
                top_k,
                min_p,
                is_untempered,
                V,
                TILE,
                CHUNK,
                BLOCK,
                CAP,
            )
        else:
            token = draw_from_all(row, near, tiles, peaks, totals, peak, fraction, temperature, V, TILE, BLOCK)
    token = tl.where(has_mass & (token < V), token, 0)

    position = tl.load(integers + POSITION)
    num_seen, num_biases, num_stops = load_lengths(integers)
    saved = p_saved + program * (seen_width + bias_width + stop_width)
    tl.debug_barrier()  # all threads have read the row, and the tables
    put_back(logits, saved + seen_width + bias_width, p_stops + slot * stop_width, num_stops, LIST)
    tl.debug_barrier()
    put_back(logits, saved + seen_width, p_bias_ids + slot * bias_width, num_biases, LIST)
    tl.debug_barrier()
    put_back(logits, saved, p_seen_ids + slot * seen_width, num_seen, LIST)
    tl.debug_barrier()
    peaks = tl.load(sums + tiles, mask=tiles < NUM_TILES, other=float("-inf"))
    totals = tl.load(sums + NUM_TILES + tiles, mask=tiles < NUM_TILES, other=0.0)
    peak = tl.max(peaks, 0)
    total = tl.sum(totals * tl.exp2((peaks - peak) * LOG2E), 0)
    normalizer = peak.to(tl.float64) + tl.log(total.to(tl.float64))
    tl.store(p_logprob + program, tl.load(logits + token).to(tl.float64) - normalizer)
    tl.store(p_token + program, token.to(tl.int64))
    tl.store(p_last_token + slot, token.to(tl.int64))
    tl.store(integers + POSITION, position + 1)
    if tl.load(integers + IS_PENALIZED) > 0:
        seen = slot * seen_width
        count(
            token,
            num_seen,
            integers,
            floats,
            p_seen_ids + seen,
            p_seen_count + seen,
            p_seen_generated + seen,
            p_uncounted,
            seen_width,
            LIST,
        )
