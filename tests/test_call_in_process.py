"""Calls in another process: a dry run asks GPUs there, so that CUDA is not initialized in its own process."""

from __future__ import annotations

import os
import re
from importlib import import_module
from pathlib import Path

import claimed_gpu
import pytest
import torch

from rwkv_batch import cli, process
from rwkv_batch.errors import CapacityError
from rwkv_batch.model_summary import inspect_model
from rwkv_batch.models.placement import place
from rwkv_batch.process import call_in_process
from rwkv_batch.settings import EngineSettings

CLAIM = "import claimed_gpu; claimed_gpu.claim(); from {module}"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home folder for compiled kernels, which all tests share."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def untouchable_gpu(monkeypatch, home):
    """A torch for CUDA in which every call to a GPU fails. Other processes claim that there is a GPU."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("this process asked for a GPU")

    names = [*claimed_gpu.ANSWERS, "_lazy_init", "init", "device", "synchronize", "current_stream", "empty_cache"]
    for name in names:
        monkeypatch.setattr(torch.cuda, name, refuse)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # it initializes nothing
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(process, "_START", process._START.replace("from {module}", CLAIM))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("HOME", str(home))


JOB = """
model: {path: demo}
engine: {device: DEVICE}
input: {path: prompts.jsonl}
output: {path: out}
"""


@pytest.mark.parametrize(("command", "device"), [(["validate"], "cuda:0"), (["run", "--dry-run"], "auto")])
def test_a_dry_run_shows_what_a_gpu_would_do_without_initializing_it(
    command, device, untouchable_gpu, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(JOB.replace("DEVICE", device))
    Path("prompts.jsonl").write_text('{"prompt": "The"}\n')
    assert cli.main([*command, "job.yaml"]) == 0
    out = capsys.readouterr().out
    assert "of 70.00 GiB available" in out
    # No kernel can be launched on a GPU that is not there.
    assert re.search(r"^op        wkv7: reference \(cuda: .* · triton: Triton", out, re.MULTILINE)
    assert "cannot launch kernels here" in out


def test_an_error_in_the_other_process_is_raised_in_this_one(untouchable_gpu):
    with pytest.raises(CapacityError, match=r"cuda:3 is not there; this torch .* sees 1 CUDA devices"):
        inspect_model(engine=EngineSettings(device="cuda:3"), apart=True)


def test_on_a_cpu_no_process_is_started(untouchable_gpu, monkeypatch):
    monkeypatch.setattr("rwkv_batch.model_summary.call_in_process", None)
    summary = inspect_model(engine=EngineSettings(device="cpu", backend="reference"), apart=True)
    assert summary.placement.device.type == "cpu"


def test_a_function_is_called_where_modules_are_found_as_here(tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("import os\ndef whose(number): return os.getpid(), number + 1")
    monkeypatch.syspath_prepend(tmp_path)
    pid, number = call_in_process(import_module("only_here").whose, number=2)
    assert number == 3
    assert pid != os.getpid()


def test_a_process_that_ends_without_an_answer_is_an_error_with_its_last_line(monkeypatch):
    monkeypatch.setattr(process, "_START", "import sys; sys.exit('out of luck')")
    with pytest.raises(RuntimeError, match="place: its process ended with code 1: out of luck"):
        call_in_process(place, device="cpu")
