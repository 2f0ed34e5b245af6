"""Measures what shared prefixes save: 5-shot multiple choice with four choices, with and without sharing.

    python -m benchmarks.prefixes --out benchmarks/results/NAME.json

Runs from the repository root, on a random RWKV-7 checkpoint of 0.1B parameters and random token ids: each subject has a
header of 700 tokens, each question 60 tokens, each choice 4. MMLU has 57 subjects and 14,042 questions, 246 a subject.

The same engine scores the same requests with prefix_sharing on and off, in interleaved rounds and in two forms:

    pairs    every choice is a row of its own, as harnesses send them
    rows     a question with its choices is one row, whose context is read once in any case

Without sharing, the cost of a question does not depend on the number of questions, so those contenders get fewer.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from rwkv_batch.llm import LLM, ScoreRow
from rwkv_batch.measure.bench import difference, positive_int
from rwkv_batch.measure.table import format_table

from .timing import machine, spread
from .workloads import FULL, QUICK, VOCAB_SIZE, checkpoint

HEADER_TOKENS, QUESTION_TOKENS, CHOICE_TOKENS, CHOICES = 700, 60, 4, 4


@dataclass
class Contender:
    """One form of the requests, with or without sharing, and its results.

    Args:
        questions: of each subject.
    """

    form: str
    llm: LLM
    subjects: int
    questions: int
    rates: list[float] = field(default_factory=list)
    """Questions per second of each round."""
    tokens_requested: int = 0
    tokens_computed: int = 0
    seconds_saved: float = 0.0
    """Seconds that sharing saved in the last round, as the engine estimates them."""

    def measure(self) -> None:
        before = replace(self.llm.stats())
        started = perf_counter()
        served = sum(1 for _ in self.llm.serve_scores(self._rows()))
        questions = served / (CHOICES if self.form == "pairs" else 1)
        self.rates.append(questions / (perf_counter() - started))
        stats = difference(self.llm.stats(), before)
        self.tokens_requested, self.tokens_computed = stats.requested_tokens, stats.prompt_tokens
        self.seconds_saved = stats.saved_seconds

    def describe(self) -> dict[str, Any]:
        """Returns the results, for the JSON file."""
        kept = ("questions", "rates", "tokens_requested", "tokens_computed", "seconds_saved")
        return {name: getattr(self, name) for name in kept}

    def per_question(self, count: float) -> float:
        return count / (self.subjects * self.questions)

    def _rows(self) -> Iterator[ScoreRow]:
        """Yields questions in the order of an evaluation: by subject, all choices of a question together."""
        generator = torch.Generator().manual_seed(0)

        def tokens(count: int) -> list[int]:
            return torch.randint(1, VOCAB_SIZE, (count,), generator=generator).tolist()

        for subject in range(self.subjects):
            header = tokens(HEADER_TOKENS)
            for question in range(self.questions):
                key = subject * self.questions + question
                context, choices = header + tokens(QUESTION_TOKENS), [tokens(CHOICE_TOKENS) for _ in range(CHOICES)]
                if self.form == "rows":
                    yield ScoreRow(key, key, context, choices)
                else:
                    yield from (
                        ScoreRow((key, i), key * CHOICES + i, context, [choice]) for i, choice in enumerate(choices)
                    )


def main() -> None:
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    unshared = min(options.unshared_questions, options.questions)
    with tempfile.TemporaryDirectory() as scratch:
        path = checkpoint(QUICK if options.quick else FULL, options.cache or Path(scratch))
        shared, single = (
            LLM(path, tokenizer=None, dtype=options.dtype, prefix_sharing=sharing) for sharing in (True, False)
        )
        contenders = {
            f"{form}, {name}": Contender(form, llm, options.subjects, questions)
            for form in ("pairs", "rows")
            for name, llm, questions in (("shared", shared, options.questions), ("not shared", single, unshared))
        }
        for _ in range(options.rounds):
            for contender in contenders.values():
                contender.measure()
    table = [[name, *_row(one)] for name, one in contenders.items()]
    print(format_table(["", "questions", "questions/s", "requested/question", "computed/question"], table))
    ratios = {form: _compare(form, contenders) for form in ("pairs", "rows")}
    if options.out:
        workload = {"subjects": options.subjects, "rounds": options.rounds, "dtype": options.dtype}
        result = {"machine": machine(), "workload": workload, "speedup": ratios}
        result["contenders"] = {name: one.describe() for name, one in contenders.items()}
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prefixes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subjects", type=positive_int, default=2, metavar="N", help="subjects (%(default)s)")
    parser.add_argument(
        "--questions", type=positive_int, default=246, metavar="N", help="questions of each subject (%(default)s)"
    )
    parser.add_argument(
        "--unshared-questions",
        type=positive_int,
        default=8,
        metavar="N",
        help="questions of each subject for the contenders without sharing (%(default)s)",
    )
    parser.add_argument(
        "--rounds", type=positive_int, default=3, metavar="N", help="rounds; each measures every contender once (3)"
    )
    parser.add_argument("--dtype", default="auto", help="auto (bfloat16, the checkpoint's), float32 or bfloat16")
    parser.add_argument(
        "--threads", type=positive_int, default=os.cpu_count(), metavar="N", help="of torch (all cores)"
    )
    parser.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="folder that keeps the checkpoint (a temporary one)"
    )
    parser.add_argument("--quick", action="store_true", help="rehearse with a tiny model")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all results as JSON")
    return parser


def _row(one: Contender) -> list[str]:
    return [
        f"{one.subjects * one.questions:,}",
        spread(one.rates, 2),
        f"{one.per_question(one.tokens_requested):,.1f}",
        f"{one.per_question(one.tokens_computed):,.1f}",
    ]


def _compare(form: str, contenders: dict[str, Contender]) -> list[float]:
    """Prints ratios of computed tokens and of rates; returns the ratios of rates of each round."""
    shared, single = (contenders[f"{form}, {name}"] for name in ("shared", "not shared"))
    ratios = [a / b for a, b in zip(shared.rates, single.rates, strict=True)]
    fewer = single.per_question(single.tokens_computed) / shared.per_question(shared.tokens_computed)
    print(f"{form}: sharing computes {fewer:.1f} times fewer prompt tokens, and is {spread(ratios, 1)} times as fast")
    if form == "pairs":  # for rows the engine's count includes what the choices of a row share
        questions = shared.subjects * shared.questions
        saved = questions / median(single.rates) - questions / median(shared.rates)
        print(f"  the engine estimates {shared.seconds_saved:,.1f} s saved a round; by the rates it is {saved:,.1f} s")
    return ratios


if __name__ == "__main__":
    main()
