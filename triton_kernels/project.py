"""r, k, v and the first factors of low-rank pairs in one launch, the second factors in another.

See `project` in models/matrices/projection.py for the definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..kernel_support.tensor_checks import check
from .launch import ceil_div, is_interpreted, start_kernel
from .linear import ANY, Choice, fixed_tile
from .low_rank import check_pairs, down_constants, multiply_up, num_blocks_of
from .probe import probed
from .specialization import Specialization, pointers
from .tiles import GROUP, TYPES, Tile, activate, product_of_rows

__all__ = ["CHOICES", "choose_tile", "project", "project_kernel", "specializations", "unsupported_reason"]

CHOICES = (
    # Few tokens: as in linear.py.
    Choice(16, 8192, ANY, Tile(16, 32, 128, 4, 4)),
    Choice(16, ANY, ANY, Tile(16, 64, 128, 4, 3)),
    Choice(256, 4096, 1024, Tile(64, 64, 64, 4, 4)),
    Choice(64, ANY, ANY, Tile(64, 64, 64, 4, 4)),
    Choice(1024, ANY, ANY, Tile(128, 128, 64, 8, 3)),
    Choice(ANY, ANY, ANY, None),
)
"""The first that is large enough is taken; rows are those of all matrices and pairs together. None: torch's product and
`low_rank`. Predicted from measured times of RWKV-7 1.5B on an H100 at M = 256: torch's product of r, k and v and
`down_kernel` take 20.3 + 11.4 + 0.8 (gap) µs; this kernel's 104 programs, at 65 % of the tensor cores' rate, 16 µs."""


@triton.jit(do_not_specialize=["num_tokens"])
def project_kernel(  # type: ignore[no-untyped-def]
    p_x,
    p_weight,
    p_down,
    p_y,
    p_low,
    num_tokens,
    NUM_MATRICES: tl.constexpr,
    A: tl.constexpr,
    C: tl.constexpr,
    STARTS: tl.constexpr,
    SOURCES: tl.constexpr,
    ACTIVATIONS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Grid [tiles of tokens * NUM_BLOCKS]: x_i weight_i^T of each matrix, [NUM_MATRICES, M, A]; then
    act_j(x[source_j] down_j^T) of each pair side by side, [M, ΣR].

    A block of rows belongs to one matrix or to one pair.
    """
    tiles_m = tl.cdiv(num_tokens, BLOCK_M)
    tiles_a: tl.constexpr = (A + BLOCK_N - 1) // BLOCK_N
    i_tile = tl.program_id(0)
    i_m, i_block = tl.swizzle2d(i_tile // NUM_BLOCKS, i_tile % NUM_BLOCKS, tiles_m, NUM_BLOCKS, GROUP)
    m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    mask_m = (m < num_tokens)[None, :]
    token = m.to(tl.int64)[None, :]
    if i_block < NUM_MATRICES * tiles_a:
        i_matrix = (i_block // tiles_a).to(tl.int64)
        n = (i_block % tiles_a) * BLOCK_N + tl.arange(0, BLOCK_N)
        mask_n = (n < A)[:, None]
        token += i_matrix * num_tokens
        p_xs = p_x + token * C + k[:, None]
        p_weights = p_weight + (i_matrix * A + n)[:, None] * C + k[None, :]
        y = product_of_rows(p_xs, p_weights, mask_m, mask_n, C, BLOCK_M, BLOCK_N, BLOCK_K, UPCAST)
        tl.store(p_y + token * A + n[:, None], y, mask=mask_m & mask_n)
    else:
        pair = 0
        source = 0
        start = 0
        end = 0
        first = NUM_MATRICES * tiles_a
        for j in tl.static_range(len(SOURCES)):
            if i_block >= first:
                pair = j
                source = SOURCES[j]
                start = STARTS[j] + (i_block - first) * BLOCK_N
                end = STARTS[j + 1]
            first += tl.cdiv(STARTS[j + 1] - STARTS[j], BLOCK_N)
        r = tl.multiple_of(start, ALIGNMENT) + tl.arange(0, BLOCK_N)
        mask_r = (r < tl.multiple_of(end, ALIGNMENT))[:, None]
        p_xs = p_x + (source * num_tokens.to(tl.int64) + token) * C + k[:, None]
        p_downs = p_down + r[:, None] * C + k[None, :]
        low = product_of_rows(p_xs, p_downs, mask_m, mask_r, C, BLOCK_M, BLOCK_N, BLOCK_K, UPCAST)
        for j in tl.static_range(len(SOURCES)):
            if pair == j:
                low = activate(low, tl.constexpr(ACTIVATIONS[j]))
        tl.store(p_low + token * STARTS[len(SOURCES)] + r[:, None], low, mask=mask_m & mask_r)


def project(inputs: Tensor, p: Any, ops: Any) -> tuple[Sequence[Tensor], Tensor]:
    """The products of the matrices and of the low-rank pairs.

    One launch computes the products of the matrices and of the pairs' first factors, another those of the second
    factors. `p.matrices` and `ops.low_rank` serve where matrices are quantized, where factors are not stacked, and for
    many tokens without `p.fixed_tiles`: `CHOICES` decides by M and the sizes.

    Args:
        inputs: [m, M, C], float32, bfloat16 or float16, contiguous.
        p: a `Projection`: `matrices` with the `weight` [n, A, C], and `low_rank` with stacked factors; dtype of
            `inputs`, contiguous.
        ops: serves `low_rank`.

    Returns:
        n tensors [M, A], and the pairs' results [pairs, M, A]; dtype of `inputs`.

    Raises:
        ValueError: a shape, dtype, device or stride differs; the message names the tensor, what was given and what was
            expected.

    Numerics: sums and activations in float32; the intermediate [M, ΣR] is rounded to the dtype of `inputs`. With
        `p.fixed_tiles` a row's bits do not depend on M or on the other rows: the tiles depend on the weights only.
    Graph-safe: no allocation besides the results and the intermediate, no host sync.
    """
    weight, pairs, num_tokens = p.matrices.weight, p.low_rank, inputs.shape[-2]
    tile = _tile_of(weight, p, num_tokens) if num_tokens else None
    if tile is None:
        return p.matrices(inputs[: len(p.matrices)]), ops.low_rank(inputs, pairs)
    starts = check_pairs(inputs, pairs)
    count, out_width, width = len(weight), weight.shape[1], inputs.shape[-1]
    dtype, device = inputs.dtype, inputs.device
    check("weight", weight, (count, out_width, width), dtype, device)
    if count > len(inputs):
        raise ValueError(f"inputs: got {len(inputs)} of them, expected at least {count}")
    y = torch.empty(count, num_tokens, out_width, dtype=dtype, device=device)
    low = torch.empty(num_tokens, starts[-1], dtype=dtype, device=device)
    constants = project_constants(
        (count, out_width, width),
        starts,
        tuple(pair.source for pair in pairs.pairs),
        tuple(pair.activation for pair in pairs.pairs),
        tile,
    )
    start_kernel(
        project_kernel,
        (ceil_div(num_tokens, tile.tokens) * constants["NUM_BLOCKS"],),
        (inputs, weight, pairs.down, y, low, num_tokens),
        constants | {"UPCAST": is_interpreted(), **tile.options},
    )
    return y.unbind(), multiply_up(low, pairs.up, starts)


def _tile_of(weight: Any, p: Any, num_tokens: int) -> Tile | None:
    """The tile of this module's kernel, or None where it does not serve."""
    down = p.low_rank.down
    if not isinstance(weight, Tensor) or down is None or weight.dtype != down.dtype:
        return None
    num_rows = weight.shape[0] * weight.shape[1] + len(down)
    return choose_tile(num_tokens, num_rows, weight.shape[2], weight.dtype, p.fixed_tiles or is_interpreted())


def choose_tile(num_tokens: int, num_rows: int, depth: int, dtype: torch.dtype, fixed_tiles: bool) -> Tile | None:
    """The tile of this module's kernel, or None for torch's product and `low_rank`.

    Args:
        num_rows: rows of all matrices and of all pairs' first factors.
    """
    if fixed_tiles:
        return fixed_tile(num_rows, dtype)
    if dtype == torch.float32:
        return None
    return next(choice.tile for choice in CHOICES if choice.takes(num_tokens, num_rows, depth))


@cache
def project_constants(
    shape: tuple[int, int, int],
    starts: tuple[int, ...],
    sources: tuple[int, ...],
    activations: tuple[str | None, ...],
    tile: Tile,
) -> dict[str, Any]:
    """Constants of `project_kernel`, but for UPCAST.

    Args:
        shape: of the matrices' weight, [n, A, C].
        starts, sources, activations: as in `down_constants`.
    """
    count, out_width, width = shape
    down = down_constants(width, starts, sources, activations, tile)
    return {
        "NUM_MATRICES": count,
        "A": out_width,
        **{name: down[name] for name in ("C", "STARTS", "SOURCES", "ACTIVATIONS", "ALIGNMENT")},
        "NUM_BLOCKS": count * ceil_div(out_width, tile.rows) + num_blocks_of(starts, tile),
        "BLOCK_M": tile.tokens,
        "BLOCK_N": tile.rows,
        "BLOCK_K": tile.depth,
        "GROUP": GROUP,
    }


unsupported_reason = probed("project")


def specializations() -> list[Specialization]:
    """The compilations for models of width 768, and for one of width 4096 with many ranks."""

    def one(tokens: int | None, dtype: torch.dtype, width: int, ranks: tuple[int, ...], is_probe: bool = False) -> Any:
        starts, activations = tuple(accumulate(ranks, initial=0)), ("tanh", None, "sigmoid", None)
        num_rows, name = 3 * width + starts[-1], TYPES[dtype]
        tile = choose_tile(tokens or 0, num_rows, width, dtype, tokens is None)
        assert tile is not None
        constants = project_constants((3, width, width), starts, (3, 4, 5, 2), activations, tile) | {"UPCAST": False}
        signature = {**pointers(name, "x", "weight", "down", "y", "low"), "num_tokens": "i32"}
        label = f"v7 of width {width} {name} {'fixed' if tokens is None else f'M <= {tokens}'}"
        return Specialization(label, project_kernel, signature, constants, tile.num_warps, tile.num_stages, is_probe)

    small, large = (64, 64, 128, 32), (128, 128, 480, 96)
    return [
        one(None, torch.bfloat16, 768, small),
        one(None, torch.bfloat16, 4096, large),
        one(16, torch.bfloat16, 768, small),
        one(16, torch.bfloat16, 4096, large),
        one(64, torch.bfloat16, 4096, large),
        one(1024, torch.bfloat16, 4096, large, is_probe=True),
        one(1024, torch.float16, 4096, large),
        one(None, torch.float32, 768, small),
    ]
