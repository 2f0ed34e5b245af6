"""The cases: each op with each dtype on each backend that has it, with small inputs of odd sizes and large ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch

from .calls import RECURRENCES, VARIANTS, op_of
from .comparisons import Checks
from .demo import check_demo
from .int8 import check_mm8, check_whole_numbers
from .products import (
    Product,
    Sizes,
    check_deep_embed,
    check_linear,
    check_low_rank,
    check_project,
    check_score,
    products,
)
from .recurrences import Heads, batches, check_recurrence, check_shift_lerp
from .rows import check_ddlerp, check_layer_norm, check_take_rows
from .sampling import SETTINGS, check_log_normalizer, check_sample, check_top_tokens
from .target import CPU, Target

DEMO = "demo"
"""In place of an op's name: the demo model."""
COMPARED_ON_HOST = ("w8a8", "w8a16", "sample", "select", "top_tokens", "take_rows")
"""Ops that are compared with their definitions on the CPU: these definitions themselves are not checked."""
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Case:
    """One op with one set of dtypes.

    Args:
        name: unique among the cases of a target.
        checks: comparisons of the target's op with its definition. They raise BackendError where the target refuses.
    """

    name: str
    op: str
    checks: tuple[Callable[[Target], Checks], ...]

    def run(self, target: Target) -> Checks:
        """All comparisons."""
        together = Checks()
        for check in self.checks:
            together.found += check(target).found
        return together


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of the model whose ops are checked; satisfies `products.Sizes`."""

    C: int
    F: int
    V: int
    ranks: Mapping[str, int] = field(default_factory=lambda: {"w": 64, "a": 64, "v": 32, "g": 128})


TINY = ModelSizes(C=32, F=64, V=97, ranks=dict.fromkeys("wavg", 32))
"""Sizes for Triton's interpreter, which is slow."""
SMALL = ModelSizes(C=192, F=640, V=1003)
LARGE = ModelSizes(C=768, F=3072, V=65536)
"""Sizes of a model of 0.1B parameters."""


def cases(target: Target) -> Iterator[Case]:
    """The cases of a backend on a device: the whole model, and the ops that the backend implements."""
    yield from _demo(target)
    makers = (_recurrences, _shifts, _rows, _products, _int8, _sampling)
    left_out = COMPARED_ON_HOST if target == Target("reference", CPU) else ()
    yield from (case for make in makers for case in make(target) if target.has(case.op) and case.op not in left_out)


def dtypes(target: Target) -> dict[str, torch.dtype]:
    """The dtypes that are checked: on a GPU all that kernels serve; for definitions float32, which hides no error.

    Triton's interpreter truncates where it converts to bfloat16, an error above the limit: bfloat16 is left out there.
    """
    left_out: tuple[str, ...] = ()
    if target.backend == "reference":
        left_out = ("bfloat16", "float16")
    elif target.device.type == "cpu":
        left_out = ("bfloat16",) if target.is_interpreted else ("float16",)
    return {name: dtype for name, dtype in DTYPES.items() if name not in left_out}


def _demo(target: Target) -> Iterator[Case]:
    num_tokens, longest = (2, 2) if target.is_interpreted else (24, 1000)
    for name in ("float32",) if target.is_interpreted else dtypes(target):
        yield Case(
            f"demo model {name}", DEMO, (partial(check_demo, dtype=name, num_tokens=num_tokens, longest=longest),)
        )


def _recurrences(target: Target) -> Iterator[Case]:
    heads, found = (Heads(1, 16), batches(4, 5)) if target.is_interpreted else (Heads(3, 64), batches(67, 100))
    for variant in VARIANTS:
        op, names = op_of(variant), dtypes(target)
        is_main, first = variant == op, next(iter(names))
        # The other variants run the same kernels with fewer inputs.
        pairs = [(name, "float32") for name in (names if is_main else (first,))]
        if is_main and RECURRENCES[op].has_half_state and target.backend != "cpu":
            # In float32 the output shows whether a state was rounded before or after it was read.
            pairs += [(name, "float16") for name in dict.fromkeys((first, "float32"))]
        for name, state in pairs:
            check = partial(
                check_recurrence,
                variant=variant,
                dtype=DTYPES[name],
                state_dtype=DTYPES[state],
                heads=heads,
                found=found,
            )
            yield Case(f"{variant} {name} state {state}", op, (check,))


