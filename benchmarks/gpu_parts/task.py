"""What a process is told that measures one part, or a share of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .record import read


@dataclass(frozen=True)
class Task:
    """One process's work. It travels as JSON.

    Args:
        part: its name.
        out: the folder of results.
        commit: of the tree.
        rehearse: tiny sizes on the CPU.
        models: names of models; empty takes the part's own choice.
        batches: numbers of rows; empty takes the part's own choice.
        compiled: a folder of compiled kernels; empty takes Triton's own.
        end: when no point is started any more, by `monotonic`, which all processes of a machine share.
        share: (i, n) takes every n-th point from the i-th on; empty takes all.
        is_brief: the part's time is short: figures are of one round.
        is_dry: run every point once on a small scale, so that kernels are compiled; keep nothing.
        goes_on: points that failed are not tried again.
        forgets: points that were measured are measured again.
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
        """The JSON file of this process's results."""
        name = f"{self.part}-{self.share[0]}-of-{self.share[1]}" if self.share else self.part
        return Path(self.out, "shares", f"{name}.json") if self.share else Path(self.out, f"{name}.json")

    @property
    def log(self) -> Path:
        """What a process that compiles beforehand writes."""
        return self.path.with_suffix(".log")

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Task:
        fields: dict[str, Any] = json.loads(text)
        made: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        return cls(**made)

    def results_of(self, part: str) -> dict[str, Any] | None:
        """What a part has left."""
        return read(Path(self.out, f"{part}.json"))
