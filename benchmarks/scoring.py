"""Measures log-likelihoods in rows/s, as evaluation harnesses request them, beside other ways to score a checkpoint.

    python -m benchmarks.scoring --out benchmarks/results/NAME.json

Runs from the repository root, on a random RWKV-7 checkpoint of 0.1B parameters and random token ids, in float32.

    multiple choice    four choices of 4 tokens after a question of 60 tokens, which follows five examples (700 tokens);
                       the questions of a subject share the examples
    last word          contexts of 40 to 120 tokens; words of one token, three in ten of two

Every contender is a process of its own, is warmed up, and gets the same (context, continuation) pairs of token ids:

    rwkv_batch             this project as a model of the lm-evaluation-harness
    without sharing        the same with prefix_sharing=False, each pair by itself
    rwkv, every choice     a loop over the rwkv package: each pair is one call from a fresh state
    rwkv, context once     a loop that reads a context once; each choice starts from the context's state
    hf                     the harness's Hugging Face backend with the package rwkv7-hf, if that is installed
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch

from rwkv_batch.measure.bench import positive_int
from rwkv_batch.measure.table import format_table

from .timing import machine, spread
from .workloads import FULL, QUICK, VOCAB_SIZE, checkpoint

HEADER_TOKENS, QUESTION_TOKENS, CHOICE_TOKENS, CHOICES = 700, 60, 4, 4
CONTEXT_TOKENS = (40, 120)
LONG_WORDS = 0.3
HF_BATCH_SIZE = 4
WARM_UP_ROWS = 4
BASE = "rwkv, every choice"
OURS = "rwkv_batch"
TASKS = ("multiple choice", "last word")

Row = list[tuple[list[int], list[int]]]
"""(context, continuation) pairs of one question, in token ids."""


def multiple_choice(num_rows: int, per_subject: int) -> Iterator[Row]:
    """Yields the questions of one subject after another."""
    draw = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(1, VOCAB_SIZE) for _ in range(count)]

    header: list[int] = []
    for question in range(num_rows):
        if question % per_subject == 0:
            header = [0, *tokens(HEADER_TOKENS)]
        context = header + tokens(QUESTION_TOKENS)
        yield [(context, tokens(CHOICE_TOKENS)) for _ in range(CHOICES)]


def last_word(num_rows: int) -> Iterator[Row]:
    """Yields rows of one pair."""
    draw = random.Random(1)
    for _ in range(num_rows):
        length = draw.randint(*CONTEXT_TOKENS) - 1
        word = [draw.randrange(1, VOCAB_SIZE) for _ in range(1 + (draw.random() < LONG_WORDS))]
        yield [([0, *(draw.randrange(1, VOCAB_SIZE) for _ in range(length))], word)]


def rows_of(task: str, num_rows: int, per_subject: int) -> list[Row]:
    return list(multiple_choice(num_rows, per_subject) if task == "multiple choice" else last_word(num_rows))


Score = Callable[[Sequence[Row]], list[float]]
"""Rows → the log-likelihood of every pair, in order."""


def make_ours(path: Path) -> Score:
    from rwkv_batch.integrations.lm_eval import RwkvBatchLM

    return partial(_through_harness, RwkvBatchLM(path, tokenizer="world", dtype="float32"))


def make_unshared(path: Path) -> Score:
    from rwkv_batch.llm import LLM

    llm = LLM(path, tokenizer=None, dtype="float32", prefix_sharing=False)
    return lambda rows: [score.logprob for score in llm.score([pair for row in rows for pair in row])]


def make_hf(path: Path) -> Score:
    from lm_eval.models.huggingface import HFLM
    from rwkv7_hf.cli import main as rwkv7_hf

    from rwkv_batch.text.vocabulary import WORLD_VOCABULARY

    with tempfile.TemporaryDirectory() as folder:
        options = ["--vocab-file", str(WORLD_VOCABULARY), "--precision", "fp32", "--no-fuse-norm", "--low-memory"]
        rwkv7_hf(["convert", "--input", str(path), "--output", folder, *options])
        harness = HFLM(
            folder, dtype="float32", device="cpu", batch_size=HF_BATCH_SIZE, trust_remote_code=True, max_length=4096
        )
    return partial(_through_harness, harness)


def _through_harness(model: Any, rows: Sequence[Row]) -> list[float]:
    requests: list[tuple[Any, ...]] = [(None, context, continuation) for row in rows for context, continuation in row]
    if type(model).__name__ == "HFLM":  # whose cache is keyed by the text
        requests = [((str(i), ""), *pair) for i, (_, *pair) in enumerate(requests)]
    return [logprob for logprob, _ in model._loglikelihood_tokens(requests, disable_tqdm=True)]


def make_rwkv(path: Path, context_once: bool) -> Score:
    os.environ |= {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "1", "RWKV_CUDA_ON": "0"}
    from rwkv.model import RWKV

    model = RWKV(model=str(path.with_suffix("")), strategy="cpu fp32")

    def chosen(logits: torch.Tensor, continuation: list[int]) -> float:
        return float(logits.log_softmax(-1).gather(1, torch.tensor(continuation)[:, None]).sum())

    def pair_by_pair(rows: Sequence[Row]) -> list[float]:
        found = []
        for context, continuation in (pair for row in rows for pair in row):
            logits, _ = model.forward([*context, *continuation[:-1]], None, full_output=True)
            found.append(chosen(logits[len(context) - 1 :].float(), continuation))
        return found

    def row_by_row(rows: Sequence[Row]) -> list[float]:
        found = []
        for row in rows:
            first, state = model.forward(row[0][0], None)
            for _, continuation in row:
                logits = first[None].float()
                if len(continuation) > 1:
                    copy = [tensor.clone() for tensor in state]
                    rest, _ = model.forward(continuation[:-1], copy, full_output=True)
                    logits = torch.cat([logits, rest.view(len(continuation) - 1, -1).float()])
                found.append(chosen(logits, continuation))
        return found

    return row_by_row if context_once else pair_by_pair


class Contender(NamedTuple):
    """A way to score.

    Args:
        share: of the questions that this contender gets: slow ones get fewer. Rates are per row.
    """

    name: str
    make: Callable[[Path], Score]
    share: float


CONTENDERS = (
    Contender(OURS, make_ours, 1.0),
    Contender("without sharing", make_unshared, 0.1),
    Contender(BASE, partial(make_rwkv, context_once=False), 0.1),
    Contender("rwkv, context once", partial(make_rwkv, context_once=True), 0.1),
    Contender("hf", make_hf, 0.1),
)


class Job(NamedTuple):
    """A question to a worker."""

    task: str
    num_rows: int
    per_subject: int


class Worker:
    """The process of a contender. An idle process waits in a read and uses no processor time."""

    def __init__(self, contender: Contender, path: Path, threads: int) -> None:
        self.name = contender.name
        self._connection, connection = Pipe()
        arguments = (connection, contender.make, path, threads)
        self._process = get_context("spawn").Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        connection.close()
        self._receive()

    def score(self, job: Job) -> tuple[float, list[float], float]:
        """Returns seconds, log-likelihoods, and the peak memory of the process so far, in MiB."""
        self._connection.send(job)
        return self._receive()

    def close(self) -> None:
        self._connection.close()
        self._process.join()

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except EOFError as error:
            self._process.join()
            raise SystemExit(f"{self.name}: its process failed; its error is above") from error


def _serve(connection: Connection, make: Callable[[Path], Score], path: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    os.environ["HF_HUB_OFFLINE"] = "1"
    with contextlib.redirect_stdout(io.StringIO()):
        score = make(path)
        score(rows_of("last word", WARM_UP_ROWS, 1))
    connection.send(None)
    while True:
        try:
            job: Job = connection.recv()
        except EOFError:
            return
        rows = rows_of(*job)
        start = perf_counter()
        found = score(rows)
        seconds = perf_counter() - start
        connection.send((seconds, found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def measure(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measures all contenders in interleaved rounds; returns rates and the differences to the rwkv package."""
    workers = [(one, Worker(one, path, options.threads)) for one in CONTENDERS if _is_installed(one, options)]
    rates: dict[str, dict[str, list[float]]] = {task: {one.name: [] for one, _ in workers} for task in TASKS}
    found: dict[str, dict[str, list[float]]] = {task: {} for task in TASKS}
    for number in range(options.rounds):
        for one, worker in workers[:: -1 if number % 2 else 1]:
            for task in TASKS:
                num_rows = max(round(options.rows * one.share), 2)
                print(f"round {number + 1} of {options.rounds}: {one.name}, {task}", file=sys.stderr, flush=True)
                seconds, found[task][one.name], _ = worker.score(Job(task, num_rows, options.per_subject))
                rates[task][one.name].append(num_rows / seconds)
    for _, worker in workers:
        worker.close()
    return {"rows_per_second": rates, "largest_difference": {task: _differences(found[task]) for task in TASKS}}


