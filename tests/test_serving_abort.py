"""Aborting rows: while they run, while they wait, before they are read, and too late."""

from __future__ import annotations

import threading
import time

from served_rows import LONG, constrained, make_serving, make_slow, row, serve

from rwkv_batch.errors import RowError
from rwkv_batch.prefetch import Prefetch
from rwkv_batch.rows import ErrorRow, RowInFlight, ScoreRow
from rwkv_batch.sampling_params import SamplingParams


def test_an_aborted_row_has_the_tokens_sampled_so_far(serving):
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


def test_waiting_rows_and_rows_that_were_not_read_yet_can_be_aborted():
    """Four rows run, the others of the first batch wait, and one row has not been read."""
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


def test_a_row_can_be_aborted_as_soon_as_its_call_holds_the_lock(serving, monkeypatch):
    original = serving._lock.acquire

    def acquire(call):
        original(call)
        serving.abort("long")

    monkeypatch.setattr(serving._lock, "acquire", acquire)
    assert serve(serving, [row("long", LONG)])["long"].completions[0].finish_reason == "abort"


def test_aborting_unknown_and_finished_rows_changes_nothing(serving):
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


def test_a_late_abort_does_not_end_a_later_row_with_the_same_key(serving):
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


def abort_when(is_time, serving, key):
    """Aborts a row from another thread, once `is_time` is true."""

    def act():
        while not is_time():
            time.sleep(0.001)
        serving.abort(key)

    threading.Thread(target=act).start()


def test_a_row_whose_constraint_is_compiling_is_finished_at_once():
    """The engine is idle and waits for the constraint, which is never compiled."""
    serving, engine, compiled = make_slow()
    lists = serving.run([[constrained("slow", "a")]])
    abort_when(lambda: "a" in compiled and serving._lock.holder is not None, serving, "slow")
    ((one,),) = lists
    assert [completion.finish_reason for completion in one.completions] == ["abort"]
    assert engine.stats.steps == 0 and not compiled["a"].done()


def test_a_row_that_is_aborted_while_its_call_begins_is_finished(monkeypatch):
    """The row is read, and its constraint compiles, before the call knows the thread that reads."""
    serving, _, compiled = make_slow()

    class Slow(Prefetch):
        def __init__(self, *args):
            super().__init__(*args)
            while not self._pending:
                time.sleep(0.001)
            serving.abort("slow")

    monkeypatch.setattr("rwkv_batch.serving.Prefetch", Slow)
    ((one,),) = serving.run([[constrained("slow", "a")]])
    assert [completion.finish_reason for completion in one.completions] == ["abort"]
    assert not compiled["a"].done()


def test_rows_that_were_read_ahead_are_finished_while_all_slots_are_busy():
    """The engine has taken as many rows as it takes. It would take the rows behind them hundreds of steps later."""
    serving, engine = make_serving()
    behind = [row("prompt"), ScoreRow("scored", 0, [1], [[2, 3], [4]]), ScoreRow("nothing", 0, [1], [[]])]
    lists = serving.run([[row("first"), *(row(i, LONG) for i in range(engine.window))], behind])
    assert [one.key for one in next(lists)] == ["first"]
    rows = lists._call._rows
    while rows._prefetch._ready_weight < len(behind):
        time.sleep(0.001)
    steps = engine.stats.steps
    for one in behind:
        serving.abort(one.key)
    found = {one.key: one for one in next(lists)}
    assert engine.stats.steps <= steps + 1
    assert [completion.finish_reason for completion in found["prompt"].completions] == ["abort"]
    assert (found["scored"].error.code, found["scored"].num_continuations) == ("abort", 2)
    assert isinstance(found["nothing"], RowInFlight)
    assert not rows._aborted  # a later row with one of these keys is served
    lists.close()
    engine.check_integrity()


def test_a_cancelled_call_ends_at_the_next_step_without_its_rows(serving):
    call = serving.run([[row("short"), *(row(i, LONG) for i in range(3))]])
    assert [one.key for one in next(call)] == ["short"]
    steps = serving._engine.stats.steps
    call.cancel()
    assert list(call) == []
    assert serving._engine.stats.steps - steps <= 1
    assert list(serve(serving, [row("next")])) == ["next"]


def test_a_call_that_waits_for_its_rows_is_cancelled(serving):
    gate, started = threading.Event(), threading.Event()

    def batches():
        yield [row("one")]
        started.set()
        assert gate.wait(60)

    call = serving.run(batches())
    assert [one.key for one in next(call)] == ["one"]
    assert started.wait(60)
    ending = threading.Thread(target=lambda: list(call))
    ending.start()
    call.cancel()
    gate.set()
    ending.join(60)
    assert not ending.is_alive()
    assert list(serve(serving, [row("next")])) == ["next"]
