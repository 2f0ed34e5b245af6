"""Regular expressions of Python and of JSON schemas (ECMAScript), rewritten in the syntax of Rust's crate `regex`.

The three agree on most patterns. Where they do not, the rewritten pattern matches what the original does, or less; what
cannot be rewritten so is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_NARROW = {"d": "0-9", "w": "0-9A-Za-z_", "s": r" \t\n\r\f\v"}
_WIDE = {"d": r"\p{Nd}", "w": r"0-9A-Za-z_\u{80}-\u{10ffff}", "s": r"\s\u{feff}"}
"""What any dialect may count as a digit, a character of a word, a space."""
_CONTROLS = {"n": 0x0A, "r": 0x0D, "t": 0x09, "f": 0x0C, "v": 0x0B, "0": 0}
_COUNT = re.compile(r"\{\d+(,\d*)?\}")
_HEX = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|u\{([0-9a-fA-F]{1,6})\}|U([0-9a-fA-F]{8})")
_LOW_SURROGATE = re.compile(r"\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_GROUP = re.compile(r"\(\?(?:P?<[A-Za-z_]\w*>|:|(?P<flags>[a-zA-Z]+)[:)])")


def rust_regex(pattern: str, *, is_schema: bool = False) -> str:
    """A pattern in Rust's syntax, without `/` and line breaks, so that it can stand between slashes.

    Args:
        pattern: in Python's syntax; `\\d`, `\\w` and `\\s` are ASCII.
        is_schema: the pattern of a JSON schema instead, matched as both Python and ECMAScript do. Nothing matches
            U+0000: for a class with all control characters llguidance 1.9.1 would also write the quotation mark and
            the backslash.

    Raises:
        ValueError: what cannot be enforced, or a malformed escape. Rust's parser finds other errors.
    """
    return "".join(_Rewriting(pattern, is_schema).parts())


def literal(text: str) -> str:
    """A pattern in Rust's syntax that matches exactly `text`."""
    return "".join(_char(ord(char)) for char in text)


def _char(code: int) -> str:
    """One character, outside or inside of `[...]`."""
    if 0xD800 <= code <= 0xDFFF:
        raise ValueError("a pattern has surrogates; write the character itself")
    char = chr(code) if code <= 0x10FFFF else "\0"
    return char if char.isascii() and char.isalnum() else f"\\u{{{code:x}}}"


