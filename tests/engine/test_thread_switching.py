"""The interpreter's switch interval is short while an engine runs, and restored after the last one."""

import sys

import pytest
from fakes.model import HashModel

from rwkv_batch.engine.request import Request
from rwkv_batch.engine.source import Pulled
from rwkv_batch.engine.thread_switching import SECONDS, _SwitchInterval
from rwkv_batch.sampling_params import SamplingParams

REQUESTS = [Request(row, [row], SamplingParams(max_tokens=3), row=row) for row in range(6)]


@pytest.fixture(autouse=True)
def interval(monkeypatch):
    # Engines of other tests may still be open in this process, so this module has its own count of engines.
    monkeypatch.setattr("rwkv_batch.engine.engine.quick_thread_switches", _SwitchInterval().shortened)
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.004)
    yield
    sys.setswitchinterval(before)


def short():
    return sys.getswitchinterval() == pytest.approx(SECONDS)


def restored():
    return sys.getswitchinterval() == pytest.approx(0.004)


def test_the_interval_is_restored_after_the_last_of_several_engines(make_engine):
    first, second = (make_engine().generate(Pulled(REQUESTS)) for _ in range(2))
    assert restored()
    next(first), next(second)
    assert short()
    list(first)
    assert short()
    second.close()
    assert restored()


def test_an_error_restores_the_interval(make_engine):
    class Broken(HashModel):
        def forward(self, token_ids, rows, layers):
            assert short()
            raise RuntimeError("shape")

    with pytest.raises(RuntimeError, match="shape"):
        list(make_engine(Broken()).generate(Pulled(REQUESTS)))
    assert restored()


@pytest.mark.parametrize("own", [5e-5, 0.02])
def test_an_interval_that_other_code_sets_stays(make_engine, own):
    completions = make_engine().generate(Pulled(REQUESTS))
    next(completions)
    sys.setswitchinterval(own)
    list(completions)
    assert sys.getswitchinterval() == pytest.approx(own)


def test_a_shorter_interval_is_left_alone(make_engine):
    sys.setswitchinterval(5e-5)
    completions = make_engine().generate(Pulled(REQUESTS))
    next(completions)
    assert sys.getswitchinterval() == pytest.approx(5e-5)
