"""Small random checkpoints of every version, with the names, shapes and key order of the published .pth files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from versions import VARIANTS

from rwkv_batch.models.random_weights import complete_sizes, random_tensors


def make_checkpoint(
    version: str,
    *,
    n_layer: int = 3,
    n_embd: int = 128,
    n_att: int | None = None,
    n_ffn: int = 256,
    head_size: int = 64,
    vocab: int = 97,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """A random checkpoint of one variant; logits have a standard deviation of about `random_weights.LOGIT_STD`.

    Args:
        version: one of `versions.VERSIONS`.
        n_att: width of the time mix, n_embd where None. The `rwkv` package runs no other width, but for v4 token by
            token.
        dtype: of all tensors. The same seed draws the same values for every dtype.
    """
    variant = VARIANTS.get(version)
    n_att = n_embd if n_att is None else n_att
    if variant is None or n_att % head_size or (n_att != n_embd and not variant.has_own_width):
        raise ValueError(
            f"no such checkpoint: version {version!r}, n_embd {n_embd}, n_att {n_att}, head_size {head_size}"
        )
    sizes = {"L": n_layer, "C": n_embd, "A": n_att, "F": n_ffn, "N": head_size, "V": vocab}
    complete = complete_sizes(variant.architecture, **sizes, **variant.sizes)
    return random_tensors(variant.architecture, complete, seed, dtype)


def write_checkpoint(tensors: dict[str, Tensor], path: str | Path) -> Path:
    """Writes `tensors` as .pth or .safetensors, by the suffix of `path`."""
    path = Path(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    elif path.suffix == ".pth":
        torch.save(tensors, path)
    else:
        raise ValueError(f"cannot tell the format of {path}: expected .pth or .safetensors")
    return path
