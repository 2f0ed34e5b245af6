"""The scheduler: which sequences run in a step, and with how many tokens. No model, no tensors."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rwkv_batch.engine.prefix import Prefix
from rwkv_batch.engine.request import Request
from rwkv_batch.engine.scheduler import Scheduler
from rwkv_batch.engine.sequence import Sequence
from rwkv_batch.sampling_params import SamplingParams


def sequence(prompt_tokens, max_tokens=4, slot=0):
    made = Sequence(Request(None, [1] * prompt_tokens, SamplingParams(max_tokens=max_tokens)), None)
    made.slot = slot
    return made


def step(scheduler):
    """Plans and launches a step: the slots that decode, and (sequence, number of tokens) of the prompt chunks."""
    plan = scheduler.plan()
    scheduler.advance(plan)
    sequences = [scheduler.sequence(slot) for slot in plan.prefilling.tolist()]
    return plan.decoding.tolist(), list(zip(sequences, plan.chunk_sizes.tolist(), strict=True))


def left(scheduler, sequence):
    """Number of prompt tokens that have not been fed."""
    return len(sequence.prompt) - int(scheduler.position[sequence.slot])


def test_decode_rows_come_first_and_prompts_fill_the_rest():
    scheduler = Scheduler(2, max_batch_tokens=10)
    short, long = sequence(3, slot=1), sequence(25)
    scheduler.start([short, long])
    assert step(scheduler) == ([], [(short, 3), (long, 7)])
    assert step(scheduler) == ([1], [(long, 9)])
    assert step(scheduler) == ([1], [(long, 9)])
    assert scheduler.position.tolist() == [25, 5]
    assert step(scheduler) == ([0, 1], [])
    assert step(scheduler) == ([0], [])  # the short one has asked for its four tokens


def test_a_sequence_that_samples_no_token_is_complete_with_its_prompt():
    scheduler = Scheduler(1, max_batch_tokens=8)
    scored = sequence(12, max_tokens=0)
    scheduler.start([scored])
    assert scheduler.advance(scheduler.plan()).tolist() == []
    assert scheduler.advance(scheduler.plan()).tolist() == [scored.slot]
    assert not scheduler.has_work
    assert not scheduler.is_idle  # its results are in flight
    scheduler.finish(np.array([scored.slot]))
    assert scheduler.is_idle


@given(
    prompts=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    budget=st.integers(1, 40),
    ends=st.sets(st.integers(0, 11)),
)
def test_all_sequences_advance_within_the_budget(prompts, budget, ends):
    """Some sequences end with their second token, which becomes known a step late."""
    scheduler = Scheduler(len(prompts), max_batch_tokens=max(budget, len(prompts)))
    sequences = [sequence(n, slot=i) for i, n in enumerate(prompts)]
    scheduler.start(sequences)
    asked, late, num_steps = Counter(), [], 0
    while scheduler.has_work:
        may_decode = {s.slot for s in sequences if left(scheduler, s) <= 0 and 0 < asked[s.slot] < 4}
        plan = scheduler.plan()
        assert len(plan.decoding) + plan.num_prompt_tokens <= scheduler.max_batch_tokens
        assert set(plan.decoding) == may_decode & {s.slot for s in scheduler.running}  # no decode row ever waits
        assert (plan.chunk_sizes >= 1).all()
        scheduler.advance(plan)
        asked.update(plan.decoding.tolist())
        asked.update(slot for slot in plan.prefilling.tolist() if left(scheduler, sequences[slot]) == 0)
        scheduler.finish(np.array(late, int))
        late = [s.slot for s in scheduler.running if s.slot in ends and asked[s.slot] == 2]
        num_steps += 1
    assert all(asked[s.slot] == (3 if s.slot in ends else 4) for s in sequences)
    assert all(scheduler.position[s.slot] == len(s.prompt) + asked[s.slot] - 1 for s in sequences)
    assert num_steps <= sum(prompts) + 4


def test_children_of_a_prefix_go_before_the_queue():
    scheduler = Scheduler(1, max_batch_tokens=8)
    first, second, child = sequence(1), sequence(1), sequence(1)
    scheduler.add([first, second])
    scheduler.add_first([child])
    assert [scheduler.waiting.popleft() for _ in range(3)] == [child, first, second]


def test_a_restart_queues_running_sequences_before_waiting_ones():
    scheduler = Scheduler(2, max_batch_tokens=8)
    running, waiting = sequence(5, slot=1), sequence(2)
    scheduler.start([running])
    scheduler.add([waiting])
    scheduler.advance(scheduler.plan())
    again = scheduler.restart(1, 4)
    restarted = again.waiting.popleft()
    assert (restarted.node, restarted.parent) == (running.node, None)
    assert again.waiting.popleft() is waiting
    assert again.max_batch_tokens == 4


def test_tokens_that_a_short_prompt_leaves_go_to_a_longer_prompt_before_it():
    scheduler = Scheduler(3, max_batch_tokens=100)
    long, short = sequence(300), sequence(10, slot=1)
    scheduler.start([long, short])
    assert step(scheduler) == ([], [(long, 90), (short, 10)])


def test_tokens_are_spare_while_running_sequences_do_not_fill_a_step():
    scheduler = Scheduler(3, max_batch_tokens=20)
    assert scheduler.spare_tokens == 20
    first, second = sequence(15, max_tokens=3), sequence(25, slot=1)
    scheduler.start([first])
    assert scheduler.spare_tokens > 0
    scheduler.start([second])
    assert scheduler.spare_tokens <= 0
    step(scheduler)  # 10 and 10
    assert scheduler.spare_tokens <= 0
    step(scheduler)  # 5 and 15: the second one is done with its prompt
    assert scheduler.spare_tokens > 0
    third = sequence(18, slot=2)
    scheduler.start([third])
    assert scheduler.spare_tokens <= 0  # two rows decode beside it
    scheduler.finish(np.array([third.slot]))
    assert scheduler.spare_tokens > 0


def test_at_the_end_the_longest_go_first_and_children_stay_together():
    prefix = Prefix(np.ones(10, np.int32), None, num_steps=0)
    scheduler = Scheduler(1, max_batch_tokens=8)
    short, middle, long = (sequence(1, max_tokens=n) for n in (2, 20, 50))
    children = [Sequence(sequence(20, max_tokens=n).node, prefix) for n in (5, 30)]
    scheduler.add([short, middle, *children, long])
    scheduler.sort_waiting()
    assert list(scheduler.waiting) == [long, *reversed(children), middle, short]


@given(left=st.lists(st.integers(1, 200), min_size=1, max_size=20), budget=st.integers(1, 400))
def test_prompts_share_a_step(left, budget):
    """No token is wasted, and shares are equal. If they would be under 16 tokens, the first prompts get 16 each."""
    scheduler = Scheduler(len(left), max_batch_tokens=budget)
    scheduler.start([sequence(n, slot=i) for i, n in enumerate(left)])
    plan = scheduler.plan()
    sizes = [*plan.chunk_sizes.tolist(), *[0] * (len(left) - len(plan.chunk_sizes))]
    assert plan.prefilling.tolist() == list(range(len(plan.prefilling)))
    assert sum(sizes) == min(budget, sum(left))
    assert all(size <= n for size, n in zip(sizes, left, strict=True))
    if sum(min(n, 16) for n in left) < budget:
        unsatisfied = [size for size, n in zip(sizes, left, strict=True) if size < n]
        assert all(size >= 16 for size in unsatisfied)
        assert max(sizes) <= min(unsatisfied, default=200) + 1
    else:
        assert all(size <= 16 for size in sizes)
