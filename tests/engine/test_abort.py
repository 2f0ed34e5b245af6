"""Aborted requests: their slots are free at the next step, and the results of all other requests are unchanged."""

import pytest
import torch
from fakes.constraint import RowByRow
from fakes.model import PARAMS, VOCAB, HashModel, check_bookkeeping, make_engine, outcome, run
from hypothesis import given
from hypothesis import strategies as st

from rwkv_batch.engine.request import Request
from rwkv_batch.engine.source import Pulled
from rwkv_batch.sampling_params import SamplingParams

LONG = SamplingParams(max_tokens=200, ignore_eos=True)
SHORT = SamplingParams(max_tokens=4, ignore_eos=True)
BOTH_WAYS = pytest.mark.parametrize("run_ahead", [False, True])


def serve(engine, requests, aborts, per_sample=False):
    """Serves requests and returns key → completion. `aborts` maps the number of a step to keys to abort after it.

    With `per_sample` the result's keys are (key, sample).
    """
    found = {}
    for number, finished in enumerate(engine.run(Pulled(requests))):
        for completion in finished:
            key = (completion.key, completion.request.sample) if per_sample else completion.key
            assert key not in found
            found[key] = completion
        for key in aborts.get(number, ()):
            engine.abort(key)
        check_bookkeeping(engine)
    return found


@BOTH_WAYS
def test_slots_of_aborted_requests_are_free_at_the_next_step(run_ahead):
    engine = make_engine(run_ahead=run_ahead)
    requests = [Request(row, [row + 1], LONG, row=row) for row in range(4)] + [Request("next", [9], SHORT, row=9)]
    found = serve(engine, requests, {2: range(4)})
    assert engine.stats.steps < 12
    assert [found[row].finish_reason for row in range(4)] == ["abort"] * 4
    whole = run(requests[:4])
    for row in range(4):
        assert 1 <= len(found[row].token_ids) <= 3
        assert found[row].token_ids.tolist() == whole[row].token_ids[: len(found[row].token_ids)].tolist()
    assert outcome(found["next"]) == outcome(run(requests[4:])["next"])


@BOTH_WAYS
def test_waiting_requests_are_aborted_too(run_ahead):
    requests = [Request(row, [row + 1], SHORT if row % 2 else LONG, row=row) for row in range(12)]
    found = serve(make_engine(run_ahead=run_ahead), requests, {0: range(0, 12, 2)})
    assert {key: c.finish_reason for key, c in found.items()} == {
        row: "length" if row % 2 else "abort" for row in range(12)
    }
    alone = run([request for request in requests if request.key % 2])
    assert {key: outcome(c) for key, c in alone.items()} == {key: outcome(found[key]) for key in alone}


@BOTH_WAYS
@pytest.mark.parametrize("step", range(8))
@pytest.mark.parametrize("slots", [1, 2, 6])
def test_requests_below_shared_prefixes_are_aborted_at_any_step(slots, step, run_ahead):
    """Children that wait for a prefix, a prefix that serves a request itself, prefixes that lose all their requests."""
    header, only_scored = [1] * 20, SamplingParams(max_tokens=0)
    requests = [
        Request("header", header, only_scored, row=0, next_token_ids=(3, 7)),
        *(Request(("below", i), [*header, *[2] * 12, i], SHORT, row=1 + i) for i in range(3)),
        *(Request(("sample", i), [*header, 5], SHORT, row=9, sample=i) for i in range(3)),
        Request("alone", [9, 8, 7], SHORT, row=10),
    ]
    expected = {key: outcome(completion) for key, completion in run(requests).items()}
    for aborted in (["header"], [("below", i) for i in range(3)], [("sample", 1), ("below", 2)], list(expected)):
        engine = make_engine(max_batch_size=slots, max_batch_tokens=12, run_ahead=run_ahead)
        found = serve(engine, requests, {step: aborted})
        assert found.keys() == expected.keys()
        for key, completion in found.items():
            if completion.finish_reason == "abort":
                assert key in aborted
            else:
                assert outcome(completion) == expected[key]
        assert engine.pool.num_free == slots and not len(engine.snapshots)


def test_unknown_keys_are_ignored():
    engine = make_engine()
    engine.abort("nothing")
    assert serve(engine, [Request(0, [1], SHORT)], {0: ["nothing", 7]})[0].finish_reason == "length"


def test_a_trie_deeper_than_the_recursion_limit_can_be_aborted():
    """Each prompt is the beginning of the next one."""
    prompt = [1 + i % 7 for i in range(8 * 1200)]
    requests = [Request(i, prompt[: 8 * (i + 1)], SHORT, row=i) for i in range(1200)]
    engine = make_engine(max_batch_size=2, max_batch_tokens=4096)
    engine.admission.window = 2400
    found = {}
    for finished in engine.run(Pulled(requests)):
        found |= {completion.key: completion.finish_reason for completion in finished}
        if engine.stats.steps == 1:
            for i in range(3, 1200):
                engine.abort(i)
    assert [found[i] for i in range(1200)] == ["length"] * 3 + ["abort"] * 1197


@BOTH_WAYS
def test_a_prefix_that_is_being_computed_ends_with_its_last_request(run_ahead):
    """The prompt of 4,000 tokens is read in chunks, as a prefix of the row's three samples."""
    samples = [Request("samples", [1] * 4000, SHORT, row=0, sample=sample) for sample in range(3)]
    after = Request("after", [2] * 9, SHORT, row=1)
    engine = make_engine(max_batch_size=1, max_batch_tokens=32, run_ahead=run_ahead)
    found = serve(engine, [*samples, after], {3: ["samples"]}, per_sample=True)
    assert engine.stats.steps < 12
    assert {found["samples", i].finish_reason for i in range(3)} == {"abort"}
    assert outcome(found["after", 0]) == outcome(run([after])["after"])


