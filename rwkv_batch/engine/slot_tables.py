"""Slot tables: the sampling settings and the history of each slot, in tensors on the device, one row a slot."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..sampling_params import SamplingParams
from ..transfer import Uploader
from .philox import stream_words
from .request import END_OF_TEXT, Request

WORD_BITS = 32
_MOST_SETTINGS = 256
_WIDTHS = {"cuda": (1024, 64)}
"""Type of a device → entries that the tables have room for at first: seen ids; biases and stops. On a CUDA device a
table that grows makes recorded draws useless, so that it begins wide."""
_NO_IDS = np.zeros(0, np.int32)


class Vocabulary(NamedTuple):
    """The properties of token ids that sampling needs; both are [V] bool."""

    unsampleable: Tensor
    """Ids without bytes, other than end of text."""
    uncounted: Tensor
    """Ids that ChatRWKV's penalties do not count: digits, spaces, tabs."""

    @classmethod
    def plain(cls, size: int) -> Vocabulary:
        """A vocabulary in which every id can be sampled and is counted."""
        return cls(torch.zeros(size, dtype=torch.bool, device="cpu"), torch.zeros(size, dtype=torch.bool, device="cpu"))


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
    """1: the filters apply to the probabilities at temperature 1 (ChatRWKV's order)."""
    POSITION = 2
    """Index in the completion of the token to be sampled next."""
    MIN_TOKENS = 3
    """The slot's `stops` are not sampled below this position."""
    IS_PENALIZED = 4
    SKIPS_UNCOUNTED = 5
    """1: occurrences of the vocabulary's `uncounted` ids are not counted."""
    NUM_SEEN = 6
    NUM_BIASES = 7
    NUM_STOPS = 8
    IS_MASKED = 9
    STREAM = 10
    """First of `STREAM_WORDS` columns: the words of `philox.stream_words`."""


NUM_FLOATS, NUM_INTEGERS = 8, 16
"""Columns of both tables, a few of them spare. The columns of kernels, which cannot import these, are copies: a test
compares them."""
STREAM_WORDS = 5


