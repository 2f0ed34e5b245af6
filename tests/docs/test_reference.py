"""The reference pages say what the code does: names, codes, columns."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from docs.pages import ROOT, blocks, generator
from rwkv_batch import LLM, RequestOutput, SamplingParams, ScoreOutput, run, run_job
from rwkv_batch.job.claim import Claim
from rwkv_batch.job.config import JobConfig

REFERENCE = ROOT / "docs" / "reference"


def table_rows(text: str) -> dict[str, list[str]]:
    """First cell → the others, of all tables of a page; cells without backticks."""
    rows = [line.strip("| ").replace("\\|", "¦").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {cells[0].strip("`"): [cell.strip("`") for cell in cells[1:]] for cells in rows}


def section(page: str, title: str) -> str:
    text = (REFERENCE / page).read_text(encoding="utf-8")
    return re.split(r"^## ", text.split(f"## {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


@pytest.mark.parametrize("name", sorted(generator().pages()))
def test_generated_pages_are_up_to_date(name: str) -> None:
    assert (REFERENCE / name).read_text(encoding="utf-8") == generator().pages()[name], "run python docs/generate.py"


def test_every_setting_is_described() -> None:
    text = (REFERENCE / "job-file.md").read_text(encoding="utf-8")
    for name, field in JobConfig.model_fields.items():
        keys = getattr(field.annotation, "model_fields", {name: field} if name == "task" else {})
        inner = {key: getattr(value.annotation, "model_fields", None) for key, value in keys.items()}
        for key in [f"{key}.{part}" if part else key for key, parts in inner.items() for part in parts or [""]]:
            assert len(table_rows(section("job-file.md", name))[key][-1]) > 10, f"{name}.{key}"
    assert "](sampling-params.md)" in text


def test_every_field_and_method_is_described() -> None:
    fields = table_rows((REFERENCE / "sampling-params.md").read_text(encoding="utf-8"))
    assert all(fields[name][-1] for name in SamplingParams.field_names())
    page = (REFERENCE / "llm.md").read_text(encoding="utf-8")
    arguments = table_rows(section("llm.md", "LLM"))
    parameters = inspect.signature(LLM).parameters.values()
    assert all(arguments["**" * (one.kind is one.VAR_KEYWORD) + one.name][-1] for one in parameters)
    methods = [name for name in dir(LLM) if not name.startswith("_") and callable(getattr(LLM, name))]
    assert len(methods) >= 8
    for name in methods:
        assert re.search(rf"^### LLM\.{name}\n\n`LLM\.{name}\(.*\)`\n\n\w", page, re.MULTILINE), name
    for kind in (RequestOutput, ScoreOutput):
        assert all(table_rows(page)[name][-1] for name in kind.__dataclass_fields__)


def codes_in_the_code() -> set[str]:
    """First arguments of RowError, and the codes of "code: sentence" in readers of input."""
    found = set()
    for path in (ROOT / "rwkv_batch").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "RowError":
                found |= {str(node.args[0].value)} if isinstance(node.args[0], ast.Constant) else set()
        if "job/input" in path.as_posix():
            found |= set(re.findall(r'f?"([a-z]+_[a-z_]+): ', source))
    return found


def test_every_error_code_is_explained() -> None:
    page = (REFERENCE / "error-codes.md").read_text(encoding="utf-8")
    rows = table_rows(page)
    del rows["error code"]
    assert len(re.findall(r"^\| `", page, re.MULTILINE)) == len(rows), "expected one row for each code"
    assert set(rows) == codes_in_the_code()
    assert all(cause for cause, *_ in rows.values())


def test_every_exit_code_is_explained() -> None:
    codes = set(run.EXIT_CODES)
    for page in ("README.md", "docs/how-to/troubleshooting.md"):
        cells = table_rows((ROOT / page).read_text(encoding="utf-8"))
        assert codes <= {int(code) for cell in cells for code in re.findall(r"^\d+|(?<=, )\d+$", cell)}, page


INPUTS = {
    "task: generate": ("generate", {"prompt": ["a", "b"]}),
    "task: score, with continuation or text": ("score", {"text": ["b"]}),
    "task: score, with choices": ("score", {"context": ["a"], "choices": [["b", "c"]], "answer": [1]}),
}


@pytest.mark.parametrize("title", INPUTS)
def test_the_columns_are_those_of_a_part(title: str, tmp_path: Path) -> None:
    task, columns = INPUTS[title]
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    output = {"path": str(tmp_path / "out"), "token_ids": True, "logprobs": True, "input_columns": "none"}
    settings = {"task": task, "model": {"path": "demo"}, "input": {"path": str(tmp_path / "rows.parquet")}}
    sampling = {"sampling": {"max_tokens": 2}} if task == "generate" else {}
    outcome = run_job({**settings, **sampling, "output": output})
    schema = pq.read_schema(next(Path(outcome.output).iterdir()))
    rows = table_rows(section("output-columns.md", title))
    del rows["column"]
    assert {name: cells[0] for name, cells in rows.items()} == {
        field.name: str(field.type).replace("element:", "item:") for field in schema
    }


def test_the_readme_shows_an_output_row_as_it_is() -> None:
    (row,) = [json.loads(block.text) for block in blocks(ROOT / "README.md") if block.language == "json"]
    columns = table_rows(section("output-columns.md", "task: generate"))
    optional = {"column", "token_ids", "token_logprobs"}
    assert list(row) == ["uid", "question", *(name for name in columns if name not in optional)]


def test_every_file_of_the_state_folder_is_explained(tmp_path: Path) -> None:
    rows = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["a", "b"]}), rows)
    settings = {"model": {"path": "demo"}, "input": {"path": rows}, "output": {"path": tmp_path / "out"}}
    outcome = run_job(settings, {"sampling.max_tokens": 2})
    text = section("output.md", "The state folder")
    named = set(re.findall(r"`([\w.]+)/?`", "\n".join(line.split("|")[1] for line in text.splitlines() if "|" in line)))
    assert {*os.listdir(outcome.folders.state), "claim.json"} == named  # the claim is there while the job runs


def test_every_key_of_a_claim_is_explained() -> None:
    text = section("output.md", "Claims")
    named = re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in text.splitlines() if "|" in line))
    assert named == [field.name for field in fields(Claim)]


def test_messages_that_the_page_quotes_are_in_the_code() -> None:
    """Quoted in italics at the beginning of an item; … and words in quotes stand for what differs."""
    text = (ROOT / "docs/how-to/troubleshooting.md").read_text(encoding="utf-8")
    quoted = [" ".join(message.split()) for message in re.findall(r"^- \*(.+?)\*:", text, re.DOTALL | re.MULTILINE)]
    assert len(quoted) >= 10
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "rwkv_batch").rglob("*.py")]
    constants = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    code = "\n".join(value for value in constants if isinstance(value, str))
    for message in quoted:
        for piece in re.split(r"…|'\w+'", message):
            assert piece.strip() in code, f"{message!r}: {piece.strip()!r}"
