"""A product with 8-bit weights, which are never dequantised; models/matrices/mm8_linear.py has the algebra."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..kernel_support.tensor_checks import check, check_all
from .build import Specialization
from .launch import DTYPES, PACK_BYTES, Kernel, built

__all__ = ["mm8", "specializations", "unsupported_reason"]

FEW_TOKENS = 8
"""Up to so many tokens the time is that of one pass over the weights."""
MIN_TENSOR_CORES = (8, 0)
THREADS = 128
_INPUT_THREADS = 256
_ROWS_OF_ONE = 8
"""Rows of the weights for each block of `mm8_one`."""
_TOKENS_OF_ONE = (1, 4, FEW_TOKENS)
"""Tokens for each pass over the weights of `mm8_one`. A result's bits do not depend on it."""
_PRODUCT = ("inputs", "sums", "centred", "rx", "corrections", "out")
_SIZES = ("num_tokens", "rows", "depth")
_INPUTS_KERNEL = Kernel("mm8_inputs", pointers=("x", "my", "ry", "inputs", "sums"), int32s=("depth",))
_ONE = Kernel("mm8_one", pointers=_PRODUCT, int32s=_SIZES)
_SEQ = Kernel("mm8_seq", pointers=_PRODUCT, int32s=_SIZES)


class Tile(NamedTuple):
    """The tile of a block of `mm8_seq`. A result's bits do not depend on it."""

    tokens: int
    tiles: int
    """Groups of 16 rows of the weights for each of four warps."""
    stages: int
    """Slices of 64 input features in flight or in use."""

    @property
    def rows(self) -> int:
        return 64 * self.tiles


TILES = (Tile(16, 1, 6), Tile(64, 1, 3), Tile(64, 2, 2))
"""Tiles for up to 16 tokens, for up to `MEDIUM`, and for more. Each fits into 48 KiB, the shared memory of any GPU."""
MEDIUM = 256


