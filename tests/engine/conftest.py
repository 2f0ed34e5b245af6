"""An engine over the fake model."""

from __future__ import annotations

import fake_model
import pytest


@pytest.fixture
def make_engine():
    return fake_model.make_engine
