"""The section `grade` of a suite's job: which answers of completions are right, and what is counted."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Annotated, Literal

from pydantic import Field

from ..errors import ConfigurationError, did_you_mean
from ..job.config import JobConfig
from ..job.section import Count, Section, setting
from .extract import BOXED, check_pattern
from .normalize import NORMALIZATIONS, Normalization

Pattern = Annotated[str, Field(min_length=1)]
_PATTERNS = f"a list of regular expressions, or {BOXED}"


class GradeSection(Section):
    """How the completions of a job are graded."""

    answer: Annotated[str, Field(min_length=1)] = setting(
        ...,
        "The column of the input with the right answer: text, a number, or a list of answers that are all right. A row "
        "without an answer is not graded.",
        "the name of a column",
    )
    answer_extract: list[Pattern] = setting(
        [],
        "As `extract`, for the column with the right answer, such as `['#### (.*)']` for GSM8K. An answer that no "
        "expression matches is taken as it is.",
        _PATTERNS,
    )
    extract: list[Pattern] = setting(
        [],
        "Regular expressions in the order in which they are tried; the first that matches finds the answer of a "
        "completion: its first group that took part in the match, else the whole match. `boxed` is the content of the "
        "last `\\boxed{…}`. Without any, the answer is the whole completion.",
        _PATTERNS,
    )
    take: Literal["first", "last"] = setting("first", "Which match of a regular expression is taken, of several.")
    after_thought: bool = setting(
        True,
        "Look for the answer only after the last `</think>`. A completion whose thought has not ended has no answer.",
    )
    normalize: list[Normalization] = setting(
        [],
        "What is done, in this order, to the answer of a completion and to the right one before they are compared. "
        "White space at the ends is always removed.",
        f"a list of {', '.join(NORMALIZATIONS)}",
    )
    k: list[Count] | None = setting(
        None,
        "The numbers of samples for which `pass@k` and `maj@k` are computed. null: the samples of a question.",
        "a list of integers from 1, or null",
    )


def problems_of(
    section: GradeSection, job: JobConfig, columns: Collection[str] | None = None
) -> Iterator[tuple[str, str]]:
    """Yields (setting, what is wrong) for what a section asks for and its job does not give, before the job runs.

    Args:
        columns: the columns of the input that output rows repeat; None where they are not known yet.
    """
    if job.task != "generate":
        yield "grade", "got settings, expected none: the task is score, which has metrics of its own"
        return
    for name in ("answer_extract", "extract"):
        for index, pattern in enumerate(getattr(section, name)):
            try:
                check_pattern(pattern)
            except ConfigurationError as error:
                yield f"grade.{name}[{index}]", str(error)
    given = job.output.input_columns
    known = columns if columns is not None else [] if given == "none" else None if given == "all" else given
    if known is not None and section.answer not in known:
        guess = did_you_mean(section.answer, known)
        yield (
            "grade.answer",
            f"got {section.answer!r}, expected a column of the input that output.input_columns has{guess}",
        )
    for k in section.k or ():
        if k > job.sampling.n:
            yield "grade.k", f"got {k}, expected at most sampling.n, which is {job.sampling.n}"
