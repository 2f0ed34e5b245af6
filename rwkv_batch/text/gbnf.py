"""Grammars in GBNF, rewritten in llguidance's notation (Lark)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .regex_syntax import literal, rust_regex

_TOKEN = re.compile(
    r"""(?P<skip>(?:\s|\#[^\n]*)+)
    |(?P<rule>[A-Za-z_][\w.-]*(?=(?:\s|\#[^\n]*\n)*::=))
    |(?P<name>[A-Za-z_][\w.-]*)
    |(?P<define>::=)
    |(?P<text>"(?:[^"\\\n]|\\.)*")
    |(?P<chars>\[(?:[^\]\\]|\\.)*\])
    |(?P<count>[*+?]|\{\s*\d*\s*(?:,\s*\d*\s*)?\})
    |(?P<sign>[()|.])""",
    re.VERBOSE | re.DOTALL,
)
_TEXT_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_LETTERS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "0": "\0"}
_ANY = r"(?s:.)"


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    line: int


def lark_of_gbnf(text: str) -> str:
    """The rules of a GBNF grammar in Lark's notation; its rule `root` is named `start`.

    A grammar without recursion becomes one terminal, a regular expression. In another one each character is a terminal
    of its own: llguidance takes the longest text for a terminal, and a grammar may mean a shorter one.

    Raises:
        ValueError: malformed, with the line; a rule that is not defined.
    """
    rules = dict(_rules(list(_tokens(text))))
    used = {name: [token.text for token in body if token.kind == "name"] for name, body in rules.items()}
    for name, names in used.items():
        for other in names:
            if other not in rules:
                raise ValueError(f"the rule {other!r}, which {name!r} uses, is not defined")
    if "root" not in rules:
        raise ValueError("there is no rule 'root', from which the text derives")
    is_regular = not _is_recursive(used)
    letter = "R" if is_regular else "r"
    new_names = {name: f"{letter}{i}" for i, name in enumerate(rules)}
    lines = [f"{new_names[name]}: {_body(body, new_names, is_regular)}" for name, body in rules.items()]
    return "\n".join([f"start: {new_names['root']}", *lines])


def _tokens(text: str) -> Iterator[_Token]:
    """The tokens of a grammar. Raises ValueError where there is none."""
    at, line = 0, 1
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"line {line}: cannot read {text[at : at + 20]!r}")
        if match.lastgroup != "skip":
            yield _Token(str(match.lastgroup), match[0], line)
        at, line = match.end(), line + match[0].count("\n")


def _rules(tokens: list[_Token]) -> Iterator[tuple[str, list[_Token]]]:
    """(name, body) of each rule. Raises ValueError where the grammar is malformed."""
    starts = [i for i, token in enumerate(tokens) if token.kind == "rule"]
    if not starts or starts[0] != 0:
        line = tokens[0].line if tokens else 1
        raise ValueError(f'line {line}: expected a rule, as in: root ::= "a"')
    known: set[str] = set()
    for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
        name, body = tokens[start], tokens[start + 2 : end]
        if name.text in known:
            raise ValueError(f"line {name.line}: the rule {name.text!r} is defined twice")
        known.add(name.text)
        depth, before = 0, "("
        for token in body:
            depth += {"(": 1, ")": -1}.get(token.text, 0)
            if depth < 0:
                raise ValueError(f"line {token.line}: ')' has no '('")
            if token.kind == "count" and before in ("(", "|"):
                raise ValueError(f"line {token.line}: {token.text!r} repeats nothing")
            if token.kind == "define":
                raise ValueError(f"line {token.line}: '::=' has no name of a rule before it")
            before = token.text if token.kind == "sign" else token.kind
        if depth:
            raise ValueError(f"line {name.line}: a '(' of the rule {name.text!r} is not closed")
        yield name.text, body


def _is_recursive(used: dict[str, list[str]]) -> bool:
    """Whether a rule uses itself, also through others."""
    left = {name: set(names) for name, names in used.items()}
    while leaves := [name for name, names in left.items() if not names]:
        for name in leaves:
            del left[name]
        for names in left.values():
            names.difference_update(leaves)
    return bool(left)


def _body(body: list[_Token], names: dict[str, str], is_regular: bool) -> str:
    """The right side of a rule."""
    parts = []
    for token in body:
        if token.kind == "name":
            parts.append(names[token.text])
        elif token.kind == "text":
            parts.append(_text(_TEXT_ESCAPE.sub(_unescaped, token.text[1:-1]), is_regular))
        elif token.kind == "chars":
            parts.append(f"/{rust_regex(token.text)}/")
        elif token.text == ".":
            parts.append(f"/{_ANY}/")
        elif token.kind == "count":
            parts.append(_count(token))
        else:
            parts.append(token.text)
    return _with_empty(parts)


def _with_empty(parts: list[str]) -> str:
    """Parts in one line, with "" for an alternative without parts."""
    out = []
    for before, part in zip(["(", *parts], [*parts, ")"], strict=True):
        if before in ("(", "|") and part in (")", "|"):
            out.append('""')
        out.append(part)
    return " ".join(out[:-1])


def _text(text: str, is_regular: bool) -> str:
    if not text:
        return '""'
    return f"/{literal(text)}/" if is_regular else "(" + " ".join(f"/{literal(char)}/" for char in text) + ")"


def _count(token: _Token) -> str:
    """A repetition, as Lark writes it."""
    if not token.text.startswith("{"):
        return token.text
    least, comma, most = (part.strip() for part in token.text[1:-1].partition(","))
    if not least and not most:
        raise ValueError(f"line {token.line}: {token.text!r} has no number")
    return f"{{{least or 0},{most}}}" if comma else f"{{{least}}}"


def _unescaped(match: re.Match[str]) -> str:
    code = next((group for group in match.groups()[:3] if group), None)
    if code is None:
        return _LETTERS.get(match[4], match[4])
    if int(code, 16) > 0x10FFFF:
        raise ValueError(f"{match[0]!r} is no character")
    return chr(int(code, 16))