def _is_installed(contender: Contender, options: argparse.Namespace) -> bool:
    needs = {"hf": "rwkv7_hf", BASE: "rwkv", "rwkv, context once": "rwkv"}.get(contender.name)
    return contender.name not in options.without and (needs is None or find_spec(needs) is not None)


def _differences(found: dict[str, list[float]]) -> dict[str, float]:
    """Returns contender → largest difference of a log-likelihood to the base's, over rows that both scored."""
    base = found.get(BASE, [])
    return {
        name: max((abs(a - b) for a, b in zip(values, base, strict=False)), default=0.0)
        for name, values in found.items()
    }


def peak_memory(path: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Returns task → number of rows → peak memory of a process of this engine, in MiB."""
    peaks: dict[str, dict[str, float]] = {}
    for task in TASKS:
        for num_rows in (options.rows, 4 * options.rows):
            print(f"memory: {task}, {num_rows} rows", file=sys.stderr, flush=True)
            worker = Worker(CONTENDERS[0], path, options.threads)
            *_, peak = worker.score(Job(task, num_rows, options.per_subject))
            worker.close()
            peaks.setdefault(task, {})[str(num_rows)] = round(peak)
    return peaks


def main() -> None:
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    about = machine()
    with tempfile.TemporaryDirectory() as scratch:
        path = checkpoint(QUICK if options.quick else FULL, options.cache or Path(scratch))
        result = measure(path, options)
        result["peak_memory_mib"] = peak_memory(path, options)
    result["ratio_in_same_round"] = {
        task: {
            other: [ours / theirs for ours, theirs in zip(rates[OURS], rates[other], strict=True)]
            for other in rates
            if other != OURS
        }
        for task, rates in result["rows_per_second"].items()
    }
    for task, rates in result["rows_per_second"].items():
        ratios, differences = result["ratio_in_same_round"][task], result["largest_difference"][task]
        table = [
            [
                name,
                spread(rates[name], 2),
                spread(ratios[name], 1) if name in ratios else "",
                f"{differences[name]:.1e}",
            ]
            for name in rates
        ]
        print(f"\n{task}: median (min-max) of {options.rounds} rounds\n")
        print(format_table(["", "rows/s", f"{OURS} is … times as fast", f"logprob − {BASE}"], table))
    print(f"\npeak memory of {OURS}, MiB, by number of rows: {result['peak_memory_mib']}")
    if options.out:
        workload = {name: getattr(options, name) for name in ("rows", "per_subject", "rounds", "quick")}
        medians = {task: {o: median(r) for o, r in by.items()} for task, by in result["ratio_in_same_round"].items()}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        everything = {"machine": about, "workload": workload, "median_ratio": medians, **result}
        options.out.write_text(json.dumps(_rounded(everything), indent=1) + "\n")


def _rounded(value: Any) -> Any:
    """Rounds to four significant digits; the noise is larger than the others."""
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring", description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=positive_int, default=48, metavar="N", help="rows of each task (48)")
    parser.add_argument(
        "--per-subject",
        type=positive_int,
        default=24,
        metavar="N",
        help="questions of a subject, which share examples (%(default)s)",
    )
    parser.add_argument(
        "--rounds", type=positive_int, default=3, metavar="N", help="rounds; each measures every contender once (3)"
    )
    parser.add_argument(
        "--threads", type=positive_int, default=os.cpu_count(), metavar="N", help="of torch (all cores)"
    )
    parser.add_argument(
        "--without", action="append", default=[], metavar="NAME", help="leave this contender out; may be repeated"
    )
    parser.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="folder that keeps the checkpoint (a temporary one)"
    )
    parser.add_argument("--quick", action="store_true", help="rehearse with a tiny model")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all results as JSON")
    return parser


if __name__ == "__main__":
    main()
