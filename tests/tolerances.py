"""How close two computations of the same numbers must be: the package's own table, and one assertion."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_batch.checks.limits import MM8_TOLERANCES, TOLERANCES

__all__ = ["MM8_TOLERANCES", "TOLERANCES", "assert_close"]


def assert_close(name: str, got: Tensor, expected: Tensor, dtype: torch.dtype | str, factor: float = 1.0) -> None:
    """Assert that `got` equals `expected` within `factor` times the tolerance of `dtype`.

    Args:
        name: what is compared, for the message.
        dtype: the dtype `got` was computed in; a key of `TOLERANCES` or a torch dtype.
        factor: for results of many operations in a row, whose roundings add up.
    """
    dtype_name = str(dtype).removeprefix("torch.")
    assert got.shape == expected.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    if got.numel() == 0:
        return
    got, expected = got.detach().cpu().double(), expected.detach().cpu().double()
    difference = (got - expected).abs().nan_to_num(nan=torch.inf)
    scale = max(expected.abs().max().item(), torch.finfo(torch.float64).tiny)
    worst = int(difference.argmax())
    where = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), got.shape))
    relative, allowed = difference.max().item() / scale, factor * TOLERANCES[dtype_name]
    assert relative <= allowed, (
        f"{name} ({dtype_name}): error {difference.max().item():.3e}, {relative:.3e} of max |expected| {scale:.3e}, "
        f"allowed {allowed:.1e}; at {where}: got {got.flatten()[worst].item():.6g}, "
        f"expected {expected.flatten()[worst].item():.6g}"
    )
