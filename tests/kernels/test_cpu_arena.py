"""The arena: tensors that exist at the same time never share memory, and memory is found again."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rwkv_batch.cpu_kernels.arena import Arena

DTYPES = (torch.float32, torch.bfloat16, torch.uint8)
actions = st.lists(st.tuples(st.integers(0, 60), st.sampled_from(DTYPES), st.integers(0, 9)), max_size=60)


@given(actions=actions)
def test_tensors_that_exist_share_no_memory(actions: list[tuple[int, torch.dtype, int]]) -> None:
    """Each tensor is filled with a number of its own, and still has it when it goes."""
    arena = Arena(2048)
    alive: list[tuple[Tensor, int]] = []
    for number, (length, dtype, dropped) in enumerate(actions):
        tensor = arena.empty(torch.Size((length, 3)), dtype)
        if tensor is not None:
            assert (tensor.shape, tensor.dtype) == ((length, 3), dtype)
            assert tensor.data_ptr() % 64 == 0 or not length
            tensor.fill_(number)
            alive.append((tensor[1:], number))  # a view keeps the memory
        del tensor
        if dropped < len(alive):
            del alive[dropped]
        assert all((tensor == number).all() for tensor, number in alive)
    alive.clear()
    assert arena.is_empty


def test_memory_is_found_again() -> None:
    arena = Arena(1 << 20)
    first = arena.empty(torch.Size((100,)), torch.float32)
    second = arena.empty(torch.Size((100,)), torch.float32)
    assert first is not None and second is not None and first.data_ptr() < second.data_ptr()
    place = first.data_ptr()
    del first
    smaller = arena.empty(torch.Size((50,)), torch.bfloat16)
    assert smaller is not None and smaller.data_ptr() == place
    assert not arena.is_empty


def test_a_tensor_without_room_is_refused() -> None:
    arena = Arena(256)
    held = arena.empty(torch.Size((128,)), torch.uint8)
    assert held is not None
    assert arena.empty(torch.Size((129,)), torch.uint8) is None
    del held
    assert arena.empty(torch.Size((256,)), torch.uint8) is not None
