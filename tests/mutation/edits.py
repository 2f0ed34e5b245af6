"""Small changes of a module's text, each at one place."""

from __future__ import annotations

import ast
import io
import itertools
import tokenize
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

COMPARISONS: dict[type[ast.cmpop], tuple[str, ...]] = {
    ast.Lt: ("<=", ">="),
    ast.LtE: ("<", ">"),
    ast.Gt: (">=", "<="),
    ast.GtE: (">", "<"),
    ast.Eq: ("!=",),
    ast.NotEq: ("==",),
    ast.Is: ("is not",),
    ast.IsNot: ("is",),
    ast.In: ("not in",),
    ast.NotIn: ("in",),
}
ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "+",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "*",
    ast.Pow: "*",
    ast.LShift: ">>",
    ast.RShift: "<<",
    ast.BitAnd: "|",
    ast.BitOr: "&",
    ast.BitXor: "&",
}
UNCHANGED = (ast.Assert, ast.JoinedStr)
"""Nodes that are not changed: assertions, and f-strings, whose parts have no place before Python 3.12."""
SYMMETRIC = ("max", "min")
"""Functions whose arguments may be swapped without effect."""


Node = ast.expr | ast.stmt | ast.keyword
"""Nodes that have a place in the source."""


class Edit(NamedTuple):
    """Replace `source[start:end]` by `text`."""

    kind: str
    scope: str
    """Class and function of the place, joined by a dot; empty at the top of a module."""
    start: int
    end: int
    text: str

    def apply(self, source: str) -> str:
        return source[: self.start] + self.text + source[self.end :]

    def line(self, source: str) -> int:
        return source.count("\n", 0, self.start) + 1

    def change(self, source: str) -> str:
        """Returns the lines of the place before and after the change as "before → after"."""
        first, last = source.rfind("\n", 0, self.start) + 1, source.find("\n", self.end)
        sides = source[first:last], source[first : self.start] + self.text + source[self.end : last]
        return " → ".join(" ".join(side.split()) for side in sides)


def edits(source: str) -> list[Edit]:
    """Lists all edits of a module in the order of their places. Some change nothing; see `is_change`."""
    found = dict.fromkeys(_Finder(source).visit(ast.parse(source), ""))
    return sorted(found, key=lambda edit: (edit.start, edit.end, edit.text))


def is_change(source: str, edit: Edit) -> bool:
    """True if the changed module is valid Python and differs from the original."""
    try:
        return _read(edit.apply(source)) != _read_once(source)
    except SyntaxError:
        return False


def _read(source: str) -> str:
    return ast.dump(ast.parse(source))


_read_once = lru_cache(maxsize=None)(_read)


