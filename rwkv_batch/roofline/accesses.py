"""Which of its pointers a Triton kernel loads and which it stores, read from the kernel's source.

A pointer is followed through sums, assignments and calls of other kernels' functions. Branches on constants are
decided; of other branches both count.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from triton.runtime.jit import JITFunction

Roots = frozenset[str]
NONE: Roots = frozenset()


@dataclass
class Accesses:
    """Names of the kernel's arguments through which it loads, and of those through which it stores."""

    loaded: set[str] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)


@cache
def accesses(kernel: Any, pointers: frozenset[str], constants: frozenset[tuple[str, Any]]) -> Accesses:
    """Follows the pointers of a kernel.

    Args:
        kernel: a `JITFunction`.
        pointers: names of the arguments that are tensors.
        constants: the other arguments, with their values; None for a tensor that is not given.
    """
    found = Accesses()
    _Function(kernel, {name: frozenset((name,)) for name in pointers}, dict(constants), found).follow()
    return found


@cache
def _definition(kernel: Any) -> ast.FunctionDef:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kernel.fn))).body
    assert isinstance(tree, ast.FunctionDef)
    return tree


class _Function:
    """One call of a function.

    Args:
        pointers: name of a variable → the kernel's arguments that it may point into.
    """

    def __init__(
        self, kernel: Any, pointers: Mapping[str, Roots], constants: Mapping[str, Any], found: Accesses
    ) -> None:
        self._kernel, self._constants, self._found = kernel, constants, found
        self._pointers = dict(pointers)
        self._returned: Roots = NONE

    def follow(self) -> Roots:
        """Returns what the function's result may point into."""
        self._block(_definition(self._kernel).body)
        return self._returned

    def _block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            self._statement(statement)

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.If):
            test = self._known(node.test)
            if test is None:
                self._roots(node.test)
            self._block([] if test is False else node.body)
            self._block([] if test is True else node.orelse)
        elif isinstance(node, ast.For | ast.While):
            self._block(node.body)
        elif isinstance(node, ast.Assign | ast.AugAssign):
            roots = self._roots(node.value)
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name):
                        kept = self._pointers.get(name.id, NONE) if isinstance(node, ast.AugAssign) else NONE
                        self._pointers[name.id] = kept | roots
        elif isinstance(node, ast.Return) and node.value is not None:
            self._returned |= self._roots(node.value)
        elif isinstance(node, ast.Expr):
            self._roots(node.value)

    def _known(self, test: ast.expr) -> bool | None:
        """The value of a condition on constants; None for any other condition."""
        if isinstance(test, ast.Name) and isinstance(self._constants.get(test.id), bool):
            return bool(self._constants[test.id])
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            known = self._known(test.operand)
            return None if known is None else not known
        is_about_none = isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.Is | ast.IsNot)
        if is_about_none and isinstance(test.left, ast.Name):  # type: ignore[attr-defined]
            is_absent = self._constants.get(test.left.id, 0) is None  # type: ignore[attr-defined]
            return is_absent == isinstance(test.ops[0], ast.Is)  # type: ignore[attr-defined]
        return None

    def _roots(self, node: ast.expr) -> Roots:
        """What an expression may point into. Notes the loads and stores inside it."""
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Name):
            return self._pointers.get(node.id, NONE)
        parts = [self._roots(part) for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]
        return NONE.union(*parts)

    def _call(self, node: ast.Call) -> Roots:
        given = [self._roots(argument) for argument in node.args]
        named = {word.arg: self._roots(word.value) for word in node.keywords if word.arg}
        if isinstance(node.func, ast.Attribute):
            if node.func.attr in ("load", "atomic_add"):
                self._found.loaded |= given[0]
                self._found.stored |= given[0] if node.func.attr != "load" else NONE
                return NONE
            if node.func.attr == "store":
                self._found.stored |= given[0]
                return NONE
            return NONE.union(self._roots(node.func.value), *given)
        callee = self._kernel.fn.__globals__.get(node.func.id) if isinstance(node.func, ast.Name) else None
        if not isinstance(callee, JITFunction):
            return NONE.union(*given, *named.values())
        pointers = dict(zip(callee.arg_names, given, strict=False)) | named
        values = dict(zip(callee.arg_names, node.args, strict=False)) | {w.arg: w.value for w in node.keywords if w.arg}
        constants = {
            name: self._constants[value.id]
            for name, value in values.items()
            if isinstance(value, ast.Name) and value.id in self._constants
        }
        return _Function(callee, pointers, constants, self._found).follow()
