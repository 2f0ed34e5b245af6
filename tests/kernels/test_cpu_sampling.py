"""The CPU's sampling ops against their definitions: row by row, and over steps in which the slots' tables evolve."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from rwkv_batch.cpu_kernels.build import unavailable
from rwkv_batch.cpu_kernels.log_normalizer import log_normalizer
from rwkv_batch.cpu_kernels.sample import sample
from rwkv_batch.cpu_kernels.select import select
from rwkv_batch.cpu_kernels.top_tokens import top_tokens
from rwkv_batch.engine import logprobs as ranking
from rwkv_batch.engine import selection
from rwkv_batch.engine.request import Request
from rwkv_batch.engine.sample import PARTS
from rwkv_batch.engine.sample import sample as sample_by_definition
from rwkv_batch.engine.selection import Filters
from rwkv_batch.engine.slot_tables import Integer, SlotTables, Vocabulary, pack_bits, unpack_bits
from rwkv_batch.ops import resolve
from rwkv_batch.sampling_params import SamplingParams

CPU = torch.device("cpu")
OPS = resolve(PARTS, "reference", CPU, torch.float32, {})


@pytest.fixture(scope="module", autouse=True)
def needs_a_compiler():
    if reason := unavailable():
        pytest.skip(f"native kernels: {reason}")


SETTINGS: list[dict[str, Any]] = [
    dict(),
    dict(temperature=0.0),
    dict(temperature=1e-3),
    dict(temperature=1e4),
    dict(temperature=1.3, top_p=0.95),
    dict(top_p=0.85),
    dict(top_p=0.0),
    dict(top_p=1e-9),
    dict(top_p=0.999, untempered=True, temperature=0.7),
    dict(top_k=1),
    dict(top_k=50),
    dict(top_k=700, top_p=0.9),
    dict(top_k=700, top_p=0.5, untempered=True, temperature=1.5),
    dict(top_k=10**9),
    dict(min_p=1.0),
    dict(min_p=0.05),
    dict(min_p=1e-4, temperature=2.0),
    dict(min_p=1e-3, top_k=4000, top_p=0.8),
]


def filters(settings: Sequence[dict[str, Any]]) -> Filters:
    def column(name: str, default: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([each.get(name, default) for each in settings], dtype=dtype)

    return Filters(
        temperature=column("temperature", 1.0, torch.float32),
        top_p=column("top_p", 1.0, torch.float64),
        top_k=column("top_k", 0, torch.int64),
        min_p=column("min_p", 0.0, torch.float64),
        untempered=column("untempered", False, torch.bool),
    )


def assert_same_draws(row: torch.Tensor, per_setting: int = 3) -> None:
    """Asserts that kernel and definition draw the same from `row` [V], under all settings. Two calls share buffers."""
    settings = [each for each in SETTINGS for _ in range(per_setting)]
    logits = row.expand(len(settings), -1).contiguous()
    uniform = torch.rand(len(settings), dtype=torch.float64, generator=torch.Generator().manual_seed(len(row)))
    want = selection.select(logits.clone(), filters(settings), uniform).tolist()
    for _ in range(2):
        assert select(logits, filters(settings), uniform).tolist() == want


@pytest.mark.parametrize("std", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("vocab", [*range(1, 18), 31, 32, 33, 63, 64, 65, 70, 1023, 4097, 20001])
def test_vocabularies_of_any_size(vocab, std):
    """0: all logits are equal; the largest need the wide search."""
    assert_same_draws(torch.randn(vocab) * std)


@pytest.mark.parametrize("vocab", [300, 20001])
def test_ties(vocab):
    """Many tokens share the logits at which the filters cut."""
    assert_same_draws((torch.randn(vocab) * 2).round())


@pytest.mark.parametrize("vocab", [70, 5000])
def test_a_single_token_is_left(vocab):
    for place in (0, vocab // 2, vocab - 1):
        row = torch.full((vocab,), -torch.inf)
        row[place] = -3.0
        assert_same_draws(row, per_setting=1)


def test_half_of_the_tokens_are_banned():
    row = torch.randn(20001)
    row[torch.randperm(20001)[:10000]] = -torch.inf
    assert_same_draws(row)


@pytest.mark.parametrize("sampled", [-30.0, 30.0])
def test_a_sample_that_misleads_costs_time_only(sampled):
    """The wide search looks at the first tokens of every second tile; here they are unlike all others."""
    row = torch.randn(20001) * 0.5
    row[torch.arange(20001) % 128 < 8] += sampled
    assert_same_draws(row)


def test_logits_in_order():
    row = torch.randn(20001).sort().values
    assert_same_draws(row, per_setting=2)
    assert_same_draws(row.flip(0), per_setting=2)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 63, 299])
def test_a_logit_that_is_no_number_ends_the_row(value, place):
    logits = torch.randn(len(SETTINGS), 300)
    logits[:, place] = value
    uniform = torch.full((len(SETTINGS),), 0.5, dtype=torch.float64)
    assert select(logits, filters(SETTINGS), uniform).eq(0).all()


@pytest.mark.parametrize("bits", [0x7FFFFFFF, -1])
def test_a_nan_of_any_bits_ends_the_row(bits):
    """GPUs produce NaNs with all bits set, with or without the sign."""
    logits = torch.randn(len(SETTINGS), 300)
    logits[:, 77] = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
    assert select(logits, filters(SETTINGS), torch.full((len(SETTINGS),), 0.5, dtype=torch.float64)).eq(0).all()
    assert log_normalizer(logits).isnan().all()


@pytest.mark.parametrize("row", ["as far apart as can be", "almost equal"])
def test_bins_of_logits_that_have_no_width(row):
    """The width of bins, or its inverse, overflows. Draws are those of the definition nevertheless."""
    logits = torch.randn(257)
    if row == "almost equal":
        logits = torch.zeros(257)
        logits[9] = 1e-40
    else:
        logits[65], logits[66] = 3e38, -3e38
    assert_same_draws(logits)


PENALTIES = dict(presence_penalty=0.4, frequency_penalty=0.3, repetition_penalty=1.2, penalty_decay=0.9)


def slot_settings(vocab: int) -> list[dict[str, Any]]:
    some = list(range(1, vocab, 3))
    return [
        dict(),
        dict(temperature=0.0, **PENALTIES),
        dict(top_p=0.85, **PENALTIES, top_p_order="rwkv"),
        dict(top_p=0.7, temperature=1.6, top_p_order="rwkv", frequency_penalty=2.0),
        dict(logit_bias={1: 3.0, vocab - 1: -2.5, 7: 100.0}, top_k=3),
        dict(bad_token_ids=some, top_p=0.9),
        dict(allowed_token_ids=some, temperature=0.8, logit_bias={4: 1.0}, presence_penalty=1.5),
        dict(allowed_token_ids=[2], min_p=0.1),
        dict(min_tokens=2, stop_token_ids=list(range(5, 25)), temperature=0.3, **PENALTIES),
        dict(top_k=20, top_p=0.9, temperature=0.8),
    ]


@pytest.mark.parametrize("vocab", [40, 257, 5003])
def test_equals_the_definition_while_the_tables_evolve(vocab):
    settings = slot_settings(vocab) * 3
    ids = torch.arange(vocab)
    words = Vocabulary(unsampleable=(ids % 37 == 5) & (ids > 20), uncounted=ids % 3 == 1)
    tables = SlotTables(len(settings) + 2, words, CPU)
    for slot, setting in enumerate(settings):
        params = SamplingParams(max_tokens=100, **setting)
        tables.assign([slot], [Request(slot, [1, 2, 3, 3], params, seed=2**40 + 7, row=slot, sample=slot % 3)])
    twin = copy.deepcopy(tables)
    slots = torch.randperm(len(settings) + 1)[: len(settings)].int() - 1
    is_row, number = slots >= 0, slots[slots >= 0].long()
    for step in range(6):
        logits = torch.randn(len(slots), vocab, generator=torch.Generator().manual_seed(step)) * 3
        if step == 3:
            logits = logits.round()
        given = logits.clone()
        token_ids, logprobs = sample(given, slots, twin, None)
        want, want_logprobs = sample_by_definition(logits.clone(), slots, tables, OPS)
        assert torch.equal(given, logits)
        assert token_ids[is_row].tolist() == want[is_row].tolist()
        assert (logprobs[is_row] - want_logprobs[is_row]).abs().max() < 2e-6
        assert token_ids[~is_row].eq(0).all() and logprobs[~is_row].eq(0).all()
        for name in ("integers", "floats", "last_token"):
            assert torch.equal(getattr(twin, name)[number], getattr(tables, name)[number]), name
        for slot in number.tolist():
            seen = int(tables.integers[slot, Integer.NUM_SEEN])
            for name in ("seen_ids", "seen_count", "seen_generated"):
                assert torch.equal(getattr(twin, name)[slot, :seen], getattr(tables, name)[slot, :seen]), name


def test_nothing_left_and_no_numbers():
    tables = SlotTables(3, Vocabulary.plain(70), CPU)
    for slot in range(3):
        params = SamplingParams(bad_token_ids=list(range(70)) if slot == 0 else None)
        tables.assign([slot], [Request(slot, [1], params)])
    logits = torch.randn(3, 70)
    logits[1] = -torch.inf
    logits[2, 69] = torch.nan
    token_ids, logprobs = sample(logits.clone(), torch.arange(3).int(), tables, None)
    assert token_ids.tolist() == [0, 0, 0]
    assert logprobs[0].item() == pytest.approx(logits[0].double().log_softmax(0)[0].item(), abs=1e-6)
    assert logprobs[1:].isnan().all()


def test_refuses_what_would_write_elsewhere():
    tables = SlotTables(2, Vocabulary.plain(9), CPU)
    tables.assign([0], [Request(0, [1], SamplingParams(presence_penalty=1.0))])
    logits, slots = torch.randn(1, 9), torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"slot_index\[0\]: got slot 2"):
        sample(logits, slots + 2, tables, None)
    with pytest.raises(ValueError, match=r"logits: got torch.float32 \[1, 8\]"):
        sample(logits[:, :8], slots, tables, None)
    tables.integers[0, Integer.NUM_SEEN] = tables.seen_ids.shape[1]
    with pytest.raises(ValueError, match="fewer than 64 seen ids"):
        sample(logits, slots, tables, None)
    tables.reserve_seen(65)
    sample(logits, slots, tables, None)
    tables.assign([1], [Request(0, [1], SamplingParams(logit_bias={9: 1.0}))])
    with pytest.raises(ValueError, match="all its ids below 9"):
        sample(logits, slots + 1, tables, None)


@pytest.mark.parametrize("vocab", [1, 5, 63, 64, 65, 257, 5000])
def test_ranks_and_most_likely_tokens(vocab):
    rows_of_kinds = torch.stack(
        [
            torch.randn(vocab),
            torch.randn(vocab).round(),
            torch.zeros(vocab),
            torch.where(torch.arange(vocab) % 2 == 0, -0.0, 0.0),
            torch.full((vocab,), -torch.inf),
            torch.where(torch.rand(vocab) < 0.5, -torch.inf, torch.randn(vocab)),
            torch.where(torch.rand(vocab) < 0.5, torch.inf, torch.randn(vocab)),
        ]
    )
    rows, token_ids = torch.randint(len(rows_of_kinds), (40,)), torch.randint(vocab, (40,))
    for count in {min(count, vocab) for count in (0, 1, 5, 64, vocab)}:
        want = ranking.top_tokens(rows_of_kinds, rows, token_ids, count)
        got = top_tokens(rows_of_kinds, rows, token_ids, count)
        assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))


def test_ranks_refuse_tokens_that_are_not_there():
    logits, index = torch.randn(2, 9), torch.tensor([0])
    for rows, token_ids, count, message in (
        (index + 2, index, 1, "rows: got 2 to 2, expected 0 to 1"),
        (index, index - 1, 1, "token_ids: got -1"),
        (index, index, 10, "count: got 10, expected 0 to 9"),
    ):
        with pytest.raises(ValueError, match=message):
            top_tokens(logits, rows, token_ids, count)


@pytest.mark.parametrize("size", [1, 8, 31, 32, 33, 1000])
def test_bits(size):
    flags = torch.rand(size) < 0.5
    words = pack_bits(flags)
    assert words.dtype == torch.int32
    assert [bool(words[i // 32] >> (i % 32) & 1) for i in range(size)] == flags.tolist()
    assert torch.equal(unpack_bits(words, size), flags)
