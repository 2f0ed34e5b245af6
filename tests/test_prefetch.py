"""Prefetch: order, a bounded number of items ahead, exceptions, and an early end."""

import threading
import time
from concurrent.futures import Future
from itertools import count, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_batch.prefetch import Prefetch


def singles(items):
    return ([item] for item in items)


def take_all(source):
    items = []
    while not source.is_ended:
        items += source.take(7, wait=True)
    return items


def wait_for(condition):
    """Waits for a condition. pytest-timeout limits the wait."""
    while not condition():
        time.sleep(0.005)


def test_items_come_in_order_to_the_end():
    assert take_all(Prefetch(singles(range(100)), ahead=3)) == list(range(100))
    assert take_all(Prefetch([], ahead=1)) == []
    assert take_all(Prefetch([[], []], ahead=1)) == []


@given(st.lists(st.lists(st.integers(), max_size=9), max_size=9), st.integers(1, 9))
def test_lists_of_any_sizes_come_as_items_in_order(lists, ahead):
    assert take_all(Prefetch(lists, ahead)) == [item for items in lists for item in items]


def test_taking_without_waiting_takes_the_items_that_are_ready():
    gate = threading.Event()

    def lists():
        yield [1]
        yield [2, 3]
        gate.wait()
        yield [4]

    source = Prefetch(lists(), ahead=9)
    wait_for(lambda: source.has_ready(3))
    assert source.take(2, wait=False) == [1, 2]
    assert source.take(9, wait=True) == [3]
    assert (source.take(9, wait=False), source.is_ended) == ([], False)
    gate.set()
    assert take_all(source) == [4]


def test_a_list_that_has_come_does_not_wait_for_the_next_one():
    gate = threading.Event()

    def lists():
        yield [1]
        gate.wait()

    source = Prefetch(lists(), ahead=9)
    assert source.take(9, wait=True) == [1]
    gate.set()


@pytest.mark.parametrize("size", [1, 3, 100])
def test_items_are_made_on_another_thread_and_not_too_far_ahead(size):
    made = []
    threads = set()

    def lists():
        numbers = count()
        while True:
            made.extend(islice(numbers, size))
            threads.add(threading.current_thread())
            yield made[-size:]

    source = Prefetch(lists(), ahead=5)
    taken = source.take(1, wait=True)
    wait_for(lambda: source.has_ready(5))
    time.sleep(0.05)
    assert not source.has_ready(6)
    assert len(made) <= 1 + 5 + size
    taken += source.take(9, wait=False)
    assert taken == list(range(6))
    assert threading.current_thread() not in threads
    source.close()


def test_an_exception_comes_after_the_items_before_it():
    def lists():
        yield [1]
        raise KeyError("broken")

    source = Prefetch(lists(), ahead=4)
    source.thread.join()
    assert source.take(9, wait=True) == [1]
    assert not source.is_ended
    with pytest.raises(KeyError, match="broken"):
        source.take(9, wait=False)


def test_closing_stops_the_thread_while_it_waits():
    source = Prefetch(iter(lambda: [0], None), ahead=2)
    source.close()
    assert not source.thread.is_alive()


def test_closing_does_not_wait_for_an_item_that_never_comes(monkeypatch):
    monkeypatch.setattr("rwkv_batch.prefetch.CLOSING_SECONDS", 0.1)
    gate = threading.Event()
    source = Prefetch(singles(iter(gate.wait, None)), ahead=2)
    source.close()
    assert source.thread.is_alive()
    gate.set()


def test_a_window_is_ready_when_it_is_complete_or_the_last():
    gate = threading.Event()

    def lists():
        yield [1, 2, 3]
        gate.wait()
        yield [4]

    source = Prefetch(lists(), ahead=9)
    wait_for(lambda: source.has_ready(3))
    assert not source.has_ready(4)
    gate.set()
    source.thread.join()
    assert source.has_ready(9)


def test_items_count_by_their_weight():
    """The limits are sums of weights: fewer heavy items are made ahead, and fewer are taken at a time."""
    made = []

    def lists():
        for i in range(40):
            made.append(i)
            yield [i]

    ahead = Prefetch(lists(), 10, lambda item: 4)
    deadline = time.monotonic() + 60
    while not ahead.has_ready(10) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not ahead.has_ready(13)
    assert len(made) <= 4
    assert ahead.take(8, wait=False) == [0, 1]
    assert ahead.take(1, wait=True) == [2]
    rest = []
    while not ahead.is_ended:
        rest += ahead.take(5, wait=True)
    assert rest == list(range(3, 40))
    ahead.close()


