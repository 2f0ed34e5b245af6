"""Words of error messages about settings and columns: values, lists of names, and guesses at what was meant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ..errors import did_you_mean as did_you_mean

MAX_SHOWN = 80
LISTED_NAMES = 30
"""So many names are listed."""
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that steer a terminal or the direction of writing, and halves of characters. Not newline and tab."""


def printable(text: str) -> str:
    """The text as a terminal may show it: control characters become escapes such as \\x1b."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def shortened(text: str) -> str:
    """The text, or its beginning where it is long."""
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def shown(value: Any) -> str:
    """A value as in Python, but null, true and false as in YAML; its beginning where it is long."""
    return shortened({"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value)))


def listed(names: Iterable[str]) -> str:
    """Returns the names with commas; of many the first ones, and how many more there are."""
    known = list(names)
    shown = ", ".join(known[:LISTED_NAMES])
    return shown if len(known) <= LISTED_NAMES else f"{shown} and {len(known) - LISTED_NAMES} more"


def unknown_key(name: str, known: Iterable[str], meant: str | None = None) -> str:
    """The complaint about a key that no setting has.

    Args:
        meant: the setting that was meant, where it is known.
    """
    names = list(known)
    guess = f" (did you mean {meant!r}?)" if meant else did_you_mean(name, names)
    return f"unknown key{guess or f' (known: {listed(names)})'}"
