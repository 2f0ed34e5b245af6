"""The predicted step: launches, bytes and times."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.roofline import MODELS
from benchmarks.roofline_parts.needed import necessary_bytes
from rwkv_batch.roofline.cards import CARDS, H100, H200, with_limits
from rwkv_batch.roofline.launches import Launch, Piece
from rwkv_batch.roofline.predict import predict
from rwkv_batch.roofline.traffic import traffic
from rwkv_batch.roofline.work import Work

ROOT = Path(__file__).parents[2]
LIMITS = ROOT / "benchmarks" / "results" / "nvidia-h100-80gb-hbm3" / "limits.json"
LAUNCHES = {
    "1.5B 256": (8, 205),
    "1.5B 256 batch_invariant": (8, 205),
    "1.5B 1024": (8, 205),
    "7.2B 256": (8, 269),
    "7.2B 1024": (8, 269),
}
"""Launches of a layer, of which 8 are the aim, and of a decode step with one copy from the host."""
TIMES_NECESSARY = {"1.5B 256": 1.033, "1.5B 1024": 1.046, "7.2B 256": 1.017, "7.2B 1024": 1.074}
"""Bytes of memory that a decode step may move at most ÷ the necessary ones. The aim is 1.05."""
MB = 10**6


@pytest.mark.parametrize("name", LAUNCHES)
def test_launches_of_a_decode_step(recorded, name):
    step = recorded["steps"][name]
    assert (step["layers"][1], step["step"]) == LAUNCHES[name]
    assert len(set(step["layers"])) == 1


@pytest.mark.parametrize("name", TIMES_NECESSARY)
def test_a_decode_step_moves_few_bytes_that_it_need_not(recorded, name):
    step = recorded["steps"][name]
    assert 1 <= step["memory"] / step["necessary"] <= TIMES_NECESSARY[name]


def test_every_kind_of_step_is_recorded(recorded):
    steps = recorded["steps"]
    assert {"quantize_kernel", "w8a8_kernel"} <= steps["small w8a8"]["kernels"].keys()
    assert {"prepare_kernel", "mm8_kernel"} <= steps["small int8"]["kernels"].keys()
    for name in ("small float16", "small w8a8", "small int8", "small mixed", "small prompt"):
        assert steps[name]["kernels"]["wkv7.cu"] == 3, name
        assert {"shape_kernel", "select_kernel"} <= steps[name]["kernels"].keys(), name
    # 64 numbers of two token shifts a head and the state of 64 x 64, for 16 rows, 12 heads and 3 layers.
    assert steps["small float16"]["pool"] == 16 * 3 * 12 * (64 * 64 * 2 + 2 * 64 * 2)
    assert steps["small w8a8"]["pool"] == 16 * 3 * 12 * (64 * 64 * 4 + 2 * 64 * 2)


def test_a_kernel_s_source_says_what_it_loads_and_stores(recorded):
    assert recorded["linear"]["False"] == [["p_weight", "p_x"], ["p_y"]]
    assert recorded["linear"]["True"] == [["p_weight", "p_x", "p_y"], ["p_y"]]


def test_prompts_take_longer_in_a_step(recorded):
    """128 tokens of a prompt follow each other, 0.23 us each."""
    steps = recorded["steps"]
    more = steps["small mixed"]["microseconds"] - steps["small float16"]["microseconds"]
    assert more > 3 * 127 * 0.23 * 0.8


def test_necessary_bytes():
    sizes = MODELS["1.5B"]
    weights = necessary_bytes(sizes, 0)
    assert weights == pytest.approx(2 * (sizes.streamed_weights + 24 * 18 * 2048), rel=0.002)
    row = necessary_bytes(sizes, 1) - weights
    state = 24 * (32 * 64 * 64 * 4 + 2 * 2048 * 2)
    assert row == 2 * state + 2 * 2048 + 2 * 4 * 65536


def piece(number: int, size: float) -> Piece:
    return Piece((number, 0), int(size))


def launch(reads: list[Piece], writes: list[Piece], work: Work | None = None, name: str = "some_kernel") -> Launch:
    return Launch(name, 1, tuple(reads), tuple(writes), work or Work())


def test_the_cache_keeps_what_was_used_last():
    weights, x, y = piece(1, 20 * MB), piece(2, MB), piece(3, MB)
    moved = traffic([launch([weights, x], [y]), launch([y], [x])], l2=30 * MB)
    assert [each.memory for each in moved] == [0, 0]  # all of it stays
    moved = traffic([launch([weights, x], [y]), launch([y], [x])], l2=15 * MB)
    assert [each.memory for each in moved] == [20 * MB + MB, MB]  # the weights push x out, which has been written


def test_data_that_nobody_reads_again_are_not_written_to_memory():
    state, y = piece(1, 40 * MB), piece(2, 10 * MB)
    moved = traffic([launch([], [y]), launch([y], []), launch([state], [state])], l2=30 * MB)
    assert [each.memory for each in moved] == [0, 0, 80 * MB]
    moved = traffic([launch([], [y]), launch([state], [state]), launch([y], [])], l2=30 * MB)
    assert [each.memory for each in moved] == [10 * MB, 80 * MB, 10 * MB]


def test_a_launch_takes_its_latency_and_the_longest_of_its_limits():
    state, x, weight = piece(1, 134_217_728), piece(2, MB), piece(3, 33_554_432)
    recurrence = launch([state, x], [state], Work(is_recurrence=True, tokens=1), "wkv7_kernel")
    product = launch([x, weight], [piece(4, MB)], Work(operations=2 * 8192**2 * 2048, depth=2048, is_product=True))
    found = predict([recurrence, product], H100)
    assert [part.limit for part in found.parts] == ["bytes", "operations"]
    assert 1e6 * found.parts[0].seconds == pytest.approx(104, rel=0.05)  # as measured: profile.json, 1.5B, 256 rows
    assert found.parts[1].seconds == pytest.approx(2.7e-6 + 2 * 8192**2 * 2048 / H100.matrix_rate)
    assert found.recorded == pytest.approx(found.busy + 2 * H100.gap)
    assert found.unrecorded == max(found.recorded, 2 * H100.launch)
    long = launch([state], [state], Work(is_recurrence=True, tokens=1001), "wkv7_kernel")
    (part,) = predict([long], H100).parts
    assert part.limit == "chain"
    assert part.seconds == pytest.approx(1000 * 1.06e-6 + 4.7e-6)


def test_a_card_s_own_limits_replace_the_figures():
    found = with_limits(H200, LIMITS)
    assert found.copy == pytest.approx(H100.copy, rel=0.001)
    assert found.matrix_rate == pytest.approx(H100.matrix_rate, rel=0.001)
    assert (found.processors, found.launch) == (132, pytest.approx(18.5e-6, rel=0.001))
    assert found.latencies["a token"] == pytest.approx(H100.latencies["a token"], rel=0.002)
    assert str(LIMITS) in found.sources["copy"]


@pytest.mark.parametrize("name", CARDS)
def test_every_figure_has_a_source(name):
    card = CARDS[name]
    figures = {"copy", "matrix_rate", "processors", "clock", "l2", "l2_rate", "update_share", "gap", "launch"}
    assert card.sources.keys() == figures
    assert all(card.sources.values())
