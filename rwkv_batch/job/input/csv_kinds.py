"""Kinds of text in the columns of CSV files, and the Arrow type of each."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from .json_kinds import BOOLEAN, INTEGER, NUMBER, Expected

_ANY_INTEGER = "^-?[0-9]{16,}$"


@dataclass(frozen=True)
class TextKind:
    """A set of texts that an Arrow column holds as values of its own type.

    Args:
        arrow: the type.
        words: the values in an error message.
        pattern: the regular expression of such texts.
    """

    arrow: pa.DataType
    words: str
    pattern: str

    def convert(self, texts: pa.Array) -> pa.Array:
        """Returns the values of texts. Raises pa.ArrowInvalid where one is of another kind."""
        is_right = pc.match_substring_regex(texts, self.pattern)
        if pa.types.is_floating(self.arrow):  # long integers would be rounded
            is_right = pc.and_not(is_right, pc.match_substring_regex(texts, _ANY_INTEGER))
        if not pc.all(is_right, min_count=0).as_py():
            raise pa.ArrowInvalid(f"expected {self.words}")
        return texts.cast(pa.string()).cast(self.arrow)

    def has(self, texts: pa.Array) -> bool:
        """Whether all texts are of this kind."""
        try:
            self.convert(texts)
        except pa.ArrowInvalid:
            return False
        return True


INT64 = TextKind(pa.int64(), "an integer", "^(0|-?[1-9][0-9]{0,18})$")
UINT64 = TextKind(pa.uint64(), "an integer", "^(0|[1-9][0-9]{0,19})$")
FLOAT64 = TextKind(pa.float64(), "a number", r"^-?((0|[1-9][0-9]*)(\.[0-9]+)?|\.[0-9]+)([eE][+-]?[0-9]+)?$")
BOOL = TextKind(pa.bool_(), "true or false", "^(true|false|True|False|TRUE|FALSE)$")
STRING = TextKind(pa.string(), "text in UTF-8", "(?s)")

KINDS = (INT64, UINT64, FLOAT64, BOOL, STRING)
"""All kinds; the first one that has all texts of a column is the column's."""


def kinds_for(expected: Expected | None) -> tuple[TextKind, ...]:
    """Returns the kinds that a column may have, the last one if it has none of them.

    Args:
        expected: the kind that the column's role asks for.
    """
    if expected is None:
        return KINDS
    if expected in (INTEGER, NUMBER):
        return (INT64, UINT64, FLOAT64, INT64 if expected is INTEGER else FLOAT64)
    return (BOOL,) if expected is BOOLEAN else (STRING,)
