"""Test parts: what can go wrong while a part is written is refused before the model is loaded, with file and column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job import fake_llm
from rwkv_batch.job.output import part_check, parts

from ..conftest import Job


def damage(path: Path, column: str, row_group: int = 0) -> None:
    """Overwrites the data of a column of a Parquet file."""
    chunk = pq.read_metadata(path).row_group(row_group)
    (found,) = (
        chunk.column(index) for index in range(chunk.num_columns) if chunk.column(index).path_in_schema == column
    )
    start = found.dictionary_page_offset or found.data_page_offset
    data = bytearray(path.read_bytes())
    data[start + 30 : start + found.total_compressed_size] = b"\xff" * (found.total_compressed_size - 30)
    path.write_bytes(data)


def refusal(job: Job, capsys: pytest.CaptureFixture[str]) -> str:
    """What run, dry run and validate say. No model is loaded, and nothing is written."""
    messages = []
    for arguments in ([], ["--dry-run"]):
        assert job.run(*arguments) == 2
        messages.append(capsys.readouterr().err)
    assert fake_llm.LLM.loaded == 0
    assert not job.output.exists() and not job.state.exists()
    assert messages[0] == messages[1]
    return messages[0]


def test_a_column_that_cannot_be_read_is_refused(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"{row:04d}" * 50 for row in range(30)]
    job.input(prompt=[f"prompt {i}" for i in range(30)], note=texts, other=texts)
    damage(job.folder / "prompts.parquet", "note")
    message = refusal(job, capsys)
    assert f"{job.folder}/prompts.parquet: the column 'note' (string) cannot be passed on: " in message
    assert "row group 0, column 'note': Corrupt snappy compressed data" in message
    assert "name in output.input_columns only the columns that the output needs" in message
    assert job.run("-o", "output.input_columns=[prompt, other]") == 0


def test_a_column_that_cannot_be_written_is_refused(
    job: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reason is, and also where no row has come yet."""
    original = parts.PartMaker._write

    def write(self: Any, unit: Any, results: Any, spans: Any, passed: pa.Schema, *more: Any) -> Any:
        if "id" in passed.names:
            raise pa.ArrowNotImplementedError("no such type")
        return original(self, unit, results, spans, passed, *more)

    monkeypatch.setattr(parts.PartMaker, "_write", write)
    message = refusal(job, capsys)
    assert "output.input_columns: the column 'id' (string) cannot be passed on: ArrowNotImplementedError" in message


def test_columns_that_fail_only_together_are_refused(
    job: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = parts.PartMaker._write

    def write(self: Any, unit: Any, results: Any, spans: Any, passed: pa.Schema, *more: Any) -> Any:
        if len(passed) == 2 and spans:
            raise ValueError("too wide")
        return original(self, unit, results, spans, passed, *more)

    monkeypatch.setattr(parts.PartMaker, "_write", write)
    assert "prompts.parquet: the columns cannot be passed on: ValueError: too wide" in refusal(job, capsys)


def many_files(job: Job, bad: int) -> None:
    (job.folder / "in").mkdir()
    for index in range(4):
        job.input(f"in/{index}.parquet", prompt=["a", "b"], note=[f"{index:040d}" * 9, f"{index:040d}" * 8])
    damage(job.folder / "in" / f"{bad}.parquet", "note")
    job.set(input__path=str(job.folder / "in"), output__rows_per_part=2)


def test_every_file_is_tested_up_to_a_limit(
    job: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file beyond the limit is tested ahead of its unit. Its rows are served, and become error rows."""
    many_files(job, bad=2)
    assert "/in/2.parquet: the column 'note'" in refusal(job, capsys)
    monkeypatch.setattr(part_check, "FILES", 2)
    assert job.run() == 3
    assert [row["status"] for row in job.rows()] == ["ok"] * 4 + ["error"] * 2 + ["ok"] * 2
    row = job.rows()[4]
    assert (row["note"], row["error_code"], row["completion"] is None) == (None, "read_error", False)
    assert f"{job.folder}/in/2.parquet: row group 0, column 'note': " in row["error"]
    ahead = f"{job.folder}/in/2.parquet: the column 'note' (string) cannot be passed on"
    assert sum(ahead in record.message for record in caplog.records) == 1
    assert job.run() == 3


def test_a_job_with_published_parts_is_not_stopped(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is damaged while the job is paused costs its rows, and not the rest of the job."""
    many_files(job, bad=2)
    with monkeypatch.context() as patch:
        patch.setattr(part_check, "FILES", 2)
        assert job.run() == 3
    (job.output / "part-00000-of-00004.parquet").unlink()
    assert job.run() == 3
    assert len(job.rows()) == 8
    for path in job.output.iterdir():
        path.unlink()
    assert job.run() == 2


def test_bad_rows_are_no_reason_to_refuse(job: Job) -> None:
    job.lines('{"prompt": "a"}', "{", '{"prompt": "b"}')
    assert job.run("--dry-run") == 0
    assert job.run() == 3
