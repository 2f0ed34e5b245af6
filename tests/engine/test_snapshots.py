"""Snapshots of shared prefixes: how many exist at a time, on which device, and what happens without a place."""

import random

import numpy as np
import pytest
import torch
from fakes.model import VOCAB, HashModel, make_engine

from rwkv_batch.engine.prefix import Prefix
from rwkv_batch.engine.request import Request
from rwkv_batch.engine.snapshots import Snapshots
from rwkv_batch.engine.source import Pulled
from rwkv_batch.engine.state_pool import Record
from rwkv_batch.sampling_params import SamplingParams

RECORD_BYTES = 64
"""Size of the fake model's state."""


def tokens(draw, count):
    return draw.choices(range(1, VOCAB), k=count)


def multiple_choice(subjects=12, questions=9, choices=4):
    """Subject header → context of a question → continuations: the rows, and the number of distinct tokens."""
    draw, rows = random.Random(0), []
    only_scores = SamplingParams(max_tokens=0)
    for _ in range(subjects):
        header = tokens(draw, 300)
        for _ in range(questions):
            context, row = header + tokens(draw, 60), len(rows)
            requests = [Request((row, 0), context, only_scores, row=row, next_token_ids=(1, 2, 3))]
            for i in range(1, choices + 1):
                prompt = [*context, i, *tokens(draw, 2)]
                requests.append(Request((row, i), prompt, only_scores, row=row, sample=i, score_start=len(context) + 1))
            rows.append(requests)
    return rows, subjects * 300 + len(rows) * (60 + choices * 3)


def samples_of_few_shot_prompts(groups=4, prompts=8, n=6):
    """System prompt → few-shot header → prompt → samples: the rows, and the number of distinct tokens.

    Each sample computes the last token of its prompt.
    """
    draw, rows = random.Random(1), []
    system = tokens(draw, 100)
    params = SamplingParams(max_tokens=5, ignore_eos=True)
    for _ in range(groups):
        header = system + tokens(draw, 80)
        for _ in range(prompts):
            prompt, row = header + tokens(draw, 40), len(rows)
            rows.append([Request((row, i), prompt, params, row=row, sample=i) for i in range(n)])
    return rows, 100 + groups * 80 + groups * prompts * 40 + groups * prompts * (n - 1)


@pytest.mark.parametrize(
    ("workload", "slots", "max_batch_tokens", "most"),
    [
        (multiple_choice, 64, 256, 9),
        (multiple_choice, 8, 64, 4),
        (samples_of_few_shot_prompts, 64, 256, 12),
        (samples_of_few_shot_prompts, 8, 64, 7),
    ],
)
def test_each_distinct_token_is_computed_once_and_few_states_are_kept(workload, slots, max_batch_tokens, most):
    """Snapshots exist for the prefixes above the current node, and for those that were computed at the same time.

    If every free slot were given to a prefix, the first workload would need four times as many, the third twice.
    """
    rows, num_distinct = workload()
    engine = make_engine(max_batch_size=slots, max_batch_tokens=max_batch_tokens)
    served = sum(1 for _ in engine.generate(Pulled(rows)))
    assert served == sum(map(len, rows))
    assert engine.stats.prompt_tokens == num_distinct
    assert engine.stats.requested_tokens == sum(len(request.prompt_token_ids) for row in rows for request in row)
    assert engine.snapshots.peak <= most
    assert len(engine.snapshots) == engine.snapshots.num_reserved == 0


def few_levels():
    """Requests with a common header: two prompts with three samples each."""
    draw = random.Random(2)
    header = tokens(draw, 20)
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    prompts = [header + tokens(draw, 12) for _ in range(2)]
    return [
        Request((row, i), prompt, params, row=row, sample=i) for row, prompt in enumerate(prompts) for i in range(3)
    ]


@pytest.mark.parametrize(
    ("slots", "on_host", "computed", "peak", "peak_on_host"),
    [
        (4, 0, 20 + 2 * 11 + 6, 2, 0),  # both prompts, beside the pool; by then the header is done with
        (1, 1, 20 + 2 * 11 + 6, 2, 1),  # one after the other, below the header's state, which is on the device
        (1, 0, 20 + 6 * 12, 1, 0),  # no place for the prompts: every sample computes its own from the header on
    ],
)
def test_snapshots_lie_on_the_device_first_and_then_in_host_memory(slots, on_host, computed, peak, peak_on_host):
    engine = make_engine(
        max_batch_size=slots,
        max_batch_tokens=32,
        prefix_host_bytes=on_host * RECORD_BYTES + 63,
    )
    found = {completion.key: completion.token_ids.tolist() for completion in engine.generate(Pulled([few_levels()]))}
    alone = make_engine(max_batch_size=1, max_batch_tokens=99, prefix_sharing=False)
    assert found == {
        key: next(alone.generate(Pulled([request]))).token_ids.tolist()
        for request in few_levels()
        for key in [request.key]
    }
    assert (engine.stats.prompt_tokens, engine.snapshots.peak, engine.snapshots.peak_on_host) == (
        computed,
        peak,
        peak_on_host,
    )