def test_an_item_whose_future_is_not_complete_lets_others_pass():
    needed = {2: Future(), 5: Future()}
    source = Prefetch([[1, 2, 3], [4, 5]], ahead=9, needs=needed.get)
    found = []
    while len(found) < 3:
        found += source.take(9, wait=True)
    assert found == [1, 3, 4]
    assert not source.has_ready(1) and not source.is_ended
    needed[5].set_result(None)
    assert source.take(9, wait=True) == [5]
    threading.Timer(0.05, needed[2].set_exception, [ValueError()]).start()
    assert source.take(9, wait=True) == [2]
    assert source.take(9, wait=True) == [] and source.is_ended


def test_items_whose_futures_are_not_complete_count_as_ahead():
    needed = {0: Future()}
    reached = []

    def lists():
        for item in range(9):
            reached.append(item)
            yield [item]

    source = Prefetch(lists(), ahead=2, needs=needed.get)
    wait_for(lambda: source.has_ready(1))
    time.sleep(0.05)
    assert reached == [0, 1, 2]
    needed[0].set_result(None)
    assert sorted(take_all(source)) == list(range(9))


def test_in_order_an_item_waits_for_the_items_in_front_of_it():
    needed = {1: Future()}
    source = Prefetch([[0, 1, 2]], ahead=9, needs=needed.get, in_order=True)
    assert source.take(9, wait=True) == [0]
    assert not source.has_ready(1)
    needed[1].set_result(None)
    assert take_all(source) == [1, 2]


@pytest.mark.parametrize("in_order", [False, True])
def test_closing_does_not_wait_for_futures(in_order):
    source = Prefetch([[0, 1], [2]], ahead=1, needs={0: Future()}.get, in_order=in_order)
    source.close()
    assert not source.thread.is_alive()


def test_dropped_items_are_not_taken_whether_they_are_ready_pending_or_not_made():
    dropped, needed, gate = set(), {2: Future(), 3: Future()}, threading.Event()

    def lists():
        yield [0, 1, 2, 3]
        gate.wait()
        yield [4, 5]

    source = Prefetch(lists(), ahead=9, needs=needed.get, is_dropped=dropped.__contains__)
    wait_for(lambda: len(source._pending) == 2)
    source.drop()
    assert source.take_dropped() == []
    dropped |= {0, 2, 4}
    source.drop()
    assert source.take_dropped() == [0, 2]
    gate.set()
    wait_for(lambda: source.has_ready(2))
    assert source.take(9, wait=False) == [1, 5]
    assert source.take_dropped() == [4]
    assert not source.is_ended
    needed[2].set_result(None)
    needed[3].set_result(None)
    assert take_all(source) == [3]


def test_dropping_makes_room_for_further_items():
    dropped, made = set(), []

    def lists():
        for item in range(6):
            made.append(item)
            yield [item]

    source = Prefetch(lists(), ahead=2, needs={0: Future()}.get, is_dropped=dropped.__contains__)
    wait_for(lambda: len(made) == 3)
    dropped |= {0, 1}
    source.drop()
    assert take_all(source) == [2, 3, 4, 5]


def test_a_caller_that_waits_is_woken_by_a_drop():
    dropped = set()
    source = Prefetch([[0], [1]], ahead=9, needs={0: Future(), 1: Future()}.get, is_dropped=dropped.__contains__)
    wait_for(lambda: len(source._pending) == 2)
    dropped.add(1)
    threading.Timer(0.05, source.drop).start()
    assert source.take(9, wait=True) == []
    assert (source.take_dropped(), source.is_ended) == ([1], False)
    source.close()


def test_the_items_behind_the_limit_are_dropped_too():
    dropped, made = set(), []

    def lists():
        for items in ([0, 1, 2, 3], [4]):
            made.append(items)
            yield items

    source = Prefetch(lists(), ahead=1, is_dropped=dropped.__contains__)
    wait_for(lambda: source.has_ready(1))
    dropped |= {2, 3}
    source.drop()
    assert source.take_dropped() == [2, 3]
    dropped.add(1)
    source.drop()  # nothing is left of the list, and the next one is read
    wait_for(lambda: len(made) == 2)
    assert source.take_dropped() == [1]
    assert take_all(source) == [0, 4]


def test_a_change_is_told_when_items_are_ready_and_at_the_end():
    changes = []
    needed = Future()
    source = Prefetch(
        [[1, 2, 3]], 2, needs=lambda item: needed if item == 2 else None, on_change=lambda: changes.append(1)
    )
    wait_for(lambda: changes)  # the limit of two is reached
    assert source.take(5, wait=False) == [1]
    before = len(changes)
    wait_for(lambda: len(changes) > before)
    before = len(changes)
    needed.set_result(None)
    assert len(changes) == before + 1
    source.thread.join(60)
    assert source.take(5, wait=False) == [3, 2] and source.is_ended
