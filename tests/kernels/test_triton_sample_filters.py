"""The filters and draws of Triton's `sample`: the cut of a row, the distribution, and rows that hold no numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from kernels.sample_cases import (
    CPU,
    DEVICE,
    SETTINGS,
    Slots,
    random_logits,
    request,
    to_device,
    vocabulary,
)

from rwkv_batch.engine import philox as definition
from rwkv_batch.engine.slot_tables import SlotTables, Vocabulary
from rwkv_batch.triton_kernels import sample as module
from rwkv_batch.triton_kernels import sample_cut
from rwkv_batch.triton_kernels.sample import sample, unsupported_reason

pytestmark = pytest.mark.usefixtures("sums_may_overflow")


@pytest.mark.parametrize("constants", [dict(CAP=32), dict(CAP=512)], ids=str)
def test_vocabularies_of_several_tiles(constants, monkeypatch):
    for name, value in dict(TILE=128, CHUNK=64, BLOCK=128, LIST=16, **constants).items():
        monkeypatch.setattr(module, name, value)
    generator = np.random.default_rng(7)
    settings = [SETTINGS[i] for i in (0, 2, 5, 8, 12, 13, 14, 16)]
    slots = Slots(vocabulary(333), settings, prompt=range(0, 333, 4))
    for scale in (3.0, 0.2):
        slots.step(random_logits(generator, len(settings), 333) * scale)


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        (dict(top_p=0.1), 0.5),  # many near the top: they are looked for nearer
        (dict(top_k=40), 40.0),  # few near the top: they are looked for farther
        (dict(top_k=40, allowed_token_ids=[3, 17, 200]), 3.0),  # never so many
        (dict(min_p=1e-12, temperature=0.5), 5.0),
        (dict(min_p=1e-12, top_k=9, temperature=50.0, top_p_order="rwkv"), 5.0),
    ],
    ids=str,
)
def test_tokens_near_the_top_are_found_in_one_of_several_attempts(settings, scale, monkeypatch):
    monkeypatch.setattr(module, "CAP", 64)
    generator = np.random.default_rng(3)
    slots = Slots(vocabulary(256), [settings] * 2)
    slots.step(random_logits(generator, 2, 256) * scale)


def expected_probabilities(
    logits: torch.Tensor,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    top_p_order: str = "standard",
) -> np.ndarray:
    """The distribution that a row is drawn from, in float64 [V], by sorting everything."""
    x = logits.double().numpy()
    if temperature == 0:
        return np.eye(len(x))[int(np.argmax(x))]
    untempered = top_p_order == "rwkv"
    p = np.exp((x - x.max()) / (1.0 if untempered else temperature))
    p /= p.sum()
    ranked = sorted(range(len(p)), key=lambda i: (-x[i], i))
    keep = [i for i in ranked if p[i] >= min_p * p.max()][: top_k or None]
    if top_p < 1:
        share = p if untempered else p / p[keep].sum()
        reached = np.cumsum(share[ranked if untempered else keep])
        lowest = x[(ranked if untempered else keep)[int((reached < top_p).sum())]]
        keep = [i for i in keep if x[i] >= lowest]
    weights = np.zeros_like(p)
    weights[keep] = np.exp((x[keep] - x.max()) / temperature)
    return weights / weights.sum()


NUM_STREAMS = 200_000


@pytest.fixture(scope="module")
def streams() -> tuple[torch.Tensor, torch.Tensor]:
    """The first uniform number of each of many streams, from small to large, and whose it is."""
    words = torch.zeros(NUM_STREAMS, 5, dtype=torch.int64)
    words[:, 0] = 5
    words[:, 2] = torch.arange(NUM_STREAMS)
    return definition.uniform(words, torch.zeros(NUM_STREAMS, dtype=torch.int64)).sort()


@pytest.mark.parametrize("settings", [s for s in SETTINGS if "penalty_decay" not in s], ids=str)
def test_distribution(settings, streams):
    """Uniform numbers just before and after the places where one token's share ends and the next one's begins.

    The cumulative distribution is right there to 1e-4, which frequencies could not show.
    """
    numbers, rows = streams
    logits = torch.randn(1, 10)
    p = expected_probabilities(logits[0], **settings)
    ends = np.cumsum(p)[p > 0][:-1]
    if len(ends) > 4:
        ends = ends[np.random.default_rng(0).choice(len(ends), 4, replace=False)]
    wanted = torch.from_numpy(np.concatenate([[2e-5, 1 - 2e-5], ends - 2e-5, ends + 2e-5]))
    found = torch.searchsorted(numbers, wanted).clamp(max=NUM_STREAMS - 1)
    expected = np.searchsorted(np.cumsum(p), numbers[found].numpy(), side="right")
    assert (numbers[found] - wanted).abs().max() < 1e-4
    tables = SlotTables(len(found), Vocabulary.plain(10), CPU)
    for slot, row in enumerate(rows[found].tolist()):
        tables.assign([slot], [request(settings, [1], row=row)])
    index = torch.arange(len(found), dtype=torch.int32, device=DEVICE)
    token_ids, logprobs = sample(logits.repeat(len(found), 1).to(DEVICE), index, to_device(tables), None)
    assert token_ids.tolist() == expected.tolist()
    assert (logprobs.cpu() - logits[0].double().log_softmax(0)[expected]).abs().max() < 2e-6


def test_frequencies():
    """Chi-square over tokens, of draws at many positions of many streams."""
    probabilities = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2])
    counts = torch.zeros(5)
    tables = SlotTables(32, Vocabulary.plain(5), CPU)
    for slot in range(32):
        tables.assign([slot], [request({}, [1], row=slot)])
    twin = to_device(tables)
    logits = probabilities.log().repeat(32, 1).to(DEVICE)
    for _ in range(6):
        token_ids, _ = sample(logits, torch.arange(32, dtype=torch.int32, device=DEVICE), twin, None)
        counts += torch.bincount(token_ids.cpu(), minlength=5)
    expected = counts.sum() * probabilities
    assert ((counts - expected) ** 2 / expected).sum() < 18.5  # exceeded once in a thousand


def test_ties():
    """Top-k keeps the lowest ids of equal logits, top-p all of them; greedy takes the first; 0 and -0 are equal."""
    logits = torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0, -0.0, -1.0, -9.0]).repeat(6, 1)
    settings: list[dict[str, Any]] = [
        dict(top_k=3),
        dict(top_p=0.5),
        dict(top_k=3, top_p=0.5),
        dict(top_k=6),
        dict(top_k=5),
        dict(min_p=0.35),
    ]
    slots = Slots(Vocabulary.plain(8), settings)
    support = [set[int]() for _ in settings]
    for _ in range(6):
        for row, token in enumerate(slots.step(logits)[0].tolist()):
            support[row].add(token)
    allowed = [{0, 1, 2}, {0, 1, 2, 3}, {0, 1, 2}, {0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 4}, {0, 1, 2, 3}]
    assert all(got <= want for got, want in zip(support, allowed, strict=True))
    greedy = Slots(Vocabulary.plain(8), [dict(temperature=0.0)] * 2)
    zeros = torch.tensor([-1.0, -0.0, 0.0, -1, -1, -1, -1, -1]).repeat(2, 1)
    assert greedy.step(zeros)[0].tolist() == [1, 1]


def test_all_logits_equal(monkeypatch):
    """Thousands of ties in the cut, and all of them near the top."""
    monkeypatch.setattr(module, "CAP", 64)
    slots = Slots(Vocabulary.plain(200), [dict(top_k=150), dict(top_p=0.5), dict()])
    for _ in range(2):
        slots.step(torch.zeros(3, 200))


@pytest.mark.parametrize("value", [-torch.inf, torch.nan, torch.inf])
@pytest.mark.parametrize("where", [slice(None), slice(17, 18)], ids=["everywhere", "once"])
def test_logits_that_are_no_numbers(value, where):
    """A row with nothing to sample gives token 0; NaN or infinite logits give a log-probability that is not finite."""
    settings = [SETTINGS[i] for i in (0, 2, 3, 7, 9, 16)]
    slots = Slots(vocabulary(100), settings)
    logits = random_logits(np.random.default_rng(0), len(settings), 100)
    logits[:, where] = value
    token_ids, logprobs = slots.step(logits)
    if value == -torch.inf and where == slice(17, 18):
        assert logprobs.isfinite().all()
        assert 17 not in token_ids
    else:
        assert token_ids.eq(0).all()
        assert not logprobs.isfinite().any()


def test_rows_in_which_everything_is_banned():
    settings: list[dict[str, Any]] = [
        dict(allowed_token_ids=[7, 9], bad_token_ids=[7, 9], **SETTINGS[i]) for i in (0, 2, 3, 7)
    ]
    slots = Slots(Vocabulary.plain(70), settings)
    token_ids, logprobs = slots.step(random_logits(np.random.default_rng(0), 4, 70))
    assert token_ids.tolist() == [0] * 4
    assert logprobs.isfinite().all()


def test_a_vocabulary_of_one_token():
    slots = Slots(Vocabulary.plain(1), [SETTINGS[i] for i in (0, 2, 3, 7, 9)], prompt=[0])
    token_ids, logprobs = slots.step(torch.randn(5, 1))
    assert token_ids.tolist() == [0] * 5
    assert logprobs.tolist() == [0.0] * 5


def test_vocabularies_whose_masses_would_overflow_are_refused():
    assert unsupported_reason(DEVICE, torch.float32, {"V": module.MAX_V}) is None
    assert "larger than" in str(unsupported_reason(DEVICE, torch.float32, {"V": module.MAX_V + 1}))
    assert module.MAX_V * sample_cut.ONE.value < 2**63
    assert math.exp(-sample_cut.FAR.value) * sample_cut.ONE.value < 1
    assert module.TILE % module.CHUNK == 0
