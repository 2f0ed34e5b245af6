"""Settings and fixtures for harnesses: they run offline, and write into the tests' folders."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# The harnesses' libraries read these variables when they are imported.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import pytest
import torch
from checkpoints import write_checkpoint
from oracle import Oracle
from safetensors.torch import load_file

from rwkv_batch.llm import LLM
from rwkv_batch.model_summary import DEMO_MODEL

sys.path.insert(0, str(Path(__file__).parent))

from small_model import MERGES, VOCAB


@pytest.fixture(scope="session")
def demo_oracle(oracle: Callable[..., Oracle], tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    """The `rwkv` package with the bundled model, in float32."""
    tensors = {name: tensor.to(torch.float32) for name, tensor in load_file(DEMO_MODEL).items()}
    return oracle("7.0", write_checkpoint(tensors, tmp_path_factory.mktemp("demo") / "demo.pth"))


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Restores the process's logging, which harnesses configure."""
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in list(logging.root.manager.loggerDict))]
    before = [(logger, logger.level, logger.propagate, logger.disabled, list(logger.handlers)) for logger in loggers]
    disabled = logging.root.manager.disable
    yield
    logging.disable(disabled)
    for logger, level, propagate, is_disabled, handlers in before:
        logger.setLevel(level)
        logger.propagate, logger.disabled, logger.handlers = propagate, is_disabled, handlers


@pytest.fixture(autouse=True)
def own_dataset_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Gives each test its own cache of datasets, and restores the command line, which harnesses change."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    yield


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary file with every byte, and some tokens that merge over the border of a context."""
    tokens: list[str | bytes] = [bytes([byte]) for byte in range(256)]
    lines = [f"{i} {token!r} {len(token)}" for i, token in enumerate(tokens, 1)]
    lines += [f"{i} {token!r} {len(token.encode())}" for i, token in enumerate(MERGES, 257)]
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def model(checkpoint_file, vocabulary):
    """`model(version="7.0", **arguments)`: the harness's model over a random checkpoint, which is loaded once."""
    from rwkv_batch.integrations.lm_eval import RwkvBatchLM

    loaded: dict[str, LLM] = {}

    def get(version: str = "7.0", **arguments: Any) -> Any:
        if version not in loaded:
            path = checkpoint_file(version, vocab=VOCAB)
            loaded[version] = LLM(path, tokenizer=str(vocabulary), max_batch_size=8, max_batch_tokens=64)
        return RwkvBatchLM(loaded[version], **arguments)

    return get
