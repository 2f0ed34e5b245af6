"""The workloads: batch size, lengths and features, by name."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

STOP = ("\n\nUser:",)
"""Stop string of a whole job. No completion has a colon, so the string never matches."""
STOPS = (*STOP, "\n\nQuestion:", "fox:", "</answer:>")
"""Stop strings of a `stop` case."""
ENGINE_PROMPT_TOKENS = 16
PROMPT_TOKENS_OF_A_STEP = 4096
"""Tokens of a step besides one for each slot, as the package chooses them on a CUDA device."""
ALTERNATIVES = 5
SAMPLES = 8
WARM_UP_LENGTH = 3
PENALTIES = {"presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1}


@dataclass(frozen=True)
class Case:
    """One workload.

    Args:
        batch_size: slots of the engine.
        length: tokens of each completion; 0 for rows to score.
        requests: number of completions, each sample counted; or number of rows to score.
        feature: "" for none, "stop", "logprobs", "penalties", "n8", "score", "constrained" (every row has a JSON
            schema) or "few" (one row of sixteen has one).
    """

    batch_size: int
    length: int
    requests: int
    feature: str = ""

    @property
    def name(self) -> str:
        parts = [f"{self.batch_size}x{self.length}" if self.length else str(self.batch_size), self.feature]
        return "-".join(part for part in parts if part)

    @property
    def max_batch_tokens(self) -> int:
        return self.batch_size + PROMPT_TOKENS_OF_A_STEP

    @property
    def n(self) -> int:
        """Number of samples of a row."""
        return SAMPLES if self.feature == "n8" else 1

    @property
    def rows(self) -> int:
        return self.requests // self.n

    @property
    def penalties(self) -> dict[str, Any]:
        return PENALTIES if self.feature == "penalties" else {}

    @property
    def is_score(self) -> bool:
        return self.feature == "score"

    @property
    def share_constrained(self) -> float:
        """Share of the rows that have a JSON schema. The vocabulary of such a case is World's."""
        return {"constrained": 1.0, "few": 1 / 16}.get(self.feature, 0.0)

    @property
    def parts(self) -> tuple[str, ...]:
        """What can be measured. Jobs run with the vocabulary of the bundled model, where masks cost little."""
        return ("engine",) if self.share_constrained else ("engine", "job")

    def warm_up(self) -> Case:
        """Returns a short case that does what this one does first."""
        return Case(self.batch_size, WARM_UP_LENGTH, self.batch_size, self.feature if self.share_constrained else "")

    def quick(self) -> Case:
        """Returns the case with a few rows, for rehearsals. Its figures mean nothing."""
        return replace(self, batch_size=self.batch_size // 128, length=self.length // 16, requests=24)


def _table() -> dict[str, Case]:
    waves = {(256, 16): 16, (256, 64): 8, (256, 256): 4, (1024, 16): 8, (1024, 64): 4, (1024, 256): 2}
    found = [Case(size, length, size * count) for (size, length), count in waves.items()]
    for size in (256, 1024):
        found += [Case(size, 64, size * waves[size, 64], name) for name in ("stop", "logprobs", "penalties", "n8")]
        found.append(Case(size, 0, 2048, "score"))
        found += [Case(size, 64, size * waves[size, 64], name) for name in ("constrained", "few")]
    return {case.name: case for case in found}


CASES = _table()
DEFAULT = ("256x16", "1024x64", "1024x64-logprobs", "1024x64-penalties", "1024x64-n8", "1024-score")


def prompt(row: int) -> str:
    """Makes the prompt of a row of a job."""
    return f"Question {row}: why is the sky blue?"


class Question(NamedTuple):
    """A row of 5-shot multiple choice. The context is the examples of its subject and the question."""

    context: str
    choices: list[str]
    answer: int


QUESTIONS_OF_A_SUBJECT = 128
_SHOTS, _CHOICES = 5, 4
_CONSONANTS, _VOWELS = "bcdfghklmnprstvw", "aeiou"


def questions(count: int) -> Iterator[Question]:
    """Yields questions of random English-looking text, the same at every call. Examples take 600 to 1,000 bytes."""
    draw = random.Random(0)

    def words(least: int, most: int) -> str:
        lengths = [draw.randint(1, 3) for _ in range(draw.randint(least, most))]
        return " ".join("".join(draw.choice(_CONSONANTS) + draw.choice(_VOWELS) for _ in range(n)) for n in lengths)

    def ask() -> tuple[str, list[str], int]:
        choices = [" " + words(1, 3) for _ in range(_CHOICES)]
        return f"Question: {words(16, 26)}?\nAnswer:", choices, draw.randrange(_CHOICES)

    header = ""
    for number in range(count):
        if number % QUESTIONS_OF_A_SUBJECT == 0:
            shots = [ask() for _ in range(_SHOTS)]
            header = f"The following are questions about {words(2, 3)}.\n\n"
            header += "".join(f"{text}{choices[answer]}\n\n" for text, choices, answer in shots)
        text, choices, answer = ask()
        yield Question(header + text, choices, answer)
