"""From logits to token ids: temperature, top-k, top-p, min-p, for all rows of a step at once.

Nothing here sorts or draws over the whole vocabulary. The vocabulary is cut into tiles; a row's K most likely tokens
lie in the K tiles with the largest maxima, so a few tiles are gathered and only those are sorted. The rows whose kept
set may be larger than K go round again with more; the last round is a full sort, so the result is exact.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 32
MIN_TEMPERATURE = 1e-6
KEEP_ALL = 2**62
"""top_k where it is off."""
_ROUNDS = (256, 1024)
"""Candidates considered before the whole vocabulary is."""


class Filters:
    """How each row's distribution is shaped; every tensor is [B].

    Args:
        temperature: float32; 0, and what is too small to divide by, is greedy.
        top_p, min_p: float64.
        top_k: int64; 0 or less keeps all.
        untempered: bool; True applies the filters to the probabilities at temperature 1 (ChatRWKV's order).
    """

    def __init__(self, temperature: Tensor, top_p: Tensor, top_k: Tensor, min_p: Tensor, untempered: Tensor) -> None:
        self.greedy = temperature < MIN_TEMPERATURE
        self.temperature = torch.where(self.greedy, torch.ones_like(temperature), temperature)
        self.filter_temperature = torch.where(untempered, torch.ones_like(temperature), self.temperature)
        self.top_p, self.min_p = top_p, min_p
        self.top_k = torch.where(top_k <= 0, torch.full_like(top_k, KEEP_ALL), top_k)
        self.untempered = untempered
        self.active = ((top_p < 1) | (top_k > 0) | (min_p > 0)) & ~self.greedy
        self.free = ~self.active & ~self.greedy

    def at(self, rows: Tensor) -> Filters:
        """The filters of some rows."""
        part = object.__new__(Filters)
        part.__dict__.update({name: value[rows] for name, value in self.__dict__.items()})
        return part


def select(logits: Tensor, filters: Filters, uniform: Tensor, normalizer: Tensor | None = None) -> Tensor:
    """One token id for each row.

    Args:
        logits: [B, V] float32; -inf where a token must not be sampled.
        uniform: [B] float64 in [0, 1).
        normalizer: [B] float64, log sum exp of each row, or NaN where the caller has none for it: spares a pass.

    Returns:
        [B] int64; 0, end of text, for a row in which nothing is left to sample.
    """
    missing = -logits.shape[1] % TILE
    padded = F.pad(logits, (0, missing), value=-torch.inf) if missing else logits
    tiles = padded.view(len(padded), -1, TILE)
    tile_max = tiles.amax(-1)
    token_ids = _argmax(tiles, tile_max)
    is_empty = ~tile_max.amax(1).isfinite()
    if filters.free.any():
        rows = filters.free.nonzero()[:, 0]
        token_ids[rows] = _draw_from_all(tiles[rows], tile_max[rows], filters.temperature[rows], uniform[rows])
    if filters.active.any():
        total = _total_mass(tiles, tile_max, filters, normalizer)
        rows = filters.active.nonzero()[:, 0]
        if len(rows) == len(token_ids):
            token_ids = _draw_filtered(tiles, tile_max, filters, total, uniform)
        else:
            part = filters.at(rows)
            token_ids[rows] = _draw_filtered(tiles[rows], tile_max[rows], part, total[rows], uniform[rows])
    return token_ids.masked_fill_(is_empty, 0)


def _argmax(tiles: Tensor, tile_max: Tensor) -> Tensor:
    """The first most likely token of each row, [B]."""
    best = tile_max.argmax(1)
    inside = tiles[torch.arange(len(tiles), device=tiles.device), best].argmax(1)
    return best * TILE + inside


def _draw_from_all(tiles: Tensor, tile_max: Tensor, temperature: Tensor, uniform: Tensor) -> Tensor:
    """Inverse of the cumulative distribution, first over tiles, then inside one."""
    mass = _mass(tiles, tile_max, temperature)
    row = torch.arange(len(tiles), device=tiles.device)
    cumulative = mass.sum(-1).double().cumsum(1)
    target = uniform * cumulative[:, -1]
    tile = _rank(cumulative, target)
    before = torch.where(tile > 0, cumulative[row, tile - 1], torch.zeros_like(target))
    inside = mass[row, tile].double().cumsum(1)
    # The tile's mass was summed in float32: stay below it, so that the rank is that of a token with mass.
    return tile * TILE + _rank(inside, torch.minimum(target - before, inside[:, -1] * (1 - 2**-53)))


def _total_mass(tiles: Tensor, tile_max: Tensor, filters: Filters, normalizer: Tensor | None) -> Tensor:
    """What top-p takes its share of, relative to the most likely token: [B] float64. Each row is its own affair."""
    total = torch.full_like(filters.top_p, torch.inf)
    is_known = torch.zeros_like(filters.greedy)
    if normalizer is not None:
        is_known = (filters.filter_temperature == 1) & ~normalizer.isnan()
        total = torch.where(is_known, torch.exp(normalizer - tile_max.amax(1).double()), total)
    rows = ((filters.top_p < 1) & ~is_known).nonzero()[:, 0]
    if len(rows):
        total[rows] = _mass(tiles[rows], tile_max[rows], filters.filter_temperature[rows]).sum(-1).double().sum(1)
    return total


def _draw_filtered(tiles: Tensor, tile_max: Tensor, filters: Filters, total: Tensor, uniform: Tensor) -> Tensor:
    token_ids = torch.empty(len(tiles), dtype=torch.int64, device=tiles.device)
    rows = torch.arange(len(tiles), device=tiles.device)
    size = tiles.shape[1] * TILE
    for count in (*(n for n in _ROUNDS if n < size), size):
        values, ids = _most_likely(tiles, tile_max, count)
        cuts = (filters.top_k < size) | (filters.min_p > 0)
        chosen, complete = _draw_ranked(values, ids, filters, total, uniform, cuts, is_all=count == size)
        token_ids[rows[complete]] = chosen[complete]
        if complete.all():
            break
        rest = (~complete).nonzero()[:, 0]
        rows, tiles, tile_max, filters = rows[rest], tiles[rest], tile_max[rest], filters.at(rest)
        total, uniform = total[rest], uniform[rest]
    return token_ids


def _draw_ranked(
    values: Tensor, ids: Tensor, filters: Filters, total: Tensor, uniform: Tensor, cuts: Tensor, is_all: bool
) -> tuple[Tensor, Tensor]:
    """Draw from each row's candidates, [B, K], most likely first.

    Every filter keeps a prefix of that order, so a filter is a number of candidates. `cuts` says where top-k or min-p
    may drop tokens. The draw itself goes through the kept tokens in the order of their ids.

    Returns:
        Token ids [B], and [B] bool: whether the kept set is known to lie within the candidates.
    """
    count = values.shape[1]
    relative = (values - values[:, :1]).double()
    filtered = torch.exp(relative / filters.filter_temperature[:, None])
    cumulative = filtered.cumsum(1)
    by_min_p = (filtered >= filters.min_p[:, None]).sum(1)
    keep = torch.minimum(by_min_p, filters.top_k.clamp(max=count)).clamp(min=1)
    is_cut = (by_min_p < count) | (filters.top_k <= count)
    # In the standard order top-p sees the distribution that top-k and min-p have left, as if renormalised.
    left = cumulative.gather(1, (keep - 1)[:, None])[:, 0]
    renormalised = cuts & ~filters.untempered
    reference = torch.where(renormalised, left, total)
    needed = filters.top_p * reference
    first = torch.minimum((cumulative < needed[:, None]).sum(1), torch.full_like(keep, count - 1))
    ties = (values >= values.gather(1, first[:, None])).sum(1)
    by_top_p = torch.where(filters.top_p < 1, ties, torch.full_like(keep, count))
    keep = torch.minimum(keep, by_top_p).clamp(min=1)
    complete = is_cut | ((by_top_p < count) & ~renormalised) | is_all
    weights = torch.exp(relative / filters.temperature[:, None])
    dropped = torch.arange(count, device=keep.device) >= keep[:, None]
    kept_ids, order = ids.masked_fill(dropped, 2**62).sort(dim=1)
    weights = weights.masked_fill(dropped, 0.0).gather(1, order).cumsum(1)
    rank = torch.minimum(_rank(weights, uniform * weights[:, -1]), keep - 1)
    return kept_ids.gather(1, rank[:, None])[:, 0], complete


def _most_likely(tiles: Tensor, tile_max: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` most likely tokens of each row, by logit and then by lowest id: logits and ids, [B, count]."""
    num_tiles = min(count, tiles.shape[1])
    position = torch.arange(tiles.shape[1], device=tiles.device)
    chosen = sort_key(tile_max, position).topk(num_tiles, dim=1).indices
    values = tiles.gather(1, chosen[..., None].expand(-1, -1, TILE)).flatten(1)
    ids = (chosen[..., None] * TILE + torch.arange(TILE, device=tiles.device)).flatten(1)
    best = sort_key(values, ids).topk(min(count, values.shape[1]), dim=1).indices
    return values.gather(1, best), ids.gather(1, best)


def sort_key(values: Tensor, ids: Tensor) -> Tensor:
    """int64 keys that order by value (float32), then by lowest id; no two are equal."""
    bits = (values + 0.0).view(torch.int32)
    ordered = (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits)
    return ordered.long().bitwise_left_shift_(31).sub_(ids)


def _mass(tiles: Tensor, tile_max: Tensor, temperature: Tensor) -> Tensor:
    """exp((logit - the row's maximum) / temperature), [B, tiles, TILE] float32."""
    mass = tiles - tile_max.amax(1)[:, None, None]
    if not bool((temperature == 1).all()):
        mass.div_(temperature[:, None, None])
    return mass.exp_()


def _rank(cumulative: Tensor, target: Tensor) -> Tensor:
    """Index of the first cumulative mass above the target, [B]."""
    above = (cumulative <= target[:, None]).sum(1)
    return above.clamp(max=cumulative.shape[1] - 1)
