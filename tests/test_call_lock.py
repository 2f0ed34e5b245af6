"""One call at a time: threads that wait, iterators left open, interrupts, forks, and the end of a model."""

from __future__ import annotations

import gc
import multiprocessing
import os
import queue
import signal
import threading
import warnings

import pytest
import served_rows
from served_rows import LONG, make_serving, row, serve, tokens


def test_calls_of_several_threads_wait_for_each_other(serving):
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


@pytest.mark.parametrize("how", ["dropped", "dropped in a circle"])
def test_a_dropped_iterator_holds_the_lock_until_the_engine_is_idle(serving, monkeypatch, how):
    lists = serving.run([[row("long", LONG), row("short")]])
    next(lists)
    engine, held = serving._engine, []
    original = engine._abandon

    def abandon():
        held.append(serving._lock.holder is not None)
        original()

    monkeypatch.setattr(engine, "_abandon", abandon)
    if how == "dropped in a circle":
        lists.itself = lists
    del lists
    gc.collect()
    assert (held, serving._lock.holder) == ([True], None)


def test_a_call_closes_a_dropped_iterator_that_an_exception_kept_from_closing_itself(serving, monkeypatch):
    lists = serving.run([[row("long", LONG), row("short")]])
    next(lists)
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(type(lists), "__del__", lambda self: None)
        del lists
        gc.collect()
        assert serving._lock.holder is not None
        assert list(serve(serving, [row("new")])) == ["new"]


def test_a_new_call_of_the_same_thread_closes_an_open_iterator_with_a_warning(serving):
    lists = serving.run([[row("long", LONG), row("short")]])
    next(lists)
    with pytest.warns(RuntimeWarning, match="left open") as caught:
        assert list(serve(serving, [row("new")])) == ["new"]
    assert caught[0].filename == served_rows.__file__  # the caller of the package
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


def test_a_call_from_the_input_of_the_running_call_is_refused():
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


def test_closing_between_the_check_and_the_start_of_a_call_is_the_same_error(monkeypatch):
    serving, _ = make_serving()
    check = serving._lock.check

    def check_and_close():
        check()
        monkeypatch.setattr(serving._lock, "check", check)
        serving.close()

    monkeypatch.setattr(serving._lock, "check", check_and_close)
    with pytest.raises(RuntimeError, match="closed"):
        next(serving.run([[row("late")]]))
