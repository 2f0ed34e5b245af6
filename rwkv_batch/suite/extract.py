"""Answers in completions: found by regular expressions, after the model's thought."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

import regex

from ..errors import ConfigurationError, RwkvBatchError

BOXED = "boxed"
"""The name of an extraction that is no regular expression: the content of the last \\boxed{…}."""
SEARCH_SECONDS = 10.0
"""The longest search in one text. An ordinary one takes microseconds; a catastrophic expression takes years."""
_THOUGHT_BEGINS, _THOUGHT_ENDS = "<think", "</think>"


def check_pattern(pattern: str) -> None:
    """Raises ConfigurationError where this is neither a regular expression nor `BOXED`."""
    if pattern != BOXED:
        compiled(pattern)


@lru_cache(maxsize=256)
def compiled(pattern: str) -> Any:
    """A regular expression, compiled.

    Raises:
        ConfigurationError: it is none; the message has the position.
    """
    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        place = getattr(error, "pos", None)
        rest = "" if place is None else pattern[place : place + 20]
        where = "" if place is None else f" at character {place + 1}, {rest!r}" if rest else " at its end"
        what = getattr(error, "msg", None) or str(error)
        raise ConfigurationError(f"got {pattern!r}, expected a regular expression: {what}{where}") from error


class ExtractError(RwkvBatchError):
    """A search took too long."""


def without_thought(text: str, *, has_begun: bool) -> str:
    """A completion after its thought; "" where the thought has not ended.

    Args:
        has_begun: the prompt has begun the thought.
    """
    _, end, answer = text.rpartition(_THOUGHT_ENDS)
    if end:
        return answer
    return "" if has_begun or text.lstrip().startswith(_THOUGHT_BEGINS) else text


def extract(text: str, patterns: Sequence[str], *, take: str = "first") -> str | None:
    """The answer in a text, without white space at its ends; None where there is none.

    Args:
        patterns: the first that matches finds the answer; without any, the answer is the whole text.
        take: "first" or "last", of several matches.
    """
    if not patterns:
        return text.strip() or None
    for pattern in patterns:
        found = last_boxed(text) if pattern == BOXED else _search(pattern, text, take)
        if found is not None:
            return found.strip() or None
    return None


def _search(pattern: str, text: str, take: str) -> str | None:
    """The match of an expression: its first group that took part, else the whole."""
    try:
        matches = compiled(pattern).finditer(text, timeout=SEARCH_SECONDS)
        found = deque(matches if take == "last" else islice(matches, 1), maxlen=1)
    except TimeoutError as error:
        raise ExtractError(
            f"the regular expression {pattern!r} took more than {SEARCH_SECONDS:g} seconds in a text of "
            f"{len(text):,} characters, expected one that does not try every way to divide a text: nested "
            "repetitions such as (a+)+ are slow"
        ) from error
    if not found:
        return None
    match = found[0]
    return next((group for group in match.groups() if group is not None), match[0])


def last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{…} or \fbox{…} in a text, with balanced braces; None where there is none."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    start += len("\\boxed" if text.startswith("\\boxed", start) else "\\fbox")
    inner = text[start:].lstrip()
    if not inner.startswith("{"):
        return inner.split("$")[0].split("\n")[0] or None if text[start : start + 1] == " " else None
    depth = 0
    for place, char in enumerate(inner):
        depth += {"{": 1, "}": -1}.get(char, 0) if inner[place - 1 : place] != "\\" else 0
        if depth == 0:
            return inner[1:place]
    return None
