"""One engine, and two in processes, of a tiny random model with byte tokens."""

from __future__ import annotations

from typing import Any

import pytest
from checkpoints import make_checkpoint, write_checkpoint
from fakes.fork_server import forked_processes

from rwkv_batch import LLM

SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "max_batch_size": 4,
    "max_batch_tokens": 24,
    "batch_invariant": True,
    "seed": 3,
}


@pytest.fixture(scope="package", autouse=True)
def forked():
    """Processes are forked, but for those of a parent that is a process of its own."""
    with forked_processes():
        yield


@pytest.fixture(scope="package")
def path(tmp_path_factory):
    return write_checkpoint(make_checkpoint("7.0", vocab=257), tmp_path_factory.mktemp("llm") / "model.pth")


@pytest.fixture(scope="package")
def one(path):
    with LLM(path, **SETTINGS) as llm:
        yield llm


@pytest.fixture(scope="package")
def both(path):
    with LLM(path, data_parallel=2, **SETTINGS) as llm:
        yield llm


@pytest.fixture
def two(both):
    """Two engines. Afterwards both run, and have no slot in use."""
    yield both
    processes = both._engine.by_index
    while len(processes) < 2 or not all(process.ready and not process.ended_with for process in processes.values()):
        both.generate([[1]])
    both.check_integrity()
