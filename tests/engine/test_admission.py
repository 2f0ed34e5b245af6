"""Admission: which sequences start, given the running and waiting sequences and the places for snapshots. No model."""

import numpy as np

from rwkv_batch.engine.admission import Admission, Grouping
from rwkv_batch.engine.prefix import Prefix
from rwkv_batch.engine.request import Request
from rwkv_batch.engine.scheduler import Scheduler
from rwkv_batch.engine.sequence import Sequence
from rwkv_batch.engine.snapshots import Snapshots
from rwkv_batch.engine.source import Pulled
from rwkv_batch.sampling_params import SamplingParams


def request(prompt_tokens=3):
    return Request(None, [1] * prompt_tokens, SamplingParams(max_tokens=4))


def prefix(length=9):
    return Prefix(np.ones(length, np.int32), None, 4, children=[request(12), request(12)])


def fill(*waiting, running=(), places=4, slots=4, max_batch_tokens=16):
    """Runs admission with running prompts of these lengths: the nodes that start, and those that still wait."""
    scheduler = Scheduler(slots, max_batch_tokens)
    started = [Sequence(request(length)) for length in running]
    for slot, sequence in enumerate(started):
        sequence.slot = slot
    scheduler.start(started)
    scheduler.add(map(Sequence, waiting))
    source = Pulled([])
    source.take(1, wait=True)
    admission = Admission(Snapshots(places, 0), 8, True)
    admitted = admission.fill(source, scheduler, slots - len(running), may_wait=False)
    return [sequence.node for sequence, _ in admitted], [sequence.node for sequence in scheduler.waiting]


def test_as_many_start_as_there_are_free_slots():
    requests = [request() for _ in range(4)]
    assert fill(*requests, slots=3) == (requests[:3], requests[3:])
    assert fill(*requests, slots=3, running=[5, 5, 5]) == ([], requests)


def test_a_prefix_starts_only_where_the_next_step_has_unused_tokens():
    """A request starts in any case. Sequences behind a waiting prefix wait too."""
    first, second = prefix(), request()
    assert fill(first, second, running=[15]) == ([first, second], [])
    assert fill(first, second, running=[16]) == ([], [first, second])
    assert fill(second, first, running=[16]) == ([second], [first])
    assert fill(second, first, running=[13]) == ([second], [first])
    assert fill(second, first, running=[12]) == ([second, first], [])


def test_each_prefix_that_starts_uses_tokens_of_the_next_step():
    prefixes = [prefix(9) for _ in range(3)]
    assert fill(*prefixes) == (prefixes[:2], prefixes[2:])
    assert fill(*prefixes, max_batch_tokens=18) == (prefixes[:2], prefixes[2:])
    assert fill(*prefixes, max_batch_tokens=19) == (prefixes, [])


def test_a_prefix_waits_for_the_place_that_a_running_prefix_has_reserved():
    one, other = prefix(), prefix()
    assert fill(one, other, places=1, max_batch_tokens=99) == ([one], [other])


def test_children_start_without_their_prefix_if_no_place_will_become_free():
    shared = prefix()
    assert fill(shared, places=0) == (shared.children, [])


def grouped(delay_seconds, monkeypatch, slots=64):
    """Admission into `slots` slots that waits for groups, with a clock: calls return how many sequences start."""
    now = [0.0]
    monkeypatch.setattr("rwkv_batch.engine.admission.perf_counter", lambda: now[0])
    scheduler = Scheduler(slots, 2 * slots)
    source = Pulled([])
    source.take(1, wait=True)
    admission = Admission(Snapshots(4, 0), 8, True, Grouping(delay_seconds))

    def run(num_free, seconds=0.0, running=1, is_prefilling=False):
        now[0] += seconds
        scheduler.waiting.clear()
        scheduler.add(Sequence(request()) for _ in range(4))
        scheduler._running = dict.fromkeys(range(running))
        scheduler._prefilling = np.zeros(int(is_prefilling), np.int64)
        return len(admission.fill(source, scheduler, num_free, may_wait=False))

    return run


def test_free_slots_wait_for_a_group(monkeypatch):
    """Two of 64 slots are a group. Whatever has waited, the next slot waits anew."""
    run = grouped(0.03, monkeypatch)
    assert [run(1), run(1, 0.02), run(2), run(1), run(1, 0.029)] == [0, 0, 2, 0, 0]
    assert run(1, 0.002) == 1
    assert [run(1), run(0, 0.02), run(1, 0.02), run(1, 0.02), run(1, 0.02)] == [0, 0, 0, 0, 1]


def test_free_slots_do_not_wait_where_that_saves_nothing(monkeypatch):
    run = grouped(0.03, monkeypatch)
    assert run(1, running=0) == 1
    assert run(1, is_prefilling=True) == 1
    assert grouped(0.0, monkeypatch)(1) == 1
    assert grouped(0.03, monkeypatch, slots=63)(1) == 1
