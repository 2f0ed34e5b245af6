"""The registry of input formats: every format keeps the contract of `Table`; one entry makes a format known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rwkv_batch.errors import ConfigurationError, one_of
from rwkv_batch.job.input.files import InputFile
from rwkv_batch.job.input.formats import FORMATS, format_of
from rwkv_batch.job.input.json_kinds import Expected
from rwkv_batch.job.input.reader import open_input
from rwkv_batch.job.input.table import BATCH_ROWS, Rows, Table

from ..conftest import Job


def _write_parquet(path: Path, prompts: list[str]) -> None:
    pq.write_table(pa.table({"prompt": prompts, "other": prompts}), path, row_group_size=700)


def _write_jsonl(path: Path, prompts: list[str]) -> None:
    path.write_text("".join(json.dumps({"prompt": prompt, "other": 1}) + "\n" for prompt in prompts))


def _write_openai_batch(path: Path, prompts: list[str]) -> None:
    lines = ({"custom_id": prompt, "body": {"prompt": prompt}} for prompt in prompts)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _write_arrow(path: Path, prompts: list[str]) -> None:
    table = pa.table({"other": prompts, "prompt": prompts})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=700)


def _write_csv(path: Path, prompts: list[str]) -> None:
    path.write_text("other,prompt\n" + "".join(f"{i},{prompt}\n" for i, prompt in enumerate(prompts)))


def _write_tsv(path: Path, prompts: list[str]) -> None:
    path.write_text("other\tprompt\n" + "".join(f"{i}\t{prompt}\n" for i, prompt in enumerate(prompts)))


WRITERS: dict[str, Callable[[Path, list[str]], None]] = {
    "parquet": _write_parquet,
    "jsonl": _write_jsonl,
    "openai-batch": _write_openai_batch,
    "arrow": _write_arrow,
    "csv": _write_csv,
    "tsv": _write_tsv,
}
"""Format → writes a file of it with a column `prompt` of these texts, and another column."""
PROMPTS = [f"p{i}" for i in range(2 * BATCH_ROWS + 300)]


@pytest.mark.parametrize("name", FORMATS)
def test_any_range_of_rows_comes_in_small_batches(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"prompts{FORMATS[name].extensions[0]}"
    assert name in WRITERS, "write a file of the format in WRITERS"
    WRITERS[name](path, PROMPTS)
    (file,) = open_input(str(tmp_path), "auto", {}).files
    assert format_of(file) == name
    table = FORMATS[name](file, {})
    assert table.num_rows == len(PROMPTS)
    assert "prompt" in table.schema.names
    edges = (0, 1, BATCH_ROWS, 700, 1023, len(PROMPTS))
    for start, stop in ((start, stop) for start in edges for stop in edges if start <= stop):
        batches = [rows.batch for rows in table.read(start, stop, ["prompt", "no such column"])]
        assert all(0 < batch.num_rows <= BATCH_ROWS for batch in batches)
        assert all(batch.schema.names == ["prompt"] for batch in batches)
        assert [prompt for batch in batches for prompt in batch["prompt"].to_pylist()] == PROMPTS[start:stop]


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("csv", "tsv")])
def test_the_first_bytes_tell_the_format(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / "prompts", PROMPTS[:3])
    (file,) = open_input(str(tmp_path / "prompts"), "auto", {}).files
    assert format_of(file) == name


@pytest.mark.parametrize("name", FORMATS)
def test_units_may_be_served_in_any_order(name: str, job: Job) -> None:
    path = job.folder / f"prompts{FORMATS[name].extensions[0]}"
    WRITERS[name](path, PROMPTS[:35])
    job.set(input__path=str(path))
    assert [job.run("--shard", shard) for shard in ("3/4", "1/4", "0/2")] == [0, 0, 0]
    assert [row["prompt"] for row in job.rows()] == PROMPTS[:35]


class LinesTable(Table):
    """Plain text: every line is a prompt."""

    extensions = (".txt",)

    def __init__(self, file: InputFile, expected: Mapping[str, Expected]) -> None:
        with file.open() as stream:
            self._lines = stream.read().decode().splitlines()
        self.schema = pa.schema([("prompt", pa.string())])
        self.num_rows = len(self._lines)

    @staticmethod
    def recognizes(head: bytes) -> bool:
        return head.startswith(b"#lines")

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Rows]:
        for first in range(start, stop, BATCH_ROWS):
            lines = self._lines[first : min(first + BATCH_ROWS, stop)]
            yield Rows(pa.record_batch({"prompt": lines}).select([name for name in columns if name == "prompt"]), {})


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> None:
    import_module("rwkv_batch.job.config")  # its messages list the formats that exist when it is imported
    monkeypatch.setitem(FORMATS, "lines", LinesTable)


@pytest.mark.usefixtures("lines")
@pytest.mark.parametrize("name", ["auto", "lines"])
def test_a_job_reads_a_format_that_was_added(job: Job, name: str) -> None:
    path = job.folder / "prompts.txt"
    path.write_text("one\ntwo\nthree\n")
    job.set(input__path=str(path), input__format=name)
    assert job.run() == 0
    assert [row["prompt"] for row in job.rows()] == ["one", "two", "three"]


@pytest.mark.usefixtures("lines")
def test_a_file_without_an_extension_is_recognized_by_its_first_bytes(tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("#lines\none\n")
    (file,) = open_input(str(tmp_path / "prompts"), "auto", {}).files
    assert format_of(file) == "lines"


def test_a_format_that_is_not_there_is_refused_with_the_names_of_all(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job.set(input__format="lines").run() == 2
    assert f"input.format: got 'lines', expected {one_of(['auto', *FORMATS])}" in capsys.readouterr().err


def test_a_file_of_no_format_is_refused_with_the_names_of_all(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(b"\x00")
    with pytest.raises(ConfigurationError, match=f"unknown format, expected {one_of(list(FORMATS))}"):
        open_input(str(tmp_path / "noise"), "auto", {})
