"""The long attacks: they run, and they notice what is wrong."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import soak
from benchmarks.soak import FORMS, Job, damages, kills


class FakeJob(Job):
    """Each start makes one part; the parts of the starts that `differs` names are other ones."""

    differs: tuple[int, ...] = ()
    code = 0

    def start(self) -> list[Any]:
        self.starts += 1
        self.output.mkdir(parents=True, exist_ok=True)
        (self.output / "part-0.parquet").write_bytes(b"other" if self.starts in self.differs else b"right")
        return [SimpleNamespace(kill=lambda: None, join=lambda: None, exitcode=self.code)]


@pytest.mark.parametrize(("differs", "wrong"), [(9, None), (3, "after kill 1"), (4, "at the end")])
def test_parts_that_differ_are_noticed(tmp_path: Path, differs: int, wrong: str | None) -> None:
    """The first two starts are undisturbed, the third one is killed."""
    job = FakeJob(FORMS[0], tmp_path, 1)
    job.differs = (differs,)
    found = list(kills(job, 1, random.Random(0)))
    assert wrong in found[0] if wrong else not found
    assert job.starts == 4


def test_damage_that_stays_is_noticed(tmp_path: Path) -> None:
    job, outcomes = FakeJob(FORMS[0], tmp_path, 1), Counter[str]()
    assert not list(damages(job, 3, random.Random(0), outcomes))
    assert outcomes == {"equal at the end": 3}
    job.differs = tuple(range(job.starts + 3, 99))
    assert list(damages(job, 2, random.Random(0), outcomes))
    assert outcomes["wrong"] == 2


@pytest.mark.soak
def test_it_rehearses(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"ROWS": 8, "KILLS": 1, "DAMAGES": 2, "LONG_ROWS": 40, "FORMS": FORMS[:1]}.items():
        monkeypatch.setattr(soak, name, value)
    code = soak.command([])
    assert code == 0, capsys.readouterr().out
