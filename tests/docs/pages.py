"""The pages of the documentation, and the code blocks in them."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)

_FENCE = re.compile(r"^```(\w*)(.*)$")
_COMMENT = re.compile(r"^<!-- (not run|exit code): (.+) -->$")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page.

    Args:
        line: of the opening fence, from 1.
        title: the name of the file that the block shows, "" where it has none.
        skip: why the block cannot run here, "" where it runs.
        exit_code: of the commands of a console block.
    """

    line: int
    language: str
    title: str
    text: str
    skip: str
    exit_code: int


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page in order; a comment on the line before a block says how it runs."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    number, comments = 0, {}
    while number < len(lines):
        line = lines[number].strip()
        if match := _COMMENT.match(line):
            comments[match[1]] = match[2]
        elif match := _FENCE.match(line):
            start = number
            number = next(i for i in range(start + 1, len(lines)) if lines[i].strip() == "```")
            title = re.search(r'title="([^"]+)"', match[2])
            found.append(
                Block(
                    start + 1,
                    match[1],
                    title[1] if title else "",
                    "\n".join(lines[start + 1 : number]) + "\n",
                    comments.get("not run", ""),
                    int(comments.get("exit code", 0)),
                )
            )
            comments = {}
        elif line:
            comments = {}
        number += 1
    return found


def prose(page: Path) -> str:
    """The text of a page without its fenced blocks."""
    return re.sub(r"^\s*```.*?^\s*```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def generator() -> ModuleType:
    """The script that writes the generated pages."""
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
