"""Every version of RWKV beside RWKV-7: the share of a decode step's time that its matrix products take.

    python -m benchmarks.versions --out benchmarks/results/NAME.json

runs from the repository root, on random checkpoints of 12 layers of width 768. A version's limit is the time of its
matrix products alone, in the same dtype through oneDNN. Its share is that time over the time of a whole step, sampler
included. Versions that are served equally well have equal shares.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch

from rwkv_batch.measure.bench import BenchModel, measure, positive_int, warm_up
from rwkv_batch.measure.table import format_table
from rwkv_batch.measure.variants import Variant, variants
from rwkv_batch.models.architecture import architectures

from . import probes
from .bare_products import BareProducts, matrices
from .timing import machine, spread
from .workloads import FULL, QUICK, Point, checkpoint

BASE = "rwkv7"
PASSES = 5
"""Passes through the bare products in each round; the median counts."""


def measured() -> list[str]:
    """The names of the versions that are measured by default.

    Versions with a table of the vocabulary in each layer are left out: the tables would take gigabytes.
    """
    return [version.name for version in architectures() if not any("V" in s for s in version.schema.layer.values())]


class Contender:
    """One version in one variant at one batch size."""

    def __init__(self, version: str, path: Path, variant: Variant, options: argparse.Namespace) -> None:
        self.version, self.variant = version, variant
        self._workload = options.scale.workload(Point("decode", options.batch_size))
        self._engine = BenchModel(path, [options.batch_size], variant, device="cpu").engine(options.batch_size)
        self._products = BareProducts(matrices(path), variant.dtype, options.batch_size)
        self.step_seconds: list[float] = []
        self.product_seconds: list[float] = []

    def measure(self) -> None:
        """Measures one round: the bare matrix products, then the engine's steps."""
        warm_up(self._engine)
        self._products.seconds()
        products = [self._products.seconds() for _ in range(PASSES)]
        run = measure(self._engine, self._workload)
        self.step_seconds.append(sum(run.phase_seconds.values()) / run.stats.steps)
        self.product_seconds.append(median(products))

    @property
    def share(self) -> float:
        """Time of the bare products over the time of a step of the same round; median of the rounds."""
        return median(p / s for p, s in zip(self.product_seconds, self.step_seconds, strict=True))


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    about = machine()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.cache or Path(temporary)
        paths = {version: checkpoint(options.scale, folder, version) for version in options.versions}
        found = [Contender(v, path, variant, options) for variant in options.variants for v, path in paths.items()]
        peaks = []
        for number in range(options.rounds):
            peaks.append(probes.peaks())
            print(f"round {number + 1} of {options.rounds}: {probes.say(peaks[-1])}", file=sys.stderr, flush=True)
            for contender in found[:: -1 if number % 2 else 1]:
                contender.measure()
    shares = {one.variant: one.share for one in found if one.version == BASE}
    rows = [
        [
            str(one.variant),
            one.version,
            f"{options.batch_size / median(one.step_seconds):.0f}",
            spread([1000 * s for s in one.step_seconds], 1),
            spread([1000 * s for s in one.product_seconds], 1),
            f"{one.share:.0%}",
            f"{one.share / shares[one.variant]:.2f}",
        ]
        for one in found
    ]
    print("\n".join(f"{name}: {value}" for name, value in about.items()))
    print(f"\ndecode at B={options.batch_size}: median (min-max) of {options.rounds} rounds\n")
    header = ["", "version", "tokens/s", "ms a step", "ms of bare products", "share", f"share ÷ {BASE}'s"]
    print(format_table(header, rows))
    if options.out:
        _write(options, {"machine": about, "batch_size": options.batch_size, "peaks": peaks}, found)


def _write(options: argparse.Namespace, result: dict[str, Any], found: list[Contender]) -> None:
    for one in found:
        result[f"{one.version} {one.variant}"] = {
            "step_milliseconds": [round(1000 * s, 3) for s in one.step_seconds],
            "bare_product_milliseconds": [round(1000 * s, 3) for s in one.product_seconds],
            "share": round(one.share, 3),
        }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versions", description=__doc__.partition("\n")[0])
    names = [version.name for version in architectures()]
    parser.add_argument("--rounds", type=positive_int, default=5, metavar="N")
    parser.add_argument("--batch-size", type=positive_int, default=32, metavar="N")
    parser.add_argument(
        "--versions", nargs="+", default=measured(), choices=names, metavar="NAME", help="from: %(choices)s"
    )
    parser.add_argument("--variants", type=_dense_variants, default=[Variant("float32"), Variant("bfloat16")])
    parser.add_argument("--threads", type=positive_int, default=os.cpu_count(), metavar="N", help="default: all cores")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="keeps the checkpoints; default: a temporary one")
    parser.add_argument("--quick", action="store_true", help="tiny models: a rehearsal, measures nothing")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write everything as JSON")
    options = parser.parse_args()
    if BASE not in options.versions:
        parser.error(f"argument --versions: got no {BASE}, with which the others are compared; add it")
    options.scale = QUICK if options.quick else FULL
    return options


def _dense_variants(text: str) -> list[Variant]:
    found = variants(text)
    if any(one.dtype not in ("float32", "bfloat16") or one.quantization for one in found):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected float32 or bfloat16, unquantized")
    return found


if __name__ == "__main__":
    main()
