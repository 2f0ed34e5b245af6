"""A tiny random model with byte tokens, shared by the tests of a file. No test may leave a slot in use."""

from __future__ import annotations

import pytest
from checkpoints import make_checkpoint, write_checkpoint

from rwkv_batch import LLM

VOCAB = 257


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_checkpoint(make_checkpoint("7.0", vocab=VOCAB), tmp_path_factory.mktemp("llm") / "model.pth")


@pytest.fixture(scope="module")
def llm(path):
    return LLM(path, max_batch_size=4, max_batch_tokens=24)


@pytest.fixture(autouse=True)
def no_slot_leaks(llm):
    yield
    llm.check_integrity()
