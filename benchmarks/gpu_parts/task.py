"""The task of a process: one part, or a share of its points."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .record import read


@dataclass(frozen=True)
class Task:
    """The work of one process, passed to it as JSON.

    Args:
        part: name of the part.
        out: the folder of results.
        commit: of the tree.
        rehearse: run tiny sizes on the CPU.
        models: names of models; empty for the part's own choice.
        batches: batch sizes; empty for the part's own choice.
        compiled: a folder of compiled kernels; empty for Triton's own cache.
        end: when no further point is started, by `monotonic`, which all processes of a machine share.
        share: (i, n) for every n-th point from the i-th on; empty for all.
        is_brief: measure one round only, because the time is short.
        is_dry: run every point once on a small scale, to compile kernels. Keep nothing.
        goes_on: do not try failed points again.
        forgets: measure again what was measured before.
    """

    part: str
    out: str
    commit: str
    rehearse: bool = False
    models: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    compiled: str = ""
    end: float = 0.0
    share: tuple[int, ...] = ()
    is_brief: bool = False
    is_dry: bool = False
    goes_on: bool = False
    forgets: bool = False

    @property
    def path(self) -> Path:
        """The JSON file for the results of this process."""
        name = f"{self.part}-{self.share[0]}-of-{self.share[1]}" if self.share else self.part
        return Path(self.out, "shares", f"{name}.json") if self.share else Path(self.out, f"{name}.json")

    @property
    def log(self) -> Path:
        """The file for the output of a process that compiles beforehand."""
        return self.path.with_suffix(".log")

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Task:
        fields: dict[str, Any] = json.loads(text)
        made: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        return cls(**made)

    def results_of(self, part: str) -> dict[str, Any] | None:
        """Returns the results of a part; None if it has none."""
        return read(Path(self.out, f"{part}.json"))
