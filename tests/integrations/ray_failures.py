"""A class for Ray Data whose engine fails once. The processes of actors import this module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rwkv_batch.integrations.ray import EngineUDF
from rwkv_batch.integrations.service import Service


class FailsOnce(EngineUDF):
    """Its engine fails at its first row, unless the file is there. It makes the file before that.

    Args:
        marker: the file.
    """

    def __init__(self, marker: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        if not Path(marker).exists():

            def fail(rows: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
                for _ in rows:
                    Path(marker).touch()
                    raise RuntimeError("the device is lost")
                yield None, None

            self._service.close()
            self._service = Service(fail, self.llm.abort, "failing")
