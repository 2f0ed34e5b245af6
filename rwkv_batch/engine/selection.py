"""Selection: logits → token ids by temperature, top-k, top-p and min-p, for all rows of a step at once.

No step sorts the whole vocabulary, as a rule. The vocabulary is cut into tiles of 32 tokens. A row's K most likely
tokens lie in the K tiles with the largest maxima: if one of them lay in another tile, each of those K tiles would have
a token that is at least as likely. So K tiles are gathered, and only their tokens are sorted. A row whose kept set may
be larger than K is computed again with a larger K; the last round takes the whole vocabulary, so the result is exact.

Drawing is the inverse of the cumulative distribution: with u uniform in [0, 1), the token is the first one whose
cumulative mass is above u × total. One uniform number decides the token, so a request's random stream needs exactly
one number for each position.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 32
MIN_TEMPERATURE = 1e-6
KEEP_ALL = 2**62
"""The value of top_k that keeps every token."""
_ROUNDS = (256, 1024)
"""K, the number of candidates, of the rounds before the one with the whole vocabulary."""


class Filters:
    """The sampling filters of each row; every tensor is [B].

    Args:
        temperature: float32; below MIN_TEMPERATURE (0 included) the row is greedy.
        top_p, min_p: float64.
        top_k: int64; 0 or less keeps all.
        untempered: bool; True applies the filters to the probabilities at temperature 1 (ChatRWKV's order).

    Attributes:
        active: the row samples, with at least one filter that may drop tokens.
        free: the row samples from all tokens.
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
        """The filters of some of the rows."""
        part = object.__new__(Filters)
        part.__dict__.update({name: value[rows] for name, value in self.__dict__.items()})
        return part


def select(logits: Tensor, filters: Filters, uniform: Tensor, normalizer: Tensor | None = None) -> Tensor:
    """Chooses one token id for each row.

    Args:
        logits: [B, V] float32; -inf where a token must not be sampled.
        uniform: [B] float64 in [0, 1).
        normalizer: [B] float64, log sum exp of each row at temperature 1, or NaN for rows for which it is not known.
            It saves a pass over the row for top-p.

    Returns:
        [B] int64; 0, end of text, for a row without a token that may be sampled.
    """
    tiles = _tiles(logits)
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


def _tiles(logits: Tensor) -> Tensor:
    """Cuts [B, V] into [B, tiles, TILE]; the last tile is filled up with -inf."""
    missing = -logits.shape[1] % TILE
    padded = F.pad(logits, (0, missing), value=-torch.inf) if missing else logits
    return padded.view(len(padded), -1, TILE)


def _argmax(tiles: Tensor, tile_max: Tensor) -> Tensor:
    """The first most likely token of each row, [B]."""
    best = tile_max.argmax(1)
    inside = tiles[torch.arange(len(tiles), device=tiles.device), best].argmax(1)
    return best * TILE + inside


def _draw_from_all(tiles: Tensor, tile_max: Tensor, temperature: Tensor, uniform: Tensor) -> Tensor:
    """Draws from the whole distribution: finds the tile that the target falls into, then the token inside the tile."""
    mass = _mass(tiles, tile_max, temperature)
    row = torch.arange(len(tiles), device=tiles.device)
    cumulative = mass.sum(-1).double().cumsum(1)
    target = uniform * cumulative[:, -1]
    tile = _rank(cumulative, target)
    before = torch.where(tile > 0, cumulative[row, tile - 1], torch.zeros_like(target))
    inside = mass[row, tile].double().cumsum(1)
    # A tile's mass is a float32 sum above and a float64 sum here, so the rest of the target may lie beyond the tile's
    # last token. Staying below the float64 sum guarantees a token with positive mass.
    return tile * TILE + _rank(inside, torch.minimum(target - before, inside[:, -1] * (1 - 2**-53)))


def _total_mass(tiles: Tensor, tile_max: Tensor, filters: Filters, normalizer: Tensor | None) -> Tensor:
    """The mass of which top-p keeps a share, relative to the most likely token's mass: [B] float64.

    It is the sum of exp((logit - maximum) / filter temperature) over the row; inf for a row without top-p. Each row is
    summed by itself, so that it does not depend on the other rows.
    """
    total = torch.full_like(filters.top_p, torch.inf)
    is_known = torch.zeros_like(filters.greedy)
    if normalizer is not None:
        is_known = (filters.filter_temperature == 1) & ~normalizer.isnan()
        total = torch.where(is_known, torch.exp(normalizer - tile_max.amax(1).double()), total)
    rows = ((filters.top_p < 1) & ~is_known).nonzero()[:, 0]
    if len(rows):
        total[rows] = _mass(tiles[rows], tile_max[rows], filters.filter_temperature[rows]).sum(-1).double().sum(1)
    return total


class _Kept(NamedTuple):
    """The tokens that the filters keep, of n rows."""

    rows: Tensor
    """[n] int64."""
    filters: Filters
    """Of the n rows."""
    ids: Tensor
    """[n, K] int64, most likely first."""
    relative: Tensor
    """[n, K] float64, the logits of `ids` minus the largest one."""
    num_kept: Tensor
    """[n] int64: so many of the K are kept."""


def _kept_tokens(tiles: Tensor, tile_max: Tensor, filters: Filters, total: Tensor) -> Iterator[_Kept]:
    """Finds what the filters keep, in rounds with more and more candidates. Yields each row once."""
    rows = torch.arange(len(tiles), device=tiles.device)
    size = tiles.shape[1] * TILE
    for count in (*(n for n in _ROUNDS if n < size), size):
        values, ids = _most_likely(tiles, tile_max, count)
        relative = (values - values[:, :1]).double()
        cuts = (filters.top_k < size) | (filters.min_p > 0)
        num_kept, complete = _num_kept(values, relative, filters, total, cuts, is_all=count == size)
        if complete.all():
            yield _Kept(rows, filters, ids, relative, num_kept)
            break
        done, rest = complete.nonzero()[:, 0], (~complete).nonzero()[:, 0]
        if len(done):
            yield _Kept(rows[done], filters.at(done), ids[done], relative[done], num_kept[done])
        rows, tiles, tile_max, filters = rows[rest], tiles[rest], tile_max[rest], filters.at(rest)
        total = total[rest]


def _draw_filtered(tiles: Tensor, tile_max: Tensor, filters: Filters, total: Tensor, uniform: Tensor) -> Tensor:
    """Draws from the filtered distribution: [B] int64."""
    token_ids = torch.empty(len(tiles), dtype=torch.int64, device=tiles.device)
    for found in _kept_tokens(tiles, tile_max, filters, total):
        weights = torch.exp(found.relative / found.filters.temperature[:, None])
        token_ids[found.rows] = _draw_kept(found.ids, weights, found.num_kept, uniform[found.rows])
    return token_ids


def kept(logits: Tensor, filters: Filters) -> Tensor:
    """The tokens that a row is drawn from: [B, V] bool. A greedy row keeps all.

    Args:
        logits: [B, V] float32; -inf where a token must not be sampled.
    """
    mask = torch.ones(logits.shape, dtype=torch.bool, device=logits.device)
    active = filters.active.nonzero()[:, 0]
    if len(active):
        tiles, part = _tiles(logits[active]), filters.at(active)
        tile_max = tiles.amax(-1)
        for found in _kept_tokens(tiles, tile_max, part, _total_mass(tiles, tile_max, part, None)):
            listed = torch.arange(found.ids.shape[1], device=logits.device) < found.num_kept[:, None]
            own = torch.zeros(len(listed), tiles.shape[1] * TILE, dtype=torch.bool, device=logits.device)
            mask[active[found.rows]] = own.scatter_(1, found.ids, listed)[:, : logits.shape[1]]
    return mask


def _num_kept(
    values: Tensor, relative: Tensor, filters: Filters, total: Tensor, cuts: Tensor, is_all: bool
) -> tuple[Tensor, Tensor]:
    """Counts the candidates of each row that the filters keep, of K.

    The candidates are sorted, most likely first. Every filter keeps the first n of that order, so each filter is a
    number of candidates, and all filters together keep the smallest of these numbers. Top-p keeps the candidates up to
    the first one with which their mass reaches top_p × the reference mass, and all that are as likely as that one. The
    reference mass is the whole row's in ChatRWKV's order; in the standard order it is what top-k and min-p have left.

    Args:
        values, relative: [B, K], the candidates' logits, and the same minus the row's maximum in float64.
        total: [B], see `_total_mass`.
        cuts: [B] bool: top-k or min-p is on.
        is_all: the candidates are the whole vocabulary.

    Returns:
        [B] int64, at least 1; and [B] bool: whether it is certain that no token beyond the candidates is kept. It is if
        top-k or min-p ends within the candidates, or if top-p does and its reference mass does not depend on them.
    """
    count = values.shape[1]
    filtered = torch.exp(relative / filters.filter_temperature[:, None])
    cumulative = filtered.cumsum(1)
    by_min_p = (filtered >= filters.min_p[:, None]).sum(1)
    keep = torch.minimum(by_min_p, filters.top_k.clamp(max=count)).clamp(min=1)
    is_cut = (by_min_p < count) | (filters.top_k <= count)
    mass_left = cumulative.gather(1, (keep - 1)[:, None])[:, 0]
    is_renormalized = cuts & ~filters.untempered
    reference = torch.where(is_renormalized, mass_left, total)
    needed = filters.top_p * reference
    first = torch.minimum((cumulative < needed[:, None]).sum(1), torch.full_like(keep, count - 1))
    ties = (values >= values.gather(1, first[:, None])).sum(1)
    by_top_p = torch.where(filters.top_p < 1, ties, torch.full_like(keep, count))
    keep = torch.minimum(keep, by_top_p).clamp(min=1)
    return keep, is_cut | ((by_top_p < count) & ~is_renormalized) | is_all


def _draw_kept(ids: Tensor, weights: Tensor, num_kept: Tensor, uniform: Tensor) -> Tensor:
    """Draws from the first `num_kept` candidates of each row: [B] int64.

    The cumulative sum goes through the kept tokens in the order of their ids. A kernel has that order without sorting
    by probability, and can draw the same token.

    Args:
        ids, weights: [B, K], the candidates and their masses (float64), most likely first.
    """
    dropped = torch.arange(ids.shape[1], device=ids.device) >= num_kept[:, None]
    kept_ids, order = ids.masked_fill(dropped, 2**62).sort(dim=1)
    weights = weights.masked_fill(dropped, 0.0).gather(1, order).cumsum(1)
    rank = torch.minimum(_rank(weights, uniform * weights[:, -1]), num_kept - 1)
    return kept_ids.gather(1, rank[:, None])[:, 0]


def _most_likely(tiles: Tensor, tile_max: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Logits and ids of the `count` most likely tokens of each row, [B, count]; of equal logits the lowest id first."""
    num_tiles = min(count, tiles.shape[1])
    position = torch.arange(tiles.shape[1], device=tiles.device)
    chosen = sort_key(tile_max, position).topk(num_tiles, dim=1).indices
    values = tiles.gather(1, chosen[..., None].expand(-1, -1, TILE)).flatten(1)
    ids = (chosen[..., None] * TILE + torch.arange(TILE, device=tiles.device)).flatten(1)
    best = sort_key(values, ids).topk(min(count, values.shape[1]), dim=1).indices
    return values.gather(1, best), ids.gather(1, best)


def sort_key(values: Tensor, ids: Tensor) -> Tensor:
    """int64 keys that are larger for larger values (float32) and, of equal values, for lower ids. No two are equal.

    A float32's bits, read as a signed integer, have the order of the values for positive numbers; flipping all bits but
    the sign's gives negative numbers the same order. Adding 0.0 turns -0.0 into 0.0, which is equal to it.
    """
    bits = (values + 0.0).view(torch.int32)
    ordered = (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits)
    return ordered.long().bitwise_left_shift_(31).sub_(ids)


def _mass(tiles: Tensor, tile_max: Tensor, temperature: Tensor) -> Tensor:
    """exp((logit - the row's maximum) / temperature): [B, tiles, TILE] float32."""
    mass = tiles - tile_max.amax(1)[:, None, None]
    if not bool((temperature == 1).all()):
        mass.div_(temperature[:, None, None])
    return mass.exp_()


def _rank(cumulative: Tensor, target: Tensor) -> Tensor:
    """Index of the first cumulative mass above the target, [B]; the last index if none is."""
    above = (cumulative <= target[:, None]).sum(1)
    return above.clamp(max=cumulative.shape[1] - 1)