class _Rewriting:
    def __init__(self, pattern: str, is_schema: bool) -> None:
        self._pattern = pattern
        self._is_schema = is_schema
        self._at = 0

    def parts(self) -> Iterator[str]:
        """The pieces of the pattern outside of `[...]`, rewritten."""
        pattern = self._pattern
        while self._at < len(pattern):
            char = pattern[self._at]
            if char == "\\":
                yield self._escape()
            elif char == "[":
                yield self._class()
            elif char == "(":
                yield self._group()
            elif char == "{":
                yield self._count()
            else:
                self._at += 1
                if char == "." and self._is_schema:
                    yield r"[^\x00\n\r\u{2028}\u{2029}]"
                else:
                    yield char if char in ").|*+?^$" else _char(ord(char))

    def _group(self) -> str:
        """The beginning of a group."""
        if not self._pattern.startswith("(?", self._at):
            self._at += 1
            return "("
        match = _GROUP.match(self._pattern, self._at)
        if match is None:
            raise ValueError(
                f"{self._pattern[self._at : self._at + 4]!r} cannot be enforced: a lookaround, or an unknown group"
            )
        flags = match["flags"]
        if flags and set(flags) - set("i" if self._is_schema else "is"):
            raise ValueError(f"the flags {flags!r} of a pattern cannot be enforced")
        self._at = match.end()
        return match[0] if flags else "(?:"

    def _count(self) -> str:
        """A repetition {m,n}, or a brace that is a character."""
        match = _COUNT.match(self._pattern, self._at)
        if match is None:
            if self._pattern.startswith("{,", self._at):
                raise ValueError("'{,' has no meaning that all engines share; write '{0,'")
            self._at += 1
            return _char(ord("{"))
        self._at = match.end()
        return match[0]

    def _escape(self) -> str:
        """A backslash outside of `[...]`, with what it escapes."""
        letter = self._pattern[self._at + 1 : self._at + 2]
        if letter in ("p", "P"):
            return self._property()
        if letter and letter in "dDwWsS":
            self._at += 2
            return f"[{self._class_escape(letter, False)}]"
        return _char(self._code())

    def _property(self) -> str:
        match = re.compile(r"\\[pP](\{\^?[\w=-]+\}|[A-Z])").match(self._pattern, self._at)
        if match is None:
            raise ValueError("\\p is without the name of a property")
        self._at = match.end()
        return rf"[{match[0]}&&[^\x00]]" if self._is_schema else match[0]

    def _class_escape(self, letter: str, is_negated: bool) -> str:
        """The characters of \\d, \\w and \\s, as they stand in a class: what all dialects match."""
        is_wide = self._is_schema and letter.isupper() != is_negated
        inside = (_WIDE if is_wide else _NARROW)[letter.lower()]
        nul = r"\x00" if self._is_schema else ""
        return f"[^{nul}{inside}]" if letter.isupper() else inside

    def _code(self) -> int:
        """The character that an escape stands for."""
        pattern, start = self._pattern, self._at
        if match := _HEX.match(pattern, start + 1):
            self._at = match.end()
            code = int(next(group for group in match.groups() if group), 16)
            low = _LOW_SURROGATE.match(pattern, self._at)
            if 0xD800 <= code < 0xDC00 and low:
                self._at = low.end()
                code = 0x10000 + (code - 0xD800 << 10) + int(low[1], 16) - 0xDC00
            if code > 0x10FFFF:
                raise ValueError(f"{match[0]!r} is no character")
            return code
        char = pattern[start + 1 : start + 2]
        if not char:
            raise ValueError("the pattern ends with a backslash")
        self._at += 2
        if char in _CONTROLS and not (char == "0" and pattern[self._at : self._at + 1].isdigit()):
            return _CONTROLS[char]
        if char.isascii() and char.isalnum():
            raise ValueError(f"'\\{char}' in a pattern cannot be enforced")
        return ord(char)

    def _class(self) -> str:
        """A class `[...]`."""
        pattern = self._pattern
        self._at += 1
        is_negated = pattern.startswith("^", self._at)
        self._at += is_negated
        items: list[str | int] = []  # characters, and parts of several characters
        start = self._at
        while not (pattern.startswith("]", self._at) and (self._is_schema or self._at > start)):
            if self._at >= len(pattern):
                raise ValueError("a class [...] is not closed")
            letter = pattern[self._at + 1 : self._at + 2] if pattern[self._at] == "\\" else ""
            if letter and letter in "dDwWsS":
                self._at += 2
                items.append(self._class_escape(letter, is_negated))
            elif letter in ("p", "P"):
                items.append(self._property())
            elif letter == "b":
                self._at += 2
                items.append(0x08)
            elif letter:
                items.append(self._code())
            elif pattern[self._at] == "-" and items and isinstance(items[-1], int) and self._is_range():
                self._at += 1
                items.append(self._range(items.pop()))
            else:
                items.append(ord(pattern[self._at]))
                self._at += 1
        self._at += 1
        if not items:
            raise ValueError("an empty class [] cannot be enforced")
        inside = "".join(item if isinstance(item, str) else _char(item) for item in items)
        if not self._is_schema:
            return f"[{'^' * is_negated}{inside}]"
        return rf"[^\x00{inside}]" if is_negated else rf"[[{inside}]&&[^\x00]]"

    def _is_range(self) -> bool:
        """Whether the hyphen here stands between two characters."""
        after = self._pattern[self._at + 1 : self._at + 3]
        return bool(after) and after[0] != "]" and not (after[0] == "\\" and after[1:] in tuple("dDwWsSpP"))

    def _range(self, first: str | int) -> str:
        assert isinstance(first, int)
        if self._pattern[self._at] == "\\":
            if self._pattern.startswith("\\b", self._at):
                self._at += 2
                last = 0x08
            else:
                last = self._code()
        else:
            last = ord(self._pattern[self._at])
            self._at += 1
        if last < first:
            raise ValueError("a range in a class [...] ends before it begins")
        return f"{_char(first)}-{_char(last)}"