def _shifts(target: Target) -> Iterator[Case]:
    sizes = ((40, 6, 6),) if target.is_interpreted else ((40, 6, 6), (2048, 1, 300))
    for name, dtype in dtypes(target).items():
        checks = (
            partial(check_shift_lerp, dtype=dtype, width=width, count=count, longest=longest)
            for width, count, longest in sizes
        )
        yield Case(f"shift_lerp {name}", "shift_lerp", tuple(checks))


def _rows(target: Target) -> Iterator[Case]:
    for name, dtype in dtypes(target).items():
        for op, check in {"layer_norm": check_layer_norm, "take_rows": check_take_rows, "ddlerp": check_ddlerp}.items():
            both = (partial(check, dtype=dtype, width=width, num_rows=rows) for width, rows in ((40, 6), (2048, 300)))
            yield Case(f"{op} {name}", op, tuple(both))


def _product(sizes: Sizes, use: str) -> Product:
    return next(product for product in products(sizes) if product.use == use)


def _products(target: Target) -> Iterator[Case]:
    small, large, tokens = (TINY, TINY, 3) if target.is_interpreted else (SMALL, LARGE, 300)
    linear = (
        (_product(small, "gated value"), 3, True),
        (_product(small, "head"), 17, False),
        (_product(large, "r, k, v"), tokens, False),
        (_product(large, "key"), min(tokens, 64), True),
    )
    others = {
        "low_rank": check_low_rank,
        "project": check_project,
        "deep_embed": check_deep_embed,
        "score": check_score,
    }
    for name, dtype in dtypes(target).items():
        checks = tuple(
            partial(check_linear, product=product, dtype=dtype, tokens=(M,), fixed_tiles=(fixed,))
            for product, M, fixed in linear
        )
        yield Case(f"linear {name}", "linear", checks)
        for op, check in others.items():
            both = (partial(check, sizes=sizes, dtype=dtype, tokens=M) for sizes, M in ((small, 5), (large, tokens)))
            yield Case(f"{op} {name}", op, tuple(both))


def _int8(target: Target) -> Iterator[Case]:
    small, large, tokens = (TINY, TINY, (1, 3)) if target.is_interpreted else (SMALL, LARGE, (1, 300))
    inputs = ((_product(small, "value"), (17,)), (_product(large, "key"), tokens))
    for name, dtype in dtypes(target).items():
        checks = (partial(check_mm8, product=product, dtype=dtype, tokens=M) for product, M in inputs)
        yield Case(f"mm8 {name}", "mm8", tuple(checks))
        for op in ("w8a8", "w8a16"):
            whole = (
                partial(check_whole_numbers, op=op, product=product, dtype=dtype, tokens=M) for product, M in inputs
            )
            yield Case(f"{op} {name}", op, tuple(whole))


def _sampling(target: Target) -> Iterator[Case]:
    sizes = (TINY.V,) if target.is_interpreted else (SMALL.V, LARGE.V)
    settings, steps = list(SETTINGS.values()), 2 if target.is_interpreted else 3
    for op in ("sample", "select"):
        checks = (
            partial(check_sample, size=size, params=settings, count=len(settings), steps=steps, own=op)
            for size in sizes
        )
        yield Case(op, op, tuple(checks))
    for op, check in {"log_normalizer": check_log_normalizer, "top_tokens": check_top_tokens}.items():
        yield Case(op, op, tuple(partial(check, size=size, rows=7) for size in sizes))
