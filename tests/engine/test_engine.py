"""The whole engine over a fake model: a request gives the same tokens in any company, order and size of batch."""

import itertools
from collections import Counter

import pytest
import torch
from fake_model import VOCAB, HashModel
from hypothesis import given
from hypothesis import strategies as st

from rwkv_batch.engine.decode_graph import DecodeGraphs, bucket_sizes
from rwkv_batch.engine.engine import Engine
from rwkv_batch.engine.request import END_OF_TEXT, Completion, Request
from rwkv_batch.engine.slot_tables import Vocabulary
from rwkv_batch.errors import CapacityError
from rwkv_batch.sampling_params import SamplingParams


def run(requests, **settings):
    engine = Engine(HashModel(), Vocabulary.plain(VOCAB), **{"max_batch_size": 4, "max_batch_tokens": 16} | settings)
    completions = {}
    for completion in engine.generate(iter(requests)):
        engine.check_integrity()
        assert completion.key not in completions
        completions[completion.key] = completion
    engine.check_integrity()
    assert engine.pool.num_free == engine.pool.num_slots
    return completions


def outcome(completion):
    return (
        completion.token_ids,
        completion.token_logprobs,
        completion.finish_reason,
        completion.stop_reason,
        [entry.logprob for entry in completion.prompt_scores],
        [entry.top_ids for entry in completion.logprobs],
    )


PARAMS = [
    SamplingParams(max_tokens=6),
    SamplingParams(max_tokens=9, temperature=0.0),
    SamplingParams(max_tokens=5, top_p=0.7, presence_penalty=0.4, penalty_decay=0.9),
    SamplingParams(max_tokens=7, top_k=3, logprobs=2),
    SamplingParams(max_tokens=12, min_tokens=6, stop_token_ids=[7, 9, 11]),
    SamplingParams(max_tokens=4, logit_bias={3: 5.0}, bad_token_ids=[1, 2], repetition_penalty=1.3),
    SamplingParams(max_tokens=0),
    SamplingParams(max_tokens=8, allowed_token_ids=[4, 5, 6], top_p=0.5, top_p_order="rwkv", temperature=1.4),
]

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
def test_company_does_not_change_results(rows, slots, extra_tokens, host_snapshots, sharing, ahead, graphs, order):
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
    together = run(requests, **sizes, prefix_sharing=sharing, run_ahead=ahead, decode_graphs=graphs)
    assert {key: outcome(completion) for key, completion in together.items()} == alone


def test_samples_of_a_row_differ_and_repeat():
    requests = [Request(i, [1, 2, 3], SamplingParams(max_tokens=8), row=0, sample=i) for i in range(5)]
    first, second = run(requests), run(requests)
    assert len({tuple(c.token_ids) for c in first.values()}) == 5
    assert {k: c.token_ids for k, c in first.items()} == {k: c.token_ids for k, c in second.items()}


def test_prompts_of_several_samples_are_computed_once(make_engine):
    engine = make_engine()
    requests = [Request(i, list(range(40)), SamplingParams(max_tokens=2), row=0, sample=i) for i in range(6)]
    list(engine.generate(requests))
    assert engine.stats.requested_tokens == 240
    assert engine.stats.prompt_tokens == 39 + 6


def test_requests_are_pulled_when_slots_are_free(make_engine):
    engine = make_engine()
    pulled = itertools.count()

    def endless():
        for row in pulled:
            yield Request(row, [1, 2], SamplingParams(max_tokens=3), row=row)

    completions = engine.generate(endless())
    for _ in range(1000):
        next(completions)
    completions.close()
    assert next(pulled) <= 1000 + 2 * engine.window
    engine.check_integrity()
    assert engine.pool.num_free == engine.pool.num_slots


def test_an_engine_serves_again_after_being_closed_early(make_engine):
    engine = make_engine()
    requests = [Request(row, [row], SamplingParams(max_tokens=5), row=row) for row in range(9)]
    completions = engine.generate(requests)
    next(completions)
    completions.close()
    again = {c.key: c.token_ids for c in engine.generate(requests)}
    assert again == {c.key: c.token_ids for c in run(requests).values()}


def test_windows_without_requests_pass_completions_through(make_engine):
    engine = make_engine()
    bad = [Completion(Request(("bad", i), [], SamplingParams()), finish_reason="error") for i in range(700)]
    good = Request("good", [3], SamplingParams(max_tokens=2))
    keys = [completion.key for completion in engine.generate([*bad, good, *bad])]
    assert len(keys) == 1401
    assert "good" in keys


