"""The command `report`, and a job file in place of a job's folder."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from job.conftest import Job

from rwkv_batch import cli
from rwkv_batch.job.output.storage import LocalStorage


def test_report_as_json_is_the_file_and_nothing_else(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.run() == 0
    (job.state / "report.json").unlink()
    capsys.readouterr()
    assert cli.main(["report", str(job.output), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["parts"] == {"published": 3, "planned": 3} and err == ""
    assert out == (job.state / "report.json").read_text() + "\n"
    assert cli.main(["report", str(job.output), "--json", "--show", "1"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "--show: got it with --json" in err


def test_a_report_that_cannot_be_written_is_printed(
    job: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> bool:
        raise OSError(28, "No space left on device")

    assert job.run() == 0
    monkeypatch.setattr(LocalStorage, "atomic_write", fail)
    capsys.readouterr()
    assert cli.main(["report", str(job.output), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["complete"] and "were not written: [Errno 28] No space left on device" in err


def test_warnings_are_in_the_summary_of_a_run_and_of_the_command(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    """A third of the rows are errors."""
    job.input(prompt=["a", None, "b"] * 4)
    assert job.run() == 3
    of_run = capsys.readouterr().out
    assert cli.main(["report", str(job.output)]) == 0
    for text in (of_run, capsys.readouterr().out):
        (line,) = [line for line in text.splitlines() if line.startswith("warning ")]
        assert line.startswith("warning 33 % of the rows are errors, most of them null_prompt.")
        warning = re.split("^(?! )", text.split("warning ")[1], flags=re.MULTILINE)[1]
        assert "--retry-errors serves these rows again." in " ".join(warning.split())
        assert all(len(line) <= 110 for line in warning.splitlines()) and len(warning.splitlines()) > 1


def test_a_job_file_stands_for_its_output(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    """For every command that takes a job's folder, also where the state folder lies elsewhere."""
    for state in (None, str(job.folder / "elsewhere")):
        job.set(output__path=str(job.folder / f"out-{state is None}"), run__state_dir=state)
        assert job.run() == 0
        file, folder = str(job.file), state or str(job.output)
        for command in ("report", "status", "clean", "export", "compare"):
            others = {
                "clean": ["--dry-run"],
                "export": [str(job.folder / "all.jsonl"), "--overwrite"],
                "compare": [folder],
            }.get(command, [])
            texts = []
            for path in (file, folder):
                capsys.readouterr()
                assert cli.main([command, path, *others]) == 0
                texts.append(capsys.readouterr().out)
            assert texts[0] == texts[1] and texts[0], command


def test_a_job_file_of_a_job_that_has_not_run(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", job.write()]) == 2
    err = capsys.readouterr().err
    assert f"{job.file}: this job has not run yet ({job.state}/job.json is missing)" in err
    assert "run it first" in err


def test_a_job_file_that_is_wrong_says_what_is(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.set(sampling__max_tokenz=3)
    assert cli.main(["report", job.write()]) == 2
    assert "sampling.max_tokenz: unknown key (did you mean 'max_tokens'?)" in capsys.readouterr().err
    (job.folder / "notes.txt").write_text("a text")
    assert cli.main(["report", str(job.folder / "notes.txt")]) == 2
    assert "expected a mapping with task, model" in capsys.readouterr().err


def test_a_fast_command_says_what_it_reads_on_a_terminal_only(
    job: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert job.run() == 0
    capsys.readouterr()
    assert cli.main(["report", str(job.output)]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert cli.main(["report", str(job.output)]) == 0
    assert capsys.readouterr().err == f"rwkv-batch report: loading libraries, and reading {job.output}\n"


def test_a_folder_that_is_no_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "or the job file (job.json is missing" in capsys.readouterr().err
