"""The GPU benchmark rehearses on a CPU, goes on where it stopped, and knows its limits. Speed is never asserted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import is_good, main
from benchmarks.gpu_parts.device import compiler_facts
from benchmarks.gpu_parts.plan import PLANS, Stage
from benchmarks.gpu_parts.profile import _busy, _long_gaps
from benchmarks.gpu_parts.random_model import random_checkpoint
from benchmarks.gpu_parts.record import DONE, FAILED, LEFT_OUT, UNFINISHED, DeviceLost, Record, read
from benchmarks.gpu_parts.task import Task
from benchmarks.roofline import MODELS, Card, Sizes, decode_seconds, max_batch, prefill_seconds
from rwkv_batch.models.model import ModelFile

ROOT = Path(__file__).parents[2]

CHEAP = ("kernels", "int8", "streaming", "job")
PLANNED = {
    "first": ("smoke", "limits", "correctness", "engine-equal", "sanitizer"),
    "second": ("smoke", "limits", "decode", "serving", "prefill", "profile"),
}
REFUSED = (
    "pydantic pydantic_core pyarrow pyrwkv_tokenizer tokenizers yaml tqdm safetensors llguidance huggingface_hub "
    "transformers ninja psutil pandas pytest"
)
"""Packages of the project and of its tests that an image with torch and triton may lack."""
ABOUT = {"card": "a card", "rwkv_batch": "abc", "rehearsal": True}


def rehearse(out: Path, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments, "--rehearse", "--out", str(out)]
    environment = dict(os.environ)
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(path), *filter(None, [environment.get("PYTHONPATH")])])
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def refusing(tmp_path) -> Path:
    """Makes a folder for PYTHONPATH that hides the packages of REFUSED."""
    (tmp_path / "refusing").mkdir()
    (tmp_path / "refusing" / "sitecustomize.py").write_text(
        f"""
import sys
from importlib.machinery import PathFinder

class Refusing(PathFinder):
    @classmethod
    def find_spec(cls, name, *where):
        return None if name.partition(".")[0] in {REFUSED.split()} else PathFinder.find_spec(name, *where)

sys.meta_path[sys.meta_path.index(PathFinder)] = Refusing
"""
    )
    return tmp_path / "refusing"


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_both_plans_run_with_torch_and_triton_alone(tmp_path, refusing):
    """The second one goes on in the folder of the first one: parts that are done are not repeated."""
    pytest.importorskip("triton")
    parts: set[str] = set()
    for plan, planned in PLANNED.items():
        packed = tmp_path / "kept" / f"{plan}.tar.gz"
        processes = ["--processes", "3"] if plan == "first" else []  # `second` would compile beforehand
        done = rehearse(tmp_path / "results", "--plan", plan, "--tar", str(packed), *processes, path=refusing)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr.count("done before") == len(parts & {*planned})
        parts |= {*planned}
        with tarfile.open(packed) as archive:
            found = {Path(name).stem: json.load(archive.extractfile(name)) for name in archive.getnames()}
        assert found.keys() == parts
        for name, part in found.items():
            assert (part["part"], part["status"], part["failed"], part["left_out"]) == (name, DONE, {}, []), part
            assert part["points"] or name == "sanitizer"


def test_compiling_beforehand_keeps_no_results(tmp_path):
    pytest.importorskip("triton")
    done = rehearse(tmp_path, "streaming", "--processes", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "streaming (compiling): " in done.stderr
    assert [path.name for path in tmp_path.rglob("*.json")] == ["streaming.json"]
    assert len(list(tmp_path.glob("shares/streaming-*.log"))) == 2


def test_a_part_whose_packages_are_missing_is_left_out_with_the_reason(tmp_path, refusing):
    done = rehearse(tmp_path / "results", "job", path=refusing)
    assert done.returncode == 0
    found = read(tmp_path / "results" / "job.json")
    assert (found["status"], found["points"]) == (UNFINISHED, {})
    assert "No module named 'pydantic'" in found["why"]
    assert found["why"] in done.stdout


@pytest.mark.soak
def test_a_rehearsal_measures_every_point_and_is_not_repeated(tmp_path):
    pytest.importorskip("triton")
    done = rehearse(tmp_path, *CHEAP)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in CHEAP:
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert (found["status"], found["failed"], found["left_out"]) == (DONE, {}, []), found
        assert found["points"]
        assert {"torch", "triton", "rwkv_batch", "card", "cpu"} <= found["about"].keys()
    summary = done.stdout.partition("\npart ")[2].splitlines()[1:]
    assert [line.split()[:2] for line in summary[: len(CHEAP)]] == [[name, DONE] for name in CHEAP]
    again = rehearse(tmp_path, *CHEAP)
    assert again.stderr.count("done before") == len(CHEAP)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["decoding"], "no part 'decoding'"),
        (["decode", "--models", "1B"], "no model '1B'"),
        (["decode", "--plan", "first"], "give one of both"),
        (["decode", "--compiled", "there/is/none"], "no such folder"),
    ],
)
def test_what_is_unknown_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


@pytest.fixture
def sigterm():
    """The handler is put back: `main` installs its own."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_command_that_is_told_to_end_ends_its_processes_and_keeps_what_there_is(tmp_path, monkeypatch, sigterm):
    """The tar file is renewed while parts run, also with results of shares."""
    packed, ended = tmp_path / "kept.tar.gz", []

    def run_stage(stage: Stage, tasks: Sequence[Task], num_processes: int, say: object, meanwhile: Callable) -> None:
        own = replace(tasks[0], share=(1, 3)).path
        record(own).measure("point", lambda: {"value": 1})
        clock.now += gpu.PACK_SECONDS
        meanwhile()
        with tarfile.open(packed) as archive:
            assert [Path(name).name for name in archive.getnames()] == [own.name]
        record(tasks[0].path).measure("other", lambda: {"value": 2})
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            ended.append(stage.parts)

    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(gpu, "monotonic", lambda: clock.now)
    monkeypatch.setattr(gpu, "run_stage", run_stage)
    with pytest.raises(SystemExit):
        main(["correctness", "limits", "--rehearse", "--out", str(tmp_path / "out"), "--tar", str(packed)])
    assert ended == [("correctness",)]
    with tarfile.open(packed) as archive:
        assert {Path(name).name for name in archive.getnames()} == {"correctness.json", "correctness-1-of-3.json"}


