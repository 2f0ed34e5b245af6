"""How many workers a job has, and where they run."""

from __future__ import annotations

from typing import Any

import pytest

from rwkv_batch import ConfigurationError
from rwkv_batch.job.load import load_job
from rwkv_batch.job.workers import devices
from rwkv_batch.job.workers.devices import Place, worker_places


def places(monkeypatch: pytest.MonkeyPatch, gpus: int, **settings: Any) -> list[Place] | None:
    monkeypatch.setattr(devices, "_num_gpus", lambda: gpus)
    job = {"model": {"path": "demo"}, "input": {"path": "x"}, "output": {"path": "y"}}
    return worker_places(load_job(job, {name.replace("__", "."): value for name, value in settings.items()}))


@pytest.mark.parametrize(
    ("gpus", "settings", "expected"),
    [
        (0, {}, None),
        (1, {}, None),
        (3, {}, [0, 1, 2]),
        (3, {"engine__device": "cuda"}, [0, 1, 2]),
        (3, {"engine__device": "cpu"}, None),
        (3, {"engine__device": "cuda:1"}, None),
        (3, {"model__strategy": "cuda fp16 *3 -> cpu fp32"}, None),
        (3, {"model__strategy": "cuda fp16"}, [0, 1, 2]),
        (3, {"run__workers": 2}, [0, 1]),
        (3, {"run__devices": ["cuda:2", "cuda:0"]}, [2, 0]),
        (3, {"run__devices": ["cuda:2"]}, [2]),
        (1, {"run__workers": 1}, [0]),
        (0, {"run__workers": 2}, ["cpu", "cpu"]),
        (3, {"run__workers": 2, "engine__device": "cpu"}, ["cpu", "cpu"]),
        (3, {"run__workers": 2, "run__devices": ["cpu"]}, ["cpu", "cpu"]),
        (3, {"run__workers": 1, "engine__device": "cuda:1"}, [None]),
        (0, {"engine__device": "cuda"}, None),
    ],
)
def test_each_worker_has_a_place(
    monkeypatch: pytest.MonkeyPatch, gpus: int, settings: dict[str, Any], expected: list[Any] | None
) -> None:
    """None: the job's own process serves, and finds what is wrong with its device."""
    found = places(monkeypatch, gpus, **settings)
    names = None if found is None else [place.device if place.gpu is None else place.gpu for place in found]
    assert names == expected
    assert all(place.device == "cuda" for place in found or () if place.gpu is not None)


@pytest.mark.parametrize(
    ("gpus", "settings", "words"),
    [
        (2, {"run__workers": 3}, "run.workers: got 3, expected at most 2"),
        (2, {"run__devices": ["cuda:2"]}, "run.devices: got cuda:2, expected devices of this machine"),
        (2, {"run__devices": ["cuda:0", "cuda:0"]}, "each GPU once"),
        (2, {"run__devices": ["cuda:0", "cpu"]}, "each GPU once"),
        (2, {"run__devices": ["cuda:0"], "engine__device": "cpu"}, "run.devices: got cuda:0"),
        (2, {"run__devices": ["cpu"], "engine__device": "cuda"}, "run.devices: got cpu"),
        (2, {"run__workers": 2, "engine__device": "cuda:1"}, "run.workers: got 2 beside engine.device: cuda:1"),
        (2, {"run__devices": ["cuda:0"], "engine__device": "cuda:1"}, "run.devices: got"),
        (2, {"run__workers": 2, "model__strategy": "cuda fp16 *3 -> cpu fp32"}, "beside model.strategy"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    monkeypatch: pytest.MonkeyPatch, gpus: int, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        places(monkeypatch, gpus, **settings)
    assert words in str(caught.value)
