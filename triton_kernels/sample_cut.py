"""The cut where a row's filters end its ranking, found without sorting; part of `select_kernel`.

The tokens of a row are ranked by logit, larger first, and among equal logits by id, smaller first. Top-k, top-p and
min-p each keep a prefix of that ranking, so that all of them together keep a prefix. A `Cut` names its end: the
smallest logit kept, and among the tokens with exactly that logit the last id kept.

Three measures make the search for the end exact and short:

* A logit is compared by its key, an int32 that orders like the float32. The end of a prefix is then an integer in a
  known interval, which `search` divides by eight in each pass: a pass counts (top-k) or weighs (top-p) the tokens above
  eight pivots at once. 32 bits take at most 11 passes; the search ends when the interval has one token's key.
* A pass reads a source, not the row: the few tokens near the row's largest logit, which `collect_near` has copied to
  a buffer of CAP entries. Where the buffer cannot hold all that is needed, the source is the whole row.
* The mass of a token is an integer, exp2(...) in units of 2^-44 of the most likely token's: a sum of integers does not
  depend on its order, so that two passes over the same tokens always agree.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .sample_row import LOG2E, NONE, load_sampleable

ONE = tl.constexpr(2.0**44)
"""Mass of the most likely token: the masses of 2^18 tokens fit into int64."""
FAR = tl.constexpr(31.0)
"""A token whose logit is this far below the largest, in units of the temperature, has mass 0: exp(-31) < 2^-44."""
NEAR = tl.constexpr(12.0)
"""Distance below the largest logit within which the first attempt collects tokens, in filter temperatures."""
ATTEMPTS = tl.constexpr(4)
"""Attempts to collect tokens before the whole row becomes the source."""
PIVOTS = tl.constexpr(8)
LOG2_PIVOTS = tl.constexpr(3)


class Sizes(NamedTuple):
    """Compile-time sizes of `select_kernel`: the vocabulary, and the numbers of tokens that are read at once."""

    V: Any
    TILE: Any
    CHUNK: Any
    BLOCK: Any
    CAP: Any


class Near(NamedTuple):
    """Pointers to a buffer of CAP tokens: float32 logits and int32 ids, in the order of ids."""

    logits: Any
    ids: Any


class Source(NamedTuple):
    """The tokens that passes read: those in the buffer `near` where `is_compact`, else the whole row."""

    row: Any
    near: Any
    is_compact: Any


class Cut(NamedTuple):
    """The end of a prefix: int32 key of the smallest logit kept, and the last id kept of the tokens with that key."""

    key: Any
    last: Any


class Scale(NamedTuple):
    """The largest logit and the temperature that masses are relative to; float32 scalars."""

    peak: Any
    temperature: Any


@triton.jit
def key_of(x):
    """float32 → int32 that orders alike; 0 and -0 have the same key.

    The bits of positive floats order like integers. Those of negative floats order the other way round, which flipping
    all bits but the sign corrects.
    """
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def mass_of(x, scale):
    """exp((x - peak) / temperature) as an integer of units of 1 / ONE."""
    return (tl.exp2((x - scale.peak) * (LOG2E / scale.temperature)) * ONE).to(tl.int64)


@triton.jit
def fraction_of(total, fraction):
    """The integer in [0, total) that lies at `fraction`, float64 in [0, 1); total is not 0."""
    return tl.minimum((total.to(tl.float64) * fraction).to(tl.int64), total - 1)


@triton.jit
def copy_near(row, near, peaks, threshold, SIZES: tl.constexpr):
    """Copies the tokens with logits from `threshold` up to the buffer `near`, as many as it has room for.

    Args:
        peaks: pointer to the largest logit of each tile of the row.

    Returns:
        The number of such tokens, also where the buffer has no room for all of them.
    """
    count = 0
    for start in range(0, SIZES.V, SIZES.CHUNK):
        if tl.load(peaks + start // SIZES.TILE) >= threshold:
            x, i = load_sampleable(row, start, SIZES.V, SIZES.CHUNK)
            is_near = (x >= threshold).to(tl.int32)
            place = count + tl.cumsum(is_near, 0) - 1
            has_place = (is_near > 0) & (place < SIZES.CAP)
            tl.store(near.logits + place, x, mask=has_place)
            tl.store(near.ids + place, i, mask=has_place)
            count += tl.sum(is_near, 0)
    return count


@triton.jit
def read(source, start, end, SIZES: tl.constexpr):
    """Logits and ids of BLOCK tokens of a source; -inf from `end` on, or from V on."""
    if source.is_compact:
        i = start + tl.arange(0, SIZES.BLOCK)
        x = tl.load(source.near.logits + i, mask=i < end, other=float("-inf"))
        ids = tl.load(source.near.ids + i, mask=i < end, other=NONE)
    else:
        x, ids = load_sampleable(source.row, start, SIZES.V, SIZES.BLOCK)
    return x, ids


@triton.jit
def kept_mass(x, ids, cut, scale):
    """Mass of each token, 0 for those that the cut drops."""
    key = key_of(x)
    is_kept = (key > cut.key) | ((key == cut.key) & (ids <= cut.last))
    return tl.where(is_kept, mass_of(x, scale), 0)


@triton.jit
def total_kept_mass(source, begin, end, cut, scale, SIZES: tl.constexpr):
    """Mass of the tokens `begin` to `end` of a source that the cut keeps; int64."""
    total = tl.zeros([SIZES.BLOCK], tl.int64)
    for start in range(begin, end, SIZES.BLOCK):
        x, ids = read(source, start, end, SIZES)
        total += kept_mass(x, ids, cut, scale)
    return tl.sum(total, 0)


@triton.jit
def find_at_mass(source, begin, end, target, cut, scale, SIZES: tl.constexpr):
    """Id of the first token, in the order of ids, at which the sum of the masses kept exceeds `target`."""
    found = NONE
    before = target * 0
    start = begin
    while start < end:
        x, ids = read(source, start, end, SIZES)
        mass = kept_mass(x, ids, cut, scale)
        found = tl.min(tl.where(before + tl.cumsum(mass, 0) > target, ids, NONE), 0)
        before += tl.sum(mass, 0)
        start = tl.where(found < NONE, end, start + SIZES.BLOCK)
    return found


@triton.jit
def search(source, size, needed, low, at_low, high, scale, BY_MASS: tl.constexpr, SIZES: tl.constexpr):
    """The largest key such that the tokens with this key or a larger one number, or weigh, at least `needed`.

    The number (or mass) from a key up falls as the key rises. The loop keeps two keys: from `low` up there is enough,
    from `high` up there is not. Each pass measures from eight pivots up, which divide the interval from `low` on in
    eight parts, `low` itself being the first. The last pivot with enough becomes `low`, the pivot after it `high`: an
    interval of n keys shrinks to at most ceil(n / 8). An interval of 2 keys or more has a pivot inside, so that the
    loop ends, with `high` = `low` + 1: `low` is the key. It is the key of a token. So the interval also shrinks to the
    keys of the tokens that were in it, which changes no number or mass.

    Args:
        size: number of tokens of the source.
        low: key of the cut so far, int64; the tokens that this cut keeps are enough.
        at_low: number or mass of these tokens.
        high: a key above all, int64.

    Returns:
        The key, int64; number or mass of the tokens from the key up; number or mass of the tokens above it.
    """
    above = at_low * 0
    while high - low > 1:
        pivots = low + (((high - low) * tl.arange(0, PIVOTS)) >> LOG2_PIVOTS)
        amount = tl.zeros([PIVOTS, SIZES.BLOCK], tl.int64)
        smallest = tl.full([SIZES.BLOCK], 2**31 - 1, tl.int32)
        largest = tl.full([SIZES.BLOCK], -(2**31), tl.int32)
        for start in range(0, size, SIZES.BLOCK):
            x, _ = read(source, start, size, SIZES)
            key = key_of(x)
            is_inside = (key >= low.to(tl.int32)) & (key <= (high - 1).to(tl.int32))
            smallest = tl.where(is_inside, tl.minimum(smallest, key), smallest)
            largest = tl.where(is_inside, tl.maximum(largest, key), largest)
            if BY_MASS:
                # A token of the source that the cut so far drops has at most this cut's key, so that it is counted at
                # the pivot `low` only. The sum there is too large, but still enough, and `at_low` is the smaller one.
                each = mass_of(x, scale)
            else:
                each = tl.full([SIZES.BLOCK], 1, tl.int64)
            amount += tl.where(key[None, :] >= pivots.to(tl.int32)[:, None], each[None, :], 0)
        found = tl.sum(amount, 1)
        is_enough = found >= needed
        at_low = tl.min(tl.where(is_enough, found, at_low), 0)
        above = tl.max(tl.where(is_enough, above, found), 0)
        low = tl.maximum(tl.max(tl.where(is_enough, pivots, low), 0), tl.min(smallest, 0).to(tl.int64))
        high = tl.minimum(tl.min(tl.where(is_enough, high, pivots), 0), tl.max(largest, 0).to(tl.int64) + 1)
    return low, at_low, above


@triton.jit
def nth_equal(source, size, key, n, SIZES: tl.constexpr):
    """Id of the n-th token, counted from 1 in the order of ids, that has this key."""
    found = NONE
    before = 0
    for start in range(0, size, SIZES.BLOCK):
        x, ids = read(source, start, size, SIZES)
        is_equal = (key_of(x) == key).to(tl.int32)
        rank = before + tl.cumsum(is_equal, 0)
        found = tl.minimum(found, tl.min(tl.where((is_equal > 0) & (rank == n), ids, NONE), 0))
        before += tl.sum(is_equal, 0)
    return found


@triton.jit
def goals_of(filters, total):
    """The filters' limits, as a distance of logits and as a mass.

    Args:
        total: sum of exp((logit - peak) / filter_temperature) over the row, int64 in units of 1 / ONE.

    Returns:
        min_p_reach: float32, distance below the largest logit within which min-p keeps tokens; 0 where it is off.
        is_share_of_all: top-p takes its share of the whole row's mass, not of what top-k and min-p have left.
        share_of_all: int64, that share of the whole row's mass; at least 1, so that one token is kept.
    """
    min_p = tl.where(filters.min_p > 0, filters.min_p, 1.0)
    min_p_reach = -filters.filter_temperature * tl.log(min_p).to(tl.float32)
    is_cut = (filters.top_k > 0) | (filters.min_p > 0)
    is_share_of_all = filters.is_untempered | (is_cut == 0)
    share_of_all = tl.maximum((filters.top_p * total.to(tl.float64)).to(tl.int64), 1)
    return min_p_reach, is_share_of_all, share_of_all


@triton.jit
def collect_near(row, near, peaks, scale, filters, goals, SIZES: tl.constexpr):
    """Collects the tokens near the row's largest logit, so far down that the filters keep none below.

    The distance below the largest logit, `reach`, is bisected: within `too_near` there are too few tokens for the
    filters, within `too_far` too many for the buffer. After ATTEMPTS the whole row is the source.

    Returns:
        The source; its number of tokens; and the key of the first cut, which drops tokens that are not collected.
    """
    min_p_reach, is_share_of_all, share_of_all = goals
    peak = scale.peak
    farthest = FAR * tl.maximum(filters.temperature, filters.filter_temperature)
    reach = tl.minimum(NEAR * filters.filter_temperature, tl.where(filters.min_p > 0, min_p_reach, farthest))
    too_near = reach * 0.0
    too_far = too_near + float("inf")
    num_near = 0
    is_compact = False
    attempt = 0
    while attempt < ATTEMPTS:
        num_near = copy_near(row, near, peaks, peak - reach, SIZES)
        # Each thread has written its part of the buffer, and is about to read the parts of others.
        tl.debug_barrier()
        if num_near > SIZES.CAP:
            too_far = reach
            reach = 0.5 * (reach + too_near)
        else:
            # Enough: tokens farther down have no mass, or top-k is reached, or min-p keeps nothing below.
            is_compact = (
                (reach >= farthest)
                | ((filters.top_k > 0) & (num_near >= filters.top_k))
                | ((filters.min_p > 0) & (min_p_reach <= reach))
            )
            if is_share_of_all & (filters.top_p < 1):
                collected = Cut(key_of(peak - reach), NONE)
                mass = total_kept_mass(Source(row, near, True), 0, num_near, collected, scale, SIZES)
                is_compact |= mass >= share_of_all
            if is_compact:
                attempt = ATTEMPTS
            else:
                too_near = reach
                reach = tl.where(too_far == float("inf"), farthest, 0.5 * (reach + too_far))
        attempt += 1
        # The next attempt overwrites the buffer, which no thread may still be reading.
        tl.debug_barrier()
    size = tl.where(is_compact, num_near, SIZES.V)
    return Source(row, near, is_compact), size, key_of(tl.where(is_compact, peak - reach, float("-inf")))


@triton.jit
def find_cut(source, size, key, scale, filters, goals, SIZES: tl.constexpr):
    """The cut of all filters together, in their order: top-k, min-p, top-p. Each can only move the cut up.

    Args:
        key: of the first cut, from `collect_near`.
    """
    min_p_reach, is_share_of_all, share_of_all = goals
    last = NONE
    high = key_of(scale.peak).to(tl.int64) + 1
    if (filters.top_k > 0) & (filters.top_k <= size):
        low, count, above = search(
            source, size, filters.top_k, key.to(tl.int64), size.to(tl.int64), high, scale, False, SIZES
        )
        key = low.to(tl.int32)
        if count > filters.top_k:  # ties: as many ids of this key as are still missing
            last = nth_equal(source, size, key, filters.top_k - above, SIZES)
    if filters.min_p > 0:
        lowest = key_of(scale.peak - min_p_reach)
        last = tl.where(lowest > key, NONE, last)
        key = tl.maximum(lowest, key)
    if filters.top_p < 1:
        mass = total_kept_mass(source, 0, size, Cut(key, last), scale, SIZES)
        share = tl.maximum((filters.top_p * mass.to(tl.float64)).to(tl.int64), 1)
        needed = tl.where(is_share_of_all, share_of_all, share)
        if mass >= needed:
            low, _, _ = search(source, size, needed, key.to(tl.int64), mass, high, scale, True, SIZES)
            last = tl.where(low > key, NONE, last)
            key = low.to(tl.int32)
    return Cut(key, last)
