"""The command line: what it prints, what it costs, and that every command leads where it says."""

from __future__ import annotations

import logging
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from job import fake_llm
from rwkv_batch import __version__, cli
from rwkv_batch.cuda_kernels import build
from rwkv_batch.job.report.summary import summarise
from rwkv_batch.measure import doctor

from .conftest import Job


def test_dry_run_shows_everything_and_writes_nothing(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.input(prompt=[None, "line\nbreak"], temperature=[None, 0.5])
    for arguments in (["run", job.write(), "--dry-run"], ["validate", job.write()]):
        assert cli.main(arguments) == 0
        out = capsys.readouterr().out
        for expected in (
            "1 file, 2 rows",
            "prompt: string",
            "sampled as the columns temperature say",
            "2 rows in 1 part\n",
            "completion_tokens: int32",
            "8 slots of 1 KiB",
            "op        wkv7: cpu\n",
            "row 0: the column 'prompt' is null",
            r"row 1     'line\nbreak'",
            "10 tokens: [108, 105,",
        ):
            assert expected in out
    assert fake_llm.LLM.loaded == 0
    assert not job.output.exists() and not job.state.exists()


def test_dry_run_counts_bad_rows(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.input(prompt=[None, "fine", None], temperature=[1.0, 1.0, -1.0])
    assert job.run("--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "errors    2 of the first 3 rows: null_prompt" in lines
    assert "          row 0: the column 'prompt' is null" in lines
    assert "row 1     'fine'" in lines


def test_dry_run_of_a_job_in_which_every_row_is_bad(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.input(prompt=["a", "b"], temperature=[-1.0, -2.0])
    assert job.run("--dry-run") == 3
    assert "errors    2 of the first 2 rows: bad_sampling" in capsys.readouterr().out


def test_dry_run_of_no_rows(job: Job) -> None:
    assert job.input(prompt=pa.array([], pa.string())).run("--dry-run") == 0


def test_dry_run_shows_the_first_tokens_of_a_long_prompt(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.input(prompt=["a" * 1000])
    assert job.run("--dry-run") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "1,000 tokens: [" in line]
    assert line.endswith("] …") and len(line) < 300


def test_dry_run_of_a_shard(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.set(output__rows_per_part=8)
    assert job.run("--dry-run", "--shard", "1/2") == 0
    assert "shard     1/2: 14 rows in 2 parts: 1, 3\n" in capsys.readouterr().out


def test_dry_run_of_a_score_job(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.input(context=["a"], choices=[["x", "y"]])
    assert job.run("--dry-run", "-o", "task=score") == 0
    out = capsys.readouterr().out
    assert "continuation 'y'\n" in out and "          1 token: [97]\n" in out


@pytest.mark.parametrize(
    ("settings", "columns", "expected"),
    [
        ({"add_bos_token": True}, {"context": ["ab"]}, "3 tokens: [0, 97, 98]"),
        ({"prefix": "\n"}, {"context": ["ab"]}, "3 tokens: [10, 97, 98]"),
        ({"prefix": "\n", "add_bos_token": True}, {"context": ["ab"]}, "4 tokens: [0, 10, 97, 98]"),
        ({}, {"context": [""]}, "1 token: [0]"),
        ({"prefix": "\n"}, {"context": [""]}, "1 token: [10]"),
        ({"add_bos_token": True}, {"context": [[5, 6]]}, "3 tokens: [0, 5, 6]"),
        ({"add_bos_token": True}, {"context": [[0, 6]]}, "[0, 6]\n          continuation"),
        ({}, {"text": ["ab"]}, "1 token: [0]"),
        ({"chunk_tokens": 512}, {"text": ["ab"]}, "0 tokens: []"),
        ({"chunk_tokens": 512, "add_bos_token": True}, {"text": ["ab"]}, "1 token: [0]"),
    ],
)
def test_dry_run_shows_the_tokens_that_are_read_before_a_continuation(
    job: Job, capsys: pytest.CaptureFixture[str], settings: Any, columns: Any, expected: str
) -> None:
    job.settings["task"] = "score"
    if "context" in columns:
        columns = {**columns, "continuation": [[7]] if isinstance(columns["context"][0], list) else ["c"]}
    job.settings["score"] = settings
    assert job.input(**columns).run("--dry-run") == 0
    assert expected in capsys.readouterr().out


def test_dry_run_of_an_empty_prompt(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.input(prompt=[""]).run("--dry-run") == 0
    assert "1 token: [0]" in capsys.readouterr().out


def test_score_is_a_run_with_another_task(job: Job) -> None:
    job.input(context=["a"], continuation=["x"])
    assert cli.main(["score", job.write()]) == 0
    assert "logprob" in job.table().column_names


def test_the_speed_of_a_score_job_is_that_of_prompt_and_scored_tokens() -> None:
    run = {"completion_tokens": 0, "scored_tokens": 250}
    runs = [{**run, "prompt_tokens": 3000}, {**run, "prompt_tokens": 1000}]
    counts: Any = {name: {} for name in ("rows", "tokens", "scores", "damaged", "errors", "error_rows")}
    steps = {
        "utilisation": {"slots": 0.5, "step_tokens": 0.5},
        "prefixes": {"tokens_requested": 0, "tokens_computed": 0},
    }
    parts = {"parts": {"published": 1, "planned": 1}, "output": "out", "complete": True, "task": "score"}
    lines = summarise({**counts, **steps, **parts, "runs": runs, "serving_seconds": 2.0})
    assert "speed   2,000 prompt tokens/s and 250 scored tokens/s in 2 s of serving" in lines


def test_a_finished_run_says_where_to_look(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", job.write()]) == 0
    out = capsys.readouterr().out
    assert f"{job.output}: 3 of 3 parts, 30 rows" in out
    assert "rows    ok 30" in out and "completion tokens/s" in out
    assert f"report  {job.state}/report.html" in out


@pytest.mark.parametrize("state", [None, "my states/one"])
def test_the_command_that_a_finished_run_prints_works(
    job: Job, capsys: pytest.CaptureFixture[str], state: str | None
) -> None:
    job.set(output__path=str(job.folder / "my results"))
    job.set(run__state_dir=None if state is None else str(job.folder / state))
    assert job.run() == 0
    program, *arguments = shlex.split(capsys.readouterr().out.split("look ")[1])
    assert program == "rwkv-batch" and cli.main(arguments) == 0
    assert capsys.readouterr().out.count("prompt: ") == 3


def test_an_empty_job_has_no_rows(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.input(prompt=pa.array([], pa.string())).run() == 0
    assert "rows    0\n" in capsys.readouterr().out


def test_verbose_is_about_this_package(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", logging.WARNING)
    assert job.run("--verbose", "--dry-run") == 0
    assert logging.getLogger("rwkv_batch.job.input").isEnabledFor(logging.DEBUG)
    assert not logging.getLogger("urllib3").isEnabledFor(logging.DEBUG)
    assert job.run("--dry-run") == 0
    assert not logging.getLogger("rwkv_batch.job.input").isEnabledFor(logging.DEBUG)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        *([name, "--help"] for name in ("export", "inspect", "schema")),
        ["completion", "bash"],
    ],
)
def test_help_is_cheap(arguments: list[str]) -> None:
    heavy = ("torch", "pyarrow", "numpy", "pydantic", "yaml")
    code = (
        "import sys\nfrom rwkv_batch import cli\n"
        f"try: assert cli.main({arguments!r}) == 0\nexcept SystemExit as end: assert end.code == 0\n"
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


def test_convert_and_bench_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    converter = types.ModuleType("rwkv_batch.models.files.convert")
    converter.convert = lambda *args, **kwargs: calls.append((args, kwargs))  # type: ignore[attr-defined]
    bench = types.ModuleType("rwkv_batch.measure.bench")
    bench.main = lambda arguments: calls.append(arguments) or 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rwkv_batch.models.files.convert", converter)
    monkeypatch.setitem(sys.modules, "rwkv_batch.measure.bench", bench)
    assert cli.main(["convert", "a.pth", "b.safetensors", "--quantization", "int8"]) == 0
    assert cli.main(["bench", "--rows", "3"]) == 7
    assert calls == [(("a.pth", "b.safetensors"), {"quantization": "int8"}), ["--rows", "3"]]


def test_without_a_command_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "run a job, or what is left of it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("rnu", " or lm-eval (did you mean 'run'?)"),
        ("jobs/demo.yaml", "; to run a job: rwkv-batch run jobs/demo.yaml"),
        ("xyz", " or lm-eval"),
    ],
)
def test_an_unknown_command(capsys: pytest.CaptureFixture[str], given: str, hint: str) -> None:
    assert cli.main([given]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"rwkv-batch: got '{given}', expected a command: run, validate, ")
    assert err.endswith(f"{hint}\n")


def test_the_known_commands_are_those_of_the_parser() -> None:
    parser = next(action for action in cli._parser()._actions if action.choices)
    assert tuple(parser.choices or ()) == cli.COMMANDS


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("rwkv_batch", "torch", "cuda", "g++", "nvcc", "memory", "demo model"))
    assert all(finding for _, finding in doctor.findings())
    assert re.search(r"^huggingface_hub  \S", out, re.MULTILINE)


def test_doctor_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With whatever is at hand: a build without nvcc says so, one with it leaves cubins behind."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(build, "specializations", lambda: [build.Specialization("wkv4", ("DTYPE=bf16",))])
    monkeypatch.setattr(doctor, "CUDA_TARGETS", ("sm_90",))
    if build.nvcc():
        assert cli.main(["doctor", "--build"]) == 0
        folder = tmp_path / ".cache" / "rwkv_batch" / "cuda_kernels"
        assert f"built for sm_90, in {folder}" in capsys.readouterr().out
        assert len(list(folder.glob("wkv4-sm_90-*-nvcc-*.cubin"))) == 1
    monkeypatch.setattr(build, "nvcc", lambda: None)
    assert cli.main(["doctor", "--build"]) == 2
    assert "no nvcc on this machine: put the CUDA toolkit's bin folder on PATH" in capsys.readouterr().err


def test_doctor_on_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program beside the interpreter is found, also if it is not on the path. This one prints no version."""
    (tmp_path / "silent").write_text("#!/bin/sh\n")
    (tmp_path / "silent").chmod(0o755)
    assert doctor._first_line("silent") == "not found"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert doctor._first_line("silent") == f"{tmp_path}/silent: prints no version"
