"""Out of memory in the middle of a run: the engine goes on with fewer slots, and each result comes once, unchanged."""

import logging

import pytest
import torch
from fakes.model import PARAMS, HashModel, check_bookkeeping, make_engine, outcome, run

from rwkv_batch.engine.out_of_memory import reason_of_out_of_memory
from rwkv_batch.engine.request import Request
from rwkv_batch.engine.sampler import Sampler
from rwkv_batch.engine.slot_tables import SlotTables
from rwkv_batch.engine.source import Pulled
from rwkv_batch.engine.state_pool import Record
from rwkv_batch.errors import CapacityError
from rwkv_batch.sampling_params import SamplingParams


class Crowded(HashModel):
    """A model that runs out of memory with more than `limit` rows in a step, from the fourth step on."""

    def __init__(self, limit, error):
        self.limit, self.error, self.steps = limit, error, 0

    def forward(self, token_ids, rows, layers):
        self.steps += 1
        if self.steps > 3 and rows.num_rows > self.limit:
            layers[0].hash.fill_(99)  # a failed step leaves half-written states behind
            raise self.error
        return super().forward(token_ids, rows, layers)


@pytest.mark.parametrize("run_ahead", [False, True])
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[enforce] can't allocate memory: 9 bytes")]
)
def test_out_of_memory_halves_the_slots_and_loses_nothing(error, run_ahead, caplog):
    requests = [
        Request((row, sample), [row % 3] * 20 + [row], PARAMS[row % len(PARAMS)], row=row, sample=sample)
        for row in range(20)
        for sample in range(2)
    ]
    sizes = dict(max_batch_size=16, max_batch_tokens=64)
    engine = make_engine(Crowded(5, error), **sizes, run_ahead=run_ahead)
    found = {completion.key: outcome(completion) for completion in engine.generate(Pulled(requests))}
    assert found == {key: outcome(completion) for key, completion in run(requests).items()}
    assert engine.pool.num_slots == engine.stats.max_batch_size == 4
    engine.check_integrity()
    assert sum("out of memory" in message for message in caplog.messages) == 2
    assert engine.scheduler.max_batch_tokens == 16


def test_out_of_memory_with_one_slot_is_a_capacity_error():
    engine = make_engine(Crowded(0, MemoryError()), max_batch_size=2, max_batch_tokens=8)
    with pytest.raises(CapacityError, match="with a single token in a step: MemoryError"):
        list(engine.generate(Pulled([Request(0, [1], SamplingParams(max_tokens=9, ignore_eos=True))])))


def test_long_chunks_that_do_not_fit_become_shorter():
    class Narrow(HashModel):
        def forward(self, token_ids, rows, layers):
            if len(token_ids) > 20:
                raise torch.OutOfMemoryError("too many tokens")
            return super().forward(token_ids, rows, layers)

    request = Request(0, list(range(64)), SamplingParams(max_tokens=5))
    engine = make_engine(Narrow(), max_batch_size=8, max_batch_tokens=64)
    found = [outcome(completion) for completion in engine.generate(Pulled([request]))]
    assert found == [outcome(run([request])[0])]


def test_out_of_memory_while_copying_states_loses_nothing(monkeypatch):
    """Two prefixes are complete in the same step. The copy of the second one's state fails once."""
    requests = [
        Request((p, row), [p] * 20 + [row], SamplingParams(max_tokens=3), row=10 * p + row)
        for p in (1, 2)
        for row in range(3)
    ]
    kept = []

    class Watching(HashModel):
        def forward(self, token_ids, rows, layers):
            kept.append((len(calls), len(engine.snapshots)))
            return super().forward(token_ids, rows, layers)

    engine = make_engine(Watching(), max_batch_size=8, max_batch_tokens=64)
    clone, calls = Record.clone, []

    def failing(record):
        calls.append(record)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("no room for a copy")
        return clone(record)

    monkeypatch.setattr(Record, "clone", failing)
    found = {completion.key: outcome(completion) for completion in engine.generate(Pulled(requests))}
    assert len(calls) == 4
    # The first prefix's state was dropped too; it is computed again.
    assert next(num_kept for num_calls, num_kept in kept if num_calls == 2) == 0
    assert found == {key: outcome(completion) for key, completion in run(requests).items()}


def test_other_errors_are_raised():
    engine = make_engine(Crowded(0, RuntimeError("shape")), max_batch_size=2, max_batch_tokens=8)
    with pytest.raises(RuntimeError, match="shape"):
        list(engine.generate(Pulled([Request(0, [1], SamplingParams(max_tokens=9, ignore_eos=True))])))
    engine.check_integrity()


@pytest.mark.parametrize("failing", [1, 2, 5, 9])
def test_out_of_memory_while_a_sequence_starts_loses_nothing(failing, monkeypatch):
    """A slot's sampling tables may grow when a sequence starts, and that may run out of memory."""
    calls, assign = [], Sampler.assign

    def crowded(sampler, slots, requests):
        calls.append(slots)
        if len(calls) == failing:
            raise RuntimeError("CUDA error: out of memory")
        assign(sampler, slots, requests)

    requests = [Request(row, [row % 3] * 20 + [row], PARAMS[row % len(PARAMS)], row=row) for row in range(16)]
    expected = {key: outcome(completion) for key, completion in run(requests).items()}
    monkeypatch.setattr(Sampler, "assign", crowded)
    found = run(requests, max_batch_size=8, run_ahead=True)
    assert {key: outcome(completion) for key, completion in found.items()} == expected


