"""The definition of the op `sample`: logits → token ids, with settings and history from the slot tables."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.scoring import LOG_NORMALIZER
from ..ops import OpSpec, OpTable
from .penalties import count, penalize
from .philox import uniform
from .selection import Filters, select
from .slot_tables import Float, Integer, SlotTables, unpack_bits


def sample(logits: Tensor, slot_index: Tensor, tables: SlotTables, ops: OpTable) -> tuple[Tensor, Tensor]:
    """Samples the next token of each row.

    Penalties, then biases, then bans are applied to the logits. `select` filters and draws, with the uniform number of
    the slot's random stream at its position. Then the slot's position, last token and seen ids are updated.

    Args:
        logits: [B, V] float32, the model's; modified temporarily, restored on return.
        slot_index: [B] int32; no slot twice. -1 is padding: its results have no meaning.
        tables: **updated in place** in the rows' slots: position, last_token, and the seen ids with their counts.
        ops: implementations of `PARTS`.

    Returns:
        Token ids [B] int64, and their log-probabilities under the model's own distribution [B] float64.
    """
    index = slot_index.long() % (tables.num_slots + 1)
    integers, floats = tables.integers[index], tables.floats[index].t().contiguous()
    normalizer = ops.log_normalizer(logits)
    shaped, changed = shape(logits, index, integers, tables)
    sampleable = _sampleable_mass(logits, normalizer, changed, tables)
    filters = filters_of(integers, floats)
    draws = uniform(integers[:, Integer.STREAM : Integer.STREAM + 5], integers[:, Integer.POSITION])
    unsampleable = logits[:, tables.unsampleable_ids]
    shaped.index_fill_(1, tables.unsampleable_ids, -torch.inf)
    token_ids = ops.select(shaped, filters, draws, sampleable)
    if shaped is logits:
        logits.index_copy_(1, tables.unsampleable_ids, unsampleable)
    tables.integers[index, Integer.POSITION] += 1
    tables.last_token[index] = token_ids
    penalized = integers[:, Integer.IS_PENALIZED].nonzero()[:, 0]
    if len(penalized):
        count(token_ids[penalized], index[penalized], tables)
    return token_ids, logits.gather(1, token_ids[:, None])[:, 0].double() - normalizer


PARTS = (LOG_NORMALIZER, OpSpec("select", select, optional=True, is_recorded=False))
SAMPLE = OpSpec("sample", sample, optional=True)


def filters_of(integers: Tensor, floats: Tensor) -> Filters:
    """The filters of B rows, from their entries of the slot tables.

    Args:
        integers: [B, 16] int64, as `SlotTables.integers`.
        floats: [8, B] float64, `SlotTables.floats` transposed.
    """
    return Filters(
        temperature=floats[Float.TEMPERATURE].float(),
        top_p=floats[Float.TOP_P],
        top_k=integers[:, Integer.TOP_K],
        min_p=floats[Float.MIN_P],
        untempered=integers[:, Integer.UNTEMPERED] > 0,
    )


def shape(logits: Tensor, index: Tensor, integers: Tensor, tables: SlotTables) -> tuple[Tensor, Tensor]:
    """Applies penalties, biases and bans to a copy; returns the logits to sample from and the changed rows [B] bool."""
    is_early = integers[:, Integer.POSITION] < integers[:, Integer.MIN_TOKENS]
    rows_with = {
        "penalties": integers[:, Integer.IS_PENALIZED] > 0,
        "biases": integers[:, Integer.NUM_BIASES] > 0,
        "stops": is_early & (integers[:, Integer.NUM_STOPS] > 0),
        "mask": integers[:, Integer.IS_MASKED] > 0,
    }
    changed = torch.stack(list(rows_with.values())).any(0)
    if not changed.any():
        return logits, changed
    shaped = logits.clone()
    rows = {name: which.nonzero()[:, 0] for name, which in rows_with.items()}
    if len(found := rows["penalties"]):
        penalize(shaped, found, index[found], tables)
    if len(found := rows["biases"]):
        _add(
            shaped,
            found,
            tables.bias_ids[index[found]],
            integers[found, Integer.NUM_BIASES],
            tables.biases[index[found]],
        )
    if len(found := rows["stops"]):
        banned = torch.full_like(tables.stops[index[found]], -torch.inf, dtype=torch.float32)
        _add(shaped, found, tables.stops[index[found]], integers[found, Integer.NUM_STOPS], banned)
    if len(found := rows["mask"]):
        allowed = unpack_bits(tables.mask[index[found]], tables.vocab_size)
        shaped[found] = shaped[found].masked_fill(~allowed, -torch.inf)
    return shaped, changed


def _add(shaped: Tensor, rows: Tensor, ids: Tensor, length: Tensor, values: Tensor) -> None:
    """Adds the first `length` values of each row to the logits of the corresponding ids."""
    listed = torch.arange(ids.shape[1], device=ids.device) < length[:, None]
    shaped.index_put_((rows[:, None], ids.long()), torch.where(listed, values, 0.0), accumulate=True)


def _sampleable_mass(logits: Tensor, normalizer: Tensor, changed: Tensor, tables: SlotTables) -> Tensor:
    """log sum exp over the tokens that may be sampled, [B] float64; NaN for rows where it is not known.

    It follows from the normalizer of all tokens: log(total - unsampleable) = log total + log1p(-unsampleable share). A
    large share would cancel digits, so that from one half on the row is left to `select`; so are rows whose logits were
    changed.
    """
    share = torch.exp(logits[:, tables.unsampleable_ids].double() - normalizer[:, None]).sum(1)
    known = torch.where(share < 0.5, normalizer + torch.log1p(-share), torch.nan)
    return known.masked_fill_(changed, torch.nan)
