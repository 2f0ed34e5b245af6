"""Fixtures of the engine's tests."""

from __future__ import annotations

import pytest
from fakes import model


@pytest.fixture
def make_engine():
    """`make_engine(model=None, **settings)`: an engine over the fake model."""
    return model.make_engine
