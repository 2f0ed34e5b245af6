"""The import graph, read from the sources without importing anything."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
_BLOCKS = ("body", "orelse", "finalbody")


def modules(*folders: str) -> dict[str, Path]:
    """Returns full name → file of every module in these folders of the repository. Symbolic links are not followed."""
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {_name(path): path for path in paths}


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(name: str, known: dict[str, Path], in_functions: bool) -> set[str]:
    """Returns the modules of `known` that one of them imports. Imports under `if TYPE_CHECKING` do not count.

    Args:
        in_functions: also count imports inside functions.
    """
    found: set[str] = set()
    package = name if known[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in _statements(ast.parse(known[name].read_text()).body, in_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                member = f"{source}.{alias.name}"
                found.add(member if member in known else source)
    return (found & known.keys()) - {name}


def _statements(body: list[ast.stmt], in_functions: bool) -> Iterator[ast.stmt]:
    """Yields every statement that runs on import, and those inside functions if asked for."""
    for node in body:
        yield node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not in_functions:
            continue
        is_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for block in _BLOCKS[1:] if is_for_types else _BLOCKS:
            yield from _statements(getattr(node, block, []), in_functions)
        for handler in getattr(node, "handlers", []):
            yield from _statements(handler.body, in_functions)


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Returns the names along one cycle, with the first name again at the end; empty if there is no cycle."""
    done: set[str] = set()
    path: list[str] = []

    def search(name: str) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        path.append(name)
        found = next(filter(None, map(search, sorted(graph[name]))), [])
        path.pop()
        done.add(name)
        return found

    return next(filter(None, map(search, sorted(graph))), [])
