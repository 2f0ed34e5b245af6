"""Triton's `score` against float64."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

pytest.importorskip("triton")

from rwkv_batch.models.matrices.linear import DenseLinear
from rwkv_batch.models.scoring import LOG_NORMALIZER
from rwkv_batch.models.scoring import score as reference
from rwkv_batch.ops import resolve
from rwkv_batch.triton_kernels import launch
from rwkv_batch.triton_kernels import score as module
from rwkv_batch.triton_kernels.score import Tiles, score, unsupported_reason

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CPU = torch.device("cpu")
DEVICE = CPU if launch.is_interpreted() else torch.device("cuda")


@pytest.fixture(autouse=True)
def device_is_served() -> None:
    if reason := unsupported_reason(DEVICE, torch.float32, {}):
        pytest.skip(reason)


@pytest.fixture
def small_tiles(monkeypatch):
    """The vocabulary is cut in parts, and these in tiles, of which the last ones are not full."""
    monkeypatch.setattr(module, "HALF", Tiles(rows=16, ids=16, depth=16, num_warps=4, num_stages=2))
    monkeypatch.setattr(module, "SINGLE", Tiles(rows=16, ids=16, depth=16, num_warps=4, num_stages=2))
    monkeypatch.setattr(module, "SPLITS", 3)


def rows_and_weight(n, width, size, dtype, scale=1.0):
    x = torch.randn(n, width).to(dtype)
    weight = (torch.randn(size, width) * scale * width**-0.5).to(dtype)
    return x, weight


def run(x, weight, targets, rows=None):
    """Scores on the kernels' device and returns results on the host. Without `rows`, row i predicts target i."""
    head = DenseLinear(weight.to(DEVICE))
    rows = torch.arange(len(targets)) if rows is None else rows
    logprobs, greedy = score(x.to(DEVICE), head, targets.to(DEVICE), rows.to(DEVICE), None)
    assert (logprobs.dtype, greedy.dtype) == (torch.float64, torch.bool)
    return logprobs.cpu(), greedy.cpu()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "width", "size"), [(1, 40, 7), (35, 48, 101), (33, 72, 150)])
def test_equals_float64(n, width, size, dtype, small_tiles):
    x, weight = rows_and_weight(n, width, size, dtype, scale=3.0)
    logits = x.double() @ weight.double().t()
    best = logits.argmax(1)
    targets = torch.where(torch.arange(n) % 3 == 0, best, torch.randint(0, size, (n,)))
    logprobs, greedy = run(x, weight, targets)
    expected = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]
    assert (logprobs - expected).abs().max() < 5e-6
    assert torch.equal(greedy, targets == best)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_as_they_are_launched(dtype):
    x, weight = rows_and_weight(3, 80, 300, dtype)
    targets = torch.tensor([0, 299, 140])
    logprobs, _ = run(x, weight, targets)
    expected = (x.double() @ weight.double().t()).log_softmax(1)[range(3), targets]
    assert (logprobs - expected).abs().max() < 5e-6


@pytest.mark.parametrize("num_targets", [4, 50])
def test_equals_the_definition(num_targets, small_tiles):
    """Rows of which some predict many targets, and some none."""
    x, weight = rows_and_weight(20, 32, 90, torch.float32)
    rows = torch.randint(0, 20, (num_targets,)).sort().values
    targets = torch.randint(0, 90, (num_targets,))
    targets[::3] = (x @ weight.t()).argmax(1)[rows[::3]]
    ops = resolve((LOG_NORMALIZER,), "reference", CPU, torch.float32, {})
    expected, expected_greedy = reference(x, DenseLinear(weight), targets, rows, ops)
    logprobs, greedy = run(x, weight, targets, rows)
    assert (logprobs - expected).abs().max() < 5e-6
    assert torch.equal(greedy, expected_greedy)


def test_the_first_of_equal_logits_is_the_most_likely_token(small_tiles):
    """The equal logits are in one tile, in two tiles of a part, and in two parts."""
    weight = torch.zeros(100, 8)
    for first, other in ((3, 5), (3, 20), (3, 80), (40, 90)):
        weight[:] = -1.0
        weight[[first, other]] = 1.0
        targets = torch.tensor([first, other, 99])
        assert run(torch.ones(3, 8), weight, targets)[1].tolist() == [True, False, False]