class _Finder:
    def __init__(self, source: str) -> None:
        self._source = source
        self._lines = list(io.StringIO(source))
        self._starts = [0, *itertools.accumulate(map(len, self._lines))]
        kinds = (tokenize.OP, tokenize.NAME)
        self._tokens = [
            (self._starts[token.start[0] - 1] + token.start[1], self._starts[token.end[0] - 1] + token.end[1])
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type in kinds and token.string not in "()"
        ]

    def visit(self, node: ast.AST, scope: str) -> Iterator[Edit]:
        """Yields the edits of a node and of all nodes below it."""
        for kind, start, end, text in self._of_node(node, scope):
            yield Edit(kind, scope, start, end, text)
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            scope = f"{scope}.{node.name}".lstrip(".")
        for name, value in ast.iter_fields(node):
            is_text = name in ("annotation", "returns", "decorator_list") or isinstance(node, ast.Raise)
            if is_text or (isinstance(node, ast.keyword) and node.arg == "strict"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not isinstance(child, UNCHANGED):
                    yield from self.visit(child, scope)

    def _of_node(self, node: ast.AST, scope: str) -> Iterator[tuple[str, int, int, str]]:
        match node:
            case ast.Compare():
                for left, operator, right in zip(
                    [node.left, *node.comparators], node.ops, node.comparators, strict=False
                ):
                    for text in COMPARISONS[type(operator)]:
                        yield "comparison", *self._between(left, right), text
            case ast.BinOp(left, operator, right):
                is_alias = not scope and isinstance(operator, ast.BitOr)
                if type(operator) in ARITHMETIC and not is_alias:
                    yield "arithmetic", *self._between(left, right), ARITHMETIC[type(operator)]
            case ast.AugAssign(target, operator, value):
                if type(operator) in ARITHMETIC:
                    yield "arithmetic", *self._between(target, value), ARITHMETIC[type(operator)] + "="
                yield "statement", *self._place(node), "pass"
            case ast.BoolOp(operator, values):
                words = ("and", "or") if isinstance(operator, ast.And) else ("or", "and")
                for left, right in itertools.pairwise(values):
                    yield "boolean", *self._between(left, right), words[1]
                for i in range(len(values)):
                    kept = [f"({self._text(value)})" for j, value in enumerate(values) if j != i]
                    yield "operand", *self._place(node), f"({f' {words[0]} '.join(kept)})"
            case ast.UnaryOp(ast.Not(), operand):
                yield "not", *self._place(node), f"({self._text(operand)})"
            case ast.Constant(bool(value)):
                yield "constant", *self._place(node), str(not value)
            case ast.Constant(int(value) | float(value)):
                for other in (value + 1, value - 1):
                    yield "constant", *self._place(node), str(other) if other >= 0 else f"({other})"
            case ast.Call(function, arguments, keywords):
                for one, two in () if self._text(function) in SYMMETRIC else itertools.pairwise(arguments):
                    yield "swap", self._place(one)[0], self._place(two)[1], f"{self._text(two)}, {self._text(one)}"
                for keyword in keywords:
                    if keyword.arg not in (None, "strict"):  # an assertion of equal lengths
                        yield "keyword", *self._with_comma(keyword), ""
            case ast.Expr(ast.Call() | ast.Yield() | ast.YieldFrom()) | ast.Raise() | ast.Delete():
                yield "statement", *self._place(node), "pass"
            case ast.Assign(targets):
                assigned = (each for target in targets for each in getattr(target, "elts", [target]))
                if any(isinstance(target, (ast.Attribute, ast.Subscript)) for target in assigned):
                    yield "statement", *self._place(node), "pass"
            case ast.Break():
                yield "jump", *self._place(node), "continue"
            case ast.Continue():
                yield "jump", *self._place(node), "break"
        tests = getattr(node, "ifs", []) if isinstance(node, ast.comprehension) else [getattr(node, "test", None)]
        for test in tests:
            if isinstance(test, ast.expr) and not isinstance(test, (ast.Compare, ast.BoolOp, ast.UnaryOp)):
                yield "not", *self._place(test), f"(not ({self._text(test)}))"

    def _place(self, node: Node) -> tuple[int, int]:
        """Returns where a node begins and ends in the source."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        ends = []
        for number, column in ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)):
            line = self._lines[number - 1].encode()
            ends.append(self._starts[number - 1] + len(line[:column].decode()))
        return ends[0], ends[1]

    def _text(self, node: Node) -> str:
        start, end = self._place(node)
        return self._source[start:end]

    def _between(self, left: Node, right: Node) -> tuple[int, int]:
        """Returns where the operator between two operands begins and ends."""
        low, high = self._place(left)[1], self._place(right)[0]
        inside = [token for token in self._tokens if low <= token[0] and token[1] <= high]
        return inside[0][0], inside[-1][1]

    def _with_comma(self, node: Node) -> tuple[int, int]:
        """Returns where a keyword argument begins and ends, with the comma after it or else the one before it."""
        start, end = self._place(node)
        behind = next(token for token in [*self._tokens, (len(self._source),) * 2] if token[0] >= end)
        if self._source[slice(*behind)] == ",":
            return start, behind[1]
        before = max((token for token in self._tokens if token[1] <= start), default=(start, start))
        return (before[0], end) if self._source[slice(*before)] == "," else (start, end)
