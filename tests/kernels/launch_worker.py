"""Launches every kernel on a card that is not there, and prints what Triton made of each call as lines of JSON.

    PYTHONPATH=.:tests python tests/kernels/launch_worker.py 90 [--models 0.1B ...] [--tokens 1 16 ...] [--ops wkv7 ...]
    PYTHONPATH=.:tests python tests/kernels/launch_worker.py 90 --large

90 stands for sm_90; several cards can be named.
The second form launches one kernel that needs more shared memory than some cards have. With `--time` the host's time
of a call is measured too, in microseconds: that of its checks, allocations and launches.
A process of its own: a process that interprets kernels cannot compile them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu_parts.fake_driver import FakeDriver
from benchmarks.roofline import MODELS, Sizes
from rwkv_batch.checks.calls import VARIANTS, make_call, state_dtypes
from rwkv_batch.checks.products import deep_embed_weights, low_rank_pairs, products
from rwkv_batch.engine.slot_tables import SlotTables, Vocabulary
from rwkv_batch.models.blocks import Norm
from rwkv_batch.models.matrices.linear import DenseLinear, StackedLinear
from rwkv_batch.models.matrices.projection import Projection
from rwkv_batch.models.rows import Rows, padding_rows
from rwkv_batch.triton_kernels.tiles import Tile

HOST = torch.device("cpu")
DTYPE = torch.bfloat16
FOLDER = Path(__file__).parents[2] / "triton_kernels"
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if "def specializations(" in path.read_text())


class Call(NamedTuple):
    """An op, what tells this call of it from others, and the call."""

    op: str
    use: str
    run: Callable[[], Any]

    @classmethod
    def of(cls, op: str, use: str, *args: Any, **kwargs: Any) -> Call:
        function = getattr(import_module(f"rwkv_batch.triton_kernels.{op}"), op)
        return cls(op, use, partial(function, *args, **kwargs))


def empty(*shape: int, dtype: torch.dtype = DTYPE) -> Tensor:
    return torch.empty(*shape, dtype=dtype)


def product_calls(sizes: Sizes, num_tokens: int) -> Iterator[Call]:
    """Every matrix of the model, by each of the kernels that may hold it."""
    for product in products(sizes):
        batch = (product.n,) if product.n else ()
        x, y = empty(*batch, num_tokens, product.K), empty(*batch, num_tokens, product.N)
        weight = empty(*batch, product.N, product.K)
        gate, out = (y if wanted else None for wanted in (product.gate, product.add))
        following = product.activation, gate, out, torch.float32 if product.widened else None
        yield Call.of("linear", product.use, x, weight, *following)
        yield Call.of("linear", f"{product.use}, fixed tiles", x, weight, *following, fixed_tiles=True)
        if not product.n and product.use not in ("value", "gated value"):  # w8a8 keeps these dense on a GPU
            levels = empty(product.N, product.K, dtype=torch.int8)
            yield Call.of("w8a8", product.use, x, levels, torch.empty(product.N), *following)
    for N, K in ((sizes.C, sizes.C), (sizes.F, sizes.C), (sizes.C, sizes.F), (sizes.V, sizes.C)):
        x, levels = empty(num_tokens, K), empty(N, K, dtype=torch.int8)
        rows, columns, corrections = (torch.empty(shape) for shape in (N, K, (4, N)))
        yield Call.of("mm8", f"[{N}, {K}]", x, levels, rows, columns, columns, corrections)


def recurrence_calls(sizes: Sizes, lengths: tuple[int, ...]) -> Iterator[Call]:
    for variant in VARIANTS:
        for state_dtype in state_dtypes(variant):
            call = make_call(variant, range(len(lengths)), lengths, sizes.H, sizes.N, DTYPE, state_dtype, HOST)
            states = {name: pool[1:-1, 1] for name, pool in call.pools.items()}
            use = f"{variant}, state {state_dtype}"
            yield Call.of(call.op, use, **call.vectors, **call.parameters, **states, rows=call.rows)


def calls(sizes: Sizes, num_tokens: int) -> Iterator[Call]:
    """All ops, as decode steps and prompts of the model call them with this many tokens."""
    lengths = (num_tokens - num_tokens // 3, num_tokens // 3) if num_tokens > 2 else (num_tokens,)
    prompts = Rows(tuple(range(len(lengths))), lengths, HOST, (0,) * len(lengths))
    x, ids = empty(num_tokens, sizes.C), torch.zeros(num_tokens, dtype=torch.int64)
    norm, pool = Norm(empty(sizes.C), empty(sizes.C)), empty(4, sizes.L, sizes.C)
    for use, rows in {"decode": padding_rows(num_tokens, HOST), "prompts": prompts}.items():
        for count, keep_parts in ((6, False), (2, False), (1, True)):
            label = f"{use}, {count} mixes{', parts' * keep_parts}"
            yield Call.of("shift_lerp", label, x, norm, empty(count, sizes.C), pool[:, 1], rows, keep_parts)
    yield from product_calls(sizes, num_tokens)
    mixed, pairs = empty(6, num_tokens, sizes.C), low_rank_pairs(sizes, HOST, DTYPE)
    yield Call.of("low_rank", "w, a, v, g", mixed, pairs)
    weight = empty(3, sizes.C, sizes.C)
    matrices = StackedLinear(weight, import_module("rwkv_batch.triton_kernels.linear").linear, weight.nbytes, 3)
    for fixed in (False, True):
        label = f"r, k, v and w, a, v, g{', fixed tiles' * fixed}"
        yield Call.of("project", label, mixed, Projection(matrices, pairs, fixed), None)
    yield Call.of("deep_embed", "gate", x, ids, deep_embed_weights(sizes, HOST, DTYPE))
    yield from recurrence_calls(sizes, lengths)
    yield Call.of("score", "head", x, DenseLinear(empty(sizes.V, sizes.C)), ids, ids, None)
    tables, slots = SlotTables(4, Vocabulary.plain(sizes.V), HOST), torch.full((num_tokens,), -1, dtype=torch.int32)
    yield Call.of("sample", "head", torch.empty(num_tokens, sizes.V), slots, tables, None)


def large_calls() -> Iterator[Call]:
    """A product whose tiles in flight take 144 KiB."""
    linear: Any = import_module("rwkv_batch.triton_kernels.linear")
    linear.choose_tile = lambda *given: Tile(tokens=64, rows=128, depth=128, num_warps=4, num_stages=4)
    yield Call.of("linear", "large tile", empty(16, 768), empty(768, 768))


def compiled_ahead() -> set[tuple[str, frozenset[str]]]:
    """The kernels that are compiled ahead of time in other tests, and which of their arguments are given."""
    specs = [s for name in MODULES for s in import_module(f"rwkv_batch.triton_kernels.{name}").specializations()]
    return {(spec.kernel.__name__, frozenset(spec.signature)) for spec in specs}


def run(call: Call, driver: FakeDriver, known: set[tuple[str, frozenset[str]]]) -> dict[str, Any]:
    """The kernels that a call has launched, and faults of those that it was the first to load; or the error."""
    num_launches, num_loaded = len(driver.launches), len(driver.compilations)
    start = time.perf_counter()
    try:
        call.run()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    loaded = driver.compilations[num_loaded:]
    return {
        "launched": [driver.compilations[place].kernel for place in driver.launches[num_launches:]],
        "num_loaded": len(loaded),
        "unaligned": [f"{one.kernel}: {name}" for one in loaded for name in one.unaligned],
        "unknown": [f"{one.kernel}: {sorted(one.given)}" for one in loaded if (one.kernel, one.given) not in known],
        "first_seconds": round(time.perf_counter() - start, 2),
    }


def host_microseconds(call: Call, repeats: int = 200) -> float:
    """Time of this thread on a core; the least of several means."""
    means = []
    for _ in range(5):
        start = time.thread_time()
        for _ in range(repeats):
            call.run()
        means.append((time.thread_time() - start) / repeats)
    return round(min(means) * 1e6, 1)


def leave_the_library_out() -> None:
    """Replaces torch's matrix products, which are no launches of Triton's, by uninitialized results."""

    def product(x: Tensor, weight: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        return empty(*x.shape[:-1], weight.shape[-1], dtype=out_dtype or x.dtype)

    for name in ("mm", "bmm"):
        setattr(torch, name, product)
    for name in ("addmm_", "baddbmm_"):
        setattr(Tensor, name, lambda out, x, weight: out)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("architectures", type=int, nargs="+")
    parser.add_argument("--models", nargs="+", default=["0.1B"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[16])
    parser.add_argument("--ops", nargs="+")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--time", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    leave_the_library_out()
    launch: Any = import_module("rwkv_batch.triton_kernels.launch")
    launch.unsupported = lambda *given: None
    known = compiled_ahead()
    for architecture in options.architectures:
        driver = FakeDriver(architecture)
        driver.install()
        shapes = [(model, num_tokens) for model in options.models for num_tokens in options.tokens]
        for model, num_tokens in shapes:
            for call in large_calls() if options.large else calls(MODELS[model], num_tokens):
                if options.ops and call.op not in options.ops:
                    continue
                about = {"architecture": architecture, "model": model, "tokens": num_tokens, "op": call.op}
                found = {"use": call.use, **run(call, driver, known)}
                if options.time and "error" not in found:
                    found["host_us"] = host_microseconds(call)
                print(json.dumps(about | found), flush=True)


if __name__ == "__main__":
    main()