def test_checks_for_which_no_time_is_left_are_not_good(tmp_path, monkeypatch, sigterm, capsys):
    clock = SimpleNamespace(now=0.0)

    def run_stage(stage: Stage, tasks: Sequence[Task], *_: object) -> None:
        record(tasks[0].path).write(DONE)
        clock.now = gpu.UNHURRIED - 1

    monkeypatch.setattr(gpu, "monotonic", lambda: clock.now)
    monkeypatch.setattr(gpu, "run_stage", run_stage)
    arguments = ["limits", "correctness", "--rehearse", "--out", str(tmp_path), "--minutes", str(gpu.UNHURRIED / 60)]
    assert main(arguments) == 1
    assert "correctness: not started, no time is left" in capsys.readouterr().err


def test_compiling_takes_no_time_that_is_for_measuring(tmp_path, monkeypatch, sigterm):
    ends = []

    def run_stage(stage: Stage, tasks: Sequence[Task], *_: object) -> None:
        ends.append((stage.is_dry, tasks[0].end, tasks[0].is_brief))
        record(tasks[0].path, rehearsal=False).write(DONE)

    monkeypatch.setattr(gpu, "monotonic", lambda: 0.0)
    monkeypatch.setattr(gpu, "run_stage", run_stage)
    main(["--plan", "second", "--out", str(tmp_path)])
    before = next(i for i, stage in enumerate(PLANS["second"]) if stage.is_dry)
    assert ends[before] == (True, PLANS["second"][before].seconds, True)
    assert ends[-1][1] == sum(stage.seconds for stage in PLANS["second"])


