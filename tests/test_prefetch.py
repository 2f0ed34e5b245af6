"""The background iterator: order, bounded look-ahead, exceptions, and an early end."""

import threading
import time

import pytest

from rwkv_batch.prefetch import Prefetch


def test_order_and_end():
    assert list(Prefetch(range(100), ahead=3)) == list(range(100))


def test_items_are_made_elsewhere_and_not_too_far_ahead():
    made = []
    threads = set()

    def items():
        for i in range(1000):
            made.append(i)
            threads.add(threading.current_thread())
            yield i

    source = Prefetch(items(), ahead=5)
    iterator = iter(source)
    assert next(iterator) == 0
    time.sleep(0.05)
    assert len(made) <= 1 + 5 + 1
    assert threading.current_thread() not in threads
    source.close()


def test_an_exception_comes_after_the_items_before_it():
    def items():
        yield 1
        raise KeyError("broken")

    iterator = iter(Prefetch(items(), ahead=4))
    assert next(iterator) == 1
    with pytest.raises(KeyError, match="broken"):
        next(iterator)


def test_closing_stops_the_thread_while_it_waits():
    source = Prefetch(iter(int, 1), ahead=2)
    source.close()
    assert not source._thread.is_alive()