def test_a_context_is_served_without_a_place_for_its_snapshot():
    """Without a place, the context is a request like its continuations."""
    draw = random.Random(3)
    context = tokens(draw, 15)
    only_scores = SamplingParams(max_tokens=0)
    requests = [Request("context", context, only_scores, next_token_ids=(1, 2))]
    requests += [Request(i, [*context, i, i], only_scores, score_start=16, sample=i) for i in (1, 2)]
    engine = make_engine(max_batch_size=2, max_batch_tokens=64)
    engine.snapshots.shrink(0)
    found = {c.key: c.prompt_scores or c.next_scores for c in engine.generate(Pulled([requests]))}
    assert {key: len(scores) for key, scores in found.items()} == {"context": 2, 1: 1, 2: 1}
    assert engine.stats.prompt_tokens == 15 + 2 * 17
    assert engine.snapshots.peak == 0


def test_an_engine_that_was_closed_early_keeps_no_snapshot():
    engine = make_engine(max_batch_size=2, max_batch_tokens=16)
    completions = engine.generate(Pulled([few_levels()]))
    next(completions)
    assert len(engine.snapshots) > 0
    completions.close()
    assert len(engine.snapshots) == engine.snapshots.num_reserved == 0


def test_an_engine_that_was_closed_while_a_prefix_was_computed_has_no_reservation():
    """The header takes five steps; the engine is closed after the first."""
    engine = make_engine(max_batch_size=2, max_batch_tokens=4)
    steps = engine.run(Pulled([few_levels()]))
    next(steps)
    assert (engine.snapshots.num_reserved, len(engine.snapshots)) == (1, 0)
    steps.close()
    assert engine.snapshots.num_reserved == 0


def test_out_of_memory_leaves_no_snapshot_and_no_reservation():
    """Memory runs out while prefixes are computed. They start again, and reserve their places again."""

    class Failing(HashModel):
        steps = 0

        def forward(self, token_ids, rows, layers):
            self.steps += 1
            if self.steps in (1, 3):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(token_ids, rows, layers)

    engine = make_engine(Failing(), max_batch_size=8, max_batch_tokens=64)
    kept = []
    for _ in engine.generate(Pulled([few_levels()])):
        kept.append(len(engine.snapshots) + engine.snapshots.num_reserved)
    assert engine.stats.max_batch_size == 2
    assert len(kept) == 6 and kept[-1] == 0


def test_the_last_child_frees_the_place_of_a_snapshot():
    children = [Request(i, [1], SamplingParams()) for i in range(2)]
    prefix = Prefix(np.ones(9, np.int32), None, 0, children=[*children])
    snapshots = Snapshots(1, 0)
    record = Record([torch.arange(64, dtype=torch.uint8)])
    snapshots.reserve()
    assert not snapshots.has_room
    snapshots.store(prefix, record)
    record[0].zero_()
    snapshots.add_children(prefix, 1)
    for left in (1, 1, 0):
        assert snapshots.take(prefix)[0].tolist() == list(range(64))
        assert len(snapshots) == left
    assert snapshots.has_room


def test_a_snapshot_without_a_place_on_the_device_goes_to_host_memory():
    class Copied(Record):
        def clone(self):
            return "on the device"

        def to_host(self):
            return "on the host"

    prefixes = [Prefix(np.ones(9, np.int32), None, 0, children=[Request(i, [1], SamplingParams())]) for i in range(4)]
    snapshots = Snapshots(2, 2)
    for prefix in prefixes[:3]:
        snapshots.reserve()
        snapshots.store(prefix, Copied())
    assert [snapshots.take(prefix) for prefix in prefixes[1:3]] == ["on the device", "on the host"]
    snapshots.reserve()
    snapshots.store(prefixes[3], Copied())
    assert snapshots.take(prefixes[3]) == "on the device"
    assert (snapshots.peak, snapshots.peak_on_host) == (3, 1)
