"""Makes the small Parquet files of the example jobs, from held-out files of the standard library.

    python -m rwkv_batch.demo.prompts --out jobs/data

Rows are chosen by a hash of their place in the sources, so that a Python version always gives the same files.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from .corpus import Document, stdlib_documents

DEMO_ROWS, EVAL_ROWS, SCORE_ROWS = 100, 200, 200
PROMPT_BYTES = range(40, 401)
REFERENCE_BYTES = 200
CHOICES = 4
CONTEXT_LINES = 8
TELLING_CHARACTERS = 12
"""The least length of a line that is asked for: a shorter line, such as `else:`, fits in many places."""


class Function(NamedTuple):
    """A function of a held-out file."""

    source: str
    """The path of the file."""
    line: int
    """The number of the function's first line, from 1."""
    lines: list[str]
    """Its lines, dedented, with their line ends."""
    head_lines: int
    """Lines before its body, which begins with the docstring if there is one."""

    @property
    def id(self) -> str:
        return f"{self.source}:{self.line}"

    @property
    def introduction(self) -> str | None:
        """The signature and the first line of text of the docstring; None without a docstring."""
        first = self.lines[self.head_lines].strip()
        if not first.startswith('"""'):
            return None
        return "".join(self.lines[: self.head_lines + (2 if first == '"""' else 1)])


def functions(documents: Iterable[Document]) -> list[Function]:
    """All functions of at least four lines, in a fixed order that mixes the files."""
    found = []
    for document in documents:
        lines = document.text.splitlines(keepends=True)
        for node in ast.walk(ast.parse(document.text)):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            own = textwrap.dedent("".join(lines[node.lineno - 1 : node.end_lineno])).splitlines(keepends=True)
            head_lines = node.body[0].lineno - node.lineno
            if len(own) >= 4 and 0 < head_lines < len(own) - 1 and own[0].startswith(("def ", "async def ")):
                found.append(Function(document.path, node.lineno, own, head_lines))
    return sorted(found, key=lambda function: _scatter(function.id))


def demo_prompts(candidates: list[Function]) -> pa.Table:
    """Columns `id, prompt`: a function's signature and the first line of text of its docstring."""
    rows = []
    for function in candidates:
        prompt = function.introduction
        if prompt is not None and len(prompt.encode()) in PROMPT_BYTES:
            rows.append({"id": function.id, "prompt": prompt})
    return pa.Table.from_pylist(rows[:DEMO_ROWS], pa.schema({"id": pa.string(), "prompt": pa.string()}))


def eval_prompts(candidates: list[Function]) -> pa.Table:
    """Columns `id, prompt, source, temperature, reference`: the first half of a function, and the start of the other.

    Every second row has a temperature; for the others it is null, so that the job's temperature applies.
    """
    rows: list[dict[str, Any]] = []
    for function in candidates:
        half = max(len(function.lines) // 2, function.head_lines)
        prompt, rest = "".join(function.lines[:half]), "".join(function.lines[half:])
        if len(prompt.encode()) in PROMPT_BYTES:
            temperature = [0.0, 0.5, 0.8, 1.0][len(rows) // 2 % 4] if len(rows) % 2 else None
            reference = rest.encode()[:REFERENCE_BYTES].decode(errors="ignore")
            row = {"id": function.id, "prompt": prompt, "source": function.source}
            rows.append({**row, "temperature": temperature, "reference": reference})
    schema = {"id": pa.string(), "prompt": pa.string(), "source": pa.string(), "temperature": pa.float64()}
    return pa.Table.from_pylist(rows[:EVAL_ROWS], pa.schema({**schema, "reference": pa.string()}))


def score_questions(documents: list[Document]) -> pa.Table:
    """Columns `id, context, choices, answer`: which of four lines follows? All four have the same indentation."""
    places = []
    for document in documents:
        lines = document.text.splitlines(keepends=True)
        places += [(document.path, number, lines) for number in range(CONTEXT_LINES, len(lines))]
    places = [place for place in places if len(place[2][place[1]].strip()) >= TELLING_CHARACTERS]
    places.sort(key=lambda place: _scatter(f"{place[0]}:{place[1]}"))
    pools: dict[int, list[str]] = {}
    for _, number, lines in places:
        pools.setdefault(_indent(lines[number]), []).append(lines[number])

    rows = []
    for path, number, lines in places:
        context, truth = "".join(lines[number - CONTEXT_LINES : number]), lines[number]
        nearby = {truth.strip(), *(line.strip() for line in lines)}
        elsewhere = [line for line in dict.fromkeys(pools[_indent(truth)]) if line.strip() not in nearby]
        start = _scatter(f"{path}:{number}:wrong") % max(len(elsewhere), 1)
        wrong = elsewhere[start : start + CHOICES - 1]
        if len(context.encode()) not in PROMPT_BYTES or len(wrong) < CHOICES - 1:
            continue
        answer = _scatter(f"{path}:{number}:answer") % CHOICES
        choices = [*wrong[:answer], truth, *wrong[answer:]]
        rows.append({"id": f"{path}:{number + 1}", "context": context, "choices": choices, "answer": answer})
        if len(rows) == SCORE_ROWS:
            break
    schema = {"id": pa.string(), "context": pa.string(), "choices": pa.list_(pa.string()), "answer": pa.int32()}
    return pa.Table.from_pylist(rows, pa.schema(schema))


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _scatter(key: str) -> int:
    """A hash of a key, as a sort key or a pseudo-random number."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("jobs/data"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    documents = [document for document in stdlib_documents() if document.held_out]
    candidates = functions(documents)
    tables = {
        "demo_prompts": demo_prompts(candidates),
        "eval_prompts": eval_prompts(candidates),
        "score_questions": score_questions(documents),
    }
    for name, table in tables.items():
        pq.write_table(table, args.out / f"{name}.parquet", compression="zstd")
        print(f"{args.out / name}.parquet: {table.num_rows} rows")


if __name__ == "__main__":
    main()
