"""Serving: which rows are finished, when, and in what form. The engine has a fake model."""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest
from fakes.model import VOCAB, HashModel, make_engine
from hypothesis import given
from hypothesis import strategies as st
from served_rows import LONG, SHORT, Free, constrained, make_serving, make_slow, row, serve, tokens

from rwkv_batch.engine.request import Request
from rwkv_batch.engine.source import Pulled
from rwkv_batch.errors import RowError
from rwkv_batch.llm import LLM
from rwkv_batch.rows import ErrorRow, GenerateRow, RowInFlight, ScoreRow
from rwkv_batch.sampling_params import SamplingParams

KINDS = st.sampled_from(["generate", "samples", "score", "nothing", "error", "unbuildable"])


@given(st.lists(st.lists(KINDS, max_size=6), max_size=6))
def test_every_row_is_finished_once_and_in_its_form(kinds):
    serving, engine = make_serving()
    rows, batches = {}, []
    for batch in kinds:
        batches.append([])
        for kind in batch:
            key = len(rows)
            made = {
                "generate": row(key),
                "samples": row(key, SamplingParams(n=3, max_tokens=2)),
                "score": ScoreRow(key, 0, [1], [[2, 3], [], [4]]),
                "nothing": ScoreRow(key, 0, [1], [[]]),
                "error": ErrorRow(key, 0, RowError("bad_type", "given")),
                "unbuildable": row(key, prompt=[VOCAB]),
            }[kind]
            rows[key] = kind
            batches[-1].append(made)
    found = serve(serving, *batches)
    assert sorted(found) == sorted(rows)
    for key, kind in rows.items():
        one = found[key]
        if kind in ("error", "unbuildable"):
            assert isinstance(one, ErrorRow)
            assert one.error.code == {"error": "bad_type", "unbuildable": "token_out_of_range"}[kind]
            continue
        assert isinstance(one, RowInFlight) and one.is_complete
        samples = [completion.request.sample for completion in one.completions]
        assert samples == {"generate": [0], "samples": [0, 1, 2], "score": [0, 1], "nothing": []}[kind]
    engine.check_integrity()


def test_results_are_those_of_the_engine(serving):
    request = Request("key", [1, 2, 3], SHORT, row=7)
    (expected,) = make_engine().generate(Pulled([request]))
    (completion,) = serve(serving, [row("a")])["a"].completions
    assert completion.token_ids.tolist() == expected.token_ids.tolist()
    assert completion.token_logprobs.tolist() == expected.token_logprobs.tolist()


def test_scores_are_those_of_every_continuation_alone(serving):
    continuations = [[5], [6, 7, 8], [], [9], [6, 7], [5]]
    together = serve(serving, [ScoreRow("all", 0, [1, 2], continuations)])["all"]
    found = together.scoring.of_continuations(together.completions)
    for ids, scores in zip(continuations, found, strict=True):
        alone = serve(serving, [ScoreRow("one", 0, [1, 2], [ids])])["one"]
        (expected,) = alone.scoring.of_continuations(alone.completions)
        assert scores.logprobs.tolist() == expected.logprobs.tolist()
        assert len(scores) == len(ids)


def test_rows_that_need_no_computing_are_finished_at_once(serving):
    """Such rows do not wait for the next batch: they are yielded before the input gives another one."""
    gate = threading.Event()

    def batches():
        yield [ErrorRow("bad", 0, RowError("bad_type", "given")), ScoreRow("empty", 0, [1], [[]])]
        assert gate.wait(60)
        yield [row("good")]

    lists = serving.run(batches())
    first = next(lists)
    assert [one.key for one in first] == ["bad", "empty"]
    gate.set()
    assert [one.key for finished in lists for one in finished] == ["good"]


def test_an_error_row_is_finished_while_others_run(serving):
    lists = serving.run([[row("long", LONG), ErrorRow("bad", 0, RowError("bad_type", "given"))]])
    assert [one.key for one in next(lists)] == ["bad"]
    lists.close()


def test_a_row_is_served_before_the_next_one_has_come(serving):
    rows = queue.Queue()
    rows.put([row(0)])
    count = 0
    for finished in serving.run(iter(rows.get, None)):
        for _ in finished:
            count += 1
            rows.put([row(count)] if count < 5 else None)
    assert count == 5


def test_an_exception_of_the_input_comes_behind_the_rows_before_it():
    serving, engine = make_serving()
    found = []

    def batches():
        yield [row("first")]
        while not found:
            time.sleep(0.001)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        for finished in serving.run(batches()):
            found += finished
    assert [one.key for one in found] == ["first"]
    engine.check_integrity()
    assert len(serve(serving, [row("next")])) == 1


def test_a_call_with_stop_at_error_ends_at_the_first_error_row(serving):
    """The rows before the error row are finished; the rows after it do not start."""
    rows = [row(i) for i in range(20)]
    for bad in (ErrorRow("bad", 0, RowError("bad_type", "given")), row("bad", prompt=[-1])):
        found = serve(serving, rows[:6], [*rows[6:10], bad, *rows[10:]], stop_at_error=True)
        assert set(found) == {*range(10), "bad"}