def test_logits_far_apart(small_tiles):
    """Sums that would overflow or vanish without the largest logit taken off."""
    weight = torch.zeros(60, 4)
    weight[7] = 250.0
    weight[50] = -250.0
    logprobs, greedy = run(torch.tensor([[1.0] * 4, [-1.0] * 4]), weight, torch.tensor([7, 7]))
    assert logprobs.tolist() == [0.0, -2000.0]
    assert greedy.tolist() == [True, False]


def test_rows_with_nan(small_tiles):
    x, weight = rows_and_weight(5, 16, 40, torch.float32)
    clean = run(x, weight, torch.arange(5))
    x[1, 3] = torch.nan
    x[3, 0] = torch.inf
    logprobs, greedy = run(x, weight, torch.arange(5))
    assert logprobs.isfinite().tolist() == [True, False, True, False, True]
    assert not greedy[1]
    assert torch.equal(logprobs[::2], clean[0][::2])
    weight[39] = torch.nan
    assert run(x, weight, torch.arange(5))[0].isnan().all()


def test_a_row_does_not_depend_on_the_others(small_tiles):
    """Bit for bit, however many there are, and wherever it is among them."""
    x, weight = rows_and_weight(40, 32, 75, torch.bfloat16)
    targets = torch.randint(0, 75, (40,))
    together = run(x, weight, targets)[0]
    place = torch.tensor([39, 3, 17])
    assert torch.equal(run(x[place], weight, targets[place])[0], together[place])


def test_only_the_results_and_parts_are_allocated(monkeypatch):
    """No tensor has the size of all logits, [n, V]."""
    sizes = []
    empty = torch.empty

    def recorded(*shape, **options):
        sizes.append(empty(*shape, **options).numel())
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", recorded)
    launches = []
    for name in ("score_kernel", "combine_kernel"):
        kernel = MagicMock()
        kernel.__getitem__.side_effect = lambda grid: launches.append(grid) or MagicMock()
        monkeypatch.setattr(module, name, kernel)
    x, head = torch.zeros(64, 16).half(), SimpleNamespace(weight=torch.zeros(65536, 16).half())
    score(x, head, torch.zeros(70, dtype=torch.int64), torch.zeros(70, dtype=torch.int64), None)
    assert launches == [(1, 128), (70,)]
    assert max(sizes) == 2 * 128 * 64


def test_no_rows():
    logprobs, greedy = run(torch.zeros(0, 16), torch.zeros(20, 16), torch.zeros(0, dtype=torch.int64))
    assert logprobs.shape == greedy.shape == (0,)


def test_a_target_out_of_range_has_no_log_probability(small_tiles):
    logprobs, greedy = run(torch.ones(3, 16), torch.zeros(20, 16), torch.tensor([20, -1, 19]))
    assert logprobs.isnan().tolist() == [True, True, False]
    assert not greedy.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(x=torch.zeros(2, 16, dtype=torch.float64)), "x: no kernel for torch.float64"),
        (dict(x=torch.zeros(16, 2).t()), r"x: got .* strides \(1, 2\)"),
        (dict(x=torch.zeros(2, 12)), "head.weight: got"),
        (dict(weight=torch.zeros(9, 16, dtype=torch.float16)), "head.weight: got torch.float16"),
        (dict(targets=torch.zeros(2, dtype=torch.int32)), "targets: got torch.int32"),
        (dict(rows=torch.zeros(3, dtype=torch.int64)), r"rows: got torch.int64 \[3\]"),
    ],
)
def test_refuses_what_it_cannot_read(changes, message):
    index = torch.zeros(2, dtype=torch.int64)
    given = dict(x=torch.zeros(2, 16), weight=torch.zeros(9, 16), targets=index, rows=index) | changes
    given = {name: value.to(DEVICE) for name, value in given.items()}
    with pytest.raises(ValueError, match=message):
        score(given["x"], SimpleNamespace(weight=given["weight"]), given["targets"], given["rows"], None)


def test_specializations_name_every_argument():
    for spec in module.specializations():
        assert {*spec.signature, *spec.constexprs} == set(spec.kernel.arg_names), spec.label
