"""The cases of `rwkv-batch doctor --check`: what is right is found right, and what is wrong is found wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from versions import ops_without_kernels

from rwkv_batch.checks import CheckResult
from rwkv_batch.checks.calls import RECURRENCES
from rwkv_batch.checks.cases import DEMO, cases
from rwkv_batch.checks.comparisons import Checks, poisoned
from rwkv_batch.checks.demo import check_demo
from rwkv_batch.checks.sampling import check_sample
from rwkv_batch.checks.target import Target, UnusableError, specs
from rwkv_batch.checks.worker import build_native, check, compile_triton, indexed, is_lost, outcome
from rwkv_batch.cpu_kernels.build import unavailable
from rwkv_batch.engine.slot_tables import SlotTables
from rwkv_batch.errors import BackendError
from rwkv_batch.kernel_support.unsupported import UnsupportedReason
from rwkv_batch.llm import LLM
from rwkv_batch.measure.doctor import findings
from rwkv_batch.models.rows import Rows
from rwkv_batch.ops import OpTable
from rwkv_batch.sampling_params import SamplingParams

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
NATIVE = Target("cpu", CPU)
INTERPRETED = Target("triton", CPU)


def names(target: Target) -> list[str]:
    return [case.name for case in cases(target)]


def serves(target: Target) -> None:
    if target is NATIVE and (reason := unavailable()):
        pytest.skip(reason)
    if target is INTERPRETED:
        pytest.importorskip("triton")


@pytest.mark.parametrize("name", names(NATIVE))
def test_native_kernels_are_right(name: str) -> None:
    serves(NATIVE)
    found = check(name, "cpu", "cpu")
    assert found["status"] == "ok", found


@pytest.mark.parametrize("name", names(INTERPRETED))
def test_interpreted_kernels_are_right(name: str) -> None:
    serves(INTERPRETED)
    found = check(name, "triton", "cpu")
    assert found["status"] == "ok", found


def test_every_op_that_a_backend_has_is_checked() -> None:
    known = specs().keys() - (ops_without_kernels() - RECURRENCES.keys())
    for target in (INTERPRETED, NATIVE, Target("reference", GPU)):
        assert {case.op for case in cases(target)} == {DEMO} | {name for name in known if target.has(name)}
    not_compared_with_themselves = {case.op for case in cases(Target("reference", CPU))}
    assert not_compared_with_themselves == {DEMO, *known} - {
        "w8a8",
        "w8a16",
        "sample",
        "select",
        "top_tokens",
        "take_rows",
    }


def spoiled(function: Callable[..., Any], spoil: Callable[[Any], Any]) -> Callable[..., Any]:
    """The same function with another result."""
    return lambda *args, **kwargs: spoil(function(*args, **kwargs))


def with_another_end(result: Any) -> Any:
    """The last number of the first tensor is off by a twentieth of the largest, or by one."""
    first = result
    while isinstance(first, tuple):
        first = next(part for part in first if part is not None)
    last = first.reshape(-1)[-1]
    changed = last + first.abs().max() / 20 if first.is_floating_point() else last - 1 if last > 0 else last + 1
    first[(-1,) * first.dim()] = changed
    return result


def unwritten(result: Any) -> Any:
    """Results that nobody wrote."""
    if isinstance(result, tuple):
        return tuple(map(unwritten, result))
    return result if result is None else torch.empty_like(result)


def one_case_of_each_op() -> list[Any]:
    found = []
    for target in (NATIVE, INTERPRETED):
        by_op = {case.op: case for case in cases(target) if case.op != DEMO and "bfloat16" not in case.name}
        found += [pytest.param(target, case, id=f"{target.backend} {case.op}") for case in by_op.values()]
    return found


@pytest.mark.parametrize("spoil", [with_another_end, unwritten])
@pytest.mark.parametrize(("target", "case"), one_case_of_each_op())
def test_a_kernel_that_is_wrong_is_found(
    target: Target, case: Any, spoil: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    serves(target)
    module = import_module(f"rwkv_batch.{target.backend}_kernels.{case.op}")
    monkeypatch.setattr(module, case.op, spoiled(getattr(module, case.op), spoil))
    found = check(case.name, target.backend, "cpu")
    # Ids that nobody wrote are outside of the vocabulary, which the steps after `select` do not survive.
    right = "failed" if case.op == "select" and spoil is unwritten else "wrong"
    assert found["status"] == right, found


def rounded_to_nearest(definition: Callable[..., Tensor], state: Tensor, **given: Any) -> Tensor:
    wide = state.float()
    out = definition(state=wide, **given)
    state.copy_(wide)
    return out


def rounded_by_draws_of_the_next_token(definition: Callable[..., Tensor], rows: Rows, **given: Any) -> Tensor:
    return definition(rows=replace(rows, positions=tuple(position + 1 for position in rows.positions)), **given)


def rounded_after_an_error_of_float32(definition: Callable[..., Tensor], v: Tensor, **given: Any) -> Tensor:
    return definition(v=v.float() * (1 + 1e-6), **given)


@pytest.mark.parametrize("op", ["wkv5", "wkv6", "wkv7"])
@pytest.mark.parametrize(
    ("computed", "status"),
    [
        (rounded_to_nearest, "wrong"),
        (rounded_by_draws_of_the_next_token, "wrong"),
        (rounded_after_an_error_of_float32, "ok"),
    ],
)
def test_a_float16_state_that_is_rounded_another_way_is_found(
    op: str, computed: Callable[..., Tensor], status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    serves(INTERPRETED)
    monkeypatch.setattr(f"rwkv_batch.triton_kernels.{op}.{op}", partial(computed, RECURRENCES[op].definition))
    found = check(f"{op} float16 state float16", "triton", "cpu")
    assert found["status"] == status, found


@pytest.mark.parametrize(("temperature", "num_others", "is_right"), [(1.0, 1, True), (1.0, 2, False), (0.0, 1, False)])
def test_one_random_draw_may_differ(
    temperature: float, num_others: int, is_right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draws after a different one are compared as if it had not differed."""
    steps = iter(range(4))

    def drawn(
        definition: Callable[..., Any], logits: Tensor, slots: Tensor, tables: SlotTables, ops: OpTable
    ) -> tuple[Tensor, Tensor]:
        token_ids, logprobs = definition(logits, slots, tables, ops)
        if next(steps) < num_others:
            token_ids[0] = (token_ids[0] + 1) % logits.shape[1]
            tables.last_token[slots[0].long()] = token_ids[0]
        return token_ids, logprobs

    target = Target("reference", CPU)
    spec = specs()["sample"]
    monkeypatch.setitem(specs(), "sample", replace(spec, definition=partial(drawn, spec.definition)))
    params = [SamplingParams(temperature=temperature, presence_penalty=0.5), SamplingParams()]
    checks = check_sample(target, 97, params, count=1, steps=4)
    assert not checks.wrong if is_right else [found.value for found in checks.wrong] == [num_others], checks.point()


