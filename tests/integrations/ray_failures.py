"""A class for Ray Data whose engine fails once. The processes of actors import this module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rwkv_batch.integrations.ray import EngineUDF


class FailsOnce(EngineUDF):
    """Its engine raises an error at its first row, unless the file is there. It makes the file before that.

    Args:
        marker: the file.
    """

    def __init__(self, marker: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        if not Path(marker).exists():
            engine: Any = self.llm._engine

            def fail(*_: Any) -> None:
                Path(marker).touch()
                raise RuntimeError("the device is lost")

            engine.run = fail
