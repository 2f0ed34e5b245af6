"""Rows in flight over an engine with a fake model: which rows come out, when, and in what form."""

from __future__ import annotations

import gc
import multiprocessing
import os
import queue
import signal
import threading
import time
import warnings

import numpy as np
import pytest
from fakes.model import VOCAB, HashModel, make_engine
from hypothesis import given
from hypothesis import strategies as st

from rwkv_batch.engine.request import Request
from rwkv_batch.engine.source import Pulled
from rwkv_batch.errors import RowError
from rwkv_batch.llm import LLM
from rwkv_batch.requests import RequestBuilder
from rwkv_batch.rows import ErrorRow, GenerateRow, RowInFlight, ScoreRow
from rwkv_batch.sampling_params import SamplingParams
from rwkv_batch.serving import Serving

LONG = SamplingParams(max_tokens=1500, ignore_eos=True)
SHORT = SamplingParams(max_tokens=3, ignore_eos=True)


def make_serving(model=None, **settings):
    engine = make_engine(model, **settings)
    return Serving(engine, RequestBuilder(None, VOCAB, 0, None)), engine


@pytest.fixture
def serving():
    made, engine = make_serving()
    yield made
    engine.check_integrity()
    assert engine.pool.num_free == engine.pool.num_slots


def row(key, params=SHORT, prompt=(1, 2, 3)):
    return GenerateRow(key, 7, list(prompt), params)


def serve(serving, *batches, **settings):
    """Finished rows by key; each comes once."""
    found = {}
    for finished in serving.run(batches, **settings):
        for one in finished:
            assert one.key not in found
            found[one.key] = one
    return found


KINDS = st.sampled_from(["generate", "samples", "score", "nothing", "error", "unbuildable"])


@given(st.lists(st.lists(KINDS, max_size=6), max_size=6))
def test_every_row_comes_out_once_and_as_what_it_is(kinds):
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


def test_rows_without_anything_to_compute_do_not_wait_for_others(serving):
    """Nor for a batch that has not come: the input is held back until the error row is out."""
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


def test_an_error_row_comes_out_while_others_run(serving):
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


def test_the_first_error_row_ends_a_call_that_is_to_stop(serving):
    """The rows before it are finished, none behind it starts."""
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


def test_scores_that_are_not_finite_are_an_error_row_whatever_they_belong_to():
    """Of a prompt, of a context, of a continuation; the tokens that are sampled are finite."""

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


# --- abort


def test_a_running_row_that_is_aborted_gives_the_tokens_it_has(serving):
    whole = serve(serving, [row("long", LONG)])["long"].completions[0].token_ids.tolist()
    lists = serving.run([[row("long", LONG), *(row(i) for i in range(9))]])
    found = {one.key: one for one in next(lists)}
    steps = serving._engine.stats.steps
    serving.abort("long")
    for finished in lists:
        found |= {one.key: one for one in finished}
    assert serving._engine.stats.steps - steps < 40
    (completion,) = found["long"].completions
    tokens = completion.token_ids.tolist()
    assert completion.finish_reason == "abort"
    assert 0 < len(tokens) < 40 and tokens == whole[: len(tokens)]
    assert all(found[i].completions[0].finish_reason == "length" for i in range(9))


def test_all_samples_of_a_row_are_aborted(serving):
    lists = serving.run([[row("long", SamplingParams(n=3, max_tokens=1500, ignore_eos=True)), row("short")]])
    found = next(lists)
    assert [one.key for one in found] == ["short"]
    serving.abort("long")
    ((several,),) = lists
    assert [completion.finish_reason for completion in several.completions] == ["abort"] * 3


def test_rows_that_wait_and_rows_that_have_not_come_can_be_aborted():
    """Four run for long; one waits in the engine, one is made ready, one has not been read."""
    serving, engine = make_serving()
    gate = threading.Event()

    def batches():
        yield [row(i, LONG) for i in range(8)]
        assert gate.wait(60)
        yield [row("late", LONG)]

    def abort_all():
        while serving._lock.holder is None:  # before that there is no call to abort
            time.sleep(0.001)
        time.sleep(0.01)
        for key in (*range(8), "late"):
            serving.abort(key)
        gate.set()

    lists = serving.run(batches())
    threading.Thread(target=abort_all).start()
    found = {one.key: one for finished in lists for one in finished}
    assert set(found) == {*range(8), "late"}
    assert {one.completions[0].finish_reason for one in found.values()} == {"abort"}
    assert engine.stats.steps < 1500
    engine.check_integrity()


