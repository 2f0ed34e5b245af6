"""Recordings of native calls: what is recorded, what prevents it, and what a replay computes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from rwkv_batch.cpu_kernels.arena import Arena
from rwkv_batch.cpu_kernels.build import unavailable

if unavailable():
    pytest.skip(str(unavailable()), allow_module_level=True)

from rwkv_batch.cpu_kernels import linear
from rwkv_batch.cpu_kernels.call import recorded_calls
from rwkv_batch.cpu_kernels.recording import Recording, record
from rwkv_batch.cpu_kernels.take_rows import take_rows

TABLE = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
INDEX = torch.tensor([0])
WEIGHT = torch.randn(40, 32, generator=torch.Generator().manual_seed(1))
PACKED = linear.pack(WEIGHT)


def step(index: Tensor, out: Tensor) -> None:
    """Rows of the table, and a product of them; the result is written to `out`."""
    linear.linear(take_rows(TABLE, index), PACKED, into=out)


def recorded(run: Callable[[], None]) -> Recording:
    recording, obstacle = record(run, Arena(1 << 16))
    assert recording is not None, obstacle
    return recording


def test_a_replay_computes_with_what_is_in_memory_then() -> None:
    index, out = torch.tensor([3, 4]), torch.empty(2, 40)
    recording = recorded(lambda: step(index, out))
    assert torch.allclose(out, TABLE[index] @ WEIGHT.T, atol=1e-4)  # the recorded step is a step
    index[:] = torch.tensor([7, 49])
    recording.replay()
    assert torch.allclose(out, TABLE[index] @ WEIGHT.T, atol=1e-4)


@pytest.mark.parametrize("bad", [-1, 50, 2**40])
def test_a_replay_stops_at_a_bad_index(bad: int) -> None:
    """Nothing outside of the table is read, and the calls that follow are not made."""
    index, out = torch.tensor([3, 4]), torch.empty(2, 40)
    recording = recorded(lambda: step(index, out))
    before = out.clone()
    index[1] = bad
    with pytest.raises(IndexError, match="at 1"):
        recording.replay()
    assert torch.equal(out, before)


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (lambda x: x.add_(1), "aten.add_.Tensor"),
        (lambda x: x[INDEX], "aten.index.Tensor"),
        (lambda x: x.t().contiguous(), "aten.clone.default"),
        (lambda x: x.double(), "aten._to_copy.default"),
        (lambda x: x.sum().item(), "aten.sum.default"),
        (lambda x: torch.tensor([1]), "aten.lift_fresh.default"),
        (lambda x: torch.from_numpy(np.zeros(1)), "aten.lift_fresh.default"),
        (lambda x: torch.empty(1 << 20), "[1048576] torch.float32 on cpu is not in the arena"),
    ],
)
def test_an_operation_of_torch_prevents_a_recording(operation: Callable[[Tensor], object], name: str) -> None:
    """The step is run all the same, with torch's results."""
    index, out = torch.tensor([3, 4]), torch.empty(2, 40)

    def run() -> None:
        step(index, out)
        operation(out)

    recording, obstacle = record(run, Arena(1 << 16))
    assert recording is None
    assert obstacle == name
    changed = TABLE[index] @ WEIGHT.T + (name == "aten.add_.Tensor")
    assert torch.allclose(out, changed, atol=1e-4)


def test_views_and_empty_tensors_are_recorded() -> None:
    index, out = torch.tensor([3, 4]), torch.empty(2, 40)

    def run() -> None:
        rows = torch.empty(2, 32)
        assert not torch.empty_like(rows).is_meta
        first, second = out.unbind()
        step(index[:1], first[None])
        step(index[1:], second.view(1, 40))

    recording = recorded(run)
    index[:] = torch.tensor([9, 8])
    recording.replay()
    assert torch.allclose(out, TABLE[index] @ WEIGHT.T, atol=1e-4)


def test_a_tensor_that_is_kept_prevents_a_recording() -> None:
    """A replay would write where it lies."""
    kept = list[Tensor]()
    index = torch.tensor([1])
    recording, obstacle = record(lambda: kept.append(take_rows(TABLE, index)), Arena(1 << 16))
    assert recording is None
    assert "kept" in obstacle


def test_a_step_without_native_calls_is_not_recorded() -> None:
    recording, obstacle = record(lambda: None, Arena(1 << 16))
    assert recording is None and obstacle == "no native kernel"


def test_an_error_ends_the_recording() -> None:
    bad, good, out = torch.tensor([50]), torch.tensor([5]), torch.empty(1, 40)
    with pytest.raises(IndexError), recorded_calls() as calls:
        step(bad, out)
    before = len(calls)
    step(good, out)
    assert len(calls) == before
    with pytest.raises(IndexError):
        record(lambda: step(bad, out), Arena(1 << 16))
    recorded(lambda: step(good, out))


def test_other_threads_are_not_recorded() -> None:
    index, out = torch.tensor([3, 4]), torch.empty(2, 40)
    others, own = torch.tensor([1, 2]), torch.empty(2, 40)

    def run() -> None:
        thread = threading.Thread(target=step, args=(others, own))
        thread.start()
        thread.join()
        step(index, out)

    recording = recorded(run)
    own.zero_()
    recording.replay()
    assert not own.any()


def test_a_replay_uses_as_many_threads_as_torch_does() -> None:
    index, out = torch.randint(50, (300,)), torch.empty(300, 40)
    recording = recorded(lambda: step(index, out))
    expected, before = out.clone(), torch.get_num_threads()
    try:
        for threads in (1, 4, 2):
            torch.set_num_threads(threads)
            out.zero_()
            recording.replay()
            assert torch.equal(out, expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded")
def test_a_forked_process_replays() -> None:
    index, out = torch.randint(50, (300,)), torch.empty(300, 40)
    recording = recorded(lambda: step(index, out))
    expected = out.clone()
    process = os.fork()
    if not process:
        status = 1
        try:
            out.zero_()
            recording.replay()
            status = 0 if torch.equal(out, expected) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


def test_recording_imports_no_compiler() -> None:
    """torch would import its own compiler for a dispatch mode, which takes seconds."""
    script = """
import sys, torch
from rwkv_batch.cpu_kernels import linear
from rwkv_batch.cpu_kernels.arena import Arena
from rwkv_batch.cpu_kernels.recording import record
weight, x = linear.pack(torch.randn(40, 32)), torch.randn(2, 32)
def step():
    linear.linear(x, weight)
assert record(step, Arena(1 << 16)).recording
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
