"""A matrix on a device that multiplies but does not sample: rows go there, and what comes out returns."""

from __future__ import annotations

import torch
from torch import Tensor

from .product import Linear


class LinearElsewhere(Linear):
    """A matrix on another device than the rows it is called with, and than its results.

    Args:
        device: where `linear` is.
    """

    def __init__(self, linear: Linear, device: torch.device) -> None:
        self._linear, self._device = linear, device
        self.in_features, self.out_features, self.nbytes = linear.in_features, linear.out_features, linear.nbytes

    def product(self, x: Tensor) -> Tensor:
        return self._linear(x.to(self._device)).to(x.device)