class FailsOnce(HashModel):
    """A model that runs out of memory in one step."""

    def __init__(self, step):
        self.step, self.steps = step, 0

    def forward(self, token_ids, rows, layers):
        self.steps += 1
        if self.steps == self.step:
            layers[0].hash.fill_(99)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(token_ids, rows, layers)


@pytest.mark.parametrize("run_ahead", [False, True])
def test_every_result_comes_once_at_whatever_step_memory_runs_out(run_ahead):
    """The requests have nested prefixes, a prefix that is itself a request, samples, and early stops."""
    only_scored, stops = SamplingParams(max_tokens=0), SamplingParams(max_tokens=9, stop_token_ids=[8, 9, 10, 11])
    header = [1] * 20
    requests = [
        Request("header", header, only_scored, row=0, next_token_ids=(3, 7)),
        *(Request(("below", i), [*header, *[2] * 12, i], stops, row=1 + i) for i in range(3)),
        *(Request(("sample", i), [*header, 5], stops, row=9, sample=i) for i in range(3)),
        Request("alone", [9, 8, 7], SamplingParams(max_tokens=5), row=10),
    ]
    expected = {key: outcome(completion) for key, completion in run(requests).items()}
    step = 0
    while True:
        step += 1
        model = FailsOnce(step)
        engine = make_engine(model, max_batch_size=6, max_batch_tokens=24, run_ahead=run_ahead)
        found = []
        for completion in engine.generate(Pulled(requests)):
            check_bookkeeping(engine)
            found.append((completion.key, outcome(completion)))
        assert sorted(found, key=str) == sorted(expected.items(), key=str), f"memory ended in step {step}"
        assert engine.scheduler.is_idle and not len(engine.snapshots)
        check_bookkeeping(engine)
        if model.steps < step:
            return


def test_slots_that_do_not_fit_are_halved_again(monkeypatch, caplog):
    """Eight and four slots do not fit either. The old slots are freed before new ones are allocated."""
    engine = make_engine(FailsOnce(3), max_batch_size=16, max_batch_tokens=64)
    free_at_start = []
    allocate = engine._allocate

    def crowded(num_slots):
        if num_slots:
            free_at_start.append(engine.pool.num_slots == engine.sampler.tables.num_slots == 0)
        allocate(num_slots)
        if num_slots > 2:
            raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(engine, "_allocate", crowded)
    requests = [Request(row, [row], PARAMS[row % len(PARAMS)], row=row) for row in range(20)]
    found = {completion.key: outcome(completion) for completion in engine.generate(Pulled(requests))}
    assert found == {key: outcome(completion) for key, completion in run(requests).items()}
    assert engine.pool.num_slots == engine.stats.max_batch_size == 2
    assert sum(record.levelno == logging.WARNING for record in caplog.records) == 3
    assert free_at_start == [True] * 3


def test_an_engine_without_slots_says_so(monkeypatch):
    engine = make_engine(FailsOnce(1), max_batch_size=4)
    allocate = engine._allocate

    def full(num_slots):
        if num_slots:
            raise MemoryError
        allocate(num_slots)

    monkeypatch.setattr(engine, "_allocate", full)
    request = Request(0, [1], SamplingParams(max_tokens=3))
    with pytest.raises(CapacityError, match="single token in a step: MemoryError"):
        list(engine.generate(Pulled([request])))
    with pytest.raises(CapacityError, match="no slots left"):
        list(engine.generate(Pulled([request])))


@pytest.mark.parametrize("failing_call", [1, 2])
def test_out_of_memory_while_slots_are_freed_loses_nothing(failing_call, monkeypatch):
    """Allocating the tables of 0 slots can also run out of memory, because they have a row for padding."""
    engine, calls, make = make_engine(FailsOnce(3), max_batch_size=8, max_batch_tokens=32), [], SlotTables.__init__

    def crowded(tables, *args):
        calls.append(args)
        if len(calls) == failing_call:
            raise torch.OutOfMemoryError("CUDA out of memory")
        make(tables, *args)

    monkeypatch.setattr(SlotTables, "__init__", crowded)
    requests = [Request(row, [row], PARAMS[row % len(PARAMS)], row=row) for row in range(12)]
    found = {completion.key: outcome(completion) for completion in engine.generate(Pulled(requests))}
    assert len(calls) > failing_call
    monkeypatch.undo()
    assert found == {key: outcome(completion) for key, completion in run(requests).items()}


def test_an_error_that_the_caller_is_handling_does_not_count_as_the_engines():
    """A caller that tries again after it ran out of memory is told of another error in the second try."""
    engine = make_engine(Crowded(0, RuntimeError("shape")))
    with pytest.raises(RuntimeError, match="shape"):
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        except torch.OutOfMemoryError:
            list(engine.generate(Pulled([Request(0, [1], SamplingParams(max_tokens=9, ignore_eos=True))])))
    assert engine.pool.num_slots == 4


@pytest.mark.parametrize(
    "message",
    [
        "Triton Error [CUDA]: out of memory",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuModuleLoadData: error 2, out of memory",
        "HIP out of memory. Tried to allocate 2.00 GiB",
        "[enforce fail at alloc_cpu.cpp:125] err == 0. DefaultCPUAllocator: can't allocate memory: you tried",
    ],
)
def test_messages_of_all_allocators_are_recognized(message):
    assert reason_of_out_of_memory(RuntimeError(message)) == message.partition("\n")[0]


def test_out_of_memory_while_a_step_is_recorded_is_recognized():
    """Leaving the recording raises another error, which hides the first one."""
    try:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
    except RuntimeError as error:
        assert reason_of_out_of_memory(error) == "CUDA out of memory. Tried to allocate 2 GiB"
    assert reason_of_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered")) is None
