"""Fixtures and settings of all tests."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Triton decides when it is imported whether kernels are compiled for a GPU or interpreted.
os.environ.setdefault("TRITON_INTERPRET", "1")

import hypothesis
import numpy
import pytest
import torch
from checkpoints import make_checkpoint, write_checkpoint
from oracle import Oracle, OraclePool
from quick_interpreter import replace_language_once
from slow import kind_of

CheckpointFile = Callable[..., Path]
OracleFactory = Callable[..., Oracle]

# Small tensors do not gain from more threads, and lose time where other processes share the cores.
torch.set_num_threads(1)

GATE_EXAMPLES = 25
"""Examples of each property-based test in `make test`; `--seeds N` multiplies them by N."""

# The import would set switches of torch for every test that follows. `oracle.Worker` runs the package elsewhere.
sys.modules["rwkv.model"] = None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="run tests that draw moments or examples at random with N seeds, as `make soak` does (default: 1)",
    )


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # the shell ignores it for background processes
        signal.signal(signal.SIGINT, signal.default_int_handler)
    examples = GATE_EXAMPLES * config.getoption("seeds")
    hypothesis.settings.register_profile("rwkv_batch", deadline=None, max_examples=examples, derandomize=True)
    hypothesis.settings.load_profile("rwkv_batch")
    config.addinivalue_line("markers", "gpu: needs a CUDA device")
    config.addinivalue_line("markers", "slow: is left out of `make quick`; `slow.py` says which tests are")
    config.addinivalue_line("markers", "soak: takes long and is left out of the gate; `-m soak` runs it")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "soak_seed" in metafunc.fixturenames:
        metafunc.parametrize("soak_seed", range(metafunc.config.getoption("seeds")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if kind_of(item.nodeid) is not None:
            item.add_marker(pytest.mark.slow)
    # Several processes may share the files of tests: the slow ones start first, so that the tail is short.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Every test starts from the same random numbers and the same handling of SIGTERM, alone or after any other.

    `ray.init` leaves a handler behind. With it, a process that a later test forks would not end at the signal.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
    replace_language_once()


@pytest.fixture(scope="session")
def checkpoint_file(tmp_path_factory: pytest.TempPathFactory) -> CheckpointFile:
    """`checkpoint_file(version, **sizes)`: the .pth file of `make_checkpoint` with these arguments, written once."""
    folder = tmp_path_factory.mktemp("checkpoints")
    written: dict[Any, Path] = {}

    def get(version: str, **sizes: Any) -> Path:
        key = (version, *sorted(sizes.items()))
        if key not in written:
            path = folder / f"v{version}-{len(written)}.pth"
            written[key] = write_checkpoint(make_checkpoint(version, **sizes), path)
        return written[key]

    return get


@pytest.fixture(scope="session")
def oracle(checkpoint_file: CheckpointFile) -> Iterator[OracleFactory]:
    """`oracle(version, path=None, strategy="cpu fp32")`: the `rwkv` package with a checkpoint, loaded once.

    Where `path` is None it is `checkpoint_file(version)`.
    """
    pool = OraclePool()

    def get(version: str, path: Path | None = None, strategy: str = "cpu fp32") -> Oracle:
        return pool.get(checkpoint_file(version) if path is None else path, version, strategy)

    yield get
    pool.close()


@pytest.fixture
def serving() -> Iterator[Any]:
    """A `Serving` over the fake model. Afterwards no slot may be in use."""
    from served_rows import make_serving  # here, as it builds native kernels

    made, engine = make_serving()
    yield made
    engine.check_integrity()
    assert engine.pool.num_free == engine.pool.num_slots
