"""Stochastic rounding to float16: the result is an adjacent float16, unbiased, and a function of the position."""

import pytest
import torch

from rwkv_batch.models.rounding import LARGEST, MAX_SIZE, random_bits, round_stochastically

SMALLEST, SMALLEST_NORMAL = 2.0**-24, 2.0**-14
"""The smallest float16 above 0, and the smallest that is normal."""
POSITIONS = 4096


def rounded(x, num_positions=POSITIONS):
    """The same state rounded at many positions, [num_positions, H, K, V]."""
    return round_stochastically(x.expand(num_positions, *x.shape).contiguous(), torch.arange(num_positions))


def steps(x):
    """The distance between adjacent float16 values around x."""
    return torch.exp2(torch.frexp(x).exponent.clamp(min=-13) - 11.0)


def draws(num_positions, *sizes):
    """The random bits of the first positions as numbers with mean 0 and variance 1, [num_positions, *sizes]."""
    bits = random_bits(torch.arange(num_positions), *sizes).double()
    return (bits - 4095.5) / 4096 * 3**0.5


def correlations(a, b):
    """Correlations of all pairs of numbers, in standard deviations of what chance gives; a, b: [P, n]."""
    return a.T @ b / len(a) ** 0.5


def test_rounding_is_unbiased_and_to_an_adjacent_value():
    x = torch.randn(1, 16, 64) * torch.exp2(torch.arange(1024).view(1, 16, 64) % 36 - 22.0)
    found = rounded(x).double()
    assert torch.equal(found.half().double(), found)
    error = (found - x) / steps(x)
    assert error.abs().max() < 1
    share = (x / steps(x)).frac().abs().double()
    deviation = (share * (1 - share) / POSITIONS).sqrt().clamp(min=1e-6)
    assert (error.mean(0) / deviation).abs().max() < 6


@pytest.mark.parametrize("later", [0, 1, 2, 3, 64])
def test_draws_of_different_elements_and_tokens_are_uncorrelated(later):
    """Each pair of elements of a block of rows and columns in two heads, at the same token and `later` tokens apart."""
    drawn = draws(POSITIONS + later, 2, 12, 16).flatten(1)
    found = correlations(drawn[:POSITIONS], drawn[later:])
    if not later:
        assert found.diagonal().sub(POSITIONS**0.5).abs().max() < 6  # a variance of 1
        found.fill_diagonal_(0)
    assert found.abs().max() < 6.5
    assert found.square().mean() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("size", [64, MAX_SIZE])
def test_sums_of_draws_are_as_those_of_independent_numbers(size):
    """Sums over the rows, the columns and all of a head: sums that are read out of a state have no rare large errors.

    The fourth moment of a normal number is 3.
    """
    drawn = draws(1000, 1, size, size)
    for sums in (drawn.sum(2).flatten(), drawn.sum(3).flatten(), drawn.sum((2, 3)).flatten()):
        normal = sums / sums.std()
        spread = (96 / len(sums)) ** 0.5
        assert normal.pow(4).mean() == pytest.approx(3, abs=0.1 + 5 * spread)
    assert drawn.sum(2).var() == pytest.approx(size, rel=0.05)
    assert drawn.sum(3).var() == pytest.approx(size, rel=0.05)
    assert drawn.sum((2, 3)).var() == pytest.approx(size * size, rel=0.3)


def test_draws_are_uniform():
    counts = random_bits(torch.arange(1000), 1, 64, 64).flatten().bincount(minlength=8192).double()
    assert len(counts) == 8192
    expected = counts.mean()
    assert ((counts - expected) ** 2 / expected).sum() == pytest.approx(8191, abs=6 * (2 * 8191) ** 0.5)


def test_rare_events_come_together_as_often_as_independent_ones():
    """Neighbors in a row, in a column, of heads and of tokens are both rounded up in spite of a small remainder."""
    up = random_bits(torch.arange(1500), 2, 64, 64) >= 8192 - 256  # one in 32
    share = 1 / 32
    assert up.double().mean() == pytest.approx(share, rel=0.01)
    for both in (up[1:] & up[:-1], up[:, 1:] & up[:, :-1], up[:, :, 1:] & up[:, :, :-1], up[..., 1:] & up[..., :-1]):
        assert both.double().mean() == pytest.approx(share * share, rel=0.05)


def test_special_numbers():
    just_above = torch.tensor(LARGEST).nextafter(torch.tensor(torch.inf)).item()
    kept = [0.0, -0.0, LARGEST, -LARGEST, SMALLEST, -SMALLEST, SMALLEST_NORMAL, 1.0, -0.5, torch.inf, -torch.inf]
    beyond = [just_above, -just_above, 7e4, -3e38]
    nans = torch.tensor([0x7FFFFFFF, 0x7F800001, 0x7FC00000, -1], dtype=torch.int32).view(torch.float32)
    x = torch.cat((torch.tensor([*kept, *beyond]), nans))
    found = rounded(x.view(1, 1, -1), 200)[:, 0, 0]
    bits = found.view(torch.int32)[:, : len(kept)]
    assert torch.equal(bits, x.view(torch.int32)[: len(kept)].expand_as(bits))
    signs = torch.tensor([1.0, -1, 1, -1])
    assert torch.equal(found[:, len(kept) : -4], (signs * torch.inf).expand(200, 4))
    assert found[:, -4:].isnan().all()


def test_numbers_too_small_for_float16_are_rounded_to_zero_with_their_sign_or_to_the_smallest():
    x = torch.full((1, 1, 64), SMALLEST / 4)
    x[..., ::2] *= -1
    found = rounded(x, 2000)
    assert torch.equal(found.signbit(), x.signbit().expand_as(found))
    assert found.abs().unique().tolist() == [0.0, SMALLEST]
    assert (found != 0).double().mean() == pytest.approx(0.25, abs=0.01)