@pytest.mark.parametrize(
    ("name", "operation"),
    [("w8a8 float32", "mul"), ("w8a16 float32", "mul"), ("top_tokens", "topk"), ("sample", "cumsum")],
)
def test_definitions_on_a_gpu_are_compared_with_what_the_host_computes(
    name: str, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Makes one of torch's operations wrong on the GPU: the last number of each result."""
    pytest.importorskip("triton")
    from fakes.cuda import DEVICE, FakeCuda, fake_cuda

    on_device = FakeCuda._on_device
    is_wrong = False

    def spoiling(self: FakeCuda, function: Any, args: Any, kwargs: Any) -> Any:
        found = on_device(self, function, args, kwargs)
        if is_wrong and function.overloadpacket.__name__ == operation:
            with_another_end(tuple(part.inner for part in found)[::-1] if isinstance(found, tuple) else found.inner)
        return found

    monkeypatch.setattr(FakeCuda, "_on_device", spoiling)
    target = Target("reference", DEVICE)
    (case,) = (case for case in cases(target) if case.name == name)
    for is_wrong in (False, True):
        with fake_cuda():
            assert bool(case.run(target).wrong) == is_wrong


def test_completions_and_scores_that_are_too_short_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target("reference", CPU)
    generate, score = LLM.generate, LLM.score

    def short(*given: Any) -> Any:
        outputs = generate(*given)
        del outputs[-1].outputs[0].token_ids[-1]
        return outputs

    monkeypatch.setattr(LLM, "generate", short)
    with pytest.raises(AssertionError, match="tokens of a completion: got 2, expected 3"):
        check_demo(target, "float32", num_tokens=3, longest=20)
    monkeypatch.setattr(LLM, "generate", generate)
    monkeypatch.setattr(LLM, "score", lambda llm, pairs: score(llm, [(ids, more[:-1]) for ids, more in pairs]))
    with pytest.raises(AssertionError, match="log-probabilities: got 2, expected 3"):
        check_demo(target, "float32", num_tokens=3, longest=20)


@pytest.mark.parametrize("slot", [2, 6], ids=["a slot of no row", "the slot of a row"])
@pytest.mark.parametrize(("op", "state"), [("wkv4", "bb"), ("wkv6", "state"), ("wkv7", "state"), ("shift_lerp", None)])
def test_a_state_that_is_wrong_is_found(op: str, state: str | None, slot: int, monkeypatch: pytest.MonkeyPatch) -> None:
    serves(INTERPRETED)
    module = import_module(f"rwkv_batch.triton_kernels.{op}")
    function = getattr(module, op)

    def spoiling(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        pool = kwargs[state] if state else args[3]
        if slot < len(pool):
            pool[slot].view(-1)[-1] += 0.5
        return result

    monkeypatch.setattr(module, op, spoiling)
    name = next(case.name for case in cases(INTERPRETED) if case.op == op)
    assert check(name, "triton", "cpu")["status"] == "wrong"


@pytest.mark.parametrize(
    ("settings", "failure", "found"),
    [
        (lambda *_: "no such\nprocessor", None, {"status": "refused", "why": "no such processor"}),
        (lambda *_: None, lambda *_: "g++ failed:\nwhy", {"status": "unusable", "why": "g++ failed: why"}),
    ],
)
def test_a_backend_that_is_not_made_for_this_is_told_apart_from_one_that_does_not_compile(
    settings: Any, failure: Any, found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module("rwkv_batch.cpu_kernels.log_normalizer")
    monkeypatch.setattr(module, "unsupported_reason", UnsupportedReason(settings, failure))
    assert check("log_normalizer", "cpu", "cpu") == found
    assert CheckResult("log_normalizer", "log_normalizer", "cpu", "cpu", **found).is_good == (failure is None)
    found_of_model = check("demo model float32", "cpu", "cpu")
    assert (found_of_model["status"], failure is None) in (("unusable", False), ("refused", True))


def test_native_kernels_that_do_not_compile_are_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    from rwkv_batch.cpu_kernels import build, call

    monkeypatch.setattr(build, "unavailable", lambda: "g++ failed")
    monkeypatch.setattr(call, "unavailable", lambda: "g++ failed")
    unusable = {"status": "unusable", "why": "g++ failed"}
    assert build_native("", "cpu", "cpu") == unusable
    assert check("log_normalizer", "cpu", "cpu") == unusable
    assert check("wkv7 float32 state float32", "cpu", "cpu") == unusable
    with pytest.raises(BackendError, match=r"no kernel for a state of torch\.float16"):
        NATIVE.op("wkv7", torch.float32, torch.float16)


def test_triton_kernels_that_do_not_compile_are_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    serves(INTERPRETED)
    from rwkv_batch.triton_kernels import probe

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(probe, "failure", lambda op, device: f"Triton does not compile {op}")
    target = Target("triton", GPU)
    with pytest.raises(UnusableError, match="Triton does not compile wkv7"):
        target.op("wkv7", torch.bfloat16)
    with pytest.raises(BackendError, match=r"no kernel for torch\.float64") as refused:
        target.op("wkv7", torch.float64)
    assert not isinstance(refused.value, UnusableError)


@pytest.mark.parametrize(
    ("ops", "prepared"), [(["wkv7", "linear"], ["wkv7", "linear"]), (["linear", DEMO], list(specs()))]
)
def test_triton_kernels_are_compiled_together(
    ops: list[str], prepared: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from rwkv_batch.triton_kernels import probe

    asked: list[Any] = []
    monkeypatch.setattr(probe, "prepare", lambda *given: asked.append(given))
    assert compile_triton("", "triton", "cuda:0", ops) == {"status": "ok"}
    assert asked == [(prepared, GPU)]


@pytest.mark.parametrize(
    ("name", "is_allowed", "is_named"),
    [
        ("linear float32", True, True),
        ("linear float32", False, False),
        ("wkv7 bfloat16 state float32", True, False),
    ],
)
def test_float32_products_that_are_wrong_where_tf32_is_allowed_say_so(
    name: str, is_allowed: bool, is_named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Checks()
    wrong.at_most("product", 1e-3, 1e-5)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr("rwkv_batch.checks.cases.Case.run", lambda *_: wrong)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if is_allowed else "highest")
    try:
        found, tf32 = check(name, "triton", "cuda:0"), dict(findings())["tf32"]
    finally:
        torch.set_float32_matmul_precision(before)
    assert found["status"] == "wrong"
    assert found["why"].startswith("product is 0.001")
    assert ("TF32 is allowed in float32 products: unset TORCH_ALLOW_TF32_CUBLAS_OVERRIDE" in found["why"]) == is_named
    assert tf32.startswith("allowed" if is_allowed else "not allowed")


def test_a_kernel_that_raises_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    serves(NATIVE)
    module = import_module("rwkv_batch.cpu_kernels.log_normalizer")

    def lost(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore words")

    monkeypatch.setattr(module, "log_normalizer", lambda logits: [][1])
    assert check("log_normalizer", "cpu", "cpu") == {"status": "failed", "why": "IndexError: list index out of range"}
    monkeypatch.setattr(module, "log_normalizer", lost)
    found = check("log_normalizer", "cpu", "cpu")
    assert found["status"] == "crashed"
    assert found["why"] == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert not is_lost(RuntimeError("CUDA error: out of memory"))


def test_numbers_and_their_limits() -> None:
    checks = Checks()
    checks.at_most("a", 1.0, 2.0)
    checks.at_most("b", 3.0, 4.0)
    assert outcome(checks) == {"status": "ok", "why": "", "worst_error": 3.0, "limit": 4.0}
    checks.at_most("c", math.nan, 1.0)
    checks.at_most("d", 9.0, 3.0)
    found = outcome(checks)
    assert (found["status"], found["worst_error"], found["limit"]) == ("wrong", None, 1.0)
    assert found["why"] == "c is nan, at most 1 (and 1 more)"


@pytest.mark.parametrize("compare", ["close", "close_in_norm", "near"])
def test_comparisons(compare: str) -> None:
    right = torch.tensor([3.0, 4.0, 0.0, 0.0])

    def value(got: Tensor) -> float:
        checks = Checks()
        getattr(checks, compare)("x", got, right, 1.0)
        return checks.found[0].value

    assert (
        value(right + torch.tensor([0.0, 0.0, 0.5, 0.0]))
        == {"close": 0.125, "close_in_norm": 0.1, "near": 0.5}[compare]
    )
    assert value(right.masked_fill(right == 0, torch.nan)) == math.inf
    with pytest.raises(AssertionError, match="expected \\[4\\]"):
        value(right[:3])


def test_memory_that_nobody_wrote_is_no_number() -> None:
    with poisoned():
        assert torch.empty(3).isnan().all()
        assert torch.empty_like(torch.ones(3, dtype=torch.int8)).eq(127).all()
    assert torch.get_deterministic_debug_mode() == 0


def test_a_cuda_device_has_an_index():
    """`torch.cuda.set_device` refuses a device without one."""
    assert indexed(torch.device("cuda")) == GPU
    assert indexed(torch.device("cuda", 3)) == torch.device("cuda", 3)
    assert indexed(CPU) == CPU
