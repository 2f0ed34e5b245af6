"""Metrics of a finished job of a suite: of completions, by the answers in them, and of scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ..commands.finished import Finished, open_finished
from ..commands.plain_values import to_json
from ..errors import ConfigurationError, did_you_mean
from ..job.messages import listed, shown
from .extract import ExtractError, extract, without_thought
from .grade_section import GradeSection
from .intervals import mean_metric, share_metric
from .normalize import normalized
from .result import Metric, Samples
from .votes import majority, pass_at

Graded = tuple[tuple[Metric, ...], Samples]
"""Metrics, and the values of each row."""


def grade(output_folder: str, section: GradeSection) -> Graded:
    """The metrics of a finished generate job, and their values for each question.

    Args:
        output_folder: of the job; or its state folder.

    Raises:
        ConfigurationError: there is no such job, it is not finished, or the section asks for what it has not.
    """
    finished = open_finished(output_folder)
    if finished.task != "generate":
        raise ConfigurationError(f"{output_folder}: got a job with task {finished.task}, expected generate")
    questions = [*_Grader(finished, section).questions()]
    most = max((len(one.right) for one in questions), default=0) or 1
    if too_many := [k for k in section.k or () if k > most]:
        raise ConfigurationError(f"grade.k: got {max(too_many)}, expected at most {most}, the samples of a question")
    if questions and not any(one.accepted or one.is_error for one in questions):
        raise ConfigurationError(f"grade.answer: the column {section.answer!r} holds null in every row")
    ks = section.k if section.k is not None else [most] if most > 1 else []
    values = {name: np.array([*map(value, questions)], np.float64) for name, value in _values(most, ks).items()}
    samples = sum(len(one.right) for one in questions)
    return tuple(_metric(name, found, samples) for name, found in values.items()), Samples(
        [one.identity for one in questions], values
    )


@dataclass
class _Question:
    """A row with its samples: lists of one value for each of them.

    Args:
        accepted: the right answers; empty where the row has none.
        right: whether the sample's answer is right.
        answers: None where there is none.
        truncated: whether it was cut at max_tokens.
        tokens: of the completion.
        is_error: the row could not be served.
    """

    identity: str
    accepted: frozenset[str]
    right: list[bool] = field(default_factory=list)
    answers: list[str | None] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    is_error: bool = False

    def share(self, values: Sequence[float | bool]) -> float:
        """The mean over samples; NaN for an error row."""
        return sum(values) / len(values) if values else math.nan

    def right_share(self) -> float:
        return self.share(self.right) if self.accepted else math.nan

    def passes(self, k: int) -> float:
        return pass_at(k, len(self.right), sum(self.right)) if self.has(k) else math.nan

    def majority_is_right(self, k: int) -> float:
        return float(majority(self.answers[:k]) in self.accepted) if self.has(k) else math.nan

    def has(self, k: int) -> bool:
        """Whether it has a right answer and this many samples."""
        return bool(self.accepted) and len(self.right) >= k


def _values(samples: int, ks: Sequence[int]) -> dict[str, Callable[[_Question], float]]:
    """Metric → its value for a question, in the order in which metrics are shown.

    Args:
        samples: the most of a question.
        ks: numbers of samples for pass@k and maj@k.
    """
    found: dict[str, Callable[[_Question], float]] = {
        "accuracy" if samples == 1 else f"avg@{samples}": _Question.right_share
    }
    for k in dict.fromkeys(ks):
        found[f"maj@{k}"] = lambda one, k=k: one.majority_is_right(k)  # type: ignore[misc]
        found[f"pass@{k}"] = lambda one, k=k: one.passes(k)  # type: ignore[misc]
    return found | {
        "no_answer": lambda one: one.share([answer is None for answer in one.answers]),
        "truncated": lambda one: one.share(one.truncated),
        "completion_tokens": lambda one: one.share(one.tokens),
        "errors": lambda one: float(one.is_error),
    }


def _metric(name: str, values: np.ndarray, samples: int) -> Metric:
    if name == "completion_tokens":
        return mean_metric(name, values, higher_is_better=False)
    is_of_samples = name in ("accuracy", "no_answer", "truncated") or name.startswith("avg@")
    trials = samples if is_of_samples else len(values)
    return share_metric(name, values, trials, higher_is_better=name not in ("no_answer", "truncated", "errors"))


class _Grader:
    """Reads and grades the completions of a job."""

    def __init__(self, finished: Finished, section: GradeSection) -> None:
        self._finished, self._section = finished, section
        names = finished.schema.names
        if section.answer not in names:
            raise ConfigurationError(
                f"grade.answer: the output {finished.folders.output} has no column {section.answer!r}"
                f"{did_you_mean(section.answer, names)}; it must be a column of the input, and among "
                f"output.input_columns (the output has {listed(names)})"
            )
        self._has_begun = finished.job["settings"].get("chat.think") == "open"

    def questions(self) -> Iterator[_Question]:
        """Yields the questions in the order of the input's rows."""
        section, finished = self._section, self._finished
        own = ("sample_index", "completion", "finish_reason", "completion_tokens", "status")
        names = {name: found for name in own if (found := finished.column(name)) is not None}
        columns = [*dict.fromkeys([*names.values(), section.answer, *filter(None, [finished.id_column()])])]
        question: _Question | None = None
        number = 0
        for batch in finished.batches(columns):
            records = {name: batch[column].to_pylist() for name, column in names.items()}
            answers, ids = batch[section.answer].to_pylist(), row_ids(finished, batch)
            for place, sample in enumerate(records["sample_index"]):
                if sample == 0:
                    if question is not None:
                        yield question
                    identity = str(number) if ids[place] is None else ids[place]
                    question = _Question(str(identity), self._accepted(answers[place], number))
                    number += 1
                assert question is not None
                self._add(question, {name: found[place] for name, found in records.items()})
        if question is not None:
            yield question

    def _add(self, question: _Question, record: dict[str, Any]) -> None:
        """Adds a sample to its question."""
        if record["status"] != "ok":
            question.is_error = True
            return
        answer = self._answer_of(record["completion"] or "", question.identity)
        question.answers.append(answer)
        question.right.append(answer in question.accepted)
        question.truncated.append(record["finish_reason"] == "length")
        question.tokens.append(float(record["completion_tokens"]))

    def _answer_of(self, completion: str, identity: str) -> str | None:
        """The answer in a completion, normalized; None where there is none."""
        section = self._section
        text = completion
        if section.after_thought:
            text = without_thought(completion, has_begun=self._has_begun)
        try:
            found = extract(text, section.extract, take=section.take)
        except ExtractError as error:
            raise ConfigurationError(f"grade.extract: row {shown(identity)}: {error}") from error
        return None if found is None else normalized(found, section.normalize) or None

    def _accepted(self, given: Any, row: int) -> frozenset[str]:
        """The right answers of a row, normalized."""
        found = [self._right(one, row) for one in (given if isinstance(given, list) else [given]) if one is not None]
        return frozenset(answer for answer in found if answer)

    def _right(self, given: Any, row: int) -> str:
        section = self._section
        if isinstance(given, dict | list | bytes):
            raise ConfigurationError(
                f"grade.answer: the column {section.answer!r} holds {shown(given)} in row {row}, expected text, a "
                "number, or a list of these"
            )
        if isinstance(given, int) and not isinstance(given, bool) and "letter" in section.normalize and 0 <= given < 26:
            return normalized(chr(ord("A") + given), section.normalize)
        text = str(given).lower() if isinstance(given, bool) else str(given)
        try:
            found = extract(text, section.answer_extract, take=section.take)
        except ExtractError as error:
            raise ConfigurationError(f"grade.answer_extract: row {row}: {error}") from error
        return normalized(text if found is None else found, section.normalize)


def row_ids(finished: Finished, batch: pa.RecordBatch) -> list[str | None]:
    """The ids of a batch's records as texts; None for each without one."""
    name = finished.id_column()
    if name is None:
        return [None] * batch.num_rows
    values = batch[name].to_pylist()
    return [value if value is None or isinstance(value, str) else to_json(value).strip('"') for value in values]
