"""The registry of input formats: one entry makes a format known to job files, to folders, and to messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from rwkv_batch.errors import ConfigurationError
from rwkv_batch.job.input.files import InputFile
from rwkv_batch.job.input.formats import FORMATS, format_of
from rwkv_batch.job.input.json_kinds import Expected
from rwkv_batch.job.input.reader import open_input
from rwkv_batch.job.input.table import BATCH_ROWS, Table

from ..conftest import Job


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

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for first in range(start, stop, BATCH_ROWS):
            lines = self._lines[first : min(first + BATCH_ROWS, stop)]
            yield pa.record_batch({"prompt": lines}).select([name for name in columns if name == "prompt"])


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert "input.format: got 'lines', expected auto, parquet, openai-batch or jsonl" in capsys.readouterr().err


def test_a_file_of_no_format_is_refused_with_the_names_of_all(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(b"\x00")
    with pytest.raises(ConfigurationError, match="unknown format, expected parquet, openai-batch or jsonl"):
        open_input(str(tmp_path / "noise"), "auto", {})
