"""A reason from the settings is told apart from a compiler's failure."""

from __future__ import annotations

import itertools
from importlib import import_module
from pathlib import Path

import claimed_gpu
import pytest
import torch
from kernels.kernel_cases import every_pair

from rwkv_batch import ops
from rwkv_batch.cuda_kernels import launch as cuda_launch

GPU = torch.device("cuda")
MODULES = [
    f"{ops._PACKAGES[backend]}.{path.stem}"
    for backend in ("triton", "cuda")
    for path in sorted((Path(ops.__file__).parent / f"{backend}_kernels").glob("*.py"))
    if "\nunsupported_reason = " in path.read_text()
]


@pytest.fixture
def broken_compilers(monkeypatch):
    """A claimed GPU, for which no compiler works."""
    probe = pytest.importorskip("rwkv_batch.triton_kernels.probe")
    monkeypatch.setattr(probe.launch, "is_interpreted", lambda: False)
    monkeypatch.setattr(probe, "failure", lambda op, device: "does not compile")
    monkeypatch.setattr(cuda_launch, "unavailable", lambda: "no compiler")
    for name, answer in claimed_gpu.ANSWERS.items():
        monkeypatch.setattr(torch.cuda, name, answer)


def test_both_packages_have_such_modules():
    assert len(MODULES) > 15


@pytest.mark.parametrize("name", MODULES)
def test_settings_are_asked_without_a_compiler(name, broken_compilers):
    unsupported_reason = import_module(name).unsupported_reason
    sizes = {"N": 64, "V": 65536}
    assert unsupported_reason(GPU, torch.bfloat16, sizes) in ("does not compile", "no compiler")
    assert unsupported_reason.settings(GPU, torch.bfloat16, sizes, torch.float32) is None
    for refused in ((GPU, torch.float64, sizes, torch.float32), (torch.device("xpu"), torch.bfloat16, sizes)):
        assert unsupported_reason.settings(*refused) == unsupported_reason(*refused)
        assert unsupported_reason(*refused).startswith(("no kernel for torch.float64", "runs on a CUDA"))


@pytest.mark.parametrize(
    ("op", "sizes"), [("triton.wkv7", {"N": 48}), ("cuda.wkv7", {"N": 48}), ("triton.sample", {"V": 1 << 30})]
)
def test_sizes_are_settings(op, sizes, broken_compilers):
    backend, _, name = op.partition(".")
    unsupported_reason = import_module(f"{ops._PACKAGES[backend]}.{name}").unsupported_reason
    reason = unsupported_reason.settings(GPU, torch.bfloat16, sizes, torch.float32)
    assert reason and str(*sizes.values()) in reason


def test_every_pair_meets_in_the_gate():
    axes = ("abc", "defgh", "xyz")
    every = every_pair(*axes)
    kept = [parameters.values for parameters in every if not parameters.marks]
    found = {pair for values in kept for pair in itertools.combinations(values, 2)}
    assert found == {pair for two in itertools.combinations(axes, 2) for pair in itertools.product(*two)}
    assert len(every) == 45 == 3 * len(kept)
