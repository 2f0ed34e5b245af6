"""Measures the engine on this CPU beside the `rwkv` package: rates, shares of the machine's peak, parts of a step.

    python -m benchmarks.engine --out benchmarks/results/NAME.json

Runs from the repository root, on a random RWKV-7 checkpoint of 0.1B parameters. The engine runs as it serves: requests,
scheduler, sampler (temperature 1.0, top_p 0.85). The `rwkv` package completes one sequence and takes the most likely
token.

    decode     sampled tokens. Only the time inside steps counts; the split shows admission as "between steps".
    prefill    tokens of prompts of 512 tokens. All of the time counts, here and below.
    ragged     prompts of 64 and completions of 32 tokens on average, log-normal. Tokens of both count.
    score      tokens of prompts of 512 tokens, each scored.

The probes run before every round. The share of a peak is a rate divided by that round's fastest matrix product, or by
its fastest read of memory: a decode step reads every weight, and reads and writes the states.
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

from rwkv_batch.measure.bench import BenchModel, backends, measure, positive_int, positive_ints, warm_up
from rwkv_batch.measure.table import format_table
from rwkv_batch.measure.variants import Variant, variants

from . import probes
from .peak_shares import Work, share_rows
from .rwkv_package import RwkvPackage
from .time_split import Split, own_python, split_rows, split_step, split_text
from .timing import Rates, interleave, machine, ratios, spread
from .workloads import FULL, MEDIUM, QUICK, Point, Scale, checkpoint

BASE = "rwkv cpu fp32"
STRATEGIES = ("cpu fp32", "cpu bf16")
KINDS = {"decode": "sampled", "prefill": "prompt", "ragged": "prompt and sampled", "score": "scored"}
"""Kind of a point → the tokens that its rate counts."""
PREFILL_BATCH_SIZES = (1, 8)
RAGGED_BATCH_SIZE, SCORE_BATCH_SIZE = 32, 8
SPLIT_REPEATS = 3
SHAPES = {"0.1B": FULL, "0.4B": MEDIUM}


class EngineContender:
    """The engine with weights of one variant, at several batch sizes."""

    def __init__(self, path: Path, variant: Variant, scale: Scale, batch_sizes: Sequence[int]) -> None:
        largest = max(batch_sizes)
        prefill_sizes = [size for size in PREFILL_BATCH_SIZES if size <= largest]
        ragged, score = min(RAGGED_BATCH_SIZE, largest), min(SCORE_BATCH_SIZE, largest)
        sizes = sorted({*batch_sizes, *prefill_sizes, ragged, score})
        model = BenchModel(path, sizes, variant, device="cpu")
        self.name, self.variant = f"rwkv_batch {variant}", variant
        self.points = [*_points("decode", batch_sizes), *_points("prefill", prefill_sizes)]
        self.points += [Point("ragged", ragged), Point("score", score)]
        self.engines = {size: model.engine(size) for size in sizes}
        self.about = f"{model}; {backends(self.engines[sizes[0]])}"
        self.work = Work.of(path, self.engines[sizes[0]], variant)
        self._scale = scale

    def measure(self, point: Point) -> float:
        """Returns the tokens per second of a point."""
        engine = self.engines[point.batch_size]
        warm_up(engine)
        run = measure(engine, self._scale.workload(point))
        if point.kind == "decode":
            return run.stats.completion_tokens / sum(run.phase_seconds.values())
        if point.kind == "ragged":
            return run.total_tokens / run.seconds
        return run.stats.prompt_tokens / run.seconds

    def split(self, batch_size: int) -> Split:
        """Returns the milliseconds of a decode step, by part."""
        workload = self._scale.workload(Point("decode", batch_size))
        return split_step(self.engines[batch_size], workload, SPLIT_REPEATS)


def _points(kind: str, batch_sizes: Sequence[int]) -> list[Point]:
    return [Point(kind, size) for size in batch_sizes]


def main() -> None:
    options = _parser().parse_args()
    scale, rounds = (QUICK, 1) if options.quick else (SHAPES[options.shape], options.rounds)
    peaks: list[probes.Peaks] = []
    torch.set_num_threads(options.threads)
    about = machine()
    with tempfile.TemporaryDirectory() as temporary:
        path = checkpoint(scale, options.cache or Path(temporary))
        ours = [EngineContender(path, one, scale, options.batch_sizes) for one in options.variants]
        peers = [] if options.no_rwkv else [RwkvPackage(path, strategy, scale) for strategy in STRATEGIES]
        rates = interleave([*peers, *ours], rounds, _say, between=lambda: peaks.append(probes.peaks()))
        for peer in peers:
            peer.close()
        _say("time of a decode step")
        splits = {one.name: {size: one.split(size) for size in options.batch_sizes} for one in ours}
        largest = scale.workload(Point("decode", max(options.batch_sizes)))
        text = split_text(path, largest, options.variants[-1])
    print("\n".join(f"{name}: {_words(value)}" for name, value in about.items()))
    print("\n".join(one.about for one in ours))
    _print_rates(rates, rounds)
    shares = share_rows(rates, {one.name: one.work for one in ours}, peaks)
    best = {name: max(one[name] for one in peaks) for name in peaks[0]}
    print(f"\nshares of the machine's peak (best probes: {probes.say(best)}); medians of the rounds\n")
    print(format_table(["", "", "matrix products", "memory"], shares))
    _print_splits(splits)
    print(f"\nthrough LLM with a stop string, {options.variants[-1]}, B={max(options.batch_sizes)}: ms of a step\n")
    print(format_table(["", ""], split_rows([text])))
    if options.out:
        result = {"machine": about, "scale": vars(scale), "peaks": peaks, "shares_of_peak": shares}
        _write(options.out, {**result, **_as_json(rates, splits, text)})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--rounds", type=positive_int, default=5, metavar="N", help="rounds; each measures every contender once (5)"
    )
    parser.add_argument(
        "--batch-sizes", type=positive_ints, default=[1, 8, 32, 128], metavar="N,N,…", help="(1,8,32,128)"
    )
    default = [Variant("float32"), Variant("bfloat16")]
    parser.add_argument(
        "--variants",
        type=variants,
        default=default,
        help="forms of the weights, such as float32,bfloat16+int8 (float32,bfloat16)",
    )
    parser.add_argument("--shape", choices=SHAPES, default="0.1B", help="size of the random model (0.1B)")
    parser.add_argument(
        "--threads", type=positive_int, default=os.cpu_count(), metavar="N", help="of torch (all cores)"
    )
    parser.add_argument("--quick", action="store_true", help="rehearse with a tiny model and one round")
    parser.add_argument("--no-rwkv", action="store_true", help="leave the rwkv package out")
    parser.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="folder that keeps the checkpoint (a temporary one)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all results as JSON")
    return parser


def _print_rates(rates: Rates, rounds: int) -> None:
    for kind, tokens in KINDS.items():
        sizes = sorted({point.batch_size for points in rates.values() for point in points if point.kind == kind})
        rows = [[name, *(_rate(rates, name, Point(kind, size)) for size in sizes)] for name in rates]
        beside = f" × {BASE} of the same round, B=1" if Point(kind, 1) in rates.get(BASE, {}) else ""
        print(f"\n{kind}, {tokens} tokens/s: median (min-max) of {rounds} rounds{beside}\n")
        print(format_table(["", *(f"B={size}" for size in sizes)], [row for row in rows if any(row[1:])]))


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
