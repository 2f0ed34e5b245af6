"""What shared prefixes save: 5-shot multiple choice with four choices, with and without sharing, interleaved.

    python -m benchmarks.prefixes --out benchmarks/results/NAME.json

runs from the repository root, on a random RWKV-7 checkpoint of 0.1B parameters and random token ids: each subject has a
header of 700 tokens, each question 60 tokens, each choice 4.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from rwkv_batch.bench import format_table
from rwkv_batch.llm import LLM, ScoreRow

from .timing import machine, spread
from .workloads import FULL, QUICK, VOCAB_SIZE, checkpoint

HEADER_TOKENS, QUESTION_TOKENS, CHOICE_TOKENS, CHOICES = 700, 60, 4, 4


def rows(subjects: int, questions: int) -> Iterator[ScoreRow]:
    """Questions as an evaluation has them: subject after subject, all choices of a question together."""
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(1, VOCAB_SIZE, (count,), generator=generator).tolist()

    for subject in range(subjects):
        header = tokens(HEADER_TOKENS)
        for question in range(questions):
            key = subject * questions + question
            continuations = [tokens(CHOICE_TOKENS) for _ in range(CHOICES)]
            yield ScoreRow(key, key, header + tokens(QUESTION_TOKENS), continuations)


def measure(llm: LLM, subjects: int, questions: int) -> tuple[float, int]:
    """Questions per second, and prompt tokens computed."""
    before, started = llm.stats().prompt_tokens, perf_counter()
    done = sum(1 for _ in llm.serve_scores(rows(subjects, questions)))
    return done / (perf_counter() - started), llm.stats().prompt_tokens - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=3)
    parser.add_argument("--questions", type=int, default=12, help="questions of each subject")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--cache", type=Path, help="folder for the checkpoint; a temporary one without it")
    parser.add_argument("--quick", action="store_true", help="a tiny model: rehearses, measures nothing")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        path = checkpoint(QUICK if options.quick else FULL, options.cache or Path(scratch))
        contenders = {name: LLM(path, tokenizer=None, prefix_sharing=name == "shared") for name in ("shared", "single")}
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        computed = {}
        for _ in range(options.rounds):
            for name, llm in contenders.items():
                rate, computed[name] = measure(llm, options.subjects, options.questions)
                rates[name].append(rate)
    ratio = [shared / single for shared, single in zip(rates["shared"], rates["single"], strict=True)]
    table = [[name, spread(rates[name], 2), f"{computed[name]:,}"] for name in rates]
    print(format_table(["", "questions/s", "prompt tokens computed"], table))
    print(f"sharing computes {computed['single'] / computed['shared']:.1f} times fewer tokens, ", end="")
    print(f"and is {spread(ratio, 1)} times as fast")
    if options.out:
        workload = {"subjects": options.subjects, "questions": options.questions, "rounds": options.rounds}
        result = {"machine": machine(), "workload": workload, "questions_per_second": rates, "computed": computed}
        options.out.write_text(json.dumps({**result, "speedup": median(ratio)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