def test_a_row_to_score_that_is_aborted_is_an_error_row(serving):
    gate = threading.Event()

    def batches():
        assert gate.wait(60)
        yield [ScoreRow("scored", 0, [1] * 200, [[2, 3], [4]]), row("other")]

    lists = serving.run(batches())

    def abort():
        while serving._lock.holder is None:
            time.sleep(0.001)
        serving.abort("scored")
        gate.set()

    threading.Thread(target=abort).start()
    found = {one.key: one for finished in lists for one in finished}
    assert (found["scored"].error.code, found["scored"].num_continuations) == ("abort", 2)
    assert found["other"].completions[0].finish_reason == "length"


def test_a_row_can_be_aborted_from_the_moment_on_that_its_call_has_its_turn(serving, monkeypatch):
    original = serving._lock.acquire

    def acquire(call):
        original(call)
        serving.abort("long")

    monkeypatch.setattr(serving._lock, "acquire", acquire)
    assert serve(serving, [row("long", LONG)])["long"].completions[0].finish_reason == "abort"


def test_to_abort_what_is_not_there_changes_nothing(serving):
    serving.abort("nothing")
    lists = serving.run([[row(i)] for i in range(20)])
    found = next(lists)
    serving.abort("nothing")
    for one in found:
        serving.abort(one.key)
    rest = [one for finished in lists for one in finished]
    assert len(found) + len(rest) == 20
    assert all(one.completions[0].finish_reason == "length" for one in [*found, *rest])
    assert serve(serving, [row(0)])[0].completions[0].finish_reason == "length"


def test_an_abort_that_comes_too_late_does_not_hit_a_later_row_of_the_same_key(serving):
    given = threading.Event()

    def batches():
        yield [row("key"), ErrorRow("error", 0, RowError("bad_type", "it is bad"))]
        assert given.wait(60)
        serving.abort("key")
        serving.abort("error")
        yield [row("key", prompt=[4]), row("error")]

    found = []
    for finished in serving.run(batches()):
        found += finished
        if len(found) == 2:
            given.set()
    reasons = [one.completions[0].finish_reason for one in found if isinstance(one, RowInFlight)]
    assert reasons == ["length"] * 3


# --- one call at a time


def tokens(found):
    return {key: one.completions[0].token_ids.tolist() for key, one in found.items()}


def test_threads_wait_for_each_other(serving):
    expected = tokens(serve(serving, [row(i, prompt=[1, i]) for i in range(12)]))
    results = queue.Queue()

    def call():
        results.put(serve(serving, [row(i, prompt=[1, i]) for i in range(12)]))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [tokens(results.get()) for _ in threads] == [expected] * 4


def test_an_open_iterator_keeps_other_threads_waiting(serving):
    lists = serving.run([[row(i)] for i in range(8)])
    found = [one.key for one in next(lists)]
    other = threading.Thread(target=lambda: found.append(list(serve(serving, [row("other")]))))
    other.start()
    other.join(0.2)
    assert other.is_alive()
    found += [one.key for finished in lists for one in finished]
    other.join()
    assert sorted(found[:-1]) == list(range(8))
    assert found[-1] == ["other"]


@pytest.mark.parametrize("how", ["closed", "dropped", "dropped in a circle"])
def test_an_iterator_that_another_thread_ends_lets_waiting_calls_run(serving, how):
    lists = serving.run([[row("long", LONG), row("short")]])
    next(lists)
    found = queue.Queue()
    other = threading.Thread(target=lambda: found.put(serve(serving, [row("other")])))
    other.start()

    def end(held):
        lists = held.pop()
        if how == "closed":
            lists.close()
        elif how == "dropped in a circle":
            lists.itself = lists
        del lists
        gc.collect()

    held = [lists]
    del lists
    third = threading.Thread(target=end, args=(held,))
    third.start()
    third.join()
    other.join()
    assert list(found.get()) == ["other"]


def test_a_dropped_iterator_has_the_engine_until_the_engine_is_free(serving, monkeypatch):
    lists = serving.run([[row("long", LONG), row("short")]])
    next(lists)
    engine, held = serving._engine, []
    original = engine._abandon

    def abandon():
        held.append(serving._lock.holder is not None)
        original()

    monkeypatch.setattr(engine, "_abandon", abandon)
    del lists
    gc.collect()
    assert (held, serving._lock.holder) == ([True], None)


def test_a_new_call_of_the_same_thread_closes_an_open_iterator_with_a_warning(serving):
    lists = serving.run([[row("long", LONG), row("short")]])
    next(lists)
    with pytest.warns(RuntimeWarning, match="left open") as caught:
        assert list(serve(serving, [row("new")])) == ["new"]
    assert caught[0].filename == __file__
    assert list(lists) == []


def test_iterators_that_were_used_up_or_closed_cause_no_warning(serving):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(serve(serving, [row("a")])) == ["a"]
        unused = serving.run([[row("never")]])
        lists = serving.run([[row("long", LONG), row("short")]])
        next(lists)
        lists.close()
        assert list(serve(serving, [row("b")])) == ["b"]
        unused.close()
        assert list(unused) == []


