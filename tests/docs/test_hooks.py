"""The hooks of .pre-commit-config.yaml format as the tests' tools do."""

from __future__ import annotations

import re

import yaml

from docs.pages import ROOT

HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]


def revision(repository: str) -> str:
    return next(one["rev"] for one in HOOKS if one["repo"].endswith(repository)).removeprefix("v")


def test_ruff_is_that_of_the_lock() -> None:
    pinned = re.search(r"^ruff==(\S+)", (ROOT / "locks" / "test.txt").read_text(), re.MULTILINE)
    assert pinned is not None and revision("/ruff-pre-commit") == pinned[1]


def test_clang_format_is_that_of_its_settings() -> None:
    stated = re.search(r"clang-format (\d+\.\d+\.\d+)", (ROOT / ".clang-format").read_text())
    assert stated is not None and revision("/mirrors-clang-format") == stated[1]
