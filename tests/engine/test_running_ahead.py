"""Running ahead: results are read one step late, and must not reach a sequence that has taken the slot meanwhile."""

from typing import Any

import pytest
import torch
from fakes.constraint import Alternating
from fakes.model import PARAMS, VOCAB, HashModel, check_bookkeeping, make_engine, outcome, run

from rwkv_batch.engine.request import END_OF_TEXT, Request
from rwkv_batch.engine.source import Pulled
from rwkv_batch.sampling_params import SamplingParams

BOTH_WAYS = pytest.mark.parametrize("run_ahead", [False, True])
WITH_GRAPHS = pytest.mark.parametrize("record_steps", [False, True])


def check_alone(requests, **settings):
    """Asserts that every request has the result that it has alone, and returns the completions by key."""
    found = run(requests, **settings)
    alone = {request.key: outcome(run([request])[request.key]) for request in requests}
    assert {key: outcome(completion) for key, completion in found.items()} == alone
    return found


def stopped_early(key, **settings):
    """A request of up to fifty tokens that ends with its first token, token 8."""
    params = SamplingParams(max_tokens=50, stop_token_ids=[8], logit_bias={8: 100.0}, **settings)
    return Request(key, [1], params, row=key)


@BOTH_WAYS
def test_constraints_see_every_token_before_the_next_is_drawn(run_ahead):
    """Some rows are constrained."""
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


def test_running_ahead_reads_results_a_step_late():
    engine = make_engine(run_ahead=True)
    list(engine.generate(Pulled([Request(0, [1], SamplingParams(max_tokens=5, ignore_eos=True))])))
    assert engine.stats.steps == 5  # an end by length is known before the last result
    stopped = Request(0, [1], SamplingParams(max_tokens=50, logit_bias={END_OF_TEXT: 100.0}))
    (completion,) = engine.generate(Pulled([stopped]))
    assert completion.token_ids.tolist() == [END_OF_TEXT]
    assert engine.stats.steps == 5 + 2  # the step launched before the end was seen


@BOTH_WAYS
@WITH_GRAPHS
@pytest.mark.parametrize("slots", [1, 2])
def test_a_constraint_sees_the_tokens_of_its_own_sequence_only(slots, run_ahead, record_steps):
    """The slot's former sequence was stopped while one more step of it was in flight."""
    seen = []

    class Following(Alternating):
        def accept(self, token_id):
            super().accept(token_id)
            seen.append(token_id)

    constrained = Request(9, [2, 3], SamplingParams(max_tokens=8, ignore_eos=True), row=9, new_constraint=Following)
    requests = [*map(stopped_early, range(slots)), constrained]
    found = run(requests, max_batch_size=slots, run_ahead=run_ahead, record_steps=record_steps)
    assert len(found[9].token_ids) == 8
    assert seen == found[9].token_ids.tolist()[:-1]  # nothing is sampled after the last one


@BOTH_WAYS
@WITH_GRAPHS
def test_a_step_whose_rows_have_all_ended_is_dropped(run_ahead, record_steps):
    requests = [*map(stopped_early, range(3)), Request(9, [2], SamplingParams(max_tokens=4), row=9)]
    check_alone(requests, max_batch_size=1, run_ahead=run_ahead, record_steps=record_steps)


@BOTH_WAYS
def test_alternatives_of_a_row_that_has_ended_reach_no_other(run_ahead):
    """Row 1 ends while one more step of it is in flight. Row 2, without alternatives, takes its slot."""
    with_alternatives = SamplingParams(max_tokens=60, logprobs=2, ignore_eos=True)
    without = SamplingParams(max_tokens=8, ignore_eos=True)
    requests = [
        Request(0, [1], with_alternatives, row=0),
        stopped_early(1, logprobs=2),
        Request(2, [3], without, row=2),
    ]
    found = check_alone(requests, max_batch_size=2, run_ahead=run_ahead)
    assert [len(found[key].logprobs or ()) for key in range(3)] == [60, 1, 0]


@BOTH_WAYS
def test_each_row_has_as_many_alternatives_as_it_asks_for(run_ahead):
    """Rows sample their first tokens at different steps, because their prompts are fed in chunks."""
    requests = [
        Request(row, [row + 1] * length, SamplingParams(max_tokens=6, logprobs=count, ignore_eos=True), row=row)
        for row, (length, count) in enumerate([(1, 2), (30, 5), (45, 0), (60, None), (3, VOCAB + 9)])
    ]
    found = check_alone(requests, max_batch_size=5, run_ahead=run_ahead)
    shown = [[len(entry.top_ids) for entry in found[row].logprobs or ()] for row in range(5)]
    assert shown == [[2] * 6, [5] * 6, [0] * 6, [], [VOCAB] * 6]