def mm8(x: Tensor, centred: Tensor, rx: Tensor, my: Tensor, ry: Tensor, corrections: Tensor) -> Tensor:
    """x times the transpose of the weight w[n, k] = (centred[n, k] + 128.5) rx[n] ry[k] + mx[n] + my[k].

    With z = x ry, any u, and c = `centred`, that is rx (Σ (z - u) c + u Σ c + 128.5 Σ z) + mx Σ x + Σ x my. Two
    launches: the first computes z - u and the sums over x, the second multiplies. `mm8_one` serves few tokens, float32,
    and devices without the tensor cores, in float32; `mm8_seq` serves the rest, on tensor cores.

    Args:
        x: [M, K], float32, bfloat16 or float16, contiguous.
        centred: [N, K], int8, contiguous.
        rx: [N], float32.
        my, ry: [K], float32.
        corrections: [4, N], float32, contiguous: what u, Σ z, Σ x and Σ x my are multiplied by.

    Returns:
        [M, N], dtype of `x`.

    Raises:
        ValueError: a shape, dtype, device or stride differs; the message names the tensor, what was given and what was
            expected.

    Numerics: for many tokens z - u is rounded to the dtype of `x`; all else is float32, rounded once. A row's bits do
        not depend on the other rows, except on which kernel serves: on whether M is above 8. Error, as a share of
        the results' root mean square, emulated on a CPU: 4e-7 in float32, 4e-4 in float16, 3e-3 in bfloat16.
    Graph-safe after its first launch: no allocation besides the result, z - u and the sums, no host sync.
    """
    num_tokens, num_rows, depth = _check(x, centred, rx, my, ry, corrections)
    out = x.new_empty(num_tokens, num_rows)
    if not out.numel():
        return out
    is_seq = num_tokens > FEW_TOKENS and _has_tensor_cores(x, centred)
    inputs = torch.empty_like(x) if is_seq else torch.empty_like(x, dtype=torch.float32)
    sums = torch.empty(num_tokens, 5, dtype=torch.float32, device=x.device)
    dtypes = _dtypes(x.dtype, inputs.dtype)
    _INPUTS_KERNEL.launch(
        dtypes, (num_tokens,), _INPUT_THREADS, x=x, my=my, ry=ry, inputs=inputs, sums=sums, depth=depth
    )
    arguments = dict(inputs=inputs, sums=sums, centred=centred, rx=rx, corrections=corrections, out=out)
    sizes = dict(num_tokens=num_tokens, rows=num_rows, depth=depth)
    if is_seq:
        tile = TILES[0 if num_tokens <= TILES[0].tokens else 1 if num_tokens <= MEDIUM else 2]
        grid = -(-num_rows // tile.rows), -(-num_tokens // tile.tokens)
        _SEQ.launch((*dtypes, *_of_tile(tile)), grid, THREADS, **arguments, **sizes)
    else:
        tokens = next(count for count in _TOKENS_OF_ONE if count >= min(num_tokens, FEW_TOKENS))
        pack = 4 if depth % 4 == 0 and centred.data_ptr() % 4 == 0 else 1
        grid = -(-num_rows // _ROWS_OF_ONE), -(-num_tokens // tokens)
        _ONE.launch((*dtypes, *_of_few(tokens, pack)), grid, THREADS, **arguments, **sizes)
    return out


def _check(x: Tensor, centred: Tensor, rx: Tensor, my: Tensor, ry: Tensor, corrections: Tensor) -> tuple[int, int, int]:
    """M, N and K.

    Raises:
        ValueError: a tensor is not as `mm8` says.
    """
    if x.dim() != 2 or x.dtype not in DTYPES:
        dtypes = ", ".join(map(str, DTYPES))
        raise ValueError(f"x: got {x.dtype} {list(x.shape)}, expected [M, K] in one of {dtypes}")
    (num_tokens, depth), num_rows = x.shape, len(centred)
    check("x", x, x.shape, x.dtype, centred.device)
    check("centred", centred, (num_rows, depth), torch.int8, x.device)
    check("rx", rx, (num_rows,), torch.float32, x.device)
    check_all({"my": my, "ry": ry}, (depth,), torch.float32, x.device)
    check("corrections", corrections, (4, num_rows), torch.float32, x.device)
    return num_tokens, num_rows, depth


def _has_tensor_cores(x: Tensor, centred: Tensor) -> bool:
    """Whether `mm8_seq` can serve: dtype, device, and slices that can be copied 16 bytes at a time."""
    if x.dtype == torch.float32 or x.shape[1] % PACK_BYTES or centred.data_ptr() % PACK_BYTES:
        return False
    return x.device.type != "cuda" or torch.cuda.get_device_capability(x.device) >= MIN_TENSOR_CORES


def _dtypes(dtype: torch.dtype, inputs: torch.dtype) -> tuple[str, ...]:
    return f"DTYPE={DTYPES[dtype]}", f"INPUT={DTYPES[inputs]}"


def _of_tile(tile: Tile) -> tuple[str, ...]:
    return f"TOKENS={tile.tokens}", f"TILES={tile.tiles}", f"STAGES={tile.stages}"


def _of_few(tokens: int, pack: int) -> tuple[str, ...]:
    return f"TOKENS={tokens}", f"PACK={pack}"


unsupported_reason = built("mm8")


def specializations() -> list[Specialization]:
    """The compilations that widths in multiples of 16 launch."""
    found = []
    for dtype in DTYPES:
        exact = _dtypes(dtype, torch.float32)
        found.append(Specialization("mm8_inputs", exact))
        found += [Specialization("mm8_one", (*exact, *_of_few(tokens, 4))) for tokens in _TOKENS_OF_ONE]
        if dtype != torch.float32:
            found.append(Specialization("mm8_inputs", _dtypes(dtype, dtype)))
            found += [Specialization("mm8_seq", (*_dtypes(dtype, dtype), *_of_tile(tile))) for tile in TILES]
    return found