class SlotTables:
    """Sampling settings and history of P slots. Row P, the last one, is for padding (slot -1) and has no meaning.

    Attributes:
        floats: [P + 1, 8] float64, columns `Float`.
        integers: [P + 1, 16] int64, columns `Integer`.
        last_token: [P + 1] int64, the token that each slot has sampled last and is fed next.
        seen_ids, seen_count, seen_generated: [P + 1, E] int32, float32, bool: the first NUM_SEEN entries are the
            distinct ids that a penalized slot has seen, how often (decayed), and whether the id was generated rather
            than only given in the prompt.
        bias_ids, biases: [P + 1, E'] int32, float32: the first NUM_BIASES are added to logits; -inf bans.
        stops: [P + 1, E''] int32: the first NUM_STOPS are ids that end a completion. They are banned before MIN_TOKENS.
        mask: [P + 1, ceil(V / 32)] int32: bit i % 32 of word i / 32 is set where id i may be sampled; read only where
            IS_MASKED.
        sampleable: [ceil(V / 32)] int32: the same for the vocabulary as a whole.
        uncounted: [V] bool, as in `Vocabulary`.
        uploader: sends settings to the device.
        generation: counts how often a table was replaced by a wider one, in other memory.
    """

    def __init__(
        self, num_slots: int, vocabulary: Vocabulary, device: torch.device, uploader: Uploader | None = None
    ) -> None:
        self.num_slots = num_slots
        self.uploader = uploader or Uploader(device)
        self.vocab_size = len(vocabulary.unsampleable)
        self.device = device
        self.generation = 0
        self._settings: dict[int, _Settings] = {}
        rows = num_slots + 1
        self.floats = torch.zeros(rows, NUM_FLOATS, dtype=torch.float64, device=device)
        self.integers = torch.zeros(rows, NUM_INTEGERS, dtype=torch.int64, device=device)
        self.last_token = torch.zeros(rows, dtype=torch.int64, device=device)
        self.sampleable = pack_bits(~vocabulary.unsampleable).to(device)
        self.unsampleable_ids = vocabulary.unsampleable.nonzero()[:, 0].to(device)
        self.uncounted = vocabulary.uncounted.to(device)
        self.mask = torch.zeros(rows, len(self.sampleable), dtype=torch.int32, device=device)
        seen, listed = _WIDTHS.get(device.type, (64, 8))
        self.seen_ids, self.seen_count, self.seen_generated = (
            torch.zeros(rows, seen, dtype=dtype, device=device) for dtype in (torch.int32, torch.float32, torch.bool)
        )
        self.bias_ids = torch.zeros(rows, listed, dtype=torch.int32, device=device)
        self.biases = torch.zeros(rows, listed, dtype=torch.float32, device=device)
        self.stops = torch.zeros(rows, listed, dtype=torch.int32, device=device)

    def assign(self, slots: SequenceOf[int], requests: SequenceOf[Request]) -> np.ndarray:
        """Replaces all settings and history of these slots, for new sequences, in one transfer.

        Returns:
            [n] int64: number of distinct ids that a penalized slot has seen; -1 for slots without penalties. The ids of
            the prompt are seen only if there is a repetition penalty.
        """
        settings = [self._settings_of(request.params) for request in requests]
        seen = [
            np.unique(request.prompt_token_ids).astype(np.int32) if each.counts_prompt else _NO_IDS
            for each, request in zip(settings, requests, strict=True)
        ]
        num_seen = np.array([len(ids) for ids in seen], np.int64)
        integers = np.stack([each.integers for each in settings])
        integers[:, Integer.NUM_SEEN] = num_seen
        integers[[request.new_constraint is not None for request in requests], Integer.IS_MASKED] = 1
        streams = [stream_words(request.seed, request.row, request.sample) for request in requests]
        integers[:, Integer.STREAM : Integer.STREAM + STREAM_WORDS] = streams
        floats = np.stack([each.floats for each in settings])
        masked = [i for i, each in enumerate(settings) if each.mask is not None]
        masks = np.stack([settings[i].mask for i in masked]) if masked else np.zeros((0, 0), np.int32)  # type: ignore[misc]
        index = np.array(slots, np.int64)
        sent = self.uploader.send(
            index,
            floats,
            integers,
            _padded(seen),
            _padded([each.bias_ids for each in settings]),
            _padded([each.biases for each in settings]),
            _padded([each.stops for each in settings]),
            index[masked],
            masks,
        )
        where, floats_sent, integers_sent, seen_ids, bias_ids, biases, stops, masked_slots, masks_sent = sent
        self.floats.index_copy_(0, where, floats_sent)
        self.integers.index_copy_(0, where, integers_sent)
        if width := seen_ids.shape[1]:
            self.reserve_seen(width)
            self.seen_ids[:, :width].index_copy_(0, where, seen_ids)
            self.seen_count[:, :width].index_fill_(0, where, 0)
            self.seen_generated[:, :width].index_fill_(0, where, False)
        if width := bias_ids.shape[1]:
            self.bias_ids, self.biases = (self._widened(table, width) for table in (self.bias_ids, self.biases))
            self.bias_ids[:, :width].index_copy_(0, where, bias_ids)
            self.biases[:, :width].index_copy_(0, where, biases)
        if width := stops.shape[1]:
            self.stops = self._widened(self.stops, width)
            self.stops[:, :width].index_copy_(0, where, stops)
        if masked:
            self.mask.index_copy_(0, masked_slots, masks_sent)
        is_penalized = integers[:, Integer.IS_PENALIZED] > 0
        return np.where(is_penalized, num_seen, -1)

    def set_masks(self, slots: Tensor, masks: Tensor) -> None:
        """Sets the masks of slots. They apply where the request has a constraint.

        Args:
            slots: [n] int64, on the device.
            masks: [n, ceil(V / 32)] int32, on the device: rows of `pack_bits`.
        """
        if self.device.type == "cpu":
            self.mask.numpy()[slots.numpy()] = masks.numpy()  # on a CPU a tenth of the time of index_copy_
        else:
            self.mask.index_copy_(0, slots, masks)

    def _settings_of(self, params: SamplingParams) -> _Settings:
        """The table entries of these parameters, from a cache: the requests of a job share their parameters."""
        found = self._settings.get(id(params))
        if found is None:
            if len(self._settings) >= _MOST_SETTINGS:
                self._settings.clear()
            found = self._settings[id(params)] = _Settings.of(params, self.vocab_size)
        return found

    def reserve_seen(self, width: int) -> None:
        """Makes room for `width` distinct ids in every slot."""
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


