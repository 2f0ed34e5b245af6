"""Slots and settings for tests of Triton's `sample`, and each step compared with the definition."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rwkv_batch.engine.request import Request
from rwkv_batch.engine.sample import PARTS
from rwkv_batch.engine.sample import sample as reference
from rwkv_batch.engine.slot_tables import Integer, SlotTables, Vocabulary
from rwkv_batch.ops import resolve
from rwkv_batch.sampling_params import SamplingParams
from rwkv_batch.triton_kernels import launch
from rwkv_batch.triton_kernels.sample import sample

CPU = torch.device("cpu")
DEVICE = CPU if launch.is_interpreted() else torch.device("cuda")
OPS = resolve(PARTS, "reference", CPU, torch.float32, {})
Settings = Mapping[str, Any]


def vocabulary(size: int) -> Vocabulary:
    """A vocabulary in which some ids have no bytes, and some are not counted."""
    ids = torch.arange(size)
    return Vocabulary(unsampleable=(ids % 37 == 5) & (ids > 20), uncounted=ids % 3 == 1)


class Slots:
    """The same slots twice: for the definition, and for the kernels.

    Row i of a step is in slot `slots[i]`; other slots hold noise that must not change.
    """

    def __init__(self, words: Vocabulary, settings: Sequence[Settings], prompt: Sequence[int] = (1, 2, 3), **keys: Any):
        spare = 3
        generator = torch.Generator().manual_seed(len(settings))
        self.slots = torch.randperm(len(settings) + spare, generator=generator)[: len(settings)].int()
        self.tables = SlotTables(len(settings) + spare, words, CPU)
        for slot in range(len(settings) + spare):
            self.tables.assign([slot], [request(SETTINGS[-1], prompt, seed=slot)])
        for row, (slot, setting) in enumerate(zip(self.slots.tolist(), settings, strict=True)):
            self.tables.assign([slot], [request(setting, prompt, row=row, **keys)])
        self.twin = to_device(self.tables)

    def step(self, logits: torch.Tensor, slots: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Samples with the kernels and with the definition, compares both, and returns tokens and log-probabilities."""
        slots = self.slots if slots is None else slots
        given = logits.to(DEVICE, copy=True)
        before = copy.deepcopy(self.twin)
        with np.errstate(all="ignore"):
            token_ids, logprobs = sample(given, slots.to(DEVICE), self.twin, None)
        want, want_logprobs = reference(logits.clone(), slots, self.tables, OPS)
        is_row = slots >= 0
        token_ids, logprobs = token_ids.cpu(), logprobs.cpu()
        assert torch.equal(given.cpu().view(torch.int32), logits.view(torch.int32))
        assert token_ids[is_row].tolist() == want[is_row].tolist()
        assert token_ids[~is_row].eq(0).all()
        close = (logprobs - want_logprobs).abs() < 2e-6 * (1 + want_logprobs.abs())
        assert (close | ~is_row | ~(want_logprobs.isfinite() | logprobs.isfinite())).all(), (logprobs, want_logprobs)
        self.compare(slots[is_row].long())
        untouched = torch.ones(self.tables.num_slots, dtype=torch.bool)
        untouched[slots[is_row].long()] = False
        for name, table in rows_of(self.twin).items():
            assert torch.equal(table[:-1][untouched], rows_of(before)[name][:-1][untouched]), name
        return token_ids, logprobs

    def compare(self, slots: torch.Tensor) -> None:
        got, want = to_cpu(self.twin), self.tables
        assert torch.equal(got.integers[slots], want.integers[slots])
        assert torch.equal(got.floats[slots], want.floats[slots])
        assert torch.equal(got.last_token[slots], want.last_token[slots])
        for slot in slots.tolist():
            number = int(want.integers[slot, Integer.NUM_SEEN]) if want.integers[slot, Integer.IS_PENALIZED] else 0
            assert torch.equal(got.seen_ids[slot, :number], want.seen_ids[slot, :number])
            assert torch.equal(got.seen_generated[slot, :number], want.seen_generated[slot, :number])
            torch.testing.assert_close(got.seen_count[slot, :number], want.seen_count[slot, :number])

    def reserve(self, width: int) -> None:
        self.tables.reserve_seen(width)
        self.twin.reserve_seen(width)


