"""The memory plan: sizes that fit, sizes that do not, and the messages."""

import pytest
import torch
from checkpoints import make_checkpoint, write_checkpoint

from rwkv_batch.engine import available_memory as memory
from rwkv_batch.engine import sizing
from rwkv_batch.engine.available_memory import available_memory
from rwkv_batch.engine.sizing import plan_memory
from rwkv_batch.engine.state_pool import StateLayout
from rwkv_batch.errors import CapacityError, ConfigurationError
from rwkv_batch.models.files.checkpoint import open_checkpoint
from rwkv_batch.models.model import ModelFile
from rwkv_batch.models.placement import LayerPlacement, Placement, place
from rwkv_batch.transfer import pinned_bytes


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("sizing") / "model.safetensors"
    return ModelFile.open(open_checkpoint(write_checkpoint(make_checkpoint("7.0"), path)))


def plan(file, monkeypatch, available, *sizes):
    monkeypatch.setattr(sizing, "available_memory", lambda device: available)
    return plan_memory(file, place(device="cpu", dtype="float32"), *sizes)


def test_plenty_of_memory_gives_as_many_slots_as_help(file, monkeypatch):
    found = plan(file, monkeypatch, 64 << 30)
    assert (found.max_batch_size, found.max_batch_tokens) == (128, 640)
    assert found.total <= found.available
    assert f"{found.max_batch_size} slots" in str(found)


def test_little_memory_gives_fewer_slots(file, monkeypatch):
    generous = plan(file, monkeypatch, 64 << 30)
    tight = generous.weights + generous.workspace + 10 * generous.slot
    found = plan(file, monkeypatch, int(tight / sizing.MEMORY_SHARE) + 1)
    assert found.max_batch_size == 10
    assert found.max_batch_tokens == 10 + 512


def test_the_share_of_memory_decides_the_slots(file, monkeypatch):
    generous = plan(file, monkeypatch, 64 << 30)
    available = 2 * (generous.besides_slots + 10 * generous.slot)
    place_on_cpu = place(device="cpu", dtype="float32")
    monkeypatch.setattr(sizing, "available_memory", lambda device: available)
    assert plan_memory(file, place_on_cpu, memory_share=0.5).max_batch_size == 10
    with pytest.raises(CapacityError, match=r"of which 1% may be used \(memory_share\)"):
        plan_memory(file, place_on_cpu, memory_share=0.01)


def test_sizes_that_were_asked_for_are_kept_or_refused(file, monkeypatch):
    assert plan(file, monkeypatch, 64 << 30, 7, 30).max_batch_tokens == 30
    assert plan(file, monkeypatch, 64 << 30, None, 30).max_batch_size == 30
    with pytest.raises(CapacityError, match=r"not enough memory: .* \+ 4000 slots .* of 64.0 MiB available"):
        plan(file, monkeypatch, 64 << 20, 4000)
    with pytest.raises(CapacityError, match="Use fewer slots"):
        plan(file, monkeypatch, 1 << 20)
    with pytest.raises(ConfigurationError, match="max_batch_tokens: got -1"):
        plan(file, monkeypatch, 64 << 30, None, -1)


def test_the_slot_is_what_the_pool_allocates(file, monkeypatch):
    placement = place(device="cpu", dtype="float32")
    layout = StateLayout(file.state_fields(placement), file.sizes["L"])
    per_layer = 2 * 64 * 64 * 4 + 2 * 128 * 4
    assert layout.record_bytes == 3 * per_layer
    assert plan(file, monkeypatch, 64 << 30).slot >= layout.record_bytes


def test_a_cuda_device_has_room_for_kernels_and_recorded_steps(file, monkeypatch):
    """Recorded steps have activations of their own: those of the largest step, and on a CPU those of a decode step.

    Finding the most likely tokens takes more than a small step.
    """
    monkeypatch.setattr(sizing, "available_memory", lambda device: 8 << 30)
    device = torch.device("cuda", 0)
    on_cpu, on_cuda = (
        plan_memory(file, Placement(place, torch.float32, None), 64, 300) for place in (torch.device("cpu"), device)
    )
    assert on_cpu.fixed == 0 and "kernels" not in str(on_cpu)
    assert on_cuda.fixed >= 320 << 20 and "kernels" in str(on_cuda)
    token = 4 * (24 * file.sizes["C"] + 3 * file.sizes["F"])
    assert on_cpu.workspace == (300 + 64) * token
    assert on_cuda.workspace == 300 * token + max(300 * token, 40 * 64 * file.sizes["V"])
    assert on_cuda.total <= 8 << 30
    tight = int((on_cuda.besides_slots + 10 * on_cuda.slot) / sizing.MEMORY_SHARE)
    monkeypatch.setattr(sizing, "available_memory", lambda device: tight)
    with pytest.raises(CapacityError, match="kernels"):
        plan_memory(file, Placement(device, torch.float32, None), 64, 300)


def test_streamed_matrices_take_what_pinned_buffers_of_their_size_take(file, monkeypatch):
    asked = []
    monkeypatch.setattr(sizing, "available_memory", lambda device: 8 << 30)
    monkeypatch.setattr(sizing, "pinned_bytes", lambda size, device: asked.append((size, device)) or 1 << 33)
    device = torch.device("cuda", 0)
    layers = (LayerPlacement(device, torch.float32, is_streamed=True),) * 3
    placement = Placement(device, torch.float32, None, torch.float32, layers, head_device=device)
    with pytest.raises(CapacityError, match="on cpu"):
        plan_memory(file, placement, 1, 8)
    assert {place for _, place in asked} == {device}
    assert all(size in (128 * 128 * 4, 128 * file.sizes["F"] * 4) for size, _ in asked)


@pytest.mark.parametrize(("size", "pinned"), [(0, 0), (1, 1), (64, 64), (65, 128), (3 << 20, 4 << 20)])
def test_pinned_buffers_are_powers_of_two(size, pinned):
    assert pinned_bytes(size, torch.device("cuda")) == pinned
    assert pinned_bytes(size, torch.device("cpu")) == size


def test_a_control_group_limits_what_is_available(monkeypatch):
    """The group's usage is subtracted from its limit, except for file pages that the kernel can free."""
    numbers = {"memory.max": 3 << 30, "memory.current": 2 << 30}
    monkeypatch.setattr(memory, "_meminfo_available", lambda: 8 << 30)
    monkeypatch.setattr(memory, "_number", lambda path: numbers.get(path.name))
    monkeypatch.setattr(memory, "_fields", lambda path: {"inactive_file": 1 << 29})
    assert available_memory(torch.device("cpu")) == (1 << 30) + (1 << 29)
    numbers.clear()
    assert available_memory(torch.device("cpu")) == 8 << 30
