"""Occupancy: the report shows it, and slots stay in use until the end of a job."""

import random

import pytest
from fakes.model import VOCAB, make_engine
from hypothesis import given
from hypothesis import strategies as st

from rwkv_batch.engine.request import Request
from rwkv_batch.engine.source import Pulled
from rwkv_batch.engine.stats import NUM_BUCKETS, Occupancy
from rwkv_batch.sampling_params import SamplingParams

SLOTS = 32


@given(st.lists(st.floats(0, 1), max_size=400))
def test_the_course_has_the_mean_of_every_bucket(shares):
    occupancy = Occupancy()
    for share in shares:
        occupancy.add(share)
    width = occupancy.steps_per_bucket
    buckets = [shares[start : start + width] for start in range(0, len(shares), width)]
    assert occupancy.course == pytest.approx([sum(bucket) / len(bucket) for bucket in buckets])
    assert occupancy.mean == pytest.approx(sum(shares) / max(len(shares), 1))
    assert len(buckets) <= 2 * NUM_BUCKETS
    assert width == 1 or len(buckets) > NUM_BUCKETS


def skewed(order, seed):
    """600 requests of known length; one in ten is twenty times as long as the others."""
    draw = random.Random(seed)
    lengths = [draw.choice((150, 200)) if draw.random() < 0.1 else draw.randrange(4, 12) for _ in range(600)]
    if order == "longest last":
        lengths.sort()
    return [
        Request(
            row,
            draw.choices(range(VOCAB), k=draw.randrange(2, 40)),
            SamplingParams(max_tokens=length, ignore_eos=True),
            row=row,
        )
        for row, length in enumerate(lengths)
    ]


def shares_of(requests):
    """The share of slots in use at every step, measured outside of the engine."""
    engine = make_engine(max_batch_size=SLOTS, max_batch_tokens=4 * SLOTS)
    step, shares = engine.step, []

    def watched():
        shares.append(engine.scheduler.num_running / SLOTS)
        step()

    engine.step = watched
    finished = [completion.key for completion in engine.generate(Pulled(requests))]
    assert sorted(finished) == list(range(len(requests)))
    assert engine.stats.occupancy.mean == pytest.approx(sum(shares) / len(shares))
    return shares


@pytest.mark.parametrize(("order", "seed"), [("mixed", 0), ("mixed", 1), ("longest last", 0)])
def test_slots_stay_full_until_the_end(order, seed):
    """Only the last steps use less than 90% of the slots, and these are far fewer than the longest row's steps."""
    requests = skewed(order, seed)
    shares = shares_of(requests)
    longest = max(request.num_steps for request in requests)
    first_low = next((i for i, share in enumerate(shares) if share < 0.9), len(shares))
    assert len(shares) - first_low < longest / 5
    ideal = sum(request.params.max_tokens for request in requests) / SLOTS
    assert len(shares) < 1.2 * ideal


def test_the_longest_children_of_a_prefix_go_first():
    """All rows share a system prompt. The long rows are last in the input, and start first."""
    system = [7] * 20
    lengths = [5] * 60 + [80, 90, 100]
    requests = [
        Request(row, [*system, row % VOCAB, row], SamplingParams(max_tokens=length, ignore_eos=True), row=row)
        for row, length in enumerate(lengths)
    ]
    shares = shares_of(requests)
    assert len(shares) <= 100 + 4


def test_rows_finish_about_in_order_until_the_source_ends():
    """Short rows are not delayed in favor of long ones before the end."""
    draw = random.Random(0)
    requests = [
        Request(row, [row % VOCAB], SamplingParams(max_tokens=draw.choice((2, 20)), ignore_eos=True), row=row)
        for row in range(1500)
    ]
    engine = make_engine(max_batch_size=64, max_batch_tokens=128)
    place = {completion.key: i for i, completion in enumerate(engine.generate(Pulled(requests)))}
    steady = range(len(requests) - 2 * engine.window)
    assert max(abs(place[row] - row) for row in steady) < engine.window


def test_a_step_that_an_exception_interrupts_is_not_counted():
    interrupted, other = Occupancy(), Occupancy()
    for _ in range(1000):
        with pytest.raises(TypeError):
            interrupted.add(None)
        interrupted.add(0.5)
        other.add(0.5)
    assert interrupted.describe() == other.describe()
