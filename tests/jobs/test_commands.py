"""The command line: what it prints, what it costs, and that every command leads where it says."""

from __future__ import annotations

import subprocess
import sys
import types
from typing import Any

import fake_llm
import pytest

from rwkv_batch import __version__, cli, doctor

from .conftest import Job


def test_dry_run_shows_everything_and_writes_nothing(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.input(prompt=[None, "line\nbreak"], temperature=[None, 0.5])
    for arguments in (["run", job.write(), "--dry-run"], ["validate", job.write()]):
        assert cli.main(arguments) == 0
        out = capsys.readouterr().out
        for expected in (
            "1 files, 2 rows",
            "prompt: string",
            "sampled as the columns temperature say",
            "2 rows in 1 parts",
            "completion_tokens: int32",
            "8 slots of 1 KiB",
            "row 0     error null_prompt",
            r"row 1     'line\nbreak'",
            "10 tokens: [108, 105,",
        ):
            assert expected in out
    assert fake_llm.LLM.loaded == 0
    assert not job.output.exists() and not job.state.exists()


def test_dry_run_of_a_score_job(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.input(context=["a"], choices=[["x", "y"]])
    assert job.run("--dry-run", "-o", "task=score") == 0
    assert "continuation 'y'" in capsys.readouterr().out


def test_score_is_a_run_with_another_task(job: Job) -> None:
    job.input(context=["a"], continuation=["x"])
    assert cli.main(["score", job.write()]) == 0
    assert "logprob" in job.table().column_names


def test_a_finished_run_says_where_to_look(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", job.write()]) == 0
    out = capsys.readouterr().out
    assert f"{job.output}: 3 of 3 parts, 30 rows" in out
    assert "rows    ok 30" in out and "completion tokens/s" in out
    assert f"report  {job.state}/report.html" in out
    assert "rwkv-batch report" in out


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"]])
def test_help_is_cheap(arguments: list[str]) -> None:
    heavy = ("torch", "pyarrow", "numpy", "pydantic", "yaml")
    code = (
        "import sys\nfrom rwkv_batch import cli\n"
        f"try: cli.main({arguments!r})\nexcept SystemExit as end: assert end.code == 0\n"
        f"assert not set({heavy!r}) & set(sys.modules), 'a heavy package was imported'"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_python_m_run_is_cheap_too() -> None:
    code = "import sys, rwkv_batch.run; assert not {'torch', 'pyarrow', 'pydantic'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == f"rwkv_batch {__version__}"


def test_no_command_is_a_usage_error() -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 2


def test_convert_and_bench_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    converter = types.ModuleType("rwkv_batch.models.convert")
    converter.convert = lambda *args, **kwargs: calls.append((args, kwargs))  # type: ignore[attr-defined]
    bench = types.ModuleType("rwkv_batch.bench")
    bench.main = lambda arguments: calls.append(arguments) or 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rwkv_batch.models.convert", converter)
    monkeypatch.setitem(sys.modules, "rwkv_batch.bench", bench)
    assert cli.main(["convert", "a.pth", "b.safetensors", "--quantization", "int8"]) == 0
    assert cli.main(["bench", "--rows", "3"]) == 7
    assert calls == [(("a.pth", "b.safetensors"), {"quantization": "int8"}), ["--rows", "3"]]


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("rwkv_batch", "torch", "cuda", "g++", "nvcc", "memory", "demo model"))
    assert all(finding for _, finding in doctor.findings())
