"""Documents name only targets and variables that the Makefile has, and slow.py only tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from slow import SLOW, kind_of

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "rwkv_batch/**/*.md")
    for path in ROOT.glob(pattern)
)
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
VARIABLES = set(re.findall(r"\$\((\w+)\)", (ROOT / "Makefile").read_text()))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_name_targets_and_variables_that_are_there(document):
    code = re.findall(r"```.*?```|`[^`]+`", (ROOT / document).read_text(), re.DOTALL)
    commands = [words for text in code for words in re.findall(r"\bmake ([a-z][^#`\n]*)", text)]
    for words in commands:
        assert words.split()[0] in TARGETS, f"{document}: make {words}"
        assert set(re.findall(r"(\w+)=", words)) <= VARIABLES, f"{document}: make {words}"
    assert commands or document != "README.md"


def test_every_command_is_run_even_where_a_file_has_its_name():
    phony = re.search(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert set(phony) == TARGETS


@pytest.mark.parametrize("place", [place for places in SLOW.values() for place in places])
def test_what_quick_leaves_out_is_there(place):
    file, _, test = place.partition("::")
    assert (ROOT / "tests" / file).exists()
    assert not test or f"def {test}(" in (ROOT / "tests" / file).read_text()


def test_tests_are_slow_by_file_by_folder_and_by_name(monkeypatch):
    monkeypatch.setitem(SLOW, "long", ("job", "test_serving.py::test_a", "test_ops.py"))
    names = ("job/test_plan.py::test_b", "test_serving.py::test_a[1::2]", "test_ops.py::test_b[/]")
    assert {kind_of(f"tests/{name}") for name in names} == {"long"}
    assert kind_of("tests/test_serving.py::test_ab") is kind_of("tests/test_serving.py::test_b") is None
