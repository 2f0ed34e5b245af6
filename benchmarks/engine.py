"""The engine beside the `rwkv` package on this machine's CPU: decode and prefill, and where a decode step's time goes.

    python -m benchmarks.engine --out benchmarks/results/NAME.json

runs from the repository root, on a random RWKV-7 checkpoint of 0.1B parameters. The engine runs as it serves: requests,
scheduler, sampler (temperature 1.0, top_p 0.85). The `rwkv` package completes one sequence and takes the most likely
token. Decode counts the time inside steps; what admission costs, once for each sequence, is in the split under
"between steps". Prefill counts everything.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rwkv_batch.bench import BenchModel, backends, format_table, measure, positive_int, positive_ints, warm_up

from .rwkv_package import RwkvPackage
from .time_split import Split, own_python, split_rows, split_step, split_text
from .timing import Contender, Rates, interleave, machine, ratios, spread
from .workloads import FULL, QUICK, Point, Scale, checkpoint

BASE = "rwkv cpu fp32"
STRATEGIES = ("cpu fp32", "cpu bf16")
VARIANTS = {"float32": ("float32", None), "bfloat16": ("bfloat16", None), "int8": ("bfloat16", "int8")}
"""Name → dtype and quantization."""
PREFILL_BATCH_SIZES = (1, 8)
SPLIT_REPEATS = 3


class EngineContender:
    """The engine with one kind of weights, at several batch sizes."""

    def __init__(self, path: Path, variant: str, scale: Scale, batch_sizes: Sequence[int]) -> None:
        dtype, quantization = VARIANTS[variant]
        prefill_sizes = [size for size in PREFILL_BATCH_SIZES if size <= max(batch_sizes)]
        sizes = sorted({*batch_sizes, *prefill_sizes})
        model = BenchModel(path, sizes, device="cpu", dtype=dtype, quantization=quantization)
        self.name = f"rwkv_batch {variant}"
        self.points = [*_points("decode", batch_sizes), *_points("prefill", prefill_sizes)]
        self.engines = {size: model.engine(size) for size in sizes}
        self.about = f"{model}; {backends(self.engines[sizes[0]])}"
        self._scale = scale

    def measure(self, point: Point) -> float:
        """Tokens per second."""
        engine = self.engines[point.batch_size]
        warm_up(engine)
        run = measure(engine, self._scale.workload(point))
        if point.kind == "decode":
            return run.stats.completion_tokens / sum(run.phase_seconds.values())
        return run.stats.prompt_tokens / run.seconds

    def split(self, batch_size: int) -> Split:
        """Milliseconds of a decode step, by part."""
        workload = self._scale.workload(Point("decode", batch_size))
        return split_step(self.engines[batch_size], workload, SPLIT_REPEATS)


def _points(kind: str, batch_sizes: Sequence[int]) -> list[Point]:
    return [Point(kind, size) for size in batch_sizes]


def main() -> None:
    options = _parser().parse_args()
    scale, rounds = (QUICK, 1) if options.quick else (FULL, options.rounds)
    torch.set_num_threads(options.threads)
    about = machine()
    with tempfile.TemporaryDirectory() as temporary:
        path = checkpoint(scale, options.cache or Path(temporary))
        ours = [EngineContender(path, name, scale, options.batch_sizes) for name in options.dtypes]
        peers = [] if options.no_rwkv else [RwkvPackage(path, strategy, scale) for strategy in STRATEGIES]
        rates = interleave([*peers, *ours], rounds, _say)
        for peer in peers:
            peer.close()
        _say("time of a decode step")
        splits = {one.name: {size: one.split(size) for size in options.batch_sizes} for one in ours}
        largest = scale.workload(Point("decode", max(options.batch_sizes)))
        text = split_text(path, largest, *VARIANTS[options.dtypes[-1]])
    print("\n".join(f"{name}: {_words(value)}" for name, value in about.items()))
    print("\n".join(one.about for one in ours))
    _print_rates(rates, [*peers, *ours], rounds)
    _print_splits(splits)
    print(f"\nthrough LLM with a stop string, {options.dtypes[-1]}, B={max(options.batch_sizes)}: ms of a step\n")
    print(format_table(["", ""], split_rows([text])))
    if options.out:
        _write(options.out, {"machine": about, "scale": vars(scale), **_as_json(rates, splits, text)})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=positive_int, default=5, metavar="N", help="each runs all contenders once (5)")
    parser.add_argument("--batch-sizes", type=positive_ints, default=[1, 8, 32, 128], metavar="N,N,…")
    parser.add_argument("--dtypes", type=_variants, default=["float32", "bfloat16"], help=",".join(VARIANTS))
    parser.add_argument("--threads", type=positive_int, default=os.cpu_count(), metavar="N", help="default: all cores")
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round: a rehearsal")
    parser.add_argument("--no-rwkv", action="store_true", help="without the rwkv package")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="keeps the checkpoint; default: a temporary one")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write everything as JSON")
    return parser


def _variants(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"got {unknown[0]!r}, expected some of {', '.join(VARIANTS)}")
    return names


def _print_rates(rates: Rates, contenders: Sequence[Contender], rounds: int) -> None:
    for kind in ("decode", "prefill"):
        sizes = sorted({point.batch_size for one in contenders for point in one.points if point.kind == kind})
        rows = [[one.name, *(_rate(rates, one.name, Point(kind, size)) for size in sizes)] for one in contenders]
        print(f"\n{kind}, tokens/s: median (min-max) of {rounds} rounds × {BASE} of the same round, B=1\n")
        print(format_table(["", *(f"B={size}" for size in sizes)], rows))


def _rate(rates: Rates, name: str, point: Point) -> str:
    if point not in rates[name]:
        return ""
    found = [] if name == BASE else ratios(rates, name, point, BASE)
    return spread(rates[name][point]) + (f" × {spread(found, 2)}" if found else "")


def _print_splits(splits: dict[str, dict[int, Split]]) -> None:
    for name, by_size in splits.items():
        print(f"\n{name}, a decode step: ms and share\n")
        print(format_table(["", *(f"B={size}" for size in by_size)], split_rows(list(by_size.values()))))
        print(f"engine's own Python (schedule + commit) at B={max(by_size)}: {own_python(by_size[max(by_size)])}")


def _as_json(rates: Rates, splits: dict[str, dict[int, Split]], text: Split) -> dict[str, Any]:
    return {
        "tokens_per_second": {
            name: {str(point): [round(value, 2) for value in values] for point, values in points.items()}
            for name, points in rates.items()
        },
        "ratio_in_same_round": {
            name: {str(point): [round(value, 3) for value in ratios(rates, name, point, BASE)] for point in points}
            for name, points in rates.items()
        },
        "decode_step_milliseconds": splits,
        "llm_step_milliseconds": text,
    }


def _write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    _say(f"written: {path}")


def _words(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
