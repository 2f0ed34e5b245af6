"""What a terminal gets: control characters of ids, texts and names are shown, and do nothing."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from job.conftest import Job
from rwkv_batch.cli import main
from rwkv_batch.job.messages import printable

RED = "\x1b[31mred\r\x07\x9b1m\u202eabc"
SHOWN = "\\x1b[31mred\\r\\x07\\x9b1m\\u202eabc"


def test_control_characters_are_escaped() -> None:
    assert printable(RED) == SHOWN
    assert printable("\ud800\x00\x7f") == "\\ud800\\x00\\x7f"
    plain = "a\tb\n  é 漢 👩‍👩‍👧 שלום"
    assert printable(plain) == plain


def test_report_show_and_dry_run(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    columns: Any = {"id": [RED], "prompt": [RED], RED: ["x"]}
    job.input(**columns)
    assert job.run("--dry-run") == 0
    assert f"{SHOWN}: string" in capsys.readouterr().out
    assert job.run() == 0
    capsys.readouterr()
    assert main(["report", str(job.output), "--show", "1"]) == 0
    shown = capsys.readouterr().out
    assert f"id: {SHOWN}" in shown and f"{SHOWN}: x" in shown
    assert "\x1b" not in shown and "\r" not in shown


def test_errors_and_log_lines(job: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    columns: Any = {RED: ["x"]}
    job.input(**columns).set(input__columns={"prompt": RED}, output__input_columns=["\x1b"])
    assert job.run("-o", "sampling.temperature=x\x1b") == 2
    job.input(prompt=["x"]).set(input__path=f"{job.folder}/\x1b.parquet")
    assert job.run() == 2
    logging.getLogger("rwkv_batch").warning("row %s", RED)
    errors = capsys.readouterr().err
    assert f"row {SHOWN}" in errors and "\x1b" not in errors