def test_numbers_that_are_not_finite_are_an_error_row():
    class Broken(HashModel):
        def logits(self, hidden, out=None):
            logits = super().logits(hidden, out)
            logits[:] = float("nan")
            return logits

        def score(self, hidden, targets, rows):
            own, is_greedy = super().score(hidden, targets, rows)
            return own * float("nan"), is_greedy

    serving, _ = make_serving(Broken())
    found = serve(serving, [row("generated"), ScoreRow("scored", 0, [1], [[2, 3]])])
    assert {key: one.error.code for key, one in found.items()} == dict.fromkeys(("generated", "scored"), "not_finite")
    assert (found["generated"].prompt_tokens, found["scored"].num_continuations) == (0, 1)
    rows = [[row(i)] for i in range(100)]
    assert len(serve(serving, *rows, stop_at_error=True)) < 100


def test_scores_that_are_not_finite_are_an_error_row_for_every_kind_of_score():
    """Scores of a prompt, of a context, and of a continuation. The log-probabilities of sampled tokens are finite."""

    class Broken(HashModel):
        def score(self, hidden, targets, rows):
            own, is_greedy = super().score(hidden, targets, rows)
            return own * float("nan"), is_greedy

    rows = [
        row("prompt", SamplingParams(max_tokens=2, prompt_logprobs=0)),
        ScoreRow("context", 0, [1, 2], [[]], prompt_logprobs=0),
        ScoreRow("continuation", 0, [1, 2], [[3]]),
        row("unscored"),
    ]
    found = serve(make_serving(Broken())[0], rows)
    assert isinstance(found.pop("unscored"), RowInFlight)
    assert {key: one.error.code for key, one in found.items()} == dict.fromkeys(
        ("prompt", "context", "continuation"), "not_finite"
    )


def test_prompts_may_be_arrays(serving):
    found = serve(serving, [row("list"), GenerateRow("array", 7, np.array([1, 2, 3], np.uint16), SHORT)])
    assert tokens(found)["list"] == tokens(found)["array"]


def test_rows_of_many_samples_are_read_when_they_are_needed():
    """The prefetch is limited in requests: 30 rows of 300 samples are not all read before the first result."""
    read = []

    def rows():
        for i in range(30):
            read.append(i)
            yield GenerateRow(i, i, [1, 2, i], SamplingParams(n=300, max_tokens=1))

    with LLM("demo", device="cpu", max_batch_size=64) as llm:
        results = llm.serve(rows())
        next(results)
        assert len(read) <= 6
        assert len(list(results)) == 29


def test_a_row_whose_constraint_is_compiling_lets_others_pass():
    serving, engine, compiled = make_slow()
    lists = serving.run([[constrained("slow", "a"), constrained("bad", "b"), row("free")], [row("next")]])
    found = [one.key for one in next(lists)]
    while len(found) < 2:
        found += [one.key for one in next(lists)]
    assert sorted(found) == ["free", "next"]
    compiled["b"].set_exception(RowError("constraint_too_large", "regex: compiling takes too long"))
    (bad,) = next(lists)
    assert (bad.key, bad.error.code, bad.prompt_tokens) == ("bad", "constraint_too_large", 0)
    compiled["a"].set_result(Free())
    (slow,) = (one for finished in lists for one in finished)
    assert slow.key == "slow" and len(slow.completions[0].token_ids) == 3
    engine.check_integrity()


def test_a_call_ends_at_once_while_constraints_are_compiling():
    serving, _, _ = make_slow()
    lists = serving.run([[constrained("slow", "a"), row("free")]])
    assert [one.key for one in next(lists)] == ["free"]
    lists.close()
    assert set(serve(serving, [row("after")])) == {"after"}


def test_with_stop_at_error_no_row_passes_a_constraint_that_is_compiling():
    serving, _, compiled = make_slow()
    rows = [row("first"), constrained("bad", "b"), row("never"), constrained("known", "known")]
    lists = serving.run([rows, [row("nor this")]], stop_at_error=True)
    assert [one.key for one in next(lists)] == ["first"]
    compiled["b"].set_exception(RowError("bad_sampling", "regex: bad"))
    assert [one.key for finished in lists for one in finished] == ["bad"]


def test_a_row_whose_steps_take_too_much_work_is_an_error_row():
    serving, _, compiled = make_slow()
    compiled["a"] = Future()

    class Slow(Free):
        def begin(self, work, permitted):
            work.is_exceeded = True
            return super().begin(work, permitted)

    compiled["a"].set_result(Slow())
    found = serve(serving, [constrained("slow", "a"), row("free")])
    assert found["slow"].error.code == "constraint_too_large"
    assert "too much work" in found["slow"].error.message
    assert isinstance(found["free"], RowInFlight)


def test_rows_ahead_are_bounded_in_bytes(monkeypatch):
    """A long prompt takes as much of the windows as many short ones: 1,000 token ids hold 40 kB."""
    monkeypatch.setattr("rwkv_batch.serving.WINDOW_BYTES", 160_000)
    serving, engine = make_serving()
    assert engine.window > 100
    made = []

    def batches():
        for key in range(100):
            made.append(key)
            yield [row(key, SamplingParams(max_tokens=0), prompt=[1] * 1000)]

    most = done = 0
    for finished in serving.run(batches()):
        done += len(finished)
        most = max(most, len(made) - done)
    assert done == 100
    assert most < 40
