"""RWKV-7 checkpoints with random weights that are drawn where they are used, and never lie on a disk."""

from __future__ import annotations

import zlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rwkv_batch.models.files.checkpoint import Checkpoint
from rwkv_batch.models.files.stored import Restore, StoredTensor

from ..roofline import Sizes

LOGIT_STD = 4.0
"""A top_p of 0.85 then keeps some 100 tokens: more than most texts need, far fewer than flat logits would."""


class Draw(NamedTuple):
    """How the numbers of one tensor are drawn."""

    shape: tuple[int, ...]
    std: float = 1.0
    mean: float = 0.0
    is_uniform: bool = False
    """In [0, 1)."""


def random_checkpoint(sizes: Sizes, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Checkpoint:
    """A checkpoint whose tensors are drawn on the device each time they are asked for, the same ones every time."""
    name = f"random rwkv7 {sizes.L}x{sizes.C}"
    dense = {
        key: StoredTensor(
            torch.empty(draw.shape, dtype=dtype, device="meta"), Restore(values=partial(_drawn, key, draw, device))
        )
        for key, draw in _draws(sizes).items()
    }
    return Checkpoint(dense, (), path=Path(name), format="pth")


def write(checkpoint: Checkpoint, path: Path) -> Path:
    """Write it as a .pth, in the order of the published files."""
    torch.save({name: checkpoint.tensor(name).cpu() for name in checkpoint.dense}, path)
    return path


def _drawn(name: str, draw: Draw, device: torch.device, stored: Tensor) -> Tensor:
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    if draw.is_uniform:
        return torch.rand(draw.shape, generator=generator, device=device).to(stored.dtype)
    x = torch.randn(draw.shape, generator=generator, device=device)
    return x.mul_(draw.std).add_(draw.mean).to(stored.dtype)


def _draws(sizes: Sizes) -> dict[str, Draw]:
    L, C, F, V, H, N = sizes.L, sizes.C, sizes.F, sizes.V, sizes.H, sizes.N
    draws = {"emb.weight": Draw((V, C))}

    def norm(prefix: str) -> None:
        draws[f"{prefix}.weight"] = Draw((C,), 0.1, 1.0)
        draws[f"{prefix}.bias"] = Draw((C,), 0.1)

    def matrix(name: str, n_out: int, n_in: int, gain: float = 1.0) -> None:
        draws[f"{name}.weight"] = Draw((n_out, n_in), gain / n_in**0.5)

    for i in range(L):
        block, att, ffn = f"blocks.{i}.", f"blocks.{i}.att.", f"blocks.{i}.ffn."
        norm(f"{block}ln1")
        norm(f"{block}ln2")
        if i == 0:
            norm(f"{block}ln0")
        draws |= {f"{att}x_{letter}": Draw((1, 1, C), is_uniform=True) for letter in "rwkvag"}
        for letter, rank in sizes.ranks.items():
            if letter == "v" and i == 0:
                continue
            if letter != "g":
                draws[f"{att}{letter}0"] = Draw((1, 1, C))
            draws[f"{att}{letter}1"] = Draw((C, rank), C**-0.5)
            draws[f"{att}{letter}2"] = Draw((rank, C), rank**-0.5)
        draws[f"{att}k_k"] = Draw((1, 1, C), 0.1, 0.7)
        draws[f"{att}k_a"] = Draw((1, 1, C), 0.1, 1.0)
        draws[f"{att}r_k"] = Draw((H, N), 0.3)
        for name in ("receptance", "key", "value", "output"):
            matrix(f"{att}{name}", C, C)
        norm(f"{att}ln_x")
        draws[f"{ffn}x_k"] = Draw((1, 1, C), is_uniform=True)
        matrix(f"{ffn}key", F, C)
        matrix(f"{ffn}value", C, F, 0.5)
    norm("ln_out")
    matrix("head", V, C, LOGIT_STD)
    return draws
