"""What is said of parts."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from job.conftest import Job

from rwkv_batch import cli


def test_a_part(small: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert small.run() == 0
    path = str(small.output / "part-00000-of-00002.parquet")
    capsys.readouterr()
    assert cli.main(["inspect", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["records"], found["columns"]["completion"]) == (6, "string")
    assert (found["footer"]["unit"], found["footer"]["rows"]) == ("0", "3")
    assert cli.main(["inspect", path]) == 0
    assert "footer     fingerprint: " in capsys.readouterr().out


def test_other_parquet_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    assert cli.main(["inspect", str(path)]) == 0
    assert "no part of a job" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:-20])
    assert cli.main(["inspect", str(path)]) == 2
    assert f"{path}: its footer cannot be read" in capsys.readouterr().err
