"""Links, paths and names that the pages give are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from docs.pages import PAGES, ROOT, name_of, prose
from rwkv_batch import cli

WITH_LINKS = [*PAGES, ROOT / "benchmarks" / "README.md", ROOT / "rwkv_batch" / "demo" / "README.md"]

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_FOLDERS = "(?:rwkv_batch|tests|triton_kernels|cuda_kernels|benchmarks|jobs|docs|locks)"
PATH = re.compile(rf"`({_FOLDERS}/[\w./*-]*)(?:::(\w+))?`")
NAMED = re.compile(rf"`([A-Za-z_][\w.]*)` in `({_FOLDERS}/[\w/]+\.py)`")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    titles = re.findall(r"^#{1,6} (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", WITH_LINKS, ids=name_of)
def test_links_resolve(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{name_of(page)}: {link}"
        if anchor:
            assert anchor in anchors(path), f"{name_of(page)}: {link}: {sorted(anchors(path))}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.is_relative_to(ROOT / "docs")], ids=name_of)
def test_links_of_the_site_stay_inside_it(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if "://" not in link and not link.startswith("#"):
            assert (page.parent / link.partition("#")[0]).resolve().is_relative_to(ROOT / "docs"), link


@pytest.mark.parametrize("page", WITH_LINKS, ids=name_of)
def test_paths_exist(page: Path) -> None:
    """A path with a name in capitals, such as OP.py, stands for any file of its folder."""
    for path, test in PATH.findall(page.read_text(encoding="utf-8")):
        placeholder = re.search(r"/[^/]*[A-Z]{2,}[^/]*$", path)
        if placeholder and "README" not in path:
            assert (ROOT / path[: placeholder.start()]).is_dir(), f"{name_of(page)}: {path}"
        else:
            assert list(ROOT.glob(path)), f"{name_of(page)}: {path}"
        if test:
            assert f"def {test}(" in (ROOT / path).read_text(), f"{name_of(page)}: {path}::{test}"


@pytest.mark.parametrize("page", WITH_LINKS, ids=name_of)
def test_commands_exist(page: Path) -> None:
    """Targets of make and commands of rwkv-batch, in prose and in blocks."""
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()
    parser = next(action for action in cli._parser()._actions if action.choices)
    for target in re.findall(r"(?:`|^\$ )make ([a-z]+)", text, re.MULTILINE):
        assert target in targets, f"{name_of(page)}: make {target}"
    for command in re.findall(r"(?:`|^\$ )rwkv-batch ([a-z-]+)", text, re.MULTILINE):
        assert command in (parser.choices or ()), f"{name_of(page)}: rwkv-batch {command}"


def names_in(path: Path) -> set[str]:
    """Names that a module defines at its top level, and the members of its classes as Class.member."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        found |= defined(node)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{name}" for member in node.body for name in defined(member)}
    return found


def defined(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_that_are_given_with_their_file_are_in_it(page: Path) -> None:
    for name, path in NAMED.findall(re.sub(r"\s+", " ", page.read_text(encoding="utf-8"))):
        assert name in names_in(ROOT / path), f"{name_of(page)}: `{name}` in `{path}`"


def test_the_contributor_finds_every_kind_of_file() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for kind in ("version", "kernel", "weight format", "data source", "harness"):
        assert re.search(rf"^### Add a.* {kind}$", text, re.MULTILINE), kind
    assert len(NAMED.findall(re.sub(r"\s+", " ", text))) >= 10


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200
