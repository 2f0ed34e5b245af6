"""Measures the sampler in rows/s, setting by setting, beside its definition and bare torch ops.

    python -m benchmarks.sampling --out benchmarks/results/NAME.json

Runs from the repository root on random logits from a normal distribution. "peaked" has a standard deviation of 4, like
a language model; "flat" has 0.5, so that the nucleus is most of the vocabulary. A step is everything that the engine
does between the logits and the tokens on the host.

    native       the native sampler of a CPU engine
    reference    its definition, made of torch's ops
    torch        argmax for greedy, softmax and multinomial for temperature 1; no filters, no log-probabilities
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from rwkv_batch.engine.logprobs import TopLogprobs
from rwkv_batch.engine.request import Request
from rwkv_batch.engine.sampler import Sampler
from rwkv_batch.engine.slot_tables import Vocabulary
from rwkv_batch.measure.bench import positive_int
from rwkv_batch.measure.table import format_table
from rwkv_batch.ops import resolve
from rwkv_batch.sampling_params import SamplingParams

from .timing import interleave, machine, spread
from .workloads import LOGIT_STD, Point

FLAT_STD = 0.5
CPU = torch.device("cpu")
PENALTIES = dict(presence_penalty=0.2, frequency_penalty=0.2)
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": dict(temperature=0.0),
    "temperature 1": dict(),
    "top_k 50": dict(top_k=50),
    "top_p 0.85": dict(top_p=0.85),
    "top_p 0.95, T 1.3": dict(top_p=0.95, temperature=1.3),
    "min_p 0.05": dict(min_p=0.05),
    "top_k 50, top_p 0.9, T 0.8": dict(top_k=50, top_p=0.9, temperature=0.8),
    "ChatRWKV's order": dict(top_p=0.7, temperature=1.5, top_p_order="rwkv", penalty_decay=0.996, **PENALTIES),
    "penalties, biases": dict(top_p=0.85, logit_bias=dict.fromkeys(range(10), 1.0), **PENALTIES),
    "5 alternatives": dict(top_p=0.85, logprobs=5),
    "half the ids allowed": dict(top_p=0.85),
}
MIXED = "all of these, mixed"
SHAPES = {"peaked": LOGIT_STD, "flat": FLAT_STD}


def requests(settings: str, num_rows: int, vocab: int) -> list[Request]:
    """Makes one request for each row."""
    names = (
        [settings] * num_rows if settings != MIXED else [list(SETTINGS)[row % len(SETTINGS)] for row in range(num_rows)]
    )
    found = []
    for row, name in enumerate(names):
        allowed = list(range(0, vocab, 2)) if name.startswith("half") else None
        params = SamplingParams(max_tokens=2**31 - 1, allowed_token_ids=allowed, **SETTINGS[name])
        found.append(Request(row, [1, 2, 3], params, seed=1, row=row))
    return found


class Steps:
    """A contender that runs steps of one kind.

    Args:
        points: kinds are "setting, shape of the logits".
        seconds: the shortest time of a measurement, which has at least one step.
    """

    def __init__(self, name: str, points: list[Point], vocab: int, seconds: float) -> None:
        self.name, self.points, self.vocab, self.seconds = name, points, vocab, seconds

    def measure(self, point: Point) -> float:
        """Returns the rows per second of a point."""
        settings, _, shape = point.kind.rpartition(", ")
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(point.batch_size, self.vocab, generator=generator) * SHAPES[shape]
        step = self.step(settings, logits)
        step()
        count, start = 0, perf_counter()
        while not count or perf_counter() - start < self.seconds:
            step()
            count += 1
        return count * point.batch_size / (perf_counter() - start)

    def step(self, settings: str, logits: torch.Tensor) -> Any:
        raise NotImplementedError


class SamplerSteps(Steps):
    """The sampler with the ops of one backend."""

    def __init__(self, name: str, backend: str, points: list[Point], vocab: int, seconds: float) -> None:
        super().__init__(name, points, vocab, seconds)
        self.ops = resolve(Sampler.OPS, backend, CPU, torch.float32, {})

    def step(self, settings: str, logits: torch.Tensor) -> Any:
        slots = np.arange(len(logits))
        sampler = Sampler(len(logits), Vocabulary.plain(self.vocab), CPU, self.ops)
        made = requests(settings, len(logits), self.vocab)
        sampler.assign([request.row for request in made], made)
        slot_index = torch.from_numpy(slots).int()
        rows = np.flatnonzero(sampler.returns_logprobs)
        row_index = torch.from_numpy(rows)

        def step() -> None:
            sampler.reserve(slots)
            drawn = sampler.draw(logits, slot_index)
            top = None
            if len(rows):
                top = TopLogprobs(sampler.top(logits, row_index, *drawn, sampler.most_asked(slots[rows])))
            sampler.copy_to_host(slots, *drawn, None, rows, top).read()

        return step


class TorchSteps(Steps):
    """The nearest equivalent among torch's own ops."""

    def step(self, settings: str, logits: torch.Tensor) -> Any:
        if settings == "greedy":
            return partial(torch.argmax, logits, dim=1)
        return lambda: torch.multinomial(logits.softmax(1), 1)


def main() -> None:
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    about = machine()
    kinds = [f"{settings}, {shape}" for settings in (*SETTINGS, MIXED) for shape in SHAPES]
    points = [Point(kind, size) for size in options.batch_sizes for kind in kinds]
    bare = [point for point in points if point.kind in ("greedy, peaked", "temperature 1, peaked")]
    common = (options.vocab, options.seconds)
    contenders = (
        SamplerSteps("native", "auto", points, *common),
        SamplerSteps("reference", "reference", points, *common),
        TorchSteps("torch", bare, *common),
    )
    with torch.inference_mode():
        rates = interleave(contenders, options.rounds, partial(print, file=sys.stderr, flush=True))
    rows = [
        [
            str(point.batch_size),
            point.kind,
            *(spread(rates[name].get(point, [])) if point in rates[name] else "" for name in rates),
        ]
        for point in points
    ]
    print(f"rows/s, V = {options.vocab}: median (min-max) of {options.rounds} rounds\n")
    print(format_table(["B", "", *rates], rows))
    if options.out:
        by_name = {
            name: {
                f"{point.kind}, B={point.batch_size}": [round(rate) for rate in found] for point, found in by.items()
            }
            for name, by in rates.items()
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        workload = {name: getattr(options, name) for name in ("vocab", "rounds", "seconds")}
        result = {"machine": about, "workload": workload, "rows_per_second": by_name}
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def _sizes(text: str) -> list[int]:
    return [positive_int(part) for part in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampling", description=__doc__.partition("\n")[0])
    parser.add_argument("--vocab", type=positive_int, default=65536, metavar="V", help="size of the vocabulary (65536)")
    parser.add_argument("--batch-sizes", type=_sizes, default=[1, 32, 128], metavar="B,B", help="(1,32,128)")
    parser.add_argument(
        "--rounds", type=positive_int, default=5, metavar="N", help="rounds; each measures everything once (5)"
    )
    parser.add_argument("--seconds", type=float, default=0.3, metavar="S", help="seconds of one measurement (0.3)")
    parser.add_argument(
        "--threads", type=positive_int, default=os.cpu_count(), metavar="N", help="of torch (all cores)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all results as JSON")
    return parser


if __name__ == "__main__":
    main()
