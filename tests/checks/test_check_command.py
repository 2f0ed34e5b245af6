"""The processes of the checks, and the commands that start them: nothing that one process does stops the others."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch

from rwkv_batch import process as process_module
from rwkv_batch.checks import CheckResult, format_table, run_checks, runner
from rwkv_batch.checks.__main__ import main as checks_main
from rwkv_batch.checks.runner import Job, run_jobs
from rwkv_batch.cli import main
from rwkv_batch.cpu_kernels.build import unavailable
from rwkv_batch.errors import ConfigurationError
from rwkv_batch.measure.doctor import check
from rwkv_batch.process import Process

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
LONG = 1e5
"""Seconds that no case takes, however slow the machine is."""


@pytest.fixture
def native() -> None:
    if reason := unavailable():
        pytest.skip(reason)


REFUSED_PACKAGES = [
    *("fsspec", "huggingface_hub", "pyarrow", "pydantic", "pyrwkv_tokenizer"),
    *("tokenizers", "tqdm", "llguidance", "yaml"),
]
"""Packages that a machine with torch, Triton and safetensors may lack. torch brings jinja2 along."""


def job(function: str, device: str = "cpu", time_limit: float = LONG) -> Job:
    return Job(function, "op", "backend", device, time_limit, f"checks.faulty_cases:{function}")


def test_whatever_a_process_does_the_others_go_on(tmp_path: Path) -> None:
    reported: list[CheckResult] = []
    jobs = [job("hang", str(tmp_path / "pid"), 0.0), job("abort"), job("leave"), job("right")]
    results = run_jobs(jobs, 2, reported.append)
    assert [(result.name, result.status) for result in results] == [
        ("hang", "timeout"),
        ("abort", "crashed"),
        ("leave", "failed"),
        ("right", "ok"),
    ]
    hung, aborted, left, right = results
    assert hung.why.startswith("ended after 0 s")
    assert aborted.why == "ended by SIGABRT; the last words"
    assert left.why == "ended with exit code 1; ValueError: of leave"
    assert (right.worst_error, right.limit, right.why) == (0.5, 1.0, "")
    assert {result.name for result in reported} == {result.name for result in results}
    assert [result.is_good for result in results] == [False, False, False, True]


def test_what_a_process_has_started_ends_with_it(tmp_path: Path) -> None:
    numbers, folder = tmp_path / "pid", tmp_path / "work"
    folder.mkdir()
    arguments = {"name": "hang", "backend": "", "device": str(numbers)}
    process = Process("checks.faulty_cases:hang", arguments, math.inf, folder)
    try:
        while not numbers.exists():
            assert process.ended() is None
            sleep(0.01)
    finally:
        process.kill()
    child = int(numbers.read_text())
    while Path(f"/proc/{child}").exists() and " Z " not in Path(f"/proc/{child}/stat").read_text():
        sleep(0.01)
    assert process.ended() is not None


def test_an_interrupt_leaves_no_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[Any] = []
    popen = subprocess.Popen

    def noted(*args: Any, **kwargs: Any) -> Any:
        started.append(popen(*args, **kwargs))
        return started[-1]

    def interrupt(result: CheckResult) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", noted)
    with pytest.raises(KeyboardInterrupt):
        run_jobs([job("hang", str(tmp_path / "pid")), job("right")], 2, interrupt)
    assert [process.returncode for process in started] == [-signal.SIGKILL, 0]


def command(folder: Path, start: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The checks as a user starts them; each of their processes runs the code `start` first."""
    (folder / "sitecustomize.py").write_text(start)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    line = [sys.executable, "-m", "rwkv_batch.checks", *arguments]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def refusing(packages: list[str]) -> str:
    return f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"refused: {{name}}")
