"""Triton's `sample` against its definition: token by token, over steps in which the slots' tables evolve."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl
from kernels.sample_cases import (
    CPU,
    DEVICE,
    PENALTIES,
    SETTINGS,
    Slots,
    random_logits,
    random_settings,
    to_cpu,
    to_device,
    vocabulary,
)

from rwkv_batch.engine import philox as definition
from rwkv_batch.engine.slot_tables import Integer, SlotTables, Vocabulary
from rwkv_batch.triton_kernels import sample as module
from rwkv_batch.triton_kernels.philox import uniform
from rwkv_batch.triton_kernels.sample import sample

pytestmark = pytest.mark.usefixtures("sums_may_overflow")


@pytest.mark.parametrize(("size", "seed"), [(40, 1), (300, 2), (301, 3), (512, 4)])
def test_equals_the_definition_while_the_tables_evolve(size, seed):
    generator = np.random.default_rng(seed)
    slots = Slots(vocabulary(size), [random_settings(generator, size) for _ in range(8)], seed=seed)
    for step in range(4):
        logits = random_logits(generator, 8, size)
        if step == 1:
            slots.reserve(100)
        slots.step(logits)


@pytest.mark.parametrize("seed", range(2))
def test_penalties(seed):
    """Greedy draws from nearly equal logits alternate among the tokens if the penalties are right."""
    settings: list[dict[str, Any]] = [
        dict(presence_penalty=0.3),
        dict(presence_penalty=-0.05),
        dict(frequency_penalty=0.2),
        dict(frequency_penalty=0.2, penalty_decay=0.8, top_p_order="rwkv"),
        dict(repetition_penalty=1.5),
        dict(presence_penalty=0.1, frequency_penalty=0.1, repetition_penalty=0.8),
    ]
    slots = Slots(vocabulary(12), [dict(temperature=0.0, **s) for s in settings])
    logits = random_logits(np.random.default_rng(seed), len(settings), 12) * 0.1
    for _ in range(8):
        slots.step(logits)


def test_a_token_sampled_again_is_counted_again():
    settings: list[dict[str, Any]] = [dict(temperature=0.0, frequency_penalty=0.1, penalty_decay=d, top_p_order=o)
                for d, o in ((1.0, "standard"), (0.5, "standard"), (0.5, "rwkv"))]  # fmt: skip
    slots = Slots(vocabulary(40), settings)
    logits = torch.zeros(3, 40)
    logits[:, 4] = 5.0  # not counted in ChatRWKV's order
    logits[:, 6] = 4.75
    for _ in range(8):
        slots.step(logits)
    counts = to_cpu(slots.twin).seen_count[slots.slots.long()]
    assert counts[0, :2].tolist() == [5.0, 3.0]
    assert slots.twin.integers[slots.slots.long(), Integer.NUM_SEEN].tolist() == [2, 1, 1]


def test_lists_longer_than_what_is_read_together():
    settings: list[dict[str, Any]] = [
        dict(temperature=0.0, **PENALTIES),
        dict(top_p=0.9, **PENALTIES, logit_bias=dict.fromkeys(range(300), 0.5)),
    ]
    slots = Slots(vocabulary(1000), settings, prompt=range(0, 1000, 2))
    assert slots.tables.seen_ids.shape[1] > module.LIST
    slots.step(random_logits(np.random.default_rng(0), 2, 1000))


def test_uniform_numbers_are_the_definition_s():
    @triton.jit
    def kernel(p_streams, p_position, p_out):
        i = tl.program_id(0)
        tl.store(p_out + i, uniform(p_streams + i * 5, tl.load(p_position + i)))

    generator = torch.Generator().manual_seed(1)
    words = torch.randint(0, 2**32, (40, 5), generator=generator)
    words[0], words[1] = 0, 2**32 - 1
    position = torch.randint(0, 2**31, (40,), generator=generator)
    out = torch.empty(40, dtype=torch.float64, device=DEVICE)
    kernel[(40,)](words.to(DEVICE), position.to(DEVICE), out)
    assert torch.equal(out.cpu(), definition.uniform(words, position))


def test_a_row_depends_on_its_slot_alone():
    """Bit for bit, at another place among other neighbours."""
    generator = np.random.default_rng(11)
    settings = [random_settings(generator, 200) for _ in range(6)]
    logits = random_logits(generator, 6, 200)
    one, other = Slots(vocabulary(200), settings), Slots(vocabulary(200), settings)
    together = one.step(logits)
    place = torch.tensor([4, 1, 5])
    apart = other.step(logits[place], other.slots[place])
    assert together[0][place].tolist() == apart[0].tolist()
    assert together[1][place].tolist() == apart[1].tolist()


def test_padding_touches_nothing():
    slots = Slots(vocabulary(64), [SETTINGS[i] for i in (16, 0)])
    logits = torch.randn(4, 64)
    logits[1] = torch.nan
    rows = torch.tensor([slots.slots[0], -1, slots.slots[1], -1], dtype=torch.int32)
    token_ids, _ = slots.step(logits, rows)
    assert token_ids[[1, 3]].tolist() == [0, 0]


def test_no_rows():
    tables = to_device(SlotTables(2, Vocabulary.plain(9), CPU))
    empty = torch.zeros(0, dtype=torch.int32, device=DEVICE)
    token_ids, logprobs = sample(torch.zeros(0, 9, device=DEVICE), empty, tables, None)
    assert (token_ids.shape, token_ids.dtype) == ((0,), torch.int64)
    assert (logprobs.shape, logprobs.dtype) == ((0,), torch.float64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(logits=torch.zeros(2, 9, dtype=torch.bfloat16)), "logits: got torch.bfloat16"),
        (dict(logits=torch.zeros(2, 8)), r"logits: got torch.float32 \[2, 8\]"),
        (dict(logits=torch.zeros(9, 2).t()), r"strides \(1, 2\)"),
        (dict(slots=torch.zeros(2, dtype=torch.int64)), "slot_index: got torch.int64"),
        (dict(slots=torch.zeros(3, dtype=torch.int32)), r"slot_index: got torch.int32 \[3\]"),
    ],
)
def test_refuses_what_it_cannot_read(changes, message):
    given = dict(logits=torch.zeros(2, 9), slots=torch.zeros(2, dtype=torch.int32)) | changes
    tables = to_device(SlotTables(2, Vocabulary.plain(9), CPU))
    with pytest.raises(ValueError, match=message):
        sample(given["logits"].to(DEVICE), given["slots"].to(DEVICE), tables, None)


def test_specializations_name_every_argument():
    for spec in module.specializations():
        assert dataclasses.is_dataclass(spec)
        assert {*spec.signature, *spec.constexprs} == set(spec.kernel.arg_names), spec.label
