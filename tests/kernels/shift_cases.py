"""Tensors that show what a kernel touches besides its own, and calls of `shift_lerp`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from rwkv_batch.models.blocks import Norm
from rwkv_batch.models.rows import Rows

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GUARD = 64
WIDTH = 80
"""A width that is neither a power of two nor a multiple of a block."""


@contextmanager
def garbage_in_new_tensors() -> Iterator[None]:
    """Fills new tensors with NaN, so that elements that a kernel does not write show."""

    def filled(like: bool, *args: Any, **kwargs: Any) -> Tensor:
        made = (empty_like if like else empty)(*args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    empty, empty_like = torch.empty, torch.empty_like
    with patch("torch.empty", partial(filled, False)), patch("torch.empty_like", partial(filled, True)):
        yield


def random(
    *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0, device: torch.device = DEVICE
) -> Tensor:
    """Normally distributed, with NaN before and after it in memory."""
    values = torch.randn(math.prod(shape)) * scale
    guarded = torch.nn.functional.pad(values, (GUARD, GUARD), value=torch.nan).to(device, dtype)
    return guarded[GUARD : len(guarded) - GUARD].view(shape)


def ragged(device: torch.device = DEVICE) -> Rows:
    return Rows(slots=(5, -1, 0, 3), lengths=(3, 2, 1, 4), device=device)


def decode(device: torch.device = DEVICE) -> Rows:
    return Rows(slots=(4, 2, -1, 0), lengths=(1, 1, 1, 1), device=device)


class Shift:
    """Arguments of `shift_lerp`. The pool is one layer of three, of slots among others."""

    def __init__(
        self,
        num_tokens: int,
        dtype: torch.dtype,
        width: int = WIDTH,
        num_mixes: int = 6,
        device: torch.device = DEVICE,
    ) -> None:
        make = partial(random, dtype=dtype, device=device)
        self.x = make(num_tokens, width, scale=3) + 1
        self.norm = Norm(make(width), make(width))
        self.mix = make(num_mixes, width)
        self.pool = make(7, 3, width)

    def arguments(self, pool: Tensor, tokens: slice = slice(None)) -> tuple[Tensor, Norm, Tensor, Tensor]:
        return self.x[tokens], self.norm, self.mix, pool[:, 1]

    def double(self) -> tuple[Any, ...]:
        return self.x.double(), Norm(*(v.double() for v in self.norm)), self.mix.double(), self.pool[:, 1].double()


def live_tokens(rows: Rows) -> Tensor:
    return torch.tensor([slot for slot, n in zip(rows.slots, rows.lengths, strict=True) for _ in range(n)]) >= 0
