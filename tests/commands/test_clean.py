"""What a job no longer needs is removed; what it needs stays."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import pytest
from job.conftest import Job
from job.prepared import commit_all, files_of, prepared, units_of

from rwkv_batch import cli
from rwkv_batch.job.claim import Machine


def test_leftovers_are_removed_and_nothing_else(small: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert small.run() == 0
    parts = small.parts()
    ready = prepared(small)
    first, second = units_of(ready)
    files = files_of(small, ready.started_as(ready.document))
    commit_all(ready, files, first, [0])  # as a crash leaves it: the part is there
    shutil.move(small.output / "part-00001-of-00002.parquet", small.folder / "aside")
    commit_all(ready, files, second, [3])  # of a unit without a part
    (small.state / "damaged").mkdir()
    (small.state / "damaged" / "x.seg.1234").write_bytes(b"12345")
    (small.state / "tmp").mkdir(exist_ok=True)
    (small.state / "tmp" / "y.tmp").write_bytes(b"123")
    before = sorted(small.state.rglob("*"))
    assert cli.main(["clean", str(small.output), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "1 segments of finished units, " in out
    assert "1 damaged files that were set aside, 5 bytes" in out and "1 temporary files, 3 bytes" in out
    assert sorted(small.state.rglob("*")) == before
    assert cli.main(["clean", str(small.output)]) == 2
    assert "--yes" in capsys.readouterr().err
    assert cli.main(["clean", str(small.output), "--yes"]) == 0
    left = [path.parent.name for path in small.state.rglob("*.seg*")]
    assert left == ["unit-00001"] and not list(small.state.glob("tmp/*"))
    shutil.move(small.folder / "aside", small.output / "part-00001-of-00002.parquet")
    assert small.run() == 0 and small.parts() == parts
    capsys.readouterr()
    assert cli.main(["clean", str(small.output), "--yes"]) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_a_job_that_runs_is_refused(small: Job, capsys: pytest.CaptureFixture[str]) -> None:
    """The claim is of this process; then of one with its number that has ended, as after `kill -9`."""
    assert small.run() == 0
    (small.state / "damaged").mkdir()
    (small.state / "damaged" / "x").write_bytes(b"1")
    claim = Machine().claim("a run")
    (small.state / "claim-1-of-3.json").write_bytes(claim.encoded())
    assert cli.main(["clean", str(small.output), "--yes"]) == 2
    assert f"process {os.getpid()} on {claim.host}" in capsys.readouterr().err
    assert (small.state / "damaged" / "x").exists()
    (small.state / "claim-1-of-3.json").write_bytes(replace(claim, started=claim.started + 1).encoded())
    assert cli.main(["clean", str(small.output), "--yes"]) == 0
    assert not (small.state / "damaged").exists()


def test_rows_that_were_served_again_stay(small: Job) -> None:
    small.input(id=[0], prompt=["long prompt"]).set(input__max_prompt_tokens=4)
    assert small.run() == 3
    small.set(input__max_prompt_tokens=None)
    from rwkv_batch.job.output import commit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commit.JobFiles, "publish", lambda *_: 1 / 0)
        assert small.run("--retry-errors") == 1
    segments = list(small.state.glob("unit-*/*.seg"))
    assert len(segments) == 1
    assert cli.main(["clean", str(small.output), "--yes"]) == 0
    assert list(small.state.glob("unit-*/*.seg")) == segments
    assert small.set(input__max_prompt_tokens=4).run() == 0
