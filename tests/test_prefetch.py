"""The background iterator: order, bounded look-ahead, exceptions, and an early end."""

import threading
import time

import pytest

from rwkv_batch.prefetch import Prefetch


def take_all(source):
    items = []
    while not source.is_ended:
        items += source.take(7, wait=True)
    return items


def wait_for(condition):
    """A wait without an end is ended by pytest-timeout."""
    while not condition():
        time.sleep(0.005)


def test_order_and_end():
    assert take_all(Prefetch(range(100), ahead=3)) == list(range(100))
    assert take_all(Prefetch([], ahead=1)) == []


def test_taking_without_waiting_takes_what_is_there():
    gate = threading.Event()

    def items():
        yield from (1, 2, 3)
        gate.wait()
        yield 4

    source = Prefetch(items(), ahead=9)
    wait_for(lambda: source.has_ready(3))
    assert source.take(9, wait=True) == [1, 2, 3]
    assert (source.take(9, wait=False), source.is_ended) == ([], False)
    gate.set()
    assert take_all(source) == [4]


def test_items_are_made_elsewhere_and_not_too_far_ahead():
    made = []
    threads = set()

    def items():
        for i in range(1000):
            made.append(i)
            threads.add(threading.current_thread())
            yield i

    source = Prefetch(items(), ahead=5)
    assert source.take(1, wait=True) == [0]
    wait_for(lambda: len(made) == 1 + 5 + 1)
    time.sleep(0.05)
    assert len(made) == 1 + 5 + 1
    assert threading.current_thread() not in threads
    source.close()


def test_an_exception_comes_after_the_items_before_it():
    def items():
        yield 1
        raise KeyError("broken")

    source = Prefetch(items(), ahead=4)
    source._thread.join()
    assert source.take(9, wait=True) == [1]
    assert not source.is_ended
    with pytest.raises(KeyError, match="broken"):
        source.take(9, wait=False)


def test_closing_stops_the_thread_while_it_waits():
    source = Prefetch(iter(int, 1), ahead=2)
    source.close()
    assert not source._thread.is_alive()


def test_closing_does_not_wait_for_an_item_that_never_comes(monkeypatch):
    monkeypatch.setattr("rwkv_batch.prefetch.CLOSING_SECONDS", 0.1)
    gate = threading.Event()
    source = Prefetch(iter(gate.wait, None), ahead=2)
    source.close()
    assert source._thread.is_alive()
    gate.set()


def test_a_window_is_ready_when_it_is_whole_or_the_last():
    gate = threading.Event()

    def items():
        yield from (1, 2, 3)
        gate.wait()
        yield 4

    source = Prefetch(items(), ahead=9)
    wait_for(lambda: source.has_ready(3))
    assert not source.has_ready(4)
    gate.set()
    source._thread.join()
    assert source.has_ready(9)
