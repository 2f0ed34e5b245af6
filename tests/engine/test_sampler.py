"""The sampler: frequencies equal ChatRWKV's sampler's, and each setting has its effect."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rwkv_batch.cpu_kernels.build import unavailable
from rwkv_batch.cpu_kernels.log_normalizer import log_normalizer as native_log_normalizer
from rwkv_batch.engine.logprobs import TopLogprobs
from rwkv_batch.engine.request import Request
from rwkv_batch.engine.sampler import Sampler
from rwkv_batch.engine.slot_tables import Vocabulary
from rwkv_batch.models.scoring import log_normalizer
from rwkv_batch.ops import resolve
from rwkv_batch.sampling_params import SamplingParams

VOCAB = 97
CPU = torch.device("cpu")
OPS = resolve(Sampler.OPS, "auto", CPU, torch.float32, {})


def sample(sampler, logits, slots):
    """Samples one token for each row, and reads the results."""
    sampler.reserve(slots)
    sampler.constrain(slots)
    token_ids, logprobs = sampler.draw(logits, torch.from_numpy(slots).int())
    rows = np.flatnonzero(sampler.returns_logprobs[slots])
    count = sampler.most_asked(slots[rows])
    top = TopLogprobs(sampler.top(logits, torch.from_numpy(rows), token_ids, logprobs, count))
    return sampler.copy_to_host(slots, token_ids, logprobs, None, rows, top if len(rows) else None).read()


def draw(logits, params, count=1, vocabulary=None, num_steps=1, constraint=None, ops=OPS):
    """Samples rows with equal logits and different random streams: ids [count, num_steps], and the last result."""
    sampler = Sampler(count, vocabulary or Vocabulary.plain(logits.shape[-1]), CPU, ops)
    new_constraint = None if constraint is None else lambda: constraint
    requests = [Request(slot, [1], params, seed=3, row=slot, new_constraint=new_constraint) for slot in range(count)]
    sampler.assign(range(count), requests)
    columns = []
    for _ in range(num_steps):
        result = sample(sampler, logits.expand(count, -1).clone(), np.arange(count))
        columns.append(result.token_ids)
    return np.array(columns).T, result


@pytest.mark.parametrize(
    "settings",
    [
        dict(temperature=1.0, top_p=0.85, top_k=0),
        dict(temperature=0.6, top_p=0.5, top_k=0),
        dict(temperature=2.0, top_p=0.9, top_k=5),
        dict(temperature=1.3, top_p=0.999, top_k=7),
        dict(temperature=0.0, top_p=0.3, top_k=0),
    ],
    ids=str,
)
def test_frequencies_follow_chatrwkv(settings, oracle):
    """A chi-square test of 4000 draws against the distribution that the `rwkv` package would draw from."""
    logits = torch.randn(VOCAB) * 2.5
    want = oracle("4").sample(logits, **settings).double().numpy()
    ids, _ = draw(logits, SamplingParams(**settings, top_p_order="rwkv"), count=4000)
    counts = np.bincount(ids[:, 0], minlength=VOCAB)
    assert counts[want == 0].sum() == 0
    expected = 4000 * want
    common = expected >= 5
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    expected[-1] = max(expected[-1], 1e-9)
    chi_square = ((observed - expected) ** 2 / expected)[expected > 1e-6].sum()
    freedom = max((expected > 1e-6).sum() - 1, 1)
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom) + 4


def test_logprobs_are_those_of_the_model():
    """Temperature, filters, penalties and biases do not change the reported log-probabilities."""
    logits = torch.randn(1, VOCAB) * 3
    params = SamplingParams(
        temperature=0.3, top_k=2, presence_penalty=1.0, logit_bias={5: 50.0}, logprobs=4, bad_token_ids=[7]
    )
    ids, result = draw(logits, params)
    exact = logits[0].double().log_softmax(0)
    assert ids[0, 0] == 5
    assert result.logprobs[0] == pytest.approx(exact[5].item(), abs=1e-6)
    (entry,) = result.top
    assert entry.logprob == pytest.approx(exact[5].item(), abs=1e-6)
    assert entry.rank == 1 + int((exact > exact[5]).sum())
    assert entry.top_ids == exact.topk(4).indices.tolist()
    assert entry.top_logprobs == pytest.approx(exact.topk(4).values.tolist(), abs=1e-6)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_equal_logits_rank_by_id(backend):
    logits = torch.tensor([[5.0, 5.0, 1.0, 5.0]])
    ops = resolve(Sampler.OPS, backend, CPU, torch.float32, {})
    _, result = draw(logits, SamplingParams(logprobs=2, logit_bias={3: 50.0}, temperature=0.0), ops=ops)
    (entry,) = result.top
    assert (entry.top_ids, entry.rank) == ([0, 1], 3)


def test_penalties_leave_banned_prompt_tokens_alone():
    vocabulary = Vocabulary(torch.arange(VOCAB) == 40, torch.zeros(VOCAB, dtype=torch.bool))
    sampler = Sampler(1, vocabulary, CPU, OPS)
    sampler.assign([0], [Request(0, [40, 3], SamplingParams(temperature=0.0, repetition_penalty=1.2))])
    logits = torch.zeros(1, VOCAB)
    logits[0, [40, 7]] = torch.tensor([90.0, 30.0])
    assert sample(sampler, logits, np.array([0])).token_ids == [7]


def test_a_neighbor_with_penalties_changes_no_bit():
    """A neighbor with penalties makes its own normalizer unknown. The row's total for top-p must not change."""
    plain, other = SamplingParams(top_p=0.5), SamplingParams(top_p=0.5, presence_penalty=0.3, temperature=0.7)
    for seed in range(40):
        logits = torch.randn(2, 300, generator=torch.Generator().manual_seed(seed)) * 2
        results = []
        for neighbor in (plain, other):
            sampler = Sampler(2, Vocabulary.plain(300), CPU, OPS)
            sampler.assign([0], [Request(0, [1], plain, seed=seed)])
            sampler.assign([1], [Request(1, [1], neighbor, seed=seed)])
            results.append(sample(sampler, logits.clone(), np.arange(2)).token_ids[0])
        assert results[0] == results[1]


