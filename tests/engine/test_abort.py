"""Aborted requests: their slots are free at the next step, and the results of all other requests are unchanged."""

import pytest
from fakes.model import check_bookkeeping, make_engine, outcome, run

from rwkv_batch.engine.request import Request
from rwkv_batch.engine.source import Pulled
from rwkv_batch.sampling_params import SamplingParams

LONG = SamplingParams(max_tokens=200, ignore_eos=True)
SHORT = SamplingParams(max_tokens=4, ignore_eos=True)
BOTH_WAYS = pytest.mark.parametrize("run_ahead", [False, True])


def serve(engine, requests, aborts):
    """Serves requests and returns key → completion. `aborts` maps the number of a step to keys to abort after it."""
    found = {}
    for number, finished in enumerate(engine.run(Pulled(requests))):
        for completion in finished:
            assert completion.key not in found
            found[completion.key] = completion
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
