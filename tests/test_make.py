"""The commands that the documents give are those that the Makefile has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(path.name for path in ROOT.glob("*.md"))
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