sys.meta_path.insert(0, Refuse())
"""


BREAKING = """
import sys
from importlib.machinery import PathFinder
class Break:
    def find_spec(self, name, path=None, target=None):
        if name != "rwkv_batch.cpu_kernels.log_normalizer":
            return None
        spec = PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            right = module.log_normalizer
            module.log_normalizer = lambda logits: right(logits) + 0.01
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, Break())
"""


@pytest.mark.usefixtures("native")
def test_the_command_needs_torch_and_little_else(tmp_path: Path) -> None:
    done = command(tmp_path, refusing(REFUSED_PACKAGES), "--ops", "demo", "top_tokens", "--backends", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 cases: 4 ok" in done.stdout
    assert f"torch            {torch.__version__}" in done.stdout


@pytest.mark.usefixtures("native")
def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    arguments = ("--ops", "log_normalizer", "top_tokens", "--backends", "cpu", "--json", str(tmp_path / "found.json"))
    done = command(tmp_path, BREAKING, *arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    wrong = next(line for line in done.stdout.splitlines() if line.startswith("log_normalizer"))
    assert wrong.split()[:6] == ["log_normalizer", "cpu", "cpu", "wrong", "1.0e-02", "2.0e-06"]
    assert "V=" in wrong and "at most 2e-06" in wrong
    assert "3 cases: 2 ok, 1 wrong" in done.stdout
    assert "wrong" in (tmp_path / "found.json").read_text()


def test_a_table_has_a_line_for_each_case() -> None:
    results = [
        CheckResult("wkv7 bfloat16 state float16", "wkv7", "triton", "cuda:0", "ok", "", 1.2e-4, 2e-3, 8.14),
        CheckResult("sample", "sample", "triton", "cuda:1", "timeout", "ended after 40 s", None, None, 40.2),
    ]
    assert format_table(results).splitlines() == [
        "case                         backend  device  result   error    limit    s     reason",
        "wkv7 bfloat16 state float16  triton   cuda:0  ok       1.2e-04  2.0e-03  8.1",
        "sample                       triton   cuda:1  timeout                    40.2  ended after 40 s",
        "",
        "2 cases: 1 ok, 1 timeout",
    ]
    assert asdict(results[1])["status"] == "timeout"


@pytest.mark.parametrize(("memory", "cores", "right"), [(80, 64, 16), (5, 64, 2), (80, 3, 3), (1, 1, 1)])
def test_as_many_at_once_as_cores_and_free_memory_allow(
    memory: int, cores: int, right: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "usable_cores", lambda: cores)
    answering(f"torch.cuda.mem_get_info = lambda device: ({memory} << 30, 100 << 30)", tmp_path, monkeypatch)
    assert runner.most_at_once([torch.device("cuda", 0), CPU]) == right
    assert not torch.cuda.is_initialized()


def test_a_gpu_that_does_not_say_how_much_memory_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "usable_cores", lambda: 64)
    monkeypatch.setattr(runner, "ASK_SECONDS", 0.0)
    assert runner.most_at_once([torch.device("cuda", 0)]) == runner.AT_ONCE
    assert runner.most_at_once([CPU]) == runner.AT_ONCE


def answering(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of the checks run this code first."""
    (folder / "answers.py").write_text(f"import torch\n{code}\n")
    monkeypatch.syspath_prepend(folder)
    start = process_module._START.replace("from {module}", "import answers; from {module}")
    monkeypatch.setattr(process_module, "_START", start)


def test_what_many_cases_wait_for_is_compiled_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[Job]] = []

    def noted(jobs: Any, at_once: int, say: Any) -> list[CheckResult]:
        ran.append(list(jobs))
        return []

    monkeypatch.setattr(runner, "run_jobs", noted)
    gpus = [torch.device("cuda", index) for index in range(2)]
    run_checks([*gpus, CPU], ops=["wkv7", "linear", "demo"], at_once=5)
    builds, jobs = ran
    assert [(job.name, job.device, job.time_limit) for job in builds] == [
        ("build of native kernels", "cpu", 600),
        ("build of Triton's kernels", "cuda:0", 240),
        ("build of Triton's kernels", "cuda:1", 240),
    ]
    assert [set(job.more["ops"]) for job in builds[1:]] == [{"wkv7", "linear", "demo"}] * 2
    assert len(jobs) > 20
    run_checks(gpus[:1], ["cuda", "reference"], ops=["wkv7"], at_once=5)
    assert ran[2] == []


def test_paths_that_are_no_strings_reach_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])
    (found,) = run_jobs([job("right")], 1, lambda _: None)
    assert found.status == "ok", found


def test_arguments_of_a_job_reach_its_function() -> None:
    (found,) = run_jobs([replace(job("right"), more={"worst_error": 0.25})], 1, lambda _: None)
    assert found.worst_error == 0.25


@pytest.mark.parametrize(("is_right", "code"), [(True, 0), (False, 1)])
def test_the_doctor_checks_when_asked(is_right: bool, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []
    monkeypatch.setattr("rwkv_batch.measure.doctor.check", lambda at_once: asked.append(at_once) or is_right)
    assert main(["doctor"]) == 0
    assert not asked
    assert main(["doctor", "--check"]) == code
    assert main(["doctor", "--check", "--at-once", "3"]) == code
    assert asked == [None, 3]


def test_no_case_at_a_time_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--check", "--at-once", "0"]) == 2
    assert checks_main(["--at-once", "-1"]) == 2
    errors = capsys.readouterr().err
    assert "got 0, expected at least 1" in errors and "got -1, expected at least 1" in errors


def test_names_that_nothing_has_are_errors_before_a_case_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match=r"ops: got 'wkv8', expected some of .*wkv7"):
        run_checks([CPU], ops=["wkv7", "wkv8"])
    with pytest.raises(ConfigurationError, match=r"backends: got 'cpus', expected some of .*cpu"):
        run_checks([CPU], ["cpus"])
    missing = torch.cuda.device_count()
    for option, value, words in (
        ("--devices", "gpu", "got 'gpu', expected a device such as cuda:0"),
        ("--devices", f"cuda:{missing}", f"cuda:{missing} is not there"),
        ("--backends", "cpus", "invalid choice: 'cpus'"),
        ("--json", "/nowhere/found.json", "no folder /nowhere"),
    ):
        with pytest.raises(SystemExit):
            checks_main([option, value])
        assert words in capsys.readouterr().err


def test_a_number_of_cases_without_a_check_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--at-once", "2"]) == 2
    assert "without --check" in capsys.readouterr().err


@pytest.mark.parametrize(("status", "is_right"), [("ok", True), ("refused", False)])
def test_where_everything_is_refused_nothing_was_checked(
    status: str, is_right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = CheckResult("wkv7", "wkv7", "triton", "cpu", status)
    monkeypatch.setattr("rwkv_batch.checks.run_checks", lambda *_, **__: [result])
    assert check() is is_right