class Crowded(HashModel):
    """Runs out of memory with more than `limit` rows in a step, after some steps have gone well."""

    def __init__(self, limit, error):
        self.limit, self.error, self.steps = limit, error, 0

    def forward(self, token_ids, rows, layers):
        self.steps += 1
        if self.steps > 3 and rows.num_rows > self.limit:
            layers[0].hash.fill_(99)  # a failed step leaves half-written states behind
            raise self.error
        return super().forward(token_ids, rows, layers)


@pytest.mark.parametrize("run_ahead", [False, True])
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[enforce] can't allocate memory: 9 bytes")]
)
def test_out_of_memory_halves_the_slots_and_loses_nothing(error, run_ahead, caplog):
    requests = [
        Request((row, sample), [row % 3] * 20 + [row], PARAMS[row % len(PARAMS)], row=row, sample=sample)
        for row in range(20)
        for sample in range(2)
    ]
    sizes = dict(max_batch_size=16, max_batch_tokens=64)
    engine = Engine(Crowded(5, error), Vocabulary.plain(VOCAB), **sizes, run_ahead=run_ahead)
    found = {completion.key: outcome(completion) for completion in engine.generate(requests)}
    assert found == {key: outcome(completion) for key, completion in run(requests).items()}
    assert engine.pool.num_slots == engine.stats.max_batch_size == 4
    engine.check_integrity()
    assert sum("out of memory" in message for message in caplog.messages) == 2
    assert engine.scheduler.max_batch_tokens == 16


def test_out_of_memory_with_one_slot_is_said():
    engine = Engine(Crowded(0, MemoryError()), Vocabulary.plain(VOCAB), max_batch_size=2, max_batch_tokens=8)
    with pytest.raises(CapacityError, match="with a single token in a step: MemoryError"):
        list(engine.generate([Request(0, [1], SamplingParams(max_tokens=9, ignore_eos=True))]))


def test_long_chunks_that_do_not_fit_become_shorter():
    class Narrow(HashModel):
        def forward(self, token_ids, rows, layers):
            if len(token_ids) > 20:
                raise torch.OutOfMemoryError("too many tokens")
            return super().forward(token_ids, rows, layers)

    request = Request(0, list(range(64)), SamplingParams(max_tokens=5))
    engine = Engine(Narrow(), Vocabulary.plain(VOCAB), max_batch_size=8, max_batch_tokens=64)
    found = [outcome(completion) for completion in engine.generate([request])]
    assert found == [outcome(run([request])[0])]


def test_out_of_memory_while_copying_states_loses_nothing():
    """Two prefixes are ready in the same step; the copy of the second one's state fails, once."""
    requests = [
        Request((p, row), [p] * 20 + [row], SamplingParams(max_tokens=3), row=10 * p + row)
        for p in (1, 2)
        for row in range(3)
    ]
    engine = Engine(HashModel(), Vocabulary.plain(VOCAB), max_batch_size=8, max_batch_tokens=64)
    record, calls = engine.pool.record, []

    def failing(slot):
        calls.append(slot)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("no room for a copy")
        return record(slot)

    engine.pool.record = failing
    found = {completion.key: outcome(completion) for completion in engine.generate(requests)}
    assert len(calls) == 2
    assert found == {key: outcome(completion) for key, completion in run(requests).items()}


class Alternating:
    """A constraint that must see every token before it can say what may follow: even and odd ids take turns."""

    def __init__(self):
        self.last = 1

    def allowed(self, mask):
        mask[1 - self.last % 2 :: 2] = True
        mask[0] = False

    def accept(self, token_id):
        assert token_id % 2 != self.last % 2
        self.last = token_id


@pytest.mark.parametrize("run_ahead", [False, True])
def test_constraints_see_every_token_before_the_next_is_drawn(run_ahead):
    """Constrained rows come and go among others, which need not wait once those are gone."""
    requests = [
        Request(
            row, [row], SamplingParams(max_tokens=3 + row % 4), row=row, new_constraint=Alternating if row % 3 else None
        )
        for row in range(24)
    ]
    found = run(requests, run_ahead=run_ahead)
    assert {key: outcome(c) for key, c in found.items()} == {key: outcome(c) for key, c in run(requests).items()}
    for row, completion in found.items():
        parities = [token_id % 2 for token_id in completion.token_ids]
        assert row % 3 == 0 or parities == [i % 2 for i in range(len(parities))]


