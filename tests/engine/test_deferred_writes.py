"""Deferred state writes: whatever the engine does with slots, a ring's updates are applied once, to their state."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from checkpoints import make_checkpoint, write_checkpoint
from fakes.model import PARAMS, HashModel, make_engine, next_hash, outcome, run
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_batch.engine.request import Request
from rwkv_batch.engine.sizing import plan_memory
from rwkv_batch.engine.source import Pulled
from rwkv_batch.engine.state_pool import StatePool, pool_parts
from rwkv_batch.errors import ConfigurationError
from rwkv_batch.models.files.checkpoint import open_checkpoint
from rwkv_batch.models.model import ModelFile
from rwkv_batch.models.placement import place
from rwkv_batch.sampling_params import SamplingParams


class DeferringModel(HashModel):
    """The fake model as a kernel with deferred writes computes it: the ring has the tokens that a state lacks.

    Args:
        limit: from the fourth step on, more rows in a step run out of memory.

    Attributes:
        pending: the numbers of updates that were applied before a token.
    """

    file = SimpleNamespace(**vars(HashModel.file), ring_shape=lambda interval: (interval - 1, 1))

    def __init__(self, limit=99):
        self.limit, self.steps, self.pending = limit, 0, set()

    def forward(self, token_ids, rows, layers):
        self.steps += 1
        if self.steps > 3 and rows.num_rows > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        hidden, state, ring = torch.full((len(token_ids), 1), -7), layers[0].hash, layers[0].ring
        numbers = zip(rows.slot_index.tolist(), rows.cu_seqlens.tolist(), rows.deferred.tolist(), strict=False)
        ends = rows.cu_seqlens.tolist()[1:]
        for (slot, start, deferred), end in zip(numbers, ends, strict=True):
            if slot < 0:
                continue
            pending = ~deferred if deferred < 0 else deferred
            self.pending.add(pending)
            own = state[slot][None]
            for token in ring[slot, :pending].long():
                own = next_hash(own, token)
            for t in range(start, end):
                own = next_hash(own, token_ids[t : t + 1])
                hidden[t] = own[0]
            if deferred < 0:
                state[slot] = own[0]
            else:
                assert end - start == 1
                ring[slot, deferred] = token_ids[start]
        return hidden


def served(requests, interval, limit=99, **settings):
    engine = make_engine(DeferringModel(limit), state_write_interval=interval, **settings)
    for layer in engine.pool.layers:
        layer.ring.fill_(13)  # what is read before it is written changes the hash
    return {completion.key: outcome(completion) for completion in engine.generate(Pulled(requests))}


@settings(max_examples=20)
@given(
    rows=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 7), st.integers(1, 2)), min_size=1, max_size=9),
    interval=st.integers(2, 4),
    slots=st.integers(1, 4),
    record_steps=st.booleans(),
    run_ahead=st.booleans(),
    limit=st.sampled_from([2, 99]),
)
def test_results_are_those_of_states_that_are_written_at_every_token(
    rows, interval, slots, record_steps, run_ahead, limit
):
    """Prompts share prefixes, slots are used again, and sequences start again when memory runs out."""
    requests = [
        Request((row, sample), [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, row][-length:], PARAMS[kind], row=row, sample=sample)
        for row, (length, kind, samples) in enumerate(rows)
        for sample in range(samples)
    ]
    how = dict(max_batch_size=slots, record_steps=record_steps, run_ahead=run_ahead)
    found = served(requests, interval, limit, **how)
    assert found == {key: outcome(completion) for key, completion in run(requests).items()}


def test_every_number_of_updates_is_applied_and_every_copy_finds_an_empty_ring():
    requests = [
        Request(
            (row, sample),
            [1, 2, 3, 4, 5, 6, 7, 8, row // 2, row][: 6 + row % 5],
            PARAMS[row % 8],
            row=row,
            sample=sample,
        )
        for row in range(12)
        for sample in range(2)
    ]
    copied = []
    with pytest.MonkeyPatch.context() as patch:
        record = StatePool.record

        def watched(pool, slot):
            copied.append(engine.scheduler.position[slot] == engine.scheduler.prompt_length[slot])
            return record(pool, slot)

        patch.setattr(StatePool, "record", watched)
        model = DeferringModel()
        engine = make_engine(model, state_write_interval=4, record_steps=True, prefix_host_bytes=1 << 10)
        found = {completion.key: outcome(completion) for completion in engine.generate(Pulled(requests))}
    assert found == {key: outcome(completion) for key, completion in run(requests).items()}
    assert model.pending == {0, 1, 2, 3}
    assert copied and all(copied)
    assert engine.stats.recorded_steps


def test_the_layers_of_every_device_defer_their_writes():
    """The row tensors for a pipeline's further devices are made from the host's numbers."""
    found = []

    class SplitModel(DeferringModel):
        def forward(self, token_ids, rows, layers):
            elsewhere = rows.on(torch.device("cpu:0"))
            found.append([tensors.deferred.tolist() for tensors in (rows, elsewhere)])
            return super().forward(token_ids, rows, layers)

    engine = make_engine(SplitModel(), state_write_interval=3)
    list(engine.generate(Pulled([Request(0, [1, 2], SamplingParams(max_tokens=5, ignore_eos=True))])))
    assert found == [[deferred] * 2 for deferred in ([-1], [0], [1], [~2], [0])]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deferred")
    return {
        version: ModelFile.open(open_checkpoint(write_checkpoint(make_checkpoint(version), folder / f"{version}.pth")))
        for version in ("7.0", "6.0")
    }


def test_a_slot_has_one_ring_and_no_copy_of_it(files):
    file, placement = files["7.0"], place(device="cpu", dtype="float32")
    plain, deferred = (plan_memory(file, placement, 4, 8, available=8 << 30, state_write_interval=n) for n in (1, 3))
    parts = pool_parts(file, placement, state_write_interval=3)
    pool = StatePool(parts, 4)
    rings = [layer.ring for layer in pool.layers]
    assert deferred.slot - plain.slot == sum(ring[0].nbytes for ring in rings)
    assert {ring.shape for ring in rings} == {(4, 2, file.sizes["H"], 5, file.sizes["N"])}
    assert pool.record_bytes == StatePool(pool_parts(file, placement), 4).record_bytes
    for i, ring in enumerate(rings):
        ring.fill_(i)
    assert [ring.unique().tolist() for ring in rings] == [[i] for i in range(len(rings))]


def test_only_rwkv7_defers(files):
    for function in (pool_parts, plan_memory):
        with pytest.raises(ConfigurationError, match="state_write_interval: got 2, expected 1: only RWKV-7 defers"):
            function(files["6.0"], place(device="cpu"), state_write_interval=2)