class Failing(HashModel):
    """A model that runs out of memory once, in step number `at`."""

    def __init__(self, at):
        self.at, self.steps = at, 0

    def forward(self, token_ids, rows, layers):
        self.steps += 1
        if self.steps == self.at:
            raise torch.OutOfMemoryError("once")
        return super().forward(token_ids, rows, layers)


@BOTH_WAYS
def test_a_prefix_that_restarts_does_not_serve_its_aborted_request_again(run_ahead):
    """The prompt of "header" is the prefix of three others. It is aborted in step 1, and step 3 runs out of memory."""
    header, only_scored = [1] * 40, SamplingParams(max_tokens=0)
    below = [Request(i, [*header, i], SHORT, row=i) for i in range(3)]
    requests = [Request("header", header, only_scored, row=9, next_token_ids=(3, 7)), *below]
    found = serve(make_engine(Failing(3), max_batch_tokens=8, run_ahead=run_ahead), requests, {1: ["header"]})
    assert found.pop("header").finish_reason == "abort"
    assert {i: outcome(found[i]) for i in found} == {i: outcome(each) for i, each in run(below).items()}


class Odd:
    """A constraint: odd tokens only."""

    batch = RowByRow(VOCAB)

    def allowed(self, mask):
        mask.fill_(False)
        mask[1::2] = True

    def accept(self, token_id):
        assert token_id % 2


ROWS = st.lists(
    st.tuples(
        st.integers(0, 1),  # the token that the prompt repeats
        st.sampled_from([1, 9, 20, 20, 40]),  # how often: prompts share prefixes, and some are prefixes of others
        st.sampled_from([(), (), (2,), (2, 3, 4)]),  # the prompt's end
        st.sampled_from(PARAMS),
        st.integers(1, 3),  # samples
        st.sampled_from(["", "", "scores", "next", "context", "constraint"]),
    ),
    min_size=1,
    max_size=10,
)


def requests_of(rows):
    """The requests of each row, which have the row's number as their key."""
    return [
        [
            Request(
                row,
                [token] * count + list(end),
                SamplingParams(max_tokens=0) if kind == "context" else params,
                row=row,
                sample=sample,
                score_start=1 if kind == "scores" and sample == 0 else None,
                next_token_ids=(3, 7) if kind in ("next", "context") and sample == 0 else (),
                new_constraint=Odd if kind == "constraint" else None,
            )
            for sample in range(samples)
        ]
        for row, (token, count, end, params, samples, kind) in enumerate(rows)
    ]


def keys_of(node):
    """The keys of the requests at and below a node of the prefix trie."""
    if isinstance(node, Request):
        return {node.key}
    return set().union({node.request.key} if node.request is not None else set(), *map(keys_of, node.children))


def results(completions):
    """(key, sample) → completion. Asserts that each comes once."""
    found = {(completion.key, completion.request.sample): completion for completion in completions}
    assert len(found) == len(completions)
    return found


@given(
    rows=ROWS,
    aborts=st.dictionaries(st.integers(0, 12), st.sets(st.integers(0, 9)), min_size=1, max_size=4),
    slots=st.integers(1, 6),
    extra=st.integers(1, 20),
    run_ahead=st.booleans(),
    failing=st.integers(0, 12),
    window=st.sampled_from([2, 8, 256]),
)
def test_aborts_at_random_moments_change_nothing_else(rows, aborts, slots, extra, run_ahead, failing, window):
    """Whatever is aborted and when, out of memory included: all other results are those of a run without the rows."""
    requests = requests_of(rows)
    engine = make_engine(Failing(failing), max_batch_size=slots, max_batch_tokens=slots + extra, run_ahead=run_ahead)
    engine.admission.window = window
    completions, aborted = [], set()
    for number, finished in enumerate(engine.run(Pulled(requests))):
        check_bookkeeping(engine)
        completions += finished
        held = [keys_of(sequence.node) for sequence in (*engine.scheduler.running, *engine.scheduler.waiting)]
        assert all(held)  # a prefix that no request needs has no slot
        assert not aborted & set().union(*held)
        now = aborts.get(number, set())
        aborted |= now & set().union(*held)
        for row in now:
            engine.abort(row)
    assert engine.pool.num_free == engine.pool.num_slots and not len(engine.snapshots)
    assert engine.snapshots.num_reserved == engine.admission.num_waiting == 0
    found, expected = results(completions), {}
    for is_aborted in (False, True):  # the aborted rows, and the others without them
        some = [row for row in requests if (row[0].key in aborted) == is_aborted]
        expected |= results(list(make_engine(max_batch_size=8, max_batch_tokens=64).generate(Pulled(some))))
    assert found.keys() == expected.keys()
    ended = {key for key in found if found[key].finish_reason == "abort"}
    assert {row for row, _ in ended} == aborted
    for key, completion in found.items():
        tokens = completion.token_ids.tolist()
        if key in ended:
            assert tokens == expected[key].token_ids.tolist()[: len(tokens)]
        else:  # also a sample that had finished when the rest of its row was aborted
            assert outcome(completion) == outcome(expected[key])