def test_running_ahead_reads_results_a_step_late(make_engine):
    engine = make_engine(run_ahead=True)
    list(engine.generate([Request(0, [1], SamplingParams(max_tokens=5, ignore_eos=True))]))
    assert engine.stats.steps == 5  # the end by length is known beforehand
    stopped = Request(0, [1], SamplingParams(max_tokens=50, logit_bias={END_OF_TEXT: 100.0}))
    (completion,) = engine.generate([stopped])
    assert completion.token_ids == [END_OF_TEXT]
    assert engine.stats.steps == 5 + 2  # the step launched before the end was seen


def test_steps_are_recorded_again_when_tables_have_grown(monkeypatch):
    """Lists of seen ids grow while others decode; a step recorded with the old ones would go on reading those."""
    recorded = []
    record = DecodeGraphs._record
    monkeypatch.setattr(DecodeGraphs, "_record", lambda graphs, size: recorded.append(size) or record(graphs, size))
    steady = [
        Request(row, [row], SamplingParams(max_tokens=60, presence_penalty=0.5, ignore_eos=True), row=row)
        for row in range(2)
    ]
    params = SamplingParams(max_tokens=9, repetition_penalty=1.4, frequency_penalty=0.3, ignore_eos=True)
    wide = [Request(9, [*reversed(range(VOCAB)), 5], params, row=9)]
    requests = [*steady, Request(5, [1] * 9, SamplingParams(max_tokens=20, ignore_eos=True), row=5), *wide]
    settings = dict(max_batch_size=3, max_batch_tokens=8, run_ahead=True)
    found = run(requests, **settings, decode_graphs=True)
    assert max(Counter(recorded).values()) == 2
    assert {key: outcome(c) for key, c in found.items()} == {key: outcome(c) for key, c in run(requests).items()}


@pytest.mark.parametrize(("most", "sizes"), [(1, [1]), (2, [1, 2]), (100, [1, 2, 4, 8, 16, 32, 64, 96, 100])])
def test_recorded_sizes_end_with_the_largest(most, sizes):
    assert bucket_sizes(most) == sizes


def test_one_iterator_at_a_time(make_engine):
    engine = make_engine()
    requests = [Request(row, [row], SamplingParams(max_tokens=5), row=row) for row in range(9)]
    outer = engine.generate(requests)
    first = next(outer)
    with pytest.raises(RuntimeError, match="serving another iterator"):
        next(engine.generate(requests))
    rest = list(outer)
    assert sorted(c.key for c in [first, *rest]) == list(range(9))
    assert len(list(engine.generate(requests))) == 9


def test_an_idle_source_does_not_stall_what_runs(make_engine):
    """The source has nothing more until the first result is out."""
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

    engine = Engine(Overflowing(), Vocabulary.plain(VOCAB), max_batch_size=4, max_batch_tokens=16)
    requests = [Request(row, [row], SamplingParams(max_tokens=6, ignore_eos=True), row=row) for row in range(12)]
    reasons = {completion.finish_reason for completion in engine.generate(requests)}
    assert "error" in reasons
    engine.check_integrity()


def test_other_failures_pass_through():
    engine = Engine(Crowded(0, RuntimeError("shape")), Vocabulary.plain(VOCAB), max_batch_size=2, max_batch_tokens=8)
    with pytest.raises(RuntimeError, match="shape"):
        list(engine.generate([Request(0, [1], SamplingParams(max_tokens=9, ignore_eos=True))]))
    engine.check_integrity()


def test_end_of_text_stops_unless_ignored():
    params = dict(max_tokens=5, logit_bias={END_OF_TEXT: 100.0})
    stopped = run([Request(0, [1], SamplingParams(**params))])[0]
    assert (stopped.token_ids, stopped.finish_reason, stopped.stop_reason) == ([0], "stop", END_OF_TEXT)
    ignored = run([Request(0, [1], SamplingParams(**params, ignore_eos=True))])[0]
    assert (ignored.token_ids, ignored.finish_reason, ignored.stop_reason) == ([0] * 5, "length", None)
    delayed = run([Request(0, [1], SamplingParams(**params, min_tokens=3))])[0]
    assert len(delayed.token_ids) == 4
    assert 0 not in delayed.token_ids[:3]


def test_stop_tokens_are_reported():
    completion = run([Request(0, [1], SamplingParams(max_tokens=5, stop_token_ids=[8], logit_bias={8: 100.0}))])[0]
    assert (completion.token_ids, completion.finish_reason, completion.stop_reason) == ([8], "stop", 8)


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
