"""Small random checkpoints of every version, with the names, shapes and key order of the published .pth files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from versions import VARIANTS

from rwkv_batch.models.random_weights import complete_sizes, random_tensors

SIZES = {"n_layer": 3, "n_embd": 128, "n_ffn": 256, "head_size": 64, "vocab": 97}


def make_checkpoint(
    version: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **given: int
) -> dict[str, Tensor]:
    """A random checkpoint of one variant; logits have a standard deviation of about `random_weights.LOGIT_STD`.

    Args:
        version: one of `versions.VERSIONS`.
        dtype: of all tensors. The same seed draws the same values for every dtype.
        given: sizes that replace those of `SIZES`; and n_att, the width of the time mix, n_embd by default. The `rwkv`
            package runs no other width, but for v4 token by token.
    """
    sizes = {**SIZES, "n_att": given.get("n_embd", SIZES["n_embd"]), **given}
    variant = VARIANTS.get(version)
    is_wide = sizes["n_att"] == sizes["n_embd"]
    if variant is None or sizes["n_att"] % sizes["head_size"] or not (is_wide or variant.has_own_width):
        raise ValueError(f"no such checkpoint: version {version!r} of {sizes}")
    letters = {"L": "n_layer", "C": "n_embd", "A": "n_att", "F": "n_ffn", "N": "head_size", "V": "vocab"}
    complete = complete_sizes(
        variant.architecture, **{letter: sizes.pop(name) for letter, name in letters.items()}, **variant.sizes
    )
    if sizes:
        raise TypeError(f"unknown sizes {sorted(sizes)}, expected some of {sorted(letters.values())}")
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
