"""Checkpoints with random weights that are drawn on the device where they are used, without a file."""

from __future__ import annotations

import zlib
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from rwkv_batch.models.files.checkpoint import Checkpoint
from rwkv_batch.models.files.stored import Restore, StoredTensor
from rwkv_batch.models.random_weights import Draw, draws

from ..roofline import Sizes

LOGIT_STD = 4.0
"""A top_p of 0.85 then keeps some 100 tokens: more than most texts need, far fewer than flat logits would."""


def random_checkpoint(sizes: Sizes, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Checkpoint:
    """A checkpoint whose tensors are drawn on the device each time they are read, with the same numbers each time."""
    name = f"random {sizes.version} {sizes.L}x{sizes.C}"
    dense = {
        key: StoredTensor(
            torch.empty(draw.shape, dtype=dtype, device="meta"), Restore(values=partial(_drawn, key, draw, device))
        )
        for key, draw in draws(sizes.architecture, sizes.letters, LOGIT_STD).items()
    }
    return Checkpoint(dense, (), path=Path(name), format="pth")


def write(checkpoint: Checkpoint, path: Path) -> Path:
    """Writes the checkpoint as a .pth, in the order of the published files."""
    torch.save({name: checkpoint.tensor(name).cpu() for name in checkpoint.dense}, path)
    return path


def _drawn(name: str, draw: Draw, device: torch.device, stored: Tensor) -> Tensor:
    """The seed is a checksum of the name, so that each tensor can be drawn alone."""
    return draw.sample(torch.Generator(device).manual_seed(zlib.crc32(name.encode()))).to(stored.dtype)
