"""Stochastic rounding to float16: the result is an adjacent float16, unbiased, and a function of the position."""

import pytest
import torch

from rwkv_batch.models.rounding import LARGEST, round_stochastically


def rounded(x, num_positions):
    """The same record rounded at many positions, [num_positions, ...]."""
    return round_stochastically(x.expand(num_positions, *x.shape).contiguous(), torch.arange(num_positions))


def steps(x):
    """The distance between adjacent float16 values around x."""
    return torch.exp2(torch.frexp(x).exponent.clamp(min=-13) - 11.0)


def test_rounding_is_unbiased_and_to_an_adjacent_value():
    x = torch.randn(16, 64) * torch.exp2(torch.arange(1024).view(16, 64) % 36 - 22.0)
    found = rounded(x, 4096).double()
    assert torch.equal(found.half().double(), found)
    error = (found - x) / steps(x)
    assert error.abs().max() < 1
    share = (x / steps(x)).frac().abs().double()
    deviation = (share * (1 - share) / 4096).sqrt().clamp(min=1e-6)
    assert (error.mean(0) / deviation).abs().max() < 6


def test_errors_of_different_elements_are_independent():
    """Errors of each pair of elements of a row or a column are uncorrelated."""
    errors = rounded(torch.full((8, 32), 1 + 2.0**-11), 4096) - 1.0
    up = (errors > 0).double().flatten(1)
    together = torch.corrcoef(up.T).fill_diagonal_(0)
    assert together.abs().max() < 0.1
    assert up.mean() == pytest.approx(0.5, abs=0.01)


def test_special_numbers():
    x = torch.tensor([[0.0, LARGEST, -LARGEST, 7e4, -torch.inf, torch.nan, 1.0, -0.5]])
    found = rounded(x, 50)[:, 0]
    assert found[:, :3].unique(dim=0).tolist() == [[0.0, LARGEST, -LARGEST]]
    assert found[:, 3:5].unique(dim=0).tolist() == [[torch.inf, -torch.inf]]
    assert found[:, 5].isnan().all()
    assert found[:, 6:].unique(dim=0).tolist() == [[1.0, -0.5]]
