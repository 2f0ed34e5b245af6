"""What the kernel modules say that they launch, from which compilers are judged."""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("triton")

KERNELS = Path(__file__).parents[2] / "triton_kernels"
MODULES = sorted(path.stem for path in KERNELS.glob("*.py") if "def specializations(" in path.read_text())


def specializations(module):
    return import_module(f"rwkv_batch.triton_kernels.{module}").specializations()


@pytest.mark.parametrize("module", MODULES)
def test_each_argument_of_a_kernel_is_named_once(module):
    for spec in specializations(module):
        assert Counter([*spec.signature, *spec.constexprs]) == Counter(spec.kernel.arg_names), spec.label


@pytest.mark.parametrize("module", MODULES)
def test_each_kernel_of_a_module_has_one_specialization_that_probes_a_compiler(module):
    specs = specializations(module)
    probes = Counter(spec.kernel.__name__ for spec in specs if spec.is_probe)
    assert probes == dict.fromkeys((spec.kernel.__name__ for spec in specs), 1)
