"""Measures what number formats and 8-bit matrices cost and save, on the bundled demo model.

    python -m benchmarks.quality [--variants float32,bfloat16,float32+int8,float32+w8a8]

Runs from the repository root in a few minutes. The demo model was never trained on the text: pieces of the held-out
files of Python's standard library, each from an empty state.

    bits per byte     of these pieces, every byte scored
    same next byte    share of all positions where the most likely byte is that of the first variant, on the same text
    same for          bytes until a greedy completion first differs from the first variant's; mean over the pieces
    tokens/s          a batch that decodes, sampler on; median of interleaved rounds
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from rwkv_batch import LLM, SamplingParams
from rwkv_batch.demo.corpus import END_OF_TEXT, encode, stdlib_documents
from rwkv_batch.errors import RwkvBatchError
from rwkv_batch.measure.bench import BenchModel, measure, positive_int, warm_up
from rwkv_batch.measure.variants import Variant, variants
from rwkv_batch.measure.workloads import Workload
from rwkv_batch.outputs import ScoreOutput

from .timing import machine

PROMPT_BYTES = 64
HEADER = ("", "tokens/s", "matrices, MiB", "bits per byte", "same next byte", "same for")


@dataclass
class Quality:
    """Results of one variant on the pieces.

    Args:
        likeliest: the most likely token at every position, of each piece.
        completions: greedy completions of the first bytes of each piece.
    """

    variant: Variant
    matrix_bytes: int
    bits_per_byte: float
    likeliest: list[list[int]]
    completions: list[list[int]]
    rates: list[float] = field(default_factory=list)


def held_out_pieces(count: int, length: int) -> list[list[int]]:
    """Returns token ids of pieces spread evenly over the held-out text. An end of text separates two files.

    Raises:
        ValueError: the held-out text is shorter than the pieces together.
    """
    text: list[int] = []
    for document in stdlib_documents():
        if document.held_out:
            text += [*encode(document.text), END_OF_TEXT]
    if count * length > len(text):
        raise ValueError(f"got {count} pieces of {length} bytes, expected no more than {len(text)} bytes together")
    stride = len(text) // count
    return [text[i * stride : i * stride + length] for i in range(count)]


def examine(variant: Variant, pieces: Sequence[list[int]], completion_len: int) -> Quality:
    """Scores and completes all pieces."""
    llm = LLM("demo", device="cpu", **variant.settings)
    scores = llm.score([([END_OF_TEXT], piece) for piece in pieces], top_logprobs=1)
    params = SamplingParams(max_tokens=completion_len, temperature=0.0, ignore_eos=True)
    outputs = llm.generate([[END_OF_TEXT, *piece[:PROMPT_BYTES]] for piece in pieces], params)
    nats = -math.fsum(score.logprob for score in scores)
    return Quality(
        variant,
        matrix_bytes=llm.describe()["matrix_bytes"],
        bits_per_byte=nats / math.log(2) / sum(map(len, pieces)),
        likeliest=likeliest(scores),
        completions=[output.outputs[0].token_ids for output in outputs],
    )


def likeliest(scores: Sequence[ScoreOutput]) -> list[list[int]]:
    """Returns the most likely token at every position of each continuation, scored with `top_logprobs`."""
    return [[_first(entries) for entries in score.top_logprobs or []] for score in scores]


def _first(entries: dict[int, Any]) -> int:
    return next(token_id for token_id, entry in entries.items() if entry.rank == 1)


def agreement(own: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> float:
    """Returns the share of equal tokens in rows of equal lengths."""
    pairs = [pair for a, b in zip(own, other, strict=True) for pair in zip(a, b, strict=True)]
    return mean(a == b for a, b in pairs)


def shared_length(own: Sequence[int], other: Sequence[int]) -> int:
    """Returns the number of tokens before the first difference."""
    return next((i for i, (a, b) in enumerate(zip(own, other, strict=True)) if a != b), len(own))


def measure_rates(found: Sequence[Quality], options: argparse.Namespace) -> None:
    """Measures the tokens/s of a batch that decodes, once for each variant in every round."""
    engines = [
        (one, BenchModel("demo", [options.batch_size], one.variant, device="cpu").engine(options.batch_size))
        for one in found
    ]
    for number in range(options.rounds):
        for one, engine in engines[:: -1 if number % 2 else 1]:
            warm_up(engine)
            run = measure(engine, Workload(options.batch_size, 1, options.steps))
            one.rates.append(run.stats.completion_tokens / run.seconds)


def rows(found: Sequence[Quality]) -> list[list[str]]:
    """Makes the rows of the table. The first variant is the standard of comparison."""
    base = found[0]
    return [
        [
            str(one.variant),
            f"{median(one.rates):.0f}",
            f"{one.matrix_bytes / 2**20:.2f}",
            f"{one.bits_per_byte:.4f}",
            f"{agreement(one.likeliest, base.likeliest):.2%}",
            f"{mean(map(shared_length, one.completions, base.completions)):.0f} of {len(base.completions[0])}",
        ]
        for one in found
    ]


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Formats a table in Markdown."""
    rule = ["---", *(["---:"] * (len(header) - 1))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *lines])


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    about = machine()
    pieces = held_out_pieces(options.pieces, options.piece_len)
    found = []
    for variant in options.variants:
        print(f"{variant} …", file=sys.stderr, flush=True)
        try:
            found.append(examine(variant, pieces, options.completion_len))
        except RwkvBatchError as error:
            print(f"{variant}: {error}", file=sys.stderr)
    if not found:
        raise SystemExit("no variant can run; the reasons are above")
    measure_rates(found, options)
    lines = rows(found)
    print(markdown(HEADER, lines))
    print(f"\n{options.pieces} pieces of {options.piece_len} bytes; B={options.batch_size}; {about['cpu']}, ", end="")
    print(f"{' '.join(about['cpu_flags'])}, {options.threads} threads, torch {about['torch']}")
    if options.out:
        table = [dict(zip(("variant", *HEADER[1:]), line, strict=True)) for line in lines]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"machine": about, "table": table}, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.partition("\n")[0])
    default = "float32,bfloat16,float32+int8,bfloat16+int8,float32+w8a8,bfloat16+w8a8"
    parser.add_argument(
        "--variants",
        type=variants,
        default=variants(default),
        help=f"the first is the standard of comparison ({default})",
    )
    parser.add_argument("--pieces", type=positive_int, default=16, metavar="N", help="pieces of held-out text (16)")
    parser.add_argument("--piece-len", type=positive_int, default=8192, metavar="N", help="bytes of a piece (8192)")
    parser.add_argument(
        "--completion-len", type=positive_int, default=256, metavar="N", help="bytes of a greedy completion (256)"
    )
    parser.add_argument(
        "--batch-size", type=positive_int, default=32, metavar="N", help="rows that decode together (32)"
    )
    parser.add_argument("--steps", type=positive_int, default=64, metavar="N", help="tokens that each row decodes (64)")
    parser.add_argument("--rounds", type=positive_int, default=5, metavar="N", help="rounds of the speed (5)")
    parser.add_argument(
        "--threads", type=positive_int, default=os.cpu_count(), metavar="N", help="of torch (all cores)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
