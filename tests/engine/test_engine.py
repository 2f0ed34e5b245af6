"""The whole engine over a fake model: a request gives the same tokens in any batch, order and batch size."""

import itertools
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from fakes.model import PARAMS, HashModel, make_engine, outcome, run
from hypothesis import given
from hypothesis import strategies as st

from rwkv_batch.engine.request import END_OF_TEXT, Request
from rwkv_batch.engine.source import Pulled
from rwkv_batch.sampling_params import SamplingParams

REQUESTS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 3), min_size=1, max_size=30),
        st.sampled_from(range(len(PARAMS))),
        st.integers(1, 3),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=12,
)


@given(
    rows=REQUESTS,
    slots=st.integers(1, 9),
    extra_tokens=st.integers(0, 20),
    host_snapshots=st.integers(0, 3),
    sharing=st.booleans(),
    ahead=st.booleans(),
    graphs=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_results_do_not_depend_on_the_batch(rows, slots, extra_tokens, host_snapshots, sharing, ahead, graphs, order):
    requests = [
        Request(
            (row, sample),
            prompt,
            PARAMS[which],
            row=row,
            sample=sample,
            score_start=1 if scored == 1 else None,
            next_token_ids=(3, 7) if scored == 2 else (),
        )
        for row, (prompt, which, n, scored) in enumerate(rows)
        for sample in range(n)
    ]
    alone = {request.key: outcome(run([request])[request.key]) for request in requests}
    order.shuffle(requests)
    sizes = dict(max_batch_size=slots, max_batch_tokens=slots + extra_tokens, prefix_host_bytes=64 * host_snapshots)
    together = run(requests, **sizes, prefix_sharing=sharing, run_ahead=ahead, record_steps=graphs)
    assert {key: outcome(completion) for key, completion in together.items()} == alone


def test_samples_of_a_row_differ_and_repeat():
    requests = [Request(i, [1, 2, 3], SamplingParams(max_tokens=8), row=0, sample=i) for i in range(5)]
    first, second = run(requests), run(requests)
    assert len({tuple(c.token_ids) for c in first.values()}) == 5
    assert {k: c.token_ids.tolist() for k, c in first.items()} == {k: c.token_ids.tolist() for k, c in second.items()}


def test_prompts_of_several_samples_are_computed_once(make_engine):
    engine = make_engine()
    requests = [Request(i, list(range(40)), SamplingParams(max_tokens=2), row=0, sample=i) for i in range(6)]
    list(engine.generate(Pulled(requests)))
    assert engine.stats.requested_tokens == 240
    assert engine.stats.prompt_tokens == 39 + 6


def test_requests_are_pulled_when_slots_are_free(make_engine):
    engine = make_engine()
    pulled = itertools.count()

    def endless():
        for row in pulled:
            yield Request(row, [1, 2], SamplingParams(max_tokens=3), row=row)

    completions = engine.generate(Pulled(endless()))
    for _ in range(1000):
        next(completions)
    completions.close()
    assert next(pulled) <= 1000 + 2 * engine.window
    engine.check_integrity()
    assert engine.pool.num_free == engine.pool.num_slots


def test_an_engine_serves_again_after_being_closed_early(make_engine):
    engine = make_engine()
    requests = [Request(row, [row], SamplingParams(max_tokens=5), row=row) for row in range(9)]
    completions = engine.generate(Pulled(requests))
    next(completions)
    completions.close()
    again = {c.key: c.token_ids.tolist() for c in engine.generate(Pulled(requests))}
    assert again == {c.key: c.token_ids.tolist() for c in run(requests).values()}


def test_a_source_may_give_nothing_for_a_while(make_engine):
    """For example, all of its rows were bad. The engine yields an empty list to its caller, and asks again."""
    engine = make_engine()

    class Slow:
        def __init__(self):
            self.calls = 0
            self.is_ended = False

        def has_ready(self, count):
            return False

        def take(self, most, wait):
            self.calls += 1
            self.is_ended = self.calls == 8
            return [Request("good", [3], SamplingParams(max_tokens=2))] if self.calls == 5 else []

    steps = list(engine.run(Slow()))
    assert [completion.key for finished in steps for completion in finished] == ["good"]
    assert steps[:4] == [[]] * 4


def test_the_current_device_is_the_engines_in_a_step_and_the_callers_between(make_engine, monkeypatch):
    inside = []

    @contextmanager
    def guard(device):
        inside.append(device)
        yield
        inside.pop()

    class Watching(HashModel):
        def forward(self, token_ids, rows, layers):
            assert inside == [self.device]
            return super().forward(token_ids, rows, layers)

    monkeypatch.setattr("rwkv_batch.engine.engine.current_device", guard)
    requests = [Request(row, [1], SamplingParams(max_tokens=3)) for row in range(9)]
    for _ in make_engine(Watching()).generate(Pulled(requests)):
        assert inside == []


def test_a_second_iterator_is_refused_while_one_is_open(make_engine):
    engine = make_engine()
    requests = [Request(row, [row], SamplingParams(max_tokens=5), row=row) for row in range(9)]
    outer = engine.generate(Pulled(requests))
    first = next(outer)
    with pytest.raises(RuntimeError, match="serving another iterator"):
        next(engine.generate(Pulled(requests)))
    rest = list(outer)
    assert sorted(c.key for c in [first, *rest]) == list(range(9))
    assert len(list(engine.generate(Pulled(requests)))) == 9


def test_an_idle_source_does_not_stall_running_sequences(make_engine):
    """The source gives its next request only after the first result."""
    engine = make_engine()
    results = []

    class Patient:
        is_ended = False

        def has_ready(self, count):
            return False

        def take(self, most, wait):
            if not results:
                assert not wait or not started
                return [] if started else started.append(1) or [Request(0, [1], SamplingParams(max_tokens=3))]
            self.is_ended = True
            return []

    started = []
    for completion in engine.generate(Patient()):
        results.append(completion)
    assert len(results) == 1


def test_numbers_that_are_not_finite_end_the_row_with_an_error():
    class Overflowing(HashModel):
        def logits(self, hidden, out=None):
            logits = super().logits(hidden, out)
            logits[hidden[:, 0] % 2 == 0] = float("nan")
            return logits

    engine = make_engine(Overflowing(), max_batch_size=4, max_batch_tokens=16)
    requests = [Request(row, [row], SamplingParams(max_tokens=6, ignore_eos=True), row=row) for row in range(12)]
    reasons = {completion.finish_reason for completion in engine.generate(Pulled(requests))}
    assert "error" in reasons
    engine.check_integrity()


@pytest.mark.parametrize("max_tokens", [0, 4])
@pytest.mark.parametrize("run_ahead", [False, True])
def test_scores_that_are_not_finite_end_their_own_row_with_an_error(max_tokens, run_ahead):
    """Prompt tokens of all rows are scored in the same step. The score of token 3 is NaN."""

    class Broken(HashModel):
        def score(self, hidden, targets, rows):
            own, is_greedy = super().score(hidden, targets, rows)
            return own.masked_fill(targets == 3, float("nan")), is_greedy

    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    tokens = [2, 3, 5, 3]
    requests = [Request(row, [1, token, 4], params, row=row, score_start=1) for row, token in enumerate(tokens)]
    found = run(requests, Broken(), run_ahead=run_ahead)
    expected = ["error" if token == 3 else "length" for token in tokens]
    assert [found[row].finish_reason for row in range(4)] == expected


def test_end_of_text_stops_unless_ignored():
    params: dict[str, Any] = dict(max_tokens=5, logit_bias={END_OF_TEXT: 100.0})
    stopped = run([Request(0, [1], SamplingParams(**params))])[0]
    assert (stopped.token_ids.tolist(), stopped.finish_reason, stopped.stop_reason) == ([0], "stop", END_OF_TEXT)
    ignored = run([Request(0, [1], SamplingParams(**params, ignore_eos=True))])[0]
    assert (ignored.token_ids.tolist(), ignored.finish_reason, ignored.stop_reason) == ([0] * 5, "length", None)
    delayed = run([Request(0, [1], SamplingParams(**params, min_tokens=3))])[0]
    assert len(delayed.token_ids) == 4
    assert [completion.text_tokens for completion in (stopped, ignored, delayed)] == [0, 5, 3]
    assert 0 not in delayed.token_ids[:3]


def test_stop_tokens_are_reported():
    completion = run([Request(0, [1], SamplingParams(max_tokens=5, stop_token_ids=[8], logit_bias={8: 100.0}))])[0]
    assert (completion.token_ids.tolist(), completion.finish_reason, completion.stop_reason) == ([8], "stop", 8)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_scores_do_not_depend_on_chunks(chunk):
    request = Request(0, list(range(20)), SamplingParams(max_tokens=0), score_start=5)
    scores = run([request], max_batch_tokens=max(chunk, 4))[0].prompt_scores
    model = HashModel()
    engine_free = []
    state = 0
    for token_id, following in itertools.pairwise(range(20)):
        state = (state * 1103515245 + token_id + 12345) % 2**31
        logits = model.logits(torch.tensor([[state]]))[0].double()
        engine_free.append((logits - logits.logsumexp(0))[following].item())
    assert [entry.logprob for entry in scores] == pytest.approx(engine_free[4:], abs=1e-6)
