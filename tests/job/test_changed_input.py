"""An input file that changes between two runs or while a job runs: no part joins it with completions of the old one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job import fake_llm
from rwkv_batch.job import shard_run
from rwkv_batch.job.output.commit import JobFiles

from .conftest import Job


def edit_in_place(path: Path, old: bytes, new: bytes) -> None:
    """Changes bytes of a file, and keeps its inode, size and time."""
    times = path.stat()
    content = path.read_bytes()
    assert old in content
    with open(path, "r+b") as file:
        file.write(content.replace(old, new))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def plain_input(job: Job) -> Path:
    """The job's prompts as bytes that can be edited: not compressed, without a dictionary, no statistics."""
    path = job.folder / "prompts.parquet"
    options: Any = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pq.read_table(path), path, **options)
    return path


def test_prompts_that_were_swapped_between_two_runs_are_noticed(
    job: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The footer is the same."""
    path = plain_input(job)
    with monkeypatch.context() as patch:
        patch.setattr(fake_llm.Serving, "_complete", lambda *_: 1 / 0)
        assert job.run() == 1
    edit_in_place(path, b"prompt 11", b"prompt 12")
    assert job.run() == 4
    assert f"{path}: content was sha256:" in capsys.readouterr().err


def test_a_finished_job_whose_input_has_changed_is_not_complete(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    path = plain_input(job)
    assert job.run() == 0
    edit_in_place(path, b"prompt 11", b"prompt 12")
    assert job.run() == job.run("--dry-run") == 4
    assert capsys.readouterr().err.count("the input changed since the run started") == 2


@pytest.mark.parametrize("when", ["while a unit is read", "before a unit is published", "before the end"])
def test_a_file_that_is_replaced_while_the_job_runs_ends_it(
    job: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """No part joins completions with the columns of another file, and the old file lets the job end as it would."""
    path = job.folder / "prompts.parquet"
    assert job.run() == 0
    expected = job.parts()
    shutil.rmtree(job.output)
    shutil.rmtree(job.state)
    kept = path.with_suffix(".kept")
    shutil.copy(path, kept)

    def replace() -> None:
        pq.write_table(pa.table({"prompt": [f"other {i}" for i in range(30)]}), path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)

    place: tuple[Any, str] = {
        "while a unit is read": (fake_llm.Serving, "_complete"),
        "before a unit is published": (JobFiles, "publish"),
        "before the end": (shard_run.ShardRun, "finish"),
    }[when]
    original, calls = getattr(*place), []

    def act(*arguments: Any) -> Any:
        if not calls:
            replace()
        calls.append(1)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(*place, act)
        assert job.run() == 4
    message = capsys.readouterr().err
    assert f"the input changed while the job ran: {path}" in message and "Traceback" not in message
    assert job.output.exists() == (when == "before the end")
    assert not (job.state / "_SUCCESS.json").exists()
    assert job.run() == 4
    shutil.copy(kept, path)
    assert job.run() == 0
    assert job.parts() == expected


def test_a_trial_reads_only_the_files_that_it_serves(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content of the other files is not read for a checksum, and may change."""
    (job.folder / "in").mkdir()
    job.input("in/a.parquet", prompt=["a", "b"])
    job.input("in/b.parquet", prompt=["c", "d"]).set(input__path=str(job.folder / "in"), input__limit=2)
    assert job.run() == 0
    manifest = json.loads((job.state / "job.json").read_text())["input"]
    assert [str(entry["version"])[:7] for entry in manifest] == ["sha256:", "None"]
    path = job.folder / "in" / "b.parquet"
    path.write_bytes(path.read_bytes())
    assert job.run() == 0


def test_a_job_of_an_earlier_release_goes_on_with_a_warning(
    job: Job, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """It recorded the footer of a Parquet file alone."""
    path = plain_input(job)
    assert job.run() == 0
    assert "recorded the footer" not in caplog.text
    document = json.loads((job.state / "job.json").read_text())
    footer = path.read_bytes()[-8 - pq.read_metadata(path).serialized_size :]
    entry = {**document["input"][0], "version": f"footer-sha256:{hashlib.sha256(footer).hexdigest()}"}
    del entry["stamp"]
    (job.state / "job.json").write_text(json.dumps({**document, "input": [entry]}))
    assert job.run() == 0
    assert "of 1 Parquet file(s) it recorded the footer alone" in caplog.text
    writer = pq.read_metadata(path).created_by.encode()
    edit_in_place(path, writer, writer.replace(b"parquet", b"another"))
    assert job.run() == 4
    assert "content was footer-sha256:" in capsys.readouterr().err
