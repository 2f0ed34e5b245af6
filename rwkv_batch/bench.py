"""rwkv-batch bench: how fast a model completes random prompts on this machine, and where the time goes."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from time import perf_counter

import torch

from .engine.engine import Engine
from .engine.request import Request
from .engine.sizing import plan_memory
from .engine.slot_tables import Vocabulary
from .engine.stats import EngineStats
from .errors import CapacityError, RwkvBatchError
from .model_summary import inspect_model
from .models.model import Model
from .run import EXIT_DEVICE, EXIT_OK, EXIT_USAGE
from .sampling_params import SamplingParams

PHASES = ("schedule", "model", "sample", "wait", "commit")
"""What `EngineStats` times."""

_WARM_UP_TOKENS = 2


@dataclass(frozen=True)
class Workload:
    """Random prompts of one length, each completed with the same number of sampled tokens."""

    num_prompts: int
    input_len: int
    output_len: int

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(max_tokens=self.output_len, temperature=1.0, top_p=0.85, ignore_eos=True)

    def prompts(self, vocab_size: int) -> list[list[int]]:
        """Token ids, uniform over the vocabulary but for the end of text; the same ones at every call."""
        draw = random.Random(0)
        return [draw.choices(range(1, vocab_size), k=self.input_len) for _ in range(self.num_prompts)]


class BenchModel:
    """A loaded model, to be measured with engines of several sizes.

    Args:
        path, dtype, quantization, device, backend: as `LLM` takes them.
        batch_sizes: of the engines; the largest must fit.

    Raises:
        ConfigurationError, CheckpointError, CapacityError, BackendError: as `LLM` does.
    """

    def __init__(
        self,
        path: str | Path,
        batch_sizes: Sequence[int],
        *,
        dtype: str = "auto",
        quantization: str | None = None,
        device: str = "auto",
        backend: str = "auto",
    ) -> None:
        self.summary = inspect_model(
            path, tokenizer=None, device=device, dtype=dtype, quantization=quantization, backend=backend
        )
        file, placement = self.summary.file, self.summary.placement
        # Before anything is loaded: the plan counts the weights as still to come.
        self._plans = {size: plan_memory(file, placement, size) for size in batch_sizes}
        self.model = Model(file, placement, self.summary.layer_ops)

    def engine(self, batch_size: int) -> Engine:
        """A new engine with `batch_size` slots, which must be one of `batch_sizes`."""
        return Engine(
            self.model,
            Vocabulary.plain(self.model.sizes["V"]),
            max_batch_size=batch_size,
            max_batch_tokens=self._plans[batch_size].max_batch_tokens,
        )

    def __str__(self) -> str:
        about = self.summary.describe()
        quantization = f" {about['quantization']}" if about["quantization"] else ""
        return (
            f"{about['model']}: {about['version']}, {about['device']} {about['dtype']}{quantization}; "
            f"torch {torch.__version__}, {torch.get_num_threads()} threads"
        )


def backends(engine: Engine) -> str:
    """Which backend serves each op, on one line."""
    return "ops: " + ", ".join(f"{choice.op} {choice.backend}" for choice in engine.model.ops.choices)


@dataclass(frozen=True)
class Measurement:
    """One run of a workload.

    Args:
        seconds: from the first request to the last completion.
        stats: of this run alone.
    """

    num_requests: int
    seconds: float
    stats: EngineStats

    @property
    def total_tokens(self) -> int:
        return self.stats.prompt_tokens + self.stats.completion_tokens

    @property
    def occupancy(self) -> float:
        """Mean share of the slots that were in use."""
        return self.stats.row_steps / (self.stats.steps * self.stats.max_batch_size)

    @property
    def phase_seconds(self) -> dict[str, float]:
        """Seconds of each of `PHASES`; together, the time inside steps."""
        return {phase: getattr(self.stats, f"{phase}_seconds") for phase in PHASES}

    @property
    def rest_seconds(self) -> float:
        """Time outside steps: giving slots to requests, handing completions out."""
        return self.seconds - sum(self.phase_seconds.values())


def warm_up(engine: Engine) -> None:
    """Run every slot for a few steps, so that caches and allocators are as they are later."""
    _complete(engine, Workload(engine.pool.num_slots, 1, _WARM_UP_TOKENS))


def measure(engine: Engine, workload: Workload) -> Measurement:
    """Run a workload on an engine that is idle and warm."""
    before = replace(engine.stats)
    seconds = _complete(engine, workload)
    return Measurement(workload.num_prompts, seconds, difference(engine.stats, before))


def difference(after: EngineStats, before: EngineStats) -> EngineStats:
    """What was counted between two moments."""
    names = {field.name for field in fields(EngineStats)} - {
        "max_batch_size",
        "max_batch_tokens",
        "running",
        "prompt_share",
        "occupancy",
    }
    return replace(after, **{name: getattr(after, name) - getattr(before, name) for name in names})


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be; the first one to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
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
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rwkv-batch bench",
        description="Measure a model on random prompts of token ids, sampled with temperature 1.0 and top_p 0.85.",
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
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--quantization", help="int8 or w8a8")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--backend", default="auto", help="auto, triton, cuda, cpu or reference")
    return parser


def _bench(options: argparse.Namespace) -> None:
    model = BenchModel(
        options.model,
        options.batch_sizes,
        dtype=options.dtype,
        quantization=options.quantization,
        device=options.device,
        backend=options.backend,
    )
    print(model)
    rows = []
    for batch_size in options.batch_sizes:
        workload = Workload(options.num_prompts or 2 * batch_size, options.input_len, options.output_len)
        engine = model.engine(batch_size)
        warm_up(engine)
        rows.append(_row(batch_size, measure(engine, workload)))
    print(backends(engine))
    print(f"random prompts of {options.input_len} tokens, {options.output_len} tokens each\n")
    header = ["batch", "requests", "seconds", "requests/s", "total tokens/s", "output tokens/s", "occupancy"]
    print(format_table([*header, *PHASES, "rest"], rows))
    print("\nfrom schedule on: shares of the time; rest is what happens between steps")


def _row(batch_size: int, run: Measurement) -> list[str]:
    parts = [*run.phase_seconds.values(), run.rest_seconds]
    return [
        str(batch_size),
        str(run.num_requests),
        f"{run.seconds:.2f}",
        f"{run.num_requests / run.seconds:.2f}",
        f"{run.total_tokens / run.seconds:.1f}",
        f"{run.stats.completion_tokens / run.seconds:.1f}",
        f"{run.occupancy:.0%}",
        *(f"{part / run.seconds:.1%}" for part in parts),
    ]


def _complete(engine: Engine, workload: Workload) -> float:
    """Seconds from the first request to the last completion."""
    prompts, params = workload.prompts(engine.model.sizes["V"]), workload.params
    requests = [Request(index, prompt, params, row=index) for index, prompt in enumerate(prompts)]
    start = perf_counter()
    for _ in engine.generate(requests):
        pass
    return perf_counter() - start
