"""Harnesses run offline, and keep their files in the tests' own folders."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# The harnesses' libraries read these when they are imported.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import pytest
import torch
from checkpoints import write_checkpoint
from oracle import Oracle
from safetensors.torch import load_file

from rwkv_batch.model_summary import DEMO_MODEL

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def demo_oracle(oracle: Callable[..., Oracle], tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    """The bundled model as the `rwkv` package runs it, in float32."""
    tensors = {name: tensor.to(torch.float32) for name, tensor in load_file(DEMO_MODEL).items()}
    return oracle("7.0", write_checkpoint(tensors, tmp_path_factory.mktemp("demo") / "demo.pth"))


@pytest.fixture(autouse=True)
def own_dataset_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    yield


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Harnesses set up logging for the whole process, and switch off loggers that are there."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    loggers = [one for one in logging.Logger.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    before = [(one, one.disabled, one.propagate, one.level, list(one.handlers)) for one in loggers]
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for one, disabled, propagate, its_level, its_handlers in before:
        one.disabled, one.propagate, one.handlers[:] = disabled, propagate, its_handlers
        one.setLevel(its_level)
