"""Who runs, and how much: no model, no tensors."""

from hypothesis import given
from hypothesis import strategies as st

from rwkv_batch.engine.request import Request
from rwkv_batch.engine.scheduler import Scheduler
from rwkv_batch.engine.sequence import Sequence
from rwkv_batch.sampling_params import SamplingParams


def sequence(prompt_tokens, max_tokens=4):
    return Sequence(Request(None, [1] * prompt_tokens, SamplingParams(max_tokens=max_tokens)), None)


def run_step(scheduler):
    """Plan a step and carry it out on the counters; returns its rows."""
    plan = scheduler.plan()
    finished = set()
    for row in plan:
        s = row.sequence
        completes_prompt = not s.is_decoding and row.num_tokens == s.num_uncomputed
        if not s.is_decoding:
            s.num_computed += row.num_tokens
        elif not completes_prompt:
            assert row.num_tokens == 1
        if s.is_decoding and s.append(5, 0.0):
            finished.add(id(s))
    scheduler.settle(finished)
    return plan


def test_decode_rows_come_first_and_prompts_fill_the_rest():
    scheduler = Scheduler(max_batch_tokens=10)
    short, long = sequence(3), sequence(25)
    for s in (short, long):
        scheduler.start(s)
    assert [row.num_tokens for row in run_step(scheduler)] == [3, 7]
    assert [(row.sequence, row.num_tokens) for row in run_step(scheduler)] == [(short, 1), (long, 9)]
    assert [(row.sequence, row.num_tokens) for row in run_step(scheduler)] == [(short, 1), (long, 9)]
    assert [(row.sequence, row.num_tokens) for row in run_step(scheduler)] == [(short, 1), (long, 1)]


@given(
    prompts=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    budget=st.integers(1, 40),
)
def test_everyone_advances_within_the_budget(prompts, budget):
    scheduler = Scheduler(max_batch_tokens=max(budget, len(prompts)))
    sequences = [sequence(n) for n in prompts]
    for s in sequences:
        scheduler.start(s)
    num_steps = 0
    while scheduler.running:
        decoding = set(map(id, scheduler.decoding))
        plan = run_step(scheduler)
        assert sum(row.num_tokens for row in plan) <= scheduler.max_batch_tokens
        assert decoding <= {id(row.sequence) for row in plan}  # no decode row ever waits
        assert all(row.num_tokens >= 1 for row in plan)
        num_steps += 1
    assert all(len(s.completion.token_ids) == 4 for s in sequences)
    assert num_steps <= sum(prompts) + 4


def test_children_of_a_prefix_go_before_the_queue():
    scheduler = Scheduler(max_batch_tokens=8)
    first, second, child = sequence(1), sequence(1), sequence(1)
    scheduler.add([first, second])
    scheduler.add_first([child])
    assert [scheduler.next_waiting() for _ in range(3)] == [child, first, second]