@BOTH_WAYS
def test_alternatives_of_a_step_whose_rows_have_all_ended_are_dropped(run_ahead):
    check_alone([stopped_early(key, logprobs=2) for key in range(3)], max_batch_size=1, run_ahead=run_ahead)


@BOTH_WAYS
def test_stop_tokens_of_one_row_end_no_other_row(run_ahead):
    endless = SamplingParams(max_tokens=20, ignore_eos=True, logit_bias={END_OF_TEXT: 100.0})
    several = SamplingParams(max_tokens=6, stop_token_ids=[50, 51, 52, 53, 54])
    requests = [Request(0, [1], endless, row=0), stopped_early(1), Request(2, [3], several, row=2)]
    found = check_alone(requests, max_batch_size=2, run_ahead=run_ahead)
    assert found[0].token_ids.tolist() == [END_OF_TEXT] * 20


@BOTH_WAYS
@WITH_GRAPHS
def test_penalties_of_a_former_sequence_do_not_apply_in_its_slot(run_ahead, record_steps):
    """The second prompt has more distinct ids than the first sequence has seen."""
    strong: dict[str, Any] = dict(presence_penalty=3.0, frequency_penalty=2.0, repetition_penalty=1.8, ignore_eos=True)
    requests = [
        Request(0, [5, 6, 7], SamplingParams(max_tokens=20, **strong), row=0),
        Request(1, list(range(VOCAB - 1, 10, -1)), SamplingParams(max_tokens=20, **strong), row=1),
    ]
    check_alone(requests, max_batch_size=1, run_ahead=run_ahead, record_steps=record_steps)


@BOTH_WAYS
def test_equal_contexts_that_are_only_scored_give_equal_results_when_shared(run_ahead):
    only_scored = SamplingParams(max_tokens=0)
    requests = [Request(row, [4] * 20, only_scored, row=row, next_token_ids=(3, 7 + row)) for row in range(3)]
    shared, apart = (run(requests, run_ahead=run_ahead, prefix_sharing=sharing) for sharing in (True, False))
    assert {key: outcome(c) for key, c in shared.items()} == {key: outcome(c) for key, c in apart.items()}


@BOTH_WAYS
def test_a_row_that_is_not_finite_keeps_as_many_alternatives_as_tokens(run_ahead):
    class BreaksAtThree(HashModel):
        """A model whose logits after token 3 are NaN."""

        def forward(self, token_ids, rows, layers):
            hidden = super().forward(token_ids, rows, layers)
            return torch.cat((hidden, token_ids[:, None]), 1)

        def logits(self, hidden, out=None):
            logits = super().logits(hidden[:, :1], out)
            logits[hidden[:, 1] == 3] = float("nan")
            return logits

    params = SamplingParams(max_tokens=30, logprobs=2, ignore_eos=True, allowed_token_ids=[2, 3, 4, 5])
    requests = [Request(row, [row + 4], params, row=row) for row in range(6)]
    found = run(requests, model=BreaksAtThree(), run_ahead=run_ahead)
    assert {completion.finish_reason for completion in found.values()} == {"error"}
    for completion in found.values():
        assert completion.token_ids[-1] == 3
        assert len(completion.token_ids) == len(completion.token_logprobs) == len(completion.logprobs)


@BOTH_WAYS
def test_closing_early_leaves_nothing_behind(run_ahead):
    requests = [Request(row, [row % 3] * 20 + [row], PARAMS[row % len(PARAMS)], row=row) for row in range(24)]
    engine = make_engine(run_ahead=run_ahead)
    for num_taken in (1, 5):
        completions = engine.generate(Pulled(requests))
        for _ in range(num_taken):
            next(completions)
            check_bookkeeping(engine)
        completions.close()
        check_bookkeeping(engine)
        assert engine.scheduler.is_idle and not len(engine.snapshots)
    again = {completion.key: outcome(completion) for completion in engine.generate(Pulled(requests))}
    assert again == {key: outcome(completion) for key, completion in run(requests).items()}
