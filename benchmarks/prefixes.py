"""What shared prefixes save: 5-shot multiple choice with four choices, with and without sharing, interleaved.

    python -m benchmarks.prefixes --out benchmarks/results/NAME.json

runs from the repository root, on a random RWKV-7 checkpoint of 0.1B parameters and random token ids: each subject has a
header of 700 tokens, each question 60 tokens, each choice 4. MMLU has 57 subjects and 14,042 questions, 246 a subject.

The same requests are scored by the same engine with prefix_sharing on and off, in two forms: "pairs", every choice a
row of its own, as harnesses send them, and "rows", a question with its choices, whose context is read once in any
case. Without sharing a question costs what it costs, however many there are: those contenders get fewer of them.
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
    """One form of the requests, with or without sharing, and what was measured of it.

    Args:
        questions: of each subject.
    """

    form: str
    llm: LLM
    subjects: int
    questions: int
    rates: list[float] = field(default_factory=list)
    """Questions per second, of each round."""
    tokens_requested: int = 0
    tokens_computed: int = 0
    seconds_saved: float = 0.0
    """The engine's own estimate, of the last round."""

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
        """For the result file."""
        kept = ("questions", "rates", "tokens_requested", "tokens_computed", "seconds_saved")
        return {name: getattr(self, name) for name in kept}

    def per_question(self, count: float) -> float:
        return count / (self.subjects * self.questions)

    def _rows(self) -> Iterator[ScoreRow]:
        """Questions as an evaluation has them: subject after subject, all choices of a question together."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=positive_int, default=2)
    parser.add_argument("--questions", type=positive_int, default=246, help="questions of each subject")
    parser.add_argument("--unshared-questions", type=positive_int, default=8, help="of them, without sharing")
    parser.add_argument("--rounds", type=positive_int, default=3)
    parser.add_argument("--dtype", default="auto", help="auto (bfloat16, the checkpoint's), float32 or bfloat16")
    parser.add_argument("--threads", type=positive_int, default=os.cpu_count())
    parser.add_argument("--cache", type=Path, help="folder for the checkpoint; a temporary one without it")
    parser.add_argument("--quick", action="store_true", help="a tiny model: rehearses, and counts tokens")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    return parser


def _row(one: Contender) -> list[str]:
    return [
        f"{one.subjects * one.questions:,}",
        spread(one.rates, 2),
        f"{one.per_question(one.tokens_requested):,.1f}",
        f"{one.per_question(one.tokens_computed):,.1f}",
    ]


def _compare(form: str, contenders: dict[str, Contender]) -> list[float]:
    """Print how much less is computed, and how much faster it goes; returns the ratios of rates, of each round."""
    shared, single = (contenders[f"{form}, {name}"] for name in ("shared", "not shared"))
    ratios = [a / b for a, b in zip(shared.rates, single.rates, strict=True)]
    fewer = single.per_question(single.tokens_computed) / shared.per_question(shared.tokens_computed)
    print(f"{form}: sharing computes {fewer:.1f} times fewer prompt tokens, and is {spread(ratios, 1)} times as fast")
    if form == "pairs":  # otherwise the engine counts what the samples of a row share too
        questions = shared.subjects * shared.questions
        saved = questions / median(single.rates) - questions / median(shared.rates)
        print(f"  the engine estimates {shared.seconds_saved:,.1f} s saved a round; by the rates it is {saved:,.1f} s")
    return ratios


if __name__ == "__main__":
    main()
