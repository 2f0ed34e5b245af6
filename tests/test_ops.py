"""The choice of an op's implementation, and its reasons."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import claimed_gpu
import pytest
import torch

from rwkv_batch import ops
from rwkv_batch.cuda_kernels import launch as cuda_launch
from rwkv_batch.engine.sampler import Sampler
from rwkv_batch.errors import BackendError, ConfigurationError
from rwkv_batch.model_summary import DEMO_MODEL
from rwkv_batch.models.files.checkpoint import open_checkpoint
from rwkv_batch.models.model import ModelFile
from rwkv_batch.ops import Implementation, OpChoice, OpSpec, OpTable, fallbacks, format_choices, resolve

CPU = torch.device("cpu")


def reference(x):
    return x + 1


def resolve_one(backend, name="fake_op", device=CPU):
    return resolve([OpSpec(name, reference)], backend, device, torch.float32, {})


@pytest.fixture
def kernel(monkeypatch):
    """A kernel package with one op, whose refusal can be set."""
    package, module = ModuleType("fake_kernels"), ModuleType("fake_kernels.fake_op")
    module.__dict__.update(fake_op=lambda x: x + 2, reason=None)
    module.__dict__.update(fake_op=lambda x: x + 2, reason=None)
    package.__path__ = []
    module.__dict__["unsupported_reason"] = lambda device, dtype, sizes, state_dtype: module.__dict__["reason"]
    monkeypatch.setitem(sys.modules, "fake_kernels", package)
    monkeypatch.setitem(sys.modules, "fake_kernels.fake_op", module)
    monkeypatch.setattr(ops, "find_spec", lambda name: object() if name in sys.modules else None)
    monkeypatch.setitem(ops._PACKAGES, "cpu", "fake_kernels")
    return module


def test_the_reference_serves_where_nothing_faster_is_written():
    table = resolve_one("auto", "no_such_op")
    assert table.no_such_op is reference
    assert table.choices[0].refused == ("cpu: no such kernel",)


def test_auto_takes_the_kernel(kernel):
    assert resolve_one("auto").fake_op(1) == 3
    assert resolve_one("reference").fake_op(1) == 2


def test_a_refusal_is_shown_and_auto_falls_back(kernel):
    kernel.reason = "head size 48 is not a power of two"
    table = resolve_one("auto")
    assert table.fake_op(1) == 2
    assert "fake_op        reference  cpu: head size 48 is not a power of two" in format_choices(table.choices)


def test_falling_back_is_said_in_one_sentence_for_each_reason(kernel):
    assert fallbacks(resolve_one("auto").choices) == []
    assert fallbacks(resolve_one("auto", "no_such_op").choices) == []
    kernel.reason = "head size 48 is not a power of two"
    assert fallbacks(resolve_one("auto").choices) == [
        "fake_op: served by the reference backend, which is slow (cpu: head size 48 is not a power of two)"
    ]
    choices = [
        OpChoice("wkv7", "cuda", ("triton: no C compiler",), is_fallback=True),
        OpChoice("linear", "reference", ("triton: no C compiler", "cuda: no such kernel"), is_fallback=True),
        OpChoice("shift_lerp", "cuda", ("triton: no C compiler",), is_fallback=True),
        OpChoice("score", "reference", ("triton: no such kernel",)),
    ]
    assert fallbacks([OpChoice("score", "reference", ("triton: no",), is_fallback=True, is_recorded=False)]) == [
        "score: served by the reference backend, which is slow (triton: no)"
    ]
    assert fallbacks(choices) == [
        "wkv7, shift_lerp: served by the cuda backend; steps are not recorded as CUDA graphs (triton: no C compiler)",
        "linear: served by the reference backend, which is slow; steps are not recorded as CUDA graphs "
        "(triton: no C compiler · cuda: no such kernel)",
    ]


def test_a_backend_may_leave_optional_ops_to_their_definition(kernel):
    specs = [OpSpec("fake_op", reference), OpSpec("no_such_op", reference, optional=True)]
    table = resolve(specs, "cpu", CPU, torch.float32, {})
    assert [choice.backend for choice in table.choices] == ["cpu", "reference"]
    kernel.reason = "no"
    with pytest.raises(BackendError, match="fake_op: no"):  # one that is written must serve
        resolve([OpSpec("fake_op", reference, optional=True)], "cpu", CPU, torch.float32, {})


@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_a_kernel_may_decline_an_optional_op(backend, kernel):
    kernel.prefers_definition = lambda dtype: "oneDNN is faster" if dtype == torch.bfloat16 else None
    for optional, dtype, expected in (
        (True, torch.bfloat16, OpChoice("fake_op", "reference", ("cpu: oneDNN is faster",))),
        (True, torch.float32, OpChoice("fake_op", "cpu", ())),
        (False, torch.bfloat16, OpChoice("fake_op", "cpu", ())),
    ):
        table = resolve([OpSpec("fake_op", reference, optional)], backend, CPU, dtype, {})
        assert table.choices == (expected,)
        assert table.fake_op(1) == (2 if expected.backend == "reference" else 3)


@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_an_op_that_no_kernel_can_serve_has_its_definition(backend, kernel):
    kernel.unsupported_reason = None  # is not asked
    spec = OpSpec("fake_op", reference, optional=True, definition_only="the head is elsewhere")
    table = resolve([spec, replace(spec, name="no_such_op")], backend, CPU, torch.float32, {})
    assert table.choices == (
        OpChoice("fake_op", "reference", ("cpu: the head is elsewhere",)),
        OpChoice("no_such_op", "reference", ("cpu: no such kernel",)),
    )
    assert table.fake_op is reference


def test_a_table_can_be_recorded_where_the_kernels_of_recorded_ops_can():
    choices = [
        OpChoice("wkv7", "triton", ()),
        OpChoice("score", "reference", (), is_recorded=False),
        OpChoice("top_tokens", "cpu", (), is_recorded=False),
    ]
    assert OpTable({}, choices).can_be_recorded
    for backend in ("cuda", "cpu", "reference"):
        assert not OpTable({}, [*choices, OpChoice("linear", backend, ())]).can_be_recorded


def test_ops_that_a_recorded_step_calls():
    """Recorded steps decode, without log-probabilities of other tokens. They call no op of a definition alone."""
    specs = (*ModelFile.open(open_checkpoint(DEMO_MODEL)).ops, *Sampler.OPS)
    choices = resolve(specs, "reference", CPU, torch.float32, {}).choices
    recorded = {choice.op for choice in choices if choice.is_recorded}
    assert recorded == {"shift_lerp", "linear", "low_rank", "wkv7", "sample"}


def test_a_kernel_says_what_it_takes(kernel):
    (plain,) = resolve_one("cpu").implementations.values()
    assert plain == Implementation(kernel.fake_op)
    kernel.pack, kernel.rows_independent, kernel.writes_into = str, True, True
    table = resolve_one("cpu")
    assert table.implementations["fake_op"] == Implementation(kernel.fake_op, str, True, True)
    assert table.packs("fake_op") and table.pack("fake_op", 5) == "5"
    reference_table = resolve_one("reference")
    assert not reference_table.packs("fake_op") and reference_table.pack("fake_op", 5) == 5


def test_a_named_backend_works_or_raises_with_every_reason(kernel):
    assert resolve_one("cpu").fake_op(1) == 3
    kernel.reason = "no"
    with pytest.raises(BackendError, match=r"backend 'cpu' cannot serve this model:\n  fake_op: no"):
        resolve_one("cpu")


def test_unknown_backends_are_refused():
    with pytest.raises(ConfigurationError, match="got 'tpu', expected one of auto, triton"):
        resolve_one("tpu")


def test_an_op_that_was_not_resolved_is_named():
    with pytest.raises(AttributeError, match="no op 'wkv9'"):
        _ = resolve_one("auto").wkv9


@pytest.fixture
def broken_triton(monkeypatch):
    """A claimed GPU, on which Triton compiles all kernels but that of shift_lerp, and that of the sampler."""
    probe = pytest.importorskip("rwkv_batch.triton_kernels.probe")
    monkeypatch.setattr(probe.launch, "is_interpreted", lambda: False)
    monkeypatch.setattr(probe, "launch_failure", lambda index: None)
    monkeypatch.setattr(cuda_launch, "unavailable", lambda: None)
    monkeypatch.setattr("rwkv_batch.cuda_kernels.driver.load", lambda device, spec: None)
    for name, answer in claimed_gpu.ANSWERS.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    failures = {"shift_lerp": "a layout is wrong", "sample": "operand #0 is wrong"}
    found = {op: probe.Outcome(failures.get(op)) for op in ("wkv7", "shift_lerp", "sample")}
    asked = []

    def outcomes(ops, target):
        asked.append(list(ops))
        return {op: found[op] for op in ops}

    monkeypatch.setattr(probe, "outcomes", outcomes)
    return SimpleNamespace(reason=f"Triton {probe.triton.__version__} does not compile its kernels", asked=asked)


OPS = [OpSpec(name, reference) for name in ("wkv7", "shift_lerp", "sample")]


def test_auto_gives_what_triton_does_not_compile_to_cuda_or_to_the_reference(broken_triton):
    table = resolve(OPS, "auto", torch.device("cuda"), torch.bfloat16, {"N": 64})
    assert [(choice.op, choice.backend, choice.refused) for choice in table.choices] == [
        ("wkv7", "cuda", (ops._CUDA_FIRST,)),
        ("shift_lerp", "cuda", (f"triton: {broken_triton.reason}: a layout is wrong",)),
        ("sample", "reference", (f"triton: {broken_triton.reason}: operand #0 is wrong", "cuda: no such kernel")),
    ]
    assert table.shift_lerp.__module__ == "rwkv_batch.cuda_kernels.shift_lerp"
    assert len(fallbacks(table.choices)) == 2
    assert broken_triton.asked[0] == ["wkv7", "shift_lerp", "sample"]  # at once: one process compiles for all


def test_triton_by_name_raises_with_all_that_it_does_not_compile(broken_triton):
    with pytest.raises(BackendError) as caught:
        resolve(OPS, "triton", torch.device("cuda"), torch.bfloat16, {"N": 64})
    assert str(caught.value).splitlines()[1:] == [
        f"  shift_lerp: {broken_triton.reason}: a layout is wrong",
        f"  sample: {broken_triton.reason}: operand #0 is wrong",
    ]
