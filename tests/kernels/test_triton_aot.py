"""Every kernel compiled for devices that are not here: within the limits of aot_limits.py.

One specialization of each kernel is compiled for one target by the environment's own Triton and by each of those that
CUDA builds of torch pin. The own one also compiles all specializations of two modules. `make kernels` compiles all of
all modules for all targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest

triton = pytest.importorskip("triton")

from kernels.aot_matrix import MODULES, all_faults, compile_all, is_installed  # noqa: E402


class Run(NamedTuple):
    """The compilations of one process.

    Args:
        version: None for the environment's own Triton.
        target: one of `aot_limits.TARGETS`.
        whole: modules of which all specializations are compiled; of the others one of each kernel.
    """

    version: str | None
    target: str
    whole: tuple[str, ...] = ()


RUNS = [
    # `linear` has products of every type, with few rows and with many; `shift_lerp` is compared with itself.
    Run(None, "sm_90", ("linear", "shift_lerp")),
    Run("3.6.0", "sm_86"),
    Run("3.7.1", "sm_90"),
]
Compile = Callable[[Run], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def compiled() -> Iterator[Compile]:
    """A function from a run to its compilations. The runs are processes, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        wanted = [run for run in RUNS if run.version is None or is_installed(run.version)]
        running = {run: pool.submit(compile_all, run.target, run.version, run.whole) for run in wanted}
        yield lambda run: running[run].result()


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.version or 'own'}-{run.target}")
@pytest.mark.timeout(900)
def test_compiles_within_the_limits(run, compiled):
    if run.version is not None and not is_installed(run.version):
        pytest.skip(f"no Triton {run.version} beside the environment's own: `make test` installs it")
    found = compiled(run)
    assert {one["module"] for one in found} == {*MODULES}
    assert all_faults(found, run.target, run.version or triton.__version__) == []