class _Settings(NamedTuple):
    """The table entries of one request's sampling parameters."""

    params: SamplingParams
    """Kept alive, so that no other object gets the id() under which these settings are stored."""
    floats: np.ndarray
    """[8] float64."""
    integers: np.ndarray
    """[16] int64, without the random stream and the number of seen ids."""
    counts_prompt: bool
    """Whether the prompt's ids are seen ids: only the repetition penalty uses them."""
    bias_ids: np.ndarray
    biases: np.ndarray
    stops: np.ndarray
    mask: np.ndarray | None

    @classmethod
    def of(cls, params: SamplingParams, vocab_size: int) -> _Settings:
        penalties = (params.presence_penalty, params.frequency_penalty, params.repetition_penalty)
        is_penalized = penalties != (0.0, 0.0, 1.0)
        biases = {**(params.logit_bias or {}), **dict.fromkeys(params.bad_token_ids or (), -np.inf)}
        stops = sorted({END_OF_TEXT, *(params.stop_token_ids or ())}) if params.min_tokens else []
        untempered = params.top_p_order == "rwkv"
        mask = None
        if params.allowed_token_ids is not None:
            allowed = torch.zeros(vocab_size, dtype=torch.bool, device="cpu")
            allowed[params.allowed_token_ids] = True
            mask = pack_bits(allowed).numpy()
        floats, integers = np.zeros(NUM_FLOATS), np.zeros(NUM_INTEGERS, np.int64)
        floats[Float.TEMPERATURE] = params.temperature
        floats[Float.TOP_P] = params.top_p
        floats[Float.MIN_P] = params.min_p
        floats[[Float.PRESENCE, Float.FREQUENCY, Float.REPETITION]] = penalties
        floats[Float.DECAY] = params.penalty_decay
        integers[Integer.TOP_K] = params.top_k
        integers[Integer.MIN_TOKENS] = params.min_tokens
        integers[[Integer.UNTEMPERED, Integer.SKIPS_UNCOUNTED]] = untempered
        integers[Integer.IS_PENALIZED] = is_penalized
        integers[[Integer.NUM_BIASES, Integer.NUM_STOPS]] = len(biases), len(stops)
        integers[Integer.IS_MASKED] = mask is not None
        return cls(
            params,
            floats,
            integers,
            params.repetition_penalty != 1,
            np.array(list(biases), np.int32),
            np.array(list(biases.values()), np.float32),
            np.array(stops, np.int32),
            mask,
        )


def _padded(rows: list[np.ndarray]) -> np.ndarray:
    """Pads rows of different lengths with zeros into one array: [n, longest length]."""
    width = max(map(len, rows))
    padded = np.zeros((len(rows), width), rows[0].dtype)
    if width:
        for row, values in zip(padded, rows, strict=True):
            row[: len(values)] = values
    return padded


def pack_bits(flags: Tensor) -> Tensor:
    """Packs flags [V] bool, on the host, into [ceil(V / 32)] int32: id i in bit i % 32 of word i / 32."""
    packed = np.packbits(flags.numpy(), bitorder="little")
    return torch.from_numpy(np.pad(packed, (0, -len(packed) % 4)).view("<i4").astype(np.int32, copy=False))


def unpack_bits(words: Tensor, size: int) -> Tensor:
    """Unpacks words [..., W] int32 into flags [..., size] bool; the inverse of `pack_bits`."""
    bits = (words[..., None] >> torch.arange(WORD_BITS, device=words.device)) & 1
    return bits.flatten(-2)[..., :size].bool()
