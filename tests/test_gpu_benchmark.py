"""The GPU benchmark rehearses on a CPU, goes on where it stopped, and knows its limits. Speed is never asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # benchmarks are not installed

from benchmarks.gpu import _is_good  # noqa: E402
from benchmarks.gpu_parts.profile import _busy  # noqa: E402
from benchmarks.gpu_parts.random_model import random_checkpoint  # noqa: E402
from benchmarks.gpu_parts.record import DONE, FAILED, UNFINISHED, DeviceLost, Record, read  # noqa: E402
from benchmarks.roofline import MODELS, Card, Sizes, decode_seconds, max_batch, prefill_seconds  # noqa: E402
from rwkv_batch.models.model import ModelFile  # noqa: E402

CHEAP = ("limits", "kernels", "int8", "streaming", "job")
ABOUT = {"card": "a card", "rwkv_batch": "abc", "rehearsal": True}


def rehearse(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments, "--rehearse", "--out", str(out)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)


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


def test_an_unknown_part_is_refused(tmp_path):
    done = rehearse(tmp_path, "decoding")
    assert done.returncode == 2
    assert "no part 'decoding'" in done.stderr


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
    assert points.measure("bad", lambda: {}["missing"]) is None
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
    def part(name: str, status: str, failed: tuple[str, ...] = (), **point: object) -> dict:
        return {"part": name, "status": status, "points": {"a": point}, "failed": dict.fromkeys(failed, "why")}

    assert _is_good(part("job", DONE, ok=True))
    assert _is_good(part("peers", UNFINISHED, failed=("one",), seconds=1.0))
    assert not _is_good(part("correctness", DONE, failed=("one",), ok=True))
    assert not _is_good(part("correctness", DONE, ok=False))
    assert not _is_good(part("decode", FAILED, seconds=1.0))
    assert not _is_good(None)


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
