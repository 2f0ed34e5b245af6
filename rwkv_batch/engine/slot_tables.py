"""What sampling knows about each slot: settings and history, in tensors beside the state pool, one row a slot."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..models.upload import upload
from .philox import stream_words
from .request import END_OF_TEXT, Request

WORD_BITS = 32


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


class Float(IntEnum):
    """Columns of `SlotTables.floats`."""

    TEMPERATURE = 0
    TOP_P = 1
    MIN_P = 2
    PRESENCE = 3
    FREQUENCY = 4
    REPETITION = 5
    DECAY = 6


class Integer(IntEnum):
    """Columns of `SlotTables.integers`."""

    TOP_K = 0
    UNTEMPERED = 1
    """1: the filters see the probabilities at temperature 1 (ChatRWKV's order)."""
    POSITION = 2
    """Index, in its completion, of the token to be sampled next."""
    MIN_TOKENS = 3
    """Up to this position the slot's `stops` are not sampled."""
    IS_PENALIZED = 4
    SKIPS_UNCOUNTED = 5
    """1: occurrences of the vocabulary's `uncounted` ids are not counted."""
    NUM_SEEN = 6
    NUM_BIASES = 7
    NUM_STOPS = 8
    IS_MASKED = 9
    STREAM = 10
    """First of five columns: the words of `philox.stream_words`."""


_NUM_FLOATS, _NUM_INTEGERS = 8, 16


class SlotTables:
    """Sampling settings and history of P slots. Row P, the last one, belongs to padding (slot -1) and means nothing.

    Attributes:
        floats: [P + 1, 8] float64, columns `Float`.
        integers: [P + 1, 16] int64, columns `Integer`.
        last_token: [P + 1] int64, what each slot sampled last, and is fed next.
        seen_ids, seen_count, seen_generated: [P + 1, E] int32, float32, bool: the first NUM_SEEN entries are the
            distinct ids that a penalised slot has seen, how often (decayed), and whether it was generated rather than
            given in the prompt.
        bias_ids, biases: [P + 1, E'] int32, float32: the first NUM_BIASES are added to logits; -inf bans.
        stops: [P + 1, E''] int32: the first NUM_STOPS end a completion, which they must not before MIN_TOKENS.
        mask: [P + 1, ceil(V / 32)] int32: bit i % 32 of word i / 32 is set where id i may be sampled; read only where
            IS_MASKED.
        sampleable: [ceil(V / 32)] int32: the same for the vocabulary as a whole.
        uncounted: [V] bool, as in `Vocabulary`.
        generation: grows when a table has been replaced by a wider one.
    """

    def __init__(self, num_slots: int, vocabulary: Vocabulary, device: torch.device) -> None:
        self.num_slots = num_slots
        self.vocab_size = len(vocabulary.unsampleable)
        self.device = device
        self.generation = 0
        rows = num_slots + 1
        self.floats = torch.zeros(rows, _NUM_FLOATS, dtype=torch.float64, device=device)
        self.integers = torch.zeros(rows, _NUM_INTEGERS, dtype=torch.int64, device=device)
        self.last_token = torch.zeros(rows, dtype=torch.int64, device=device)
        self.sampleable = pack_bits(~vocabulary.unsampleable).to(device)
        self.unsampleable_ids = vocabulary.unsampleable.nonzero()[:, 0].to(device)
        self.uncounted = vocabulary.uncounted.to(device)
        self.mask = torch.zeros(rows, len(self.sampleable), dtype=torch.int32, device=device)
        self.seen_ids, self.seen_count, self.seen_generated = (
            torch.zeros(rows, 64, dtype=dtype, device=device) for dtype in (torch.int32, torch.float32, torch.bool)
        )
        self.bias_ids = torch.zeros(rows, 8, dtype=torch.int32, device=device)
        self.biases = torch.zeros(rows, 8, dtype=torch.float32, device=device)
        self.stops = torch.zeros(rows, 8, dtype=torch.int32, device=device)

    def assign(self, slot: int, request: Request) -> int | None:
        """A new sequence takes `slot`; everything of the old one is replaced.

        Returns:
            How many distinct ids a penalised slot has seen: the prompt counts for the repetition penalty only.
        """
        params = request.params
        penalties = (params.presence_penalty, params.frequency_penalty, params.repetition_penalty)
        is_penalized = penalties != (0.0, 0.0, 1.0)
        seen = sorted(set(request.prompt_token_ids)) if params.repetition_penalty != 1 else []
        biases = {**(params.logit_bias or {}), **dict.fromkeys(params.bad_token_ids or (), -torch.inf)}
        stops = sorted({END_OF_TEXT, *(params.stop_token_ids or ())}) if params.min_tokens else []
        untempered = params.top_p_order == "rwkv"
        self._write(
            self.floats, slot, (params.temperature, params.top_p, params.min_p, *penalties, params.penalty_decay)
        )
        numbers = (params.top_k, untempered, 0, params.min_tokens, is_penalized, untempered)
        lengths = (len(seen), len(biases), len(stops), params.allowed_token_ids is not None)
        words = stream_words(request.seed, request.row, request.sample)
        self._write(self.integers, slot, (*numbers, *lengths, *words))
        if seen:
            self.reserve_seen(len(seen))
            self._write(self.seen_ids, slot, seen)
            self.seen_count[slot, : len(seen)] = 0
            self.seen_generated[slot, : len(seen)] = False
        if biases:
            self.bias_ids, self.biases = (self._widened(t, len(biases)) for t in (self.bias_ids, self.biases))
            self._write(self.bias_ids, slot, list(biases))
            self._write(self.biases, slot, list(biases.values()))
        if stops:
            self.stops = self._widened(self.stops, len(stops))
            self._write(self.stops, slot, stops)
        if params.allowed_token_ids is not None:
            allowed = torch.zeros(self.vocab_size, dtype=torch.bool)
            allowed[params.allowed_token_ids] = True
            self.set_mask(slot, allowed)
        return len(seen) if is_penalized else None

    def set_mask(self, slot: int, allowed: Tensor) -> None:
        """Restrict a slot to the ids that are True in `allowed`, [V] bool on the host."""
        self.mask[slot] = upload(pack_bits(allowed).numpy(), torch.int32, self.device)
        self.integers[slot, Integer.IS_MASKED] = 1

    def reserve_seen(self, width: int) -> None:
        """Make room for `width` distinct ids in every slot."""
        self.seen_ids = self._widened(self.seen_ids, width)
        self.seen_count = self._widened(self.seen_count, width)
        self.seen_generated = self._widened(self.seen_generated, width)

    def _widened(self, table: Tensor, width: int) -> Tensor:
        capacity = table.shape[1]
        while capacity < width:
            capacity *= 2
        if capacity == table.shape[1]:
            return table
        self.generation += 1
        return torch.nn.functional.pad(table, (0, capacity - table.shape[1]))

    @staticmethod
    def _write(table: Tensor, slot: int, values: Sequence[float]) -> None:
        if table.device.type == "cpu":  # a tenth of the time that a tensor takes to be made and copied
            table.numpy()[slot, : len(values)] = values
        else:
            table[slot, : len(values)] = upload(values, table.dtype, table.device)


def pack_bits(flags: Tensor) -> Tensor:
    """[V] bool on the host → [ceil(V / 32)] int32, id i in bit i % 32 of word i / 32."""
    packed = np.packbits(flags.numpy(), bitorder="little")
    return torch.from_numpy(np.pad(packed, (0, -len(packed) % 4)).view("<i4").astype(np.int32, copy=False))


def unpack_bits(words: Tensor, size: int) -> Tensor:
    """[..., W] int32 → [..., size] bool."""
    bits = (words[..., None] >> torch.arange(WORD_BITS, device=words.device)) & 1
    return bits.flatten(-2)[..., :size].bool()
