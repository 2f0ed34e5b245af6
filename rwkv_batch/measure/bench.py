"""The command `rwkv-batch bench`: measures how fast a model completes random prompts, and the time of each phase."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from time import perf_counter

import torch

from ..dtypes import DTYPES
from ..engine.engine import Engine, EngineLimits
from ..engine.sizing import plan_memory
from ..engine.slot_tables import Vocabulary
from ..engine.source import Pulled
from ..engine.stats import EngineStats
from ..errors import CapacityError, RwkvBatchError, one_of
from ..model_summary import inspect_model
from ..models.matrices.quantization import QUANTIZATIONS
from ..models.model import Model
from ..run import EXIT_DEVICE, EXIT_OK, EXIT_USAGE
from ..settings import EngineSettings, ModelSettings
from ..threads import limit_threads
from .table import format_table
from .variants import Variant, variants
from .workloads import WORKLOADS, Workload

PHASES = ("schedule", "model", "sample", "wait", "commit")
"""The phases of a step that `EngineStats` times."""

_WARM_UP_TOKENS = 2


class BenchModel:
    """A loaded model, from which engines of several sizes are made.

    Args:
        path, device, backend: as for `LLM`.
        batch_sizes: of the engines; each must fit into memory.

    Raises:
        ConfigurationError, CheckpointError, CapacityError, BackendError: as in `LLM`.
    """

    def __init__(
        self,
        path: str | Path,
        batch_sizes: Sequence[int],
        variant: Variant = Variant(),  # noqa: B008
        *,
        device: str = "auto",
        backend: str = "auto",
    ) -> None:
        self.summary = inspect_model(
            ModelSettings(path, tokenizer=None, dtype=variant.dtype, quantization=variant.quantization),
            EngineSettings(device, backend, state_dtype=variant.state_dtype),
        )
        file, placement = self.summary.file, self.summary.placement
        # The plan subtracts the weights from the free memory, so it must be made before they are loaded.
        self._plans = {size: plan_memory(file, placement, size) for size in batch_sizes}
        self.model = Model(file, placement, self.summary.layer_ops, batch_invariant=variant.batch_invariant)

    def engine(self, batch_size: int) -> Engine:
        """A new engine with `batch_size` slots, which must be one of `batch_sizes`."""
        return Engine(
            self.model,
            Vocabulary.plain(self.model.sizes["V"]),
            EngineLimits(batch_size, self._plans[batch_size].max_batch_tokens),
        )

    def __str__(self) -> str:
        about = self.summary.describe()
        quantization = f" {about['quantization']}" if about["quantization"] else ""
        return (
            f"{about['model']}: {about['version']}, {about['device']} {about['dtype']}{quantization}; "
            f"matrices {self.model.matrix_bytes / 2**20:.0f} MiB; torch {torch.__version__}, "
            f"{torch.get_num_threads()} threads"
        )


def backends(engine: Engine) -> str:
    """The backend of each op, on one line."""
    return "ops: " + ", ".join(f"{choice.op} {choice.backend}" for choice in engine.model.ops.choices)


@dataclass(frozen=True)
class Measurement:
    """The measured run of a workload.

    Args:
        seconds: from the first request to the last completion.
        stats: counted in this run only.
    """

    num_requests: int
    seconds: float
    stats: EngineStats

    @property
    def total_tokens(self) -> int:
        return self.stats.prompt_tokens + self.stats.completion_tokens

    @property
    def occupancy(self) -> float:
        """The share of the slots in use, averaged over the steps."""
        return self.stats.row_steps / (self.stats.steps * self.stats.max_batch_size)

    @property
    def phase_seconds(self) -> dict[str, float]:
        """Seconds of each of `PHASES`; together, the time inside steps."""
        return {phase: getattr(self.stats, f"{phase}_seconds") for phase in PHASES}

    @property
    def rest_seconds(self) -> float:
        """Seconds outside the phases: admission of requests, and the return of completions."""
        return self.seconds - sum(self.phase_seconds.values())


def warm_up(engine: Engine) -> None:
    """Run all slots for a few steps, so that caches, allocators and recorded steps are in their steady state."""
    _complete(engine, Workload(engine.pool.num_slots, 1, _WARM_UP_TOKENS))


def measure(engine: Engine, workload: Workload) -> Measurement:
    """Run a workload on an idle engine, after `warm_up`, and measure it."""
    before = replace(engine.stats)
    seconds = _complete(engine, workload)
    return Measurement(workload.num_prompts, seconds, difference(engine.stats, before))


def difference(after: EngineStats, before: EngineStats) -> EngineStats:
    """The statistics of an engine between two moments. Sizes and averages are those of `after`."""
    names = {field.name for field in fields(EngineStats)} - {
        "max_batch_size",
        "max_batch_tokens",
        "running",
        "prompt_share",
        "occupancy",
    }
    return replace(after, **{name: getattr(after, name) - getattr(before, name) for name in names})


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(argv)
    try:
        _bench(options)
    except CapacityError as error:
        print(f"rwkv-batch: {error}", file=sys.stderr)
        return EXIT_DEVICE
    except RwkvBatchError as error:
        print(f"rwkv-batch: {error}", file=sys.stderr)
        return EXIT_USAGE
    return EXIT_OK


def positive_ints(text: str) -> list[int]:
    """The value of an argument such as "1,8,32"."""
    values = [positive_int(word) for word in text.split(",")]
    return sorted(set(values))


def positive_int(text: str) -> int:
    """The value of an argument such as "8"."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rwkv-batch bench",
        description="Measure a model on random prompts of token ids, sampled with temperature 1.0 and top_p 0.85.",
        epilog="example:  rwkv-batch bench demo --batch-sizes 1,8",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", metavar="MODEL", help="as LLM(model=...): demo, a file, a folder, hf://owner/repo/file"
    )
    parser.add_argument(
        "--batch-sizes", type=positive_ints, default=[1, 8, 32], metavar="N,N,…", help="default: 1,8,32"
    )
    parser.add_argument("--input-len", type=positive_int, default=128, metavar="N", help="tokens of a prompt (128)")
    parser.add_argument("--output-len", type=positive_int, default=64, metavar="N", help="tokens of a completion (64)")
    parser.add_argument("--num-prompts", type=positive_int, metavar="N", help="default: twice the batch size")
    parser.add_argument(
        "--workloads",
        type=_workloads,
        default=["fixed"],
        metavar="NAME,…",
        help="fixed: all of one length (default); ragged: these mean lengths, with a long tail; score: scored prompts",
    )
    parser.add_argument("--dtype", default="auto", help=one_of(("auto", *DTYPES)))
    parser.add_argument("--quantization", help=" or ".join(QUANTIZATIONS))
    parser.add_argument(
        "--variants", type=variants, metavar="NAME,…", help="several of them in one run, such as float32,bfloat16+int8"
    )
    parser.add_argument("--threads", type=positive_int, metavar="N", help="CPU threads; default: as many as torch uses")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, mps or dml")
    parser.add_argument("--backend", default="auto", help="auto, triton, cuda, cpu or reference")
    return parser


