"""Transfers of numbers to a device."""

import numpy as np
import pytest
import torch

from rwkv_batch.transfer import upload


@pytest.mark.parametrize("values", [(0.1, 1 / 3), np.array([0.1, 1 / 3])])
def test_float64_numbers_are_sent_without_rounding(values):
    """Sampling compares thresholds in float64, on a CPU and on a GPU."""
    assert upload(values, torch.float64, torch.device("cpu")).tolist() == [0.1, 1 / 3]


def test_integers_are_sent_in_the_dtype_asked_for():
    found = upload([3, 70_000], torch.int32, torch.device("cpu"))
    assert (found.dtype, found.tolist()) == (torch.int32, [3, 70_000])
