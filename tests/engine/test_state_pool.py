"""The state pool: slots are reset when they are given out, copied as a whole, and never lost."""

import pytest
import torch

from rwkv_batch.engine.state_pool import PoolPart, StateLayout, StatePool
from rwkv_batch.models.architecture import StateField

FIELDS = (
    StateField("wkv", (2, 3, 3), torch.float32),
    StateField("shift", (5,), torch.bfloat16),
    StateField("pp", (7,), torch.float32, initial_value=-1e30),
)


def make_pool(num_slots=4, overrides=None):
    layout = StateLayout(FIELDS, num_layers=2)
    return StatePool([PoolPart(layout, layout.initial_record(overrides or {}, torch.device("cpu")))], num_slots)


def take(pool, record=None):
    """Allocates and fills the next free slot."""
    (slot,) = pool.allocate(1)
    pool.fill(torch.tensor([slot]), record)
    return slot


def dirty(pool, slot):
    for layer in pool.layers:
        for field in FIELDS:
            getattr(layer, field.name)[slot] = 3.0


def test_a_reused_slot_is_as_new():
    pool = make_pool()
    slot = take(pool)
    dirty(pool, slot)
    pool.free([slot])
    assert take(pool) == slot
    for layer in pool.layers:
        assert (layer.wkv[slot] == 0).all()
        assert (layer.shift[slot] == 0).all()
        assert (layer.pp[slot] == -1e30).all()


def test_fields_and_slots_do_not_overlap():
    pool = make_pool()
    for i, layer in enumerate(pool.layers):
        for j, field in enumerate(FIELDS):
            view = getattr(layer, field.name)
            for slot in range(4):
                view[slot] = 100 * i + 10 * j + slot
    for i, layer in enumerate(pool.layers):
        for j, field in enumerate(FIELDS):
            view = getattr(layer, field.name)
            assert view.shape == (4, *field.shape)
            for slot in range(4):
                assert (view[slot] == 100 * i + 10 * j + slot).all()


def test_a_snapshot_starts_another_slot():
    pool = make_pool()
    source = take(pool)
    dirty(pool, source)
    record = pool.record(source).clone()
    pool.layers[0].wkv[source] = 9.0
    copy = take(pool, record)
    assert (pool.layers[0].wkv[copy] == 3).all()
    assert (pool.layers[1].pp[copy] == 3).all()


def test_overrides_become_the_initial_state():
    states = [torch.randn(2, 3, 3), torch.randn(2, 3, 3)]
    pool = make_pool(overrides={"wkv": states})
    slot = take(pool)
    for layer, state in zip(pool.layers, states, strict=True):
        assert torch.equal(layer.wkv[slot], state)


def test_the_integrity_check_names_the_slots_that_are_wrong():
    pool = make_pool()
    slots = [take(pool) for _ in range(3)]
    pool.check_integrity(slots)
    with pytest.raises(AssertionError, match=r"neither used nor free: \[2\]"):
        pool.check_integrity(slots[:2])
    with pytest.raises(AssertionError, match=r"both used and free: \[3\]"):
        pool.check_integrity([*slots, 3])
    with pytest.raises(AssertionError, match="used twice"):
        pool.check_integrity([0, 0, 1, 2])


def test_many_slots_are_filled_at_once_and_others_are_unchanged():
    pool = make_pool()
    source = take(pool)
    dirty(pool, source)
    record = pool.record(source).clone()
    slots = pool.allocate(3)
    assert (source, slots) == (0, [1, 2, 3])
    pool.fill(torch.tensor([1, 2, 3]))
    pool.fill(torch.tensor([3, 1]), record)
    assert [float(pool.layers[1].pp[slot, 0]) for slot in range(4)] == [3.0, 3.0, float(torch.tensor(-1e30)), 3.0]
    pool.free_all()
    assert pool.num_free == 4