def request(settings: Settings, prompt: Sequence[int], seed: int = 5, row: int = 0, number: int = 0) -> Request:
    params = SamplingParams(**{"max_tokens": 100, **settings})
    return Request(key=row, prompt_token_ids=list(prompt), params=params, seed=seed, row=row, sample=number)


def rows_of(tables: SlotTables) -> dict[str, torch.Tensor]:
    names = ("integers", "floats", "last_token", "seen_ids", "seen_count", "seen_generated", "bias_ids", "biases")
    return {name: getattr(tables, name) for name in (*names, "stops", "mask")}


def moved(tables: SlotTables, device: torch.device) -> SlotTables:
    other = copy.copy(tables)
    for name, value in vars(tables).items():
        setattr(other, name, value.to(device, copy=True) if isinstance(value, torch.Tensor) else value)
    other.device = device
    return other


def to_device(tables: SlotTables) -> SlotTables:
    return moved(tables, DEVICE)


def to_cpu(tables: SlotTables) -> SlotTables:
    return moved(tables, CPU)


PENALTIES = dict(presence_penalty=0.4, frequency_penalty=0.3, repetition_penalty=1.2, penalty_decay=0.9)
SETTINGS: list[dict[str, Any]] = [
    dict(),
    dict(temperature=0.7),
    dict(temperature=0.0),
    dict(top_p=0.85),
    dict(top_p=0.0),
    dict(top_p=0.3, temperature=1.5),
    dict(top_k=1),
    dict(top_k=5, temperature=0.5),
    dict(top_k=10**6),
    dict(min_p=0.1),
    dict(min_p=0.02, temperature=2.0, top_p=0.9),
    dict(top_p=0.6, top_k=4),
    dict(top_p=0.6, top_k=4, top_p_order="rwkv"),
    dict(top_p=0.95, top_k=200, min_p=1e-3, temperature=1.5),
    dict(top_p=0.7, temperature=2.0, top_p_order="rwkv"),
    dict(top_p=0.85, top_k=7, temperature=0.6, top_p_order="rwkv"),
    dict(top_p=0.8, top_p_order="rwkv", **PENALTIES),
]


def random_settings(generator: np.random.Generator, size: int) -> dict[str, Any]:
    """Random settings of one row: every kind of setting occurs in some rows."""

    def one_of(*choices: Any) -> Any:
        return choices[generator.integers(len(choices))]

    def ids(most: int) -> list[int]:
        return generator.choice(size, generator.integers(1, most + 1), replace=False).tolist()

    settings = dict(
        temperature=one_of(0.0, 0.6, 1.0, 1.0, 1.7),
        top_p=one_of(1.0, 1.0, 0.9, 0.5),
        top_k=one_of(0, 0, 3, 20, 10**6),
        min_p=one_of(0.0, 0.0, 0.05),
        top_p_order=one_of("standard", "rwkv"),
    )
    if generator.random() < 0.6:
        settings |= PENALTIES | dict(penalty_decay=one_of(1.0, 0.8), repetition_penalty=one_of(1.0, 1.3))
    if generator.random() < 0.5:
        settings["logit_bias"] = {i: float(generator.normal()) * 3 for i in ids(10)}
    if generator.random() < 0.4:
        settings["bad_token_ids"] = ids(5)
    if generator.random() < 0.3:
        settings["allowed_token_ids"] = ids(size)
    if generator.random() < 0.4:
        settings |= dict(min_tokens=2, stop_token_ids=ids(12))
    return settings


def random_logits(generator: np.random.Generator, rows: int, size: int) -> torch.Tensor:
    return torch.from_numpy(generator.normal(size=(rows, size)) * 3).float()
