"""Answers of a score job: which of a row's choices the column with the role `answer` names."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from ...errors import ConfigurationError, RowError
from ..messages import shown

AnswerKind = Literal["text", "letter", "index"]
KINDS: tuple[AnswerKind, ...] = ("text", "letter", "index")
"""In the order of precedence, where several kinds fit and never differ."""
LETTERS = string.ascii_uppercase

_NOUNS = {
    "text": "the text of a choice",
    "letter": "the letter of a choice",
    "index": "the index of a choice, from 0",
}


class Answered(NamedTuple):
    """A row whose answer is text, with its choices as texts, or as anything where they are token ids."""

    row: int
    answer: str
    choices: Sequence[Any]


def choice_of(answer: Any, kind: AnswerKind, choices: Sequence[Any]) -> int | None:
    """The index of the choice that an answer names; None where it names none.

    A text is that of the first choice which equals it, with or without white space at the ends. A letter may be lower
    case. An index is a number, or its decimal digits.
    """
    if isinstance(answer, str):
        plain = answer.strip()
        if kind == "text":
            texts = [choice if isinstance(choice, str) else None for choice in choices]
            stripped = [None if text is None else text.strip() for text in texts]
            return texts.index(answer) if answer in texts else stripped.index(plain) if plain in stripped else None
        if kind == "letter":
            number = LETTERS.find(plain.upper()) if len(plain) == 1 else -1
        else:
            number = int(plain) if re.fullmatch("[0-9]{1,9}", plain) else -1
    else:
        is_whole = type(answer) is int or (isinstance(answer, float) and answer.is_integer())
        number = int(answer) if kind == "index" and is_whole else -1
    return number if 0 <= number < len(choices) else None


def right_choice(column: str, answer: Any, kind: AnswerKind, choices: Sequence[Any]) -> int:
    """The index of the choice that an answer names.

    Raises:
        RowError: code "bad_type": it names none.
    """
    found = choice_of(answer, kind, choices)
    if found is None:
        what = f"expected {_NOUNS[kind]}; the row has {len(choices)}"
        raise RowError("bad_type", f"the column {column!r} holds {shown(answer)}, {what}")
    return found


def kind_of_answers(column: str, known: Sequence[Answered]) -> AnswerKind:
    """Finds what a column of texts holds: the kind that the answers of the most rows are of.

    Args:
        known: the first rows of the input, those whose answer and choices are not null; at least one.

    Raises:
        ConfigurationError: no answer is of any kind, or several kinds fit equally well and differ in a row.
    """
    found = {kind: [choice_of(row.answer, kind, row.choices) for row in known] for kind in KINDS}
    counts = {kind: sum(choice is not None for choice in choices) for kind, choices in found.items()}
    best = [kind for kind in KINDS if counts[kind] == max(counts.values())]
    where = f"input.columns.answer: the column {column!r}"
    if not max(counts.values()):
        first = known[0]
        raise ConfigurationError(
            f"{where} holds {shown(first.answer)} in row {first.row}, which has {len(first.choices)} choices; expected "
            "the index, the letter or the text of a choice (or set the column to null in input.columns)"
        )
    for index, row in enumerate(known):
        meanings = {kind: found[kind][index] for kind in best if found[kind][index] is not None}
        if len({*meanings.values()}) > 1:
            words = " and ".join(f"choice {choice} as {kind}" for kind, choice in meanings.items())
            raise ConfigurationError(
                f"score.answer: got auto, expected {' or '.join(meanings)}: in row {row.row} the answer "
                f"{shown(row.answer)} of the column {column!r} is {words}"
            )
    return best[0]