def _workloads(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in WORKLOADS]
    if unknown:
        raise argparse.ArgumentTypeError(f"got {unknown[0]!r}, expected some of {', '.join(WORKLOADS)}")
    return names


def _bench(options: argparse.Namespace) -> None:
    if options.threads:
        torch.set_num_threads(options.threads)
    else:
        limit_threads()
    single = Variant(options.dtype, options.quantization)
    runs: list[tuple[list[str], Measurement]] = []
    for variant in options.variants or [single]:
        model = BenchModel(options.model, options.batch_sizes, variant, device=options.device, backend=options.backend)
        print(model)
        for batch_size in options.batch_sizes:
            engine = model.engine(batch_size)
            warm_up(engine)
            for name in options.workloads:
                output_len = 0 if name == "score" else options.output_len
                workload = WORKLOADS[name](options.num_prompts or 2 * batch_size, options.input_len, output_len)
                runs.append(([str(variant), name, str(batch_size)], measure(engine, workload)))
        print(backends(engine))
        del engine, model  # the plan of the next variant counts free memory
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    print(f"random prompts of {options.input_len} tokens, {options.output_len} tokens each\n")
    header = ["variant", "prompts", "batch", "requests", "seconds", "requests/s", "total tokens/s", "output tokens/s"]
    print(format_table([*header, "occupancy", *PHASES, "rest"], [[*names, *_row(run)] for names, run in runs]))
    print("\ncolumns from schedule on: shares of the time; rest: admission and completions, between the steps")
    of_first = [run for run in runs if run[0][1] == options.workloads[0]]
    names, best = max(of_first, key=lambda run: run[1].total_tokens / run[1].seconds)
    requests, total, output = _rates(best)
    print(f"Throughput: {requests} requests/s, {total} total tokens/s, {output} output tokens/s ({', '.join(names)})")


def _row(run: Measurement) -> list[str]:
    """The cells of a run in the table, after its names."""
    parts = [*run.phase_seconds.values(), run.rest_seconds]
    return [
        str(run.num_requests),
        f"{run.seconds:.2f}",
        *_rates(run),
        f"{run.occupancy:.0%}",
        *(f"{part / run.seconds:.1%}" for part in parts),
    ]


def _rates(run: Measurement) -> list[str]:
    """Requests, tokens, and sampled tokens, each per second."""
    output = run.stats.completion_tokens / run.seconds
    return [f"{run.num_requests / run.seconds:.2f}", f"{run.total_tokens / run.seconds:.1f}", f"{output:.1f}"]


def _complete(engine: Engine, workload: Workload) -> float:
    """Seconds from the first request to the last completion."""
    requests = workload.requests(engine.model.sizes["V"])
    start = perf_counter()
    for _ in engine.generate(Pulled(requests)):
        pass
    return perf_counter() - start