def test_an_iterator_left_open_by_a_thread_that_has_ended_is_closed_with_a_warning(serving):
    left = []

    def leave():
        left.append(serving.run([[row("long", LONG), row("short")]]))
        next(left[0])

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    with pytest.warns(RuntimeWarning, match="left open"):
        assert list(serve(serving, [row("new")])) == ["new"]


def test_an_iterator_may_go_from_thread_to_thread(serving):
    lists = serving.run([[row(i)] for i in range(20)])
    found = []
    while True:
        got = []
        thread = threading.Thread(target=lambda got=got: got.append(next(lists, None)))
        thread.start()
        thread.join()
        if got == [None]:
            break
        found += [one.key for one in got[0]]
    assert sorted(found) == list(range(20))


def test_rows_cannot_be_made_by_the_model_that_serves_them():
    serving, engine = make_serving()

    def batches():
        yield [row("first")]
        serve(serving, [row("nested")])

    with pytest.raises(RuntimeError, match="waits for this one"):
        list(serving.run(batches()))
    engine.check_integrity()
    assert list(serve(serving, [row("next")])) == ["next"]


def test_a_call_from_inside_a_step_is_refused(monkeypatch):
    serving, engine = make_serving()
    original = engine.step

    def step():
        original()
        serve(serving, [row("nested")])

    monkeypatch.setattr(engine, "step", step)
    with pytest.raises(RuntimeError, match="waits for this one"):
        serve(serving, [row("outer")])
    monkeypatch.undo()
    assert list(serve(serving, [row("next")])) == ["next"]


def test_an_interrupt_while_waiting_leaves_nothing_behind(serving):
    lists = serving.run([[row("long", LONG), row("short")]])
    is_open, may_close = threading.Event(), threading.Event()

    def hold():
        next(lists)
        is_open.set()
        may_close.wait()
        lists.close()

    holder = threading.Thread(target=hold)
    holder.start()
    is_open.wait()
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        serve(serving, [row("interrupted")])
    may_close.set()
    assert list(serve(serving, [row("next")])) == ["next"]
    holder.join()


def test_an_interrupt_in_a_step_leaves_nothing_behind(monkeypatch):
    serving, engine = make_serving()
    original, count = engine.step, []

    def step():
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        original()

    monkeypatch.setattr(engine, "step", step)
    with pytest.raises(KeyboardInterrupt):
        serve(serving, [row(i) for i in range(9)])
    assert list(serve(serving, [row("next")])) == ["next"]
    engine.check_integrity()


def refused_in_a_fork(serving, lists, answers):
    for act in (lambda: next(lists), lambda: serve(serving, [row("forked")]), lambda: serving.abort(1)):
        try:
            act()
        except RuntimeError as error:
            answers.put(str(error))
    lists.close()
    answers.put(str(serving.close()))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="there is no fork")
def test_a_fork_of_the_process_is_refused(serving):
    lists = serving.run([[row("long", LONG), row("short")]])
    next(lists)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks in processes with threads
        child = context.Process(target=refused_in_a_fork, args=(serving, lists, answers))
        child.start()
    child.join(60)
    assert child.exitcode == 0
    for _ in range(3):
        assert f"belongs to process {os.getpid()}" in answers.get(timeout=60)
    assert answers.get(timeout=60) == "False"
    lists.close()
    assert list(serve(serving, [row("here")])) == ["here"]


def test_closing_waits_for_a_call_of_another_thread_and_refuses_later_ones():
    serving, _ = make_serving()
    lists = serving.run([[row(i)] for i in range(8)])
    next(lists)
    closed = []
    other = threading.Thread(target=lambda: closed.append(serving.close()))
    other.start()
    other.join(0.2)
    assert other.is_alive()
    assert len([one for finished in lists for one in finished]) >= 1
    other.join()
    assert closed == [True]
    assert serving.close() is False
    for act in (lambda: serve(serving, [row("late")]), lambda: serving.abort(1), serving.check):
        with pytest.raises(RuntimeError, match="this LLM is closed"):
            act()


def test_closing_between_a_call_s_look_and_its_start_is_the_same_error(monkeypatch):
    serving, _ = make_serving()
    check = serving._lock.check

    def check_and_close():
        check()
        monkeypatch.setattr(serving._lock, "check", check)
        serving.close()

    monkeypatch.setattr(serving._lock, "check", check_and_close)
    with pytest.raises(RuntimeError, match="closed"):
        next(serving.run([[row("late")]]))


def test_prompts_may_be_arrays(serving):
    found = serve(serving, [row("list"), GenerateRow("array", 7, np.array([1, 2, 3], np.uint16), SHORT)])
    assert tokens(found)["list"] == tokens(found)["array"]


def test_rows_of_many_samples_are_read_when_they_are_needed():
    """What is read ahead is counted in requests: 30 rows of 300 samples are not all made before the first result."""
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
