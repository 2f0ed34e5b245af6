"""The examples of every page run, in order and in one folder, with the demo model."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.pages import PAGES, ROOT, Block, blocks, name_of
from rwkv_batch import cli, run
from rwkv_batch.job.load import load_job
from rwkv_batch.suite.grade_section import GradeSection, problems_of

LANGUAGES = {"python", "console", "yaml", "text", "json"}
TOOLS = {"ls", "cat", "head", "mkdir", "cp", "rm"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with the example jobs; processes that a page starts find the package."""
    shutil.copytree(ROOT / "jobs", tmp_path / "jobs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 48)  # or Ray writes one into the home folder
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    return tmp_path


def run_command(command: str) -> int:
    """The exit code of one line of a console block; commands of this package run in this process."""
    words = shlex.split(command, comments=True)
    try:
        if words[0] == "rwkv-batch":
            return cli.main(words[1:])
        if words[:3] == ["python", "-m", "rwkv_batch.run"]:
            return run.main(words[3:])
    except SystemExit as end:
        return int(end.code or 0)
    if words[0] == "python":
        return subprocess.run([sys.executable, *words[1:]], check=False, timeout=120).returncode
    assert words[0] in TOOLS, f"{command}: mark the block as not run, or add the tool"
    return subprocess.run(command, shell=True, check=False, timeout=60).returncode


def run_block(page: Path, block: Block, names: dict[str, Any]) -> None:
    if block.title:
        Path(block.title).parent.mkdir(parents=True, exist_ok=True)
        Path(block.title).write_text(block.text, encoding="utf-8")
    elif block.language == "python":
        # The line numbers of a traceback are those of the page.
        exec(compile("\n" * block.line + block.text, str(page), "exec"), names)
    elif block.language == "console":
        commands = [line.removeprefix("$ ") for line in block.text.splitlines() if line.startswith("$ ")]
        assert commands, f"{name_of(page)}:{block.line}: no line begins with '$ '"
        for command in commands:
            assert run_command(command) == block.exit_code, f"{name_of(page)}:{block.line}: {command}"
    elif block.language == "yaml":
        check_settings(yaml.safe_load(block.text))


def check_settings(settings: dict[str, Any]) -> None:
    """Part of a job file: with what every job must have it is a job. Or the section `grade` of a job in a suite."""
    required = {"model": {"path": "demo"}, "input": {"path": "prompts.parquet"}, "output": {"path": "out/part"}}
    if "grade" in settings:
        grade = GradeSection.model_validate(settings.pop("grade"))
        assert not [*problems_of(grade, load_job({**required, "sampling": {"n": max(grade.k or [1])}}))]
    load_job({**settings, **{name: {**values, **settings.get(name, {})} for name, values in required.items()}})


RUN = [page for page in PAGES if any(not block.skip and block.language != "text" for block in blocks(page))]


LONG = {"docs/how-to/ray.md"}
"""Pages whose examples start a cluster: `make soak` runs them."""


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.soak) if name_of(page) in LONG else page for page in RUN],
    ids=name_of,
)
def test_the_examples_of_a_page_run(page: Path, folder: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if not block.skip:
            run_block(page, block, names)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_has_a_language(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{name_of(page)}:{block.line}: {block.language!r}"


def test_a_failing_example_fails(folder: Path) -> None:
    page = folder / "page.md"
    page.write_text(
        "```python\nassert False\n```\n\n<!-- exit code: 2 -->\n```console\n$ rwkv-batch run no.yaml\n```\n"
    )
    wrong, refused = blocks(page)
    with pytest.raises(AssertionError):
        run_block(page, wrong, {})
    run_block(page, refused, {})