def test_ids_without_bytes_are_never_sampled():
    unsampleable = torch.arange(VOCAB) % 2 == 1
    vocabulary = Vocabulary(unsampleable, torch.zeros(VOCAB, dtype=torch.bool))
    logits = torch.where(unsampleable, 10.0, 0.0)[None]
    for params in (SamplingParams(), SamplingParams(temperature=0.0), SamplingParams(top_p=0.5)):
        ids, _ = draw(logits, params, count=50, vocabulary=vocabulary)
        assert (ids % 2 == 0).all()


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("share", [0.1, 0.4, 0.6, 0.95, 1 - 1e-7])
def test_top_p_is_a_share_of_what_can_be_sampled(share, backend):
    """Ids without bytes hold a part of the probability. Of the rest, 0.4 + 0.3 is the first sum above 0.65."""
    probabilities = torch.zeros(VOCAB, dtype=torch.float64)
    probabilities[:4] = (1 - share) * torch.tensor([0.4, 0.3, 0.2, 0.1])
    probabilities[10] = share
    vocabulary = Vocabulary(torch.arange(VOCAB) == 10, torch.zeros(VOCAB, dtype=torch.bool))
    ops = resolve(Sampler.OPS, backend, CPU, torch.float32, {})
    logits, params = probabilities.log().float()[None], SamplingParams(top_p=0.65)
    ids, _ = draw(logits, params, count=200, vocabulary=vocabulary, ops=ops)
    assert set(ids[:, 0]) == {0, 1}


def test_only_allowed_tokens_are_sampled():
    ids, _ = draw(torch.zeros(1, VOCAB), SamplingParams(allowed_token_ids=[3, 50]), count=60)
    assert set(ids[:, 0]) == {3, 50}


def test_presence_penalty_applies_to_digits_but_they_are_not_counted():
    """In ChatRWKV a generated digit is a seen id with a count of zero."""
    uncounted = torch.arange(VOCAB) == 9
    vocabulary = Vocabulary(torch.zeros(VOCAB, dtype=torch.bool), uncounted)
    logits = torch.zeros(1, VOCAB)
    logits[0, 9] = 50.0
    logits[0, 10] = 45.0
    only_frequency = SamplingParams(temperature=0.0, frequency_penalty=6.0, top_p_order="rwkv")
    ids, _ = draw(logits, only_frequency, vocabulary=vocabulary, num_steps=3)
    assert ids[0].tolist() == [9, 9, 9]
    standard = SamplingParams(temperature=0.0, frequency_penalty=6.0)
    assert draw(logits, standard, vocabulary=vocabulary, num_steps=2)[0][0].tolist() == [9, 10]
    presence = SamplingParams(temperature=0.0, presence_penalty=6.0, top_p_order="rwkv")
    assert draw(logits, presence, vocabulary=vocabulary, num_steps=2)[0][0].tolist() == [9, 10]


def test_min_tokens_delays_every_stop():
    logits = torch.zeros(1, VOCAB)
    logits[0, [0, 13]] = 100.0
    logits[0, 20] = 50.0
    params = SamplingParams(temperature=0.0, min_tokens=2, stop_token_ids=[13])
    assert draw(logits, params, num_steps=3)[0][0].tolist() == [20, 20, 0]


def test_a_new_sequence_inherits_nothing_from_its_slot():
    sampler = Sampler(1, Vocabulary.plain(VOCAB), CPU, OPS)
    heavy = SamplingParams(
        temperature=0.0,
        presence_penalty=9.0,
        logit_bias={4: 30.0},
        min_tokens=9,
        allowed_token_ids=[4, 5],
        stop_token_ids=[2],
        logprobs=3,
    )
    logits = torch.randn(1, VOCAB)

    def drawn(sampler):
        tokens = sample(sampler, logits.clone(), np.array([0]))
        return tokens.token_ids.tolist(), tokens.logprobs.tolist(), tokens.top

    plain = Request(0, [1], SamplingParams(), seed=11, row=2)
    sampler.assign([0], [plain])
    want = [drawn(sampler) for _ in range(4)]
    sampler.assign([0], [Request(0, [1], heavy)])
    for _ in range(3):
        sample(sampler, logits.clone(), np.array([0]))
    sampler.assign([0], [plain])
    assert [drawn(sampler) for _ in range(4)] == want


@pytest.mark.parametrize("vocab", [1, 63, 64, 257, 5000])
def test_normalizers_equal_logsumexp_in_float64(vocab):
    logits = torch.randn(7, vocab) * 20
    want = logits.double().logsumexp(1)
    torch.testing.assert_close(log_normalizer(logits), want, rtol=0, atol=1e-5)
    if unavailable() is None:
        torch.testing.assert_close(native_log_normalizer(logits), want, rtol=0, atol=1e-5)
