"""Checks of the ops on single rows: layer norm, the rows that an index names, and RWKV-6's interpolations."""

from __future__ import annotations

import torch

from ..models.blocks import Norm
from ..models.blocks import layer_norm as layer_norm_definition
from ..models.rwkv6 import ddlerp as ddlerp_definition
from .comparisons import Checks, poisoned
from .limits import tolerance
from .target import Target


def check_layer_norm(target: Target, dtype: torch.dtype, width: int, num_rows: int) -> Checks:
    """Compares the result with the definition's in float64."""
    torch.manual_seed(0)
    checks, function = Checks(), target.op("layer_norm", dtype, C=width)
    weight, bias = 1 + 0.1 * torch.randn(width), 0.1 * torch.randn(width)
    norm = Norm(weight.to(target.device, dtype), bias.to(target.device, dtype))
    x = (1 + 3 * torch.randn(num_rows, width)).to(target.device, dtype)
    with poisoned():
        found = function(x, norm)
    right = layer_norm_definition(x.double(), Norm(norm.weight.double(), norm.bias.double()))
    checks.close(f"C={width}", found, right, tolerance(dtype))
    return checks


def check_take_rows(target: Target, dtype: torch.dtype, width: int, num_rows: int) -> Checks:
    """Compares the bits with those of rows that the host copies one by one."""
    torch.manual_seed(0)
    checks, function = Checks(), target.op("take_rows", dtype, C=width)
    table, index = torch.randn(97, width).to(dtype), torch.randint(97, (num_rows,))
    index[:2] = torch.tensor([96, 0])
    with poisoned():
        found = function(table.to(target.device), index.to(target.device))
    checks.same(f"C={width}", found, torch.stack([table[i] for i in index.tolist()]))
    return checks


def check_ddlerp(target: Target, dtype: torch.dtype, width: int, num_rows: int) -> Checks:
    """Compares the result with the definition's in float64."""
    torch.manual_seed(0)
    checks, function = Checks(), target.op("ddlerp", dtype, C=width)
    shapes = ((num_rows, width), (num_rows, width), (5, num_rows, width), (5, 1, width))
    normed, delta, shares, mix = (torch.randn(shape).to(target.device, dtype) for shape in shapes)
    right = ddlerp_definition(normed.double(), delta.double(), shares.double(), mix.double())
    with poisoned():
        found = function(normed, delta, shares, mix)
    checks.close(f"C={width}", found, right, tolerance(dtype))
    return checks
