"""Processed log-probabilities equal those of a plain float64 computation, one row at a time, over several steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rwkv_batch.engine.logprobs import TopLogprobs
from rwkv_batch.engine.request import Request
from rwkv_batch.engine.sampler import Sampler
from rwkv_batch.engine.slot_tables import Vocabulary
from rwkv_batch.engine.source import Pulled
from rwkv_batch.ops import resolve
from rwkv_batch.sampling_params import SamplingParams

V = 41
CPU = torch.device("cpu")
OPS = {backend: resolve(Sampler.OPS, backend, CPU, torch.float32, {"V": V}) for backend in ("auto", "reference")}
VOCABULARY = Vocabulary(torch.arange(V) % 11 == 10, torch.arange(V) % 7 == 3)
PROMPT = [1, 5, 5]
STEPS = 3
ERROR = 8e-6
"""Largest error of a log-probability at temperature 1: penalties and biases are four roundings of a logit below 32, in
float32, and a log-probability is a difference of two logits. The temperature divides the error too."""

ids = st.lists(st.integers(0, V - 1), max_size=4)
params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.05, 0.7, 1.0, 2.0]),
    top_p=st.sampled_from([1.0, 0.9, 0.4, 0.0]),
    top_k=st.sampled_from([0, 1, 5, 30]),
    min_p=st.sampled_from([0.0, 0.05]),
    presence_penalty=st.sampled_from([0.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.25]),
    repetition_penalty=st.sampled_from([1.0, 1.5]),
    penalty_decay=st.sampled_from([1.0, 0.5]),
    min_tokens=st.sampled_from([0, 2]),
    stop_token_ids=ids,
    logit_bias=st.dictionaries(st.integers(0, V - 1), st.sampled_from([-2.0, 3.0]), max_size=3),
    allowed_token_ids=st.none() | st.just([*range(2, 30)]),
    bad_token_ids=ids,
    top_p_order=st.sampled_from(["standard", "rwkv"]),
    logprobs=st.just(6),
)


class Reference:
    """One sequence in float64: what the documentation says, written plainly."""

    def __init__(self, params):
        self.params = params
        self.counts = {}
        self.prompt = set(PROMPT) if params.repetition_penalty != 1 else set()
        self.position = 0

    def logprobs(self, logits):
        """[V] float64, -inf for what cannot be drawn."""
        p, x = self.params, logits.astype(np.float64).copy()
        for token in self.prompt | self.counts.keys():
            x[token] = x[token] / p.repetition_penalty if x[token] > 0 else x[token] * p.repetition_penalty
            x[token] -= self.counts.get(token, 0.0) * p.frequency_penalty
            x[token] -= p.presence_penalty * (token in self.counts)
        for token, bias in (p.logit_bias or {}).items():
            x[token] += bias
        banned = {*p.bad_token_ids, *VOCABULARY.unsampleable.nonzero()[:, 0].tolist()}
        if self.position < p.min_tokens:
            banned |= {0, *p.stop_token_ids}
        if p.allowed_token_ids is not None:
            banned |= set(range(V)) - set(p.allowed_token_ids)
        x[sorted(banned)] = -np.inf
        if p.temperature == 0:
            return log_softmax(x)
        kept = self.kept(np.exp(log_softmax(x if p.top_p_order == "rwkv" else x / p.temperature)), x)
        return log_softmax(np.where(kept, x / p.temperature, -np.inf))

    def kept(self, probabilities, x):
        p = self.params
        order = np.lexsort((np.arange(V), -x))
        kept = np.zeros(V, bool)
        kept[order[: p.top_k or V]] = True
        kept &= probabilities >= p.min_p * probabilities.max()
        if p.top_p < 1:
            masses = np.where(kept, probabilities, 0) / probabilities[kept].sum()
            masses = probabilities if p.top_p_order == "rwkv" else masses
            before = np.cumsum(masses[order])
            last = order[min(int((before < p.top_p).sum()), V - 1)]
            kept &= x >= x[last]
        return kept

    def accept(self, token):
        p = self.params
        self.counts = {known: count * p.penalty_decay for known, count in self.counts.items()}
        skipped = p.top_p_order == "rwkv" and bool(VOCABULARY.uncounted[token])
        self.counts[token] = self.counts.get(token, 0.0) + (not skipped)
        self.position += 1


def log_softmax(x):
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


@pytest.mark.parametrize("backend", OPS)
@given(chosen=st.lists(params, min_size=1, max_size=3), seed=st.integers(0, 2**31))
def test_they_are_those_of_the_distribution_that_is_drawn_from(backend, chosen, seed):
    count = len(chosen)
    sampler = Sampler(count, VOCABULARY, CPU, OPS[backend], logprobs_mode="processed_logprobs")
    sampler.assign(range(count), [Request(i, PROMPT, each, seed=seed, row=i) for i, each in enumerate(chosen)])
    references = [Reference(each) for each in chosen]
    generator = torch.Generator().manual_seed(seed)
    slots = np.arange(count)
    for _ in range(STEPS):
        model = 3 * torch.randn(count, V, generator=generator)
        logits = model.clone()
        sampler.reserve(slots)
        token_ids, logprobs = sampler.draw(logits, torch.from_numpy(slots).int())
        top = sampler.top(logits, torch.from_numpy(slots), token_ids, logprobs, sampler.most_asked(slots))
        sampled = sampler.copy_to_host(slots, token_ids, logprobs, None, slots, TopLogprobs(top)).read()
        for row, reference in enumerate(references):
            expected, token = reference.logprobs(model[row].numpy()), int(token_ids[row])
            error = ERROR / (reference.params.temperature or 1.0)
            assert sampled.logprobs[row] == pytest.approx(expected[token], abs=error)
            check_top(sampled.top[row], expected, token, error)
            reference.accept(token)


def check_top(found, expected, token, error):
    likely = np.sort(-expected)
    np.testing.assert_allclose(found.top_logprobs, -likely[:6], rtol=0, atol=error)
    np.testing.assert_allclose(expected[found.top_ids], -likely[:6], rtol=0, atol=error)
    assert abs(likely[found.rank - 1] + expected[token]) <= error


def test_a_token_at_the_limit_of_a_filter_that_the_kernel_has_drawn_counts_as_kept():
    """The kernel's sums are rounded otherwise than these: what was drawn had a probability above 0."""
    from rwkv_batch.engine.processed import ProcessedLogits

    sampler = Sampler(1, Vocabulary.plain(V), CPU, OPS["auto"], logprobs_mode="processed_logprobs")
    sampler.assign([0], [Request(0, [1], SamplingParams(top_k=2))])
    logits = torch.arange(V).float()[None]
    logprobs = ProcessedLogits(logits.clone(), torch.tensor([0]), sampler.tables).replace(
        logits, torch.tensor([V - 3]), OPS["auto"]
    )
    assert logprobs[0].item() == pytest.approx(log_softmax(np.array([0.0, 1.0, 2.0]))[0], abs=ERROR)
    assert logits[0].isfinite().sum() == 3


def test_the_model_s_numbers_that_are_not_finite_stay_so():
    sampler = Sampler(1, Vocabulary.plain(V), CPU, OPS["auto"], logprobs_mode="processed_logprobs")
    sampler.assign([0], [Request(0, [1], SamplingParams())])
    sampler.reserve(np.array([0]))
    assert not sampler.draw(torch.full((1, V), torch.nan), torch.tensor([0], dtype=torch.int32))[1].isfinite().any()


@pytest.mark.parametrize(("mode", "are_recorded"), [("raw_logprobs", True), ("processed_logprobs", False)])
def test_steps_are_not_recorded(make_engine, mode, are_recorded):
    """What is computed beside the op has shapes that depend on the numbers."""
    engine = make_engine(record_steps=True, logprobs_mode=mode)
    request = Request(0, [1, 2], SamplingParams(max_tokens=5, ignore_eos=True))
    (completion,) = engine.generate(Pulled([request]))
    assert len(completion.token_ids) == 5 and (engine.stats.recorded_steps > 0) == are_recorded
