"""Logits → token ids and log-probabilities, for all rows of a step at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ..ops import OpSpec, OpTable
from .logprobs import Logprobs, log_normalizer, top_logprobs
from .penalties import Penalties
from .philox import stream_words, uniform
from .request import END_OF_TEXT, Constraint, Request
from .selection import Filters, select


class Vocabulary(NamedTuple):
    """What sampling must know about the vocabulary; both are [V] bool."""

    unsampleable: Tensor
    """Ids without bytes, other than end of text."""
    uncounted: Tensor
    """Ids that ChatRWKV's penalties do not count: digits, spaces, tabs."""

    @classmethod
    def plain(cls, size: int) -> Vocabulary:
        """Every id can be sampled and is counted."""
        return cls(torch.zeros(size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool))


class Sampled(NamedTuple):
    """One sampled token for each row."""

    token_ids: list[int]
    logprobs: list[float]
    """Under the model's own distribution, natural logarithm."""
    alternatives: list[Logprobs | None]
    """Where a row asks for `logprobs`."""


T = TypeVar("T")

_TEMPERATURE, _TOP_P, _MIN_P, _UNTEMPERED = range(4)
_TOP_K, _POSITION, _MIN_TOKENS, _STREAM = range(4)


class Sampler:
    """Sampling settings and history of P slots.

    `assign` resets everything a slot holds: settings, penalties, random stream, position.

    Args:
        ops: implementations of `OPS`.
    """

    OPS = (OpSpec("select", select), OpSpec("log_normalizer", log_normalizer))

    def __init__(self, num_slots: int, vocabulary: Vocabulary, device: torch.device, ops: OpTable) -> None:
        self._ops = ops
        self._size = len(vocabulary.unsampleable)
        self._unsampleable = vocabulary.unsampleable.nonzero()[:, 0].to(device)
        self._penalties = Penalties(num_slots, vocabulary.uncounted.to(device))
        self._floats = torch.zeros(num_slots, 4, dtype=torch.float64, device=device)
        self._integers = torch.zeros(num_slots, _STREAM + 5, dtype=torch.int64, device=device)
        self._biases: dict[int, tuple[Tensor, Tensor]] = {}
        self._delayed_stops: dict[int, Tensor] = {}
        self._allowed: dict[int, Tensor] = {}
        self._constraints: dict[int, Constraint] = {}
        self._num_logprobs: dict[int, int] = {}
        self._device = device

    def assign(self, slot: int, request: Request, constraint: Constraint | None = None) -> None:
        """A new sequence takes `slot`."""
        params = request.params
        untempered = params.top_p_order == "rwkv"
        self._floats[slot] = torch.tensor([params.temperature, params.top_p, params.min_p, untempered])
        words = stream_words(request.seed, request.row, request.sample)
        self._integers[slot] = torch.tensor([params.top_k, 0, params.min_tokens, *words])
        self._penalties.assign(slot, params, request.prompt_token_ids)
        _set(self._biases, slot, self._bias(params.logit_bias or {}, params.bad_token_ids or ()))
        stops = {END_OF_TEXT, *(params.stop_token_ids or ())} if params.min_tokens else set()
        _set(self._delayed_stops, slot, self._ids(sorted(stops)) if stops else None)
        _set(self._allowed, slot, self._ids(params.allowed_token_ids) if params.allowed_token_ids else None)
        _set(self._constraints, slot, constraint)
        _set(self._num_logprobs, slot, params.logprobs)

    def sample(self, logits: Tensor, slots: Sequence[int]) -> Sampled:
        """Sample the next token of each row.

        Args:
            logits: [B, V] float32, the model's.
            slots: slot of each row.
        """
        slots = list(slots)
        index = torch.tensor(slots, dtype=torch.int64, device=self._device)
        normalizer = self._ops.log_normalizer(logits)
        shaped, changed = self._shape(logits, slots, index)
        sampleable = self._sampleable_mass(logits, normalizer, changed)
        integers = self._integers[index]
        floats = self._floats[index].t().contiguous()
        filters = Filters(
            temperature=floats[_TEMPERATURE].float(),
            top_p=floats[_TOP_P],
            top_k=integers[:, _TOP_K],
            min_p=floats[_MIN_P],
            untempered=floats[_UNTEMPERED] > 0,
        )
        draws = uniform(integers[:, _STREAM:], integers[:, _POSITION])
        unsampleable = logits[:, self._unsampleable]
        shaped.index_fill_(1, self._unsampleable, -torch.inf)
        token_ids = self._ops.select(shaped, filters, draws, sampleable)
        if shaped is logits:
            logits.index_copy_(1, self._unsampleable, unsampleable)
        self._integers[index, _POSITION] += 1
        if self._penalties.rows(slots):
            self._penalties.count(token_ids, slots)
        logprobs = logits.gather(1, token_ids[:, None])[:, 0].double() - normalizer
        ids = token_ids.tolist()
        for row in _rows_with(self._constraints, slots):
            self._constraints[slots[row]].accept(ids[row])
        return Sampled(ids, logprobs.tolist(), self._alternatives(logits, normalizer, token_ids, slots))

    def _sampleable_mass(self, logits: Tensor, normalizer: Tensor, changed: list[int]) -> Tensor:
        """The normaliser of what can be sampled, [B]; NaN for rows of which it is not known this way."""
        share = torch.exp(logits[:, self._unsampleable].double() - normalizer[:, None]).sum(1)
        known = torch.where(share < 0.5, normalizer + torch.log1p(-share), torch.nan)
        known[changed] = torch.nan
        return known

    def _shape(self, logits: Tensor, slots: list[int], index: Tensor) -> tuple[Tensor, list[int]]:
        """Apply penalties, biases and bans; returns the logits to sample from, and the rows that changed."""
        penalized = self._penalties.rows(slots)
        tables: tuple[Mapping[int, object], ...]
        tables = (self._biases, self._delayed_stops, self._allowed, self._constraints)
        changed = sorted({*penalized, *(row for table in tables for row in _rows_with(table, slots))})
        if not changed:
            return logits, changed
        shaped = logits.clone()
        if penalized:
            self._penalties.apply(shaped, slots)
        for row in _rows_with(self._biases, slots):
            ids, values = self._biases[slots[row]]
            shaped[row, ids] += values
        early = self._integers[index, _POSITION] < self._integers[index, _MIN_TOKENS]
        for row in _rows_with(self._delayed_stops, slots):
            if early[row]:
                shaped[row, self._delayed_stops[slots[row]]] = -torch.inf
        for row in _rows_with(self._allowed, slots):
            mask = torch.ones(self._size, dtype=torch.bool, device=self._device)
            mask[self._allowed[slots[row]]] = False
            shaped[row].masked_fill_(mask, -torch.inf)
        for row in _rows_with(self._constraints, slots):
            mask = torch.zeros(self._size, dtype=torch.bool)
            self._constraints[slots[row]].allowed(mask)
            shaped[row].masked_fill_(~mask.to(self._device), -torch.inf)
        return shaped, changed

    def _alternatives(
        self, logits: Tensor, normalizer: Tensor, token_ids: Tensor, slots: list[int]
    ) -> list[Logprobs | None]:
        found: list[Logprobs | None] = [None] * len(slots)
        rows = _rows_with(self._num_logprobs, slots)
        if rows:
            counts = [self._num_logprobs[slots[row]] for row in rows]
            results = top_logprobs(logits[rows], normalizer[rows], token_ids[rows], counts)
            for row, result in zip(rows, results, strict=True):
                found[row] = result
        return found

    def _ids(self, ids: Iterable[int]) -> Tensor:
        return torch.tensor(list(ids), dtype=torch.int64, device=self._device)

    def _bias(self, logit_bias: Mapping[int, float], bad_token_ids: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        biases = {**logit_bias, **dict.fromkeys(bad_token_ids, -torch.inf)}
        if not biases:
            return None
        return self._ids(biases), torch.tensor(list(biases.values()), dtype=torch.float32, device=self._device)


def _set(table: dict[int, T], slot: int, value: T | None) -> None:
    table.pop(slot, None)
    if value is not None:
        table[slot] = value


def _rows_with(table: Mapping[int, object], slots: list[int]) -> list[int]:
    """Rows of the step whose slot has an entry in `table`."""
    if not table:
        return []
    return [row for row, slot in enumerate(slots) if slot in table]