def test_limits_say_what_compiled_kernels_are_found_by(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_F32_DEFAULT", "ieee")
    found = compiler_facts()
    assert len(found["triton_key"]) == 64
    assert found["triton_variables"]["TRITON_F32_DEFAULT"] == "ieee"


def record(path: Path, seconds: float = 60.0, **about: object) -> Record:
    return Record(path, ABOUT | about, seconds, read(path), lambda what: None)


def test_points_are_kept_for_the_same_card_and_commit(tmp_path):
    path = tmp_path / "part.json"
    first = record(path)
    assert first.measure("a", lambda: {"value": 1})["value"] == 1
    assert read(path)["status"] == UNFINISHED
    second = record(path)
    assert second.measure("a", lambda: {"value": 2})["value"] == 1
    assert second.measure("b", lambda: {"value": 3})["value"] == 3
    other = record(path, rwkv_batch="def")
    assert other.measure("a", lambda: {"value": 4})["value"] == 4
    assert "b" not in other.points


def test_a_point_that_fails_is_named_and_the_others_go_on(tmp_path):
    path = tmp_path / "part.json"
    points = record(path)
    assert points.measure("bad", lambda: dict[str, Any]()["missing"]) is None
    assert points.measure("good", lambda: {"value": 1}) is not None
    points.write(DONE)
    found = read(path)
    assert found["failed"] == {"bad": "KeyError: 'missing'"}
    assert "good" in found["points"]


def test_a_lost_device_ends_the_part(tmp_path):
    def lost() -> dict:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(DeviceLost, match="illegal memory access"):
        record(tmp_path / "part.json").measure("point", lost)


def test_another_process_leaves_out_what_ended_the_one_before(tmp_path):
    path = tmp_path / "part.json"

    def killed() -> dict:
        raise KeyboardInterrupt

    points = record(path)
    points.measure("before", lambda: {"value": 1})
    with pytest.raises(KeyboardInterrupt):
        points.measure("deadly", killed)
    assert read(path)["current"] == "deadly"
    other = Record(path, ABOUT, 60, read(path), lambda what: None, goes_on=True)
    assert other.measure("deadly", lambda: {"value": 2}) is None
    assert other.measure("after", lambda: {"value": 3}) is not None
    assert other.points.keys() == {"before", "after"}
    assert other.failed.keys() == {"deadly"}


def test_points_that_would_start_too_late_are_left_out(tmp_path):
    points = record(tmp_path / "part.json")
    with points.box(-1):
        assert points.measure("late", lambda: {"value": 1}) is None
    assert points.measure("in time", lambda: {"value": 1}) is not None
    assert points.left_out == ["late"]


def test_a_red_check_and_a_failed_part_are_not_good():
    def part(name: str, status: str, failed: tuple[str, ...] = (), why: str = "", **point: object) -> dict:
        points = {"a": point} if point else {}
        return {"part": name, "status": status, "why": why, "points": points, "failed": dict.fromkeys(failed, "why")}

    assert is_good(part("job", DONE, ok=True))
    assert is_good(part("peers", UNFINISHED, failed=("one",), seconds=1.0))
    assert not is_good(part("correctness", DONE, failed=("one",), ok=True))
    assert not is_good(part("correctness", DONE, ok=False))
    assert not is_good(part("correctness", UNFINISHED, why="no time was left", ok=True))
    assert is_good(part("correctness", UNFINISHED, why=f"{LEFT_OUT}no module"))
    assert is_good(part("decode", UNFINISHED, why="no time was left", seconds=1.0))
    assert not is_good(part("decode", FAILED, seconds=1.0))
    assert not is_good(None)


@pytest.mark.parametrize(
    ("model", "B", "state_number", "tokens_per_second"),
    [("0.1B", 256, 4, 450_300), ("0.1B", 1024, 2, 826_800), ("1.5B", 256, 4, 90_400), ("7.2B", 1, 4, 287)],
)
def test_the_decode_limit_is_the_one_that_was_derived(model, B, state_number, tokens_per_second):
    assert B / decode_seconds(MODELS[model], B, Card(), state_number) == pytest.approx(tokens_per_second, rel=2e-3)


def test_limits_of_prompts_and_memory():
    sizes = MODELS["1.5B"]
    assert 8192 / prefill_seconds(sizes, 1, 8192, Card()) == pytest.approx(90_000, rel=2e-3)
    assert 8192 / prefill_seconds(sizes, 64, 128, Card()) == pytest.approx(171_000, rel=2e-3)
    assert max_batch(MODELS["7.2B"], Card()) == pytest.approx(3500, rel=0.02)
    assert max_batch(MODELS["7.2B"], Card(), 2) == pytest.approx(6700, rel=0.02)


def test_a_random_checkpoint_is_rwkv7_and_always_the_same():
    sizes = Sizes(L=2, C=64, F=128, V=97, N=32)
    checkpoint = random_checkpoint(sizes, torch.device("cpu"))
    file = ModelFile.open(checkpoint)
    assert file.architecture.name == "rwkv7"
    assert {letter: file.sizes[letter] for letter in "LCFVHN"} == dict(L=2, C=64, F=128, V=97, H=2, N=32)
    name = "blocks.1.att.key.weight"
    assert torch.equal(checkpoint.tensor(name), random_checkpoint(sizes, torch.device("cpu")).tensor(name))
    assert checkpoint.tensor(name).float().std().item() == pytest.approx(64**-0.5, rel=0.1)


def test_overlapping_kernels_count_once():
    assert _busy([(5.0, 7.0), (0.0, 4.0), (1.0, 3.0), (3.5, 4.5)]) == (6.5, 7.0)
    assert _busy([]) == (0.0, 0.0)


def test_gaps_are_named_by_the_kernel_that_ends_them():
    def event(name: str, start: float, end: float) -> SimpleNamespace:
        return SimpleNamespace(name=name, time_range=SimpleNamespace(start=start, end=end))

    # b runs beneath a; c waits 20 us after a, d 5 us, which is no gap, and the second c 40 us.
    events = [event("c", 120, 130), event("a", 0, 100), event("b", 10, 50), event("d", 135, 140), event("c", 180, 190)]
    assert _long_gaps(events, 2) == {"c": {"per_step": 1.0, "microseconds_per_step": 30.0}}
    assert _long_gaps([], 2) == {}
