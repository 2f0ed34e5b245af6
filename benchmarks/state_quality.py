"""Measures what float16 states do to long texts: bits per byte by position, and the most likely byte.

    python -m benchmarks.state_quality [--models demo,tiny.safetensors] [--texts 2]

Runs from the repository root; a byte of each text takes some milliseconds of a core, as the definitions in PyTorch
serve. Texts are parts of the held-out files of Python's standard library, each from an empty state. Every model
is float32. Small models come from `python -m rwkv_batch.demo.train --out FILE --layers 2 --width 128 --steps 500`.

States are float32, float16 as the engine rounds it, and float16 rounded to nearest, which the engine does not offer:

    bits per byte     by the position in the text
    same next byte    share of positions where the most likely byte is that of float32 states, on the same text
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise, product
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from rwkv_batch import LLM
from rwkv_batch.demo.corpus import END_OF_TEXT
from rwkv_batch.measure.bench import positive_int
from rwkv_batch.models import rows as rows_module

from .quality import held_out_pieces, likeliest, markdown
from .timing import machine

BOUNDS = (0, 1 << 10, 1 << 12, 1 << 14, 1 << 16)
"""Positions at which a new range begins. Texts are as long as the last one."""
STATES = ("float32", "float16", "float16, to nearest")


class Scored(NamedTuple):
    """All texts with one model and one kind of state, [texts][length].

    Args:
        bits: information of each byte.
        first: the most likely token at each position.
    """

    bits: list[list[float]]
    first: list[list[int]]


def to_nearest(x: Tensor, position: Tensor) -> Tensor:
    """In place of `round_stochastically`."""
    return x.half().float()


def score(model: str, state: str, texts: Sequence[list[int]]) -> Scored:
    """Scores all texts, with the definitions where states are float16."""
    print(f"{model}, {state} …", file=sys.stderr, flush=True)
    dtype, _, nearest = state.partition(", ")
    backend = "auto" if dtype == "float32" else "reference"
    rounding: Callable[..., Tensor] = to_nearest if nearest else rows_module.round_stochastically
    llm = LLM(model, tokenizer=None, device="cpu", dtype="float32", state_dtype=dtype, backend=backend)
    with patch.object(rows_module, "round_stochastically", rounding):
        found = llm.score([([END_OF_TEXT], text) for text in texts], top_logprobs=1)
    return Scored([[-x / math.log(2) for x in one.token_logprobs] for one in found], likeliest(found))


def table(name: str, found: dict[str, Scored], bounds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yields a row for each kind of state. Those of float32 states are the standard of comparison."""
    base = found[STATES[0]]
    for state, one in found.items():
        row: dict[str, Any] = {"model": name, "states": state}
        for start, end in pairwise(bounds):
            here = slice(start, end)
            row[f"bits {start}-{end}"] = mean(x for text in one.bits for x in text[here])
            pairs = zip(one.first, base.first, strict=True)
            row[f"same {start}-{end}"] = mean(x == y for a, b in pairs for x, y in zip(a[here], b[here], strict=True))
        yield row


def main() -> None:
    options = _options()
    about = machine()
    bounds = [bound for bound in BOUNDS if bound < options.length] + [options.length]
    texts = held_out_pieces(options.texts, options.length)
    cases = list(product(options.models, STATES))
    with ProcessPoolExecutor(options.processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        scored = pool.map(score, *zip(*cases, strict=True), [texts] * len(cases))
        found = dict(zip(cases, scored, strict=True))
    lines = []
    for model in options.models:
        lines += table(Path(model).stem, {state: found[model, state] for state in STATES}, bounds)
    print(markdown([*lines[0]], [[_cell(name, value) for name, value in line.items()] for line in lines]))
    print(f"\n{options.texts} texts of {options.length} bytes; {about['cpu']}, torch {about['torch']}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"machine": about, "table": lines}, indent=1) + "\n")


def _cell(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.5f}" if name.startswith("bits") else f"{value:.3%}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.state_quality", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--models", type=lambda text: text.split(","), default=["demo"], metavar="A,B", help="of bytes (demo)"
    )
    parser.add_argument("--texts", type=positive_int, default=2, metavar="N", help="texts, served together (2)")
    parser.add_argument("--length", type=positive_int, default=BOUNDS[-1], metavar="N", help="bytes of a text (65536)")
    parser.add_argument(
        "--processes", type=positive_int, default=os.cpu_count(), metavar="N", help="at a time (one for each core)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
