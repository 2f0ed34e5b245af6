"""An engine over the fake model."""

from __future__ import annotations

import pytest
from fake_model import VOCAB, HashModel

from rwkv_batch.engine.engine import Engine
from rwkv_batch.engine.slot_tables import Vocabulary


@pytest.fixture
def make_engine():
    def make(**settings):
        return Engine(HashModel(), Vocabulary.plain(VOCAB), **{"max_batch_size": 4, "max_batch_tokens": 16} | settings)

    return make
