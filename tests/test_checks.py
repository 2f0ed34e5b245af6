"""`rwkv-batch doctor --check`: what is right is found right, and whatever is wrong, hangs or ends is named."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch
from float64_reference import Float64Model
from kernels.kernel_cases import Case, expected, in_float64, make_case, run
from oracle import Oracle
from safetensors.torch import load_file
from torch import Tensor

from rwkv_batch.checks import CheckResult, format_table, run_checks
from rwkv_batch.checks import process as process_module
from rwkv_batch.checks.calls import DEFINITIONS, VARIANTS
from rwkv_batch.checks.cases import DEMO, cases
from rwkv_batch.checks.outcome import Checks, poisoned
from rwkv_batch.checks.process import Process
from rwkv_batch.checks.runner import Job, run_jobs
from rwkv_batch.checks.target import Target, specs
from rwkv_batch.checks.worker import check, is_lost, outcome
from rwkv_batch.cpu_kernels.build import unavailable
from rwkv_batch.demo.known import known
from rwkv_batch.errors import ConfigurationError
from rwkv_batch.model_summary import DEMO_MODEL

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
LONG = 1e5
"""Seconds that no case takes, however slow the machine is."""
NATIVE = Target("cpu", CPU)
INTERPRETED = Target("triton", CPU)
REFUSED_PACKAGES = [
    *("fsspec", "huggingface_hub", "jinja2", "pyarrow", "pydantic", "pyrwkv_tokenizer"),
    *("safetensors", "tokenizers", "tqdm", "xgrammar", "yaml"),
]
"""What a machine with torch and Triton may lack."""


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
    for backend in ("triton", "cpu", "reference"):
        target = Target(backend, CPU)
        assert {case.op for case in cases(target)} == {DEMO} | {name for name in specs() if target.has(name)}


def spoiled(function: Callable[..., Any], spoil: Callable[[Any], Any]) -> Callable[..., Any]:
    """The same function with another result."""
    return lambda *args, **kwargs: spoil(function(*args, **kwargs))


def with_another_end(result: Any) -> Any:
    """The last number of the first tensor is off by a twentieth of the largest, or by one."""
    first = result[0] if isinstance(result, tuple) else result
    first = next(part for part in result if part is not None) if first is None else first
    last = first.reshape(-1)[-1]
    changed = last + first.abs().max() / 20 if first.is_floating_point() else last - 1 if last > 0 else last + 1
    first[(-1,) * first.dim()] = changed
    return result


def unwritten(result: Any) -> Any:
    """Results that nobody wrote."""
    parts = result if isinstance(result, tuple) else (result,)
    empty = tuple(part if part is None else torch.empty_like(part) for part in parts)
    return empty if isinstance(result, tuple) else empty[0]


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


def test_a_kernel_that_raises_or_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr(module, "unsupported_reason", lambda *_: "no such\nprocessor")
    assert check("log_normalizer", "cpu", "cpu") == {"status": "refused", "why": "no such processor"}
    assert not is_lost(RuntimeError("CUDA error: out of memory"))


def job(function: str, device: str = "cpu", time_limit: float = LONG) -> Job:
    return Job(function, "op", "backend", device, time_limit, f"faulty_cases:{function}")


def test_whatever_a_process_does_the_others_go_on(tmp_path: Path) -> None:
    reported: list[CheckResult] = []
    jobs = [job("hang", str(tmp_path / "pid"), 0.0), job("abort"), job("leave"), job("right")]
    results = run_jobs(jobs, 2, reported.append)
    assert [(result.name, result.status) for result in results] == [
        ("hang", "timeout"),
        ("abort", "crashed"),
        ("leave", "failed"),
        ("right", "ok"),
    ]
    hung, aborted, left, right = results
    assert hung.why.startswith("ended after 0 s")
    assert aborted.why == "ended by SIGABRT; the last words"
    assert left.why == "ended with exit code 1; ValueError: of leave"
    assert (right.worst_error, right.limit, right.why) == (0.5, 1.0, "")
    assert {result.name for result in reported} == {result.name for result in results}
    assert [result.is_good for result in results] == [False, False, False, True]


def test_what_a_process_has_started_ends_with_it(tmp_path: Path) -> None:
    numbers, folder = tmp_path / "pid", tmp_path / "work"
    folder.mkdir()
    arguments = {"name": "hang", "backend": "", "device": str(numbers)}
    process = Process("faulty_cases:hang", arguments, math.inf, folder)
    try:
        while not numbers.exists():
            assert process.ended() is None
            sleep(0.01)
    finally:
        process.kill()
    child = int(numbers.read_text())
    while Path(f"/proc/{child}").exists() and " Z " not in Path(f"/proc/{child}/stat").read_text():
        sleep(0.01)
    assert process.ended() is not None


def test_an_interrupt_leaves_no_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[Any] = []
    popen = subprocess.Popen

    def noted(*args: Any, **kwargs: Any) -> Any:
        started.append(popen(*args, **kwargs))
        return started[-1]

    def interrupt(result: CheckResult) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(process_module.subprocess, "Popen", noted)
    with pytest.raises(KeyboardInterrupt):
        run_jobs([job("hang", str(tmp_path / "pid")), job("right")], 2, interrupt)
    assert [process.returncode for process in started] == [-signal.SIGKILL, 0]


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


def in_double(case: Case) -> Case:
    copy = case.copy()
    arguments = {name: in_float64(x) for name, x in copy.arguments.items()}
    return Case(case.variant, arguments, {name: pool.double() for name, pool in copy.pools.items()}, case.rows)


@pytest.mark.parametrize("variant", VARIANTS)
def test_definitions_of_recurrences_can_be_computed_in_float64(variant: str) -> None:
    case = in_double(make_case(variant))
    out, after = run(DEFINITIONS[case.op], case)
    want, states = expected(case)
    torch.testing.assert_close(out[case.tokens], want[case.tokens], rtol=1e-11, atol=1e-11)
    for name, state in after.states.items():
        torch.testing.assert_close(state, states[name], rtol=1e-11, atol=1e-11)


@pytest.fixture(scope="module")
def demo_tensors() -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in load_file(DEMO_MODEL).items()}


def test_known_tokens_are_those_of_float64(demo_tensors: dict[str, Tensor]) -> None:
    model = Float64Model(demo_tensors)
    for prompt_ids, token_ids, logprobs, leads in known():
        state = model.initial_state(1)
        for token in prompt_ids:
            logits, state = model.step(torch.tensor([token]), state)
        for token, logprob, lead in zip(token_ids, logprobs, leads, strict=True):
            (best, second), (likeliest, _) = (part.tolist() for part in logits[0].log_softmax(0).topk(2))
            assert (token, logprob, lead) == (
                likeliest,
                pytest.approx(best, abs=2e-5),
                pytest.approx(best - second, abs=4e-5),
            )
            logits, state = model.step(torch.tensor([token]), state)


def test_known_tokens_are_those_of_the_rwkv_package(demo_tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "demo.pth"
    torch.save(demo_tensors, path)
    with Oracle(path, "7.0") as oracle:
        for prompt_ids, token_ids, logprobs, _ in known():
            _, scores, is_greedy = oracle.loglikelihood(prompt_ids, token_ids)
            assert is_greedy
            assert scores == pytest.approx(logprobs, abs=1e-4)


def command(folder: Path, start: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The checks as a user starts them; each of their processes runs the code `start` first."""
    (folder / "sitecustomize.py").write_text(start)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    line = [sys.executable, "-m", "rwkv_batch.checks", *arguments]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def refusing(packages: list[str]) -> str:
    return f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"refused: {{name}}")
sys.meta_path.insert(0, Refuse())
"""


BREAKING = """
import sys
from importlib.machinery import PathFinder
class Break:
    def find_spec(self, name, path=None, target=None):
        if name != "rwkv_batch.cpu_kernels.log_normalizer":
            return None
        spec = PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            right = module.log_normalizer
            module.log_normalizer = lambda logits: right(logits) + 0.01
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, Break())
"""


def test_the_command_needs_torch_and_little_else(tmp_path: Path) -> None:
    serves(NATIVE)
    done = command(tmp_path, refusing(REFUSED_PACKAGES), "--ops", "demo", "top_tokens", "--backends", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 cases: 4 ok" in done.stdout
    assert f"torch            {torch.__version__}" in done.stdout


def test_without_filelock_kernels_that_are_built_are_refused_and_definitions_checked(tmp_path: Path) -> None:
    start = refusing([*REFUSED_PACKAGES, "filelock"])
    done = command(tmp_path, start, "--ops", "top_tokens", "--backends", "reference", "cpu", "--devices", "cpu")
    lines = [line for line in done.stdout.splitlines() if line.startswith("top_tokens")]
    assert "reference" in lines[0] and " ok " in lines[0]
    assert "cpu" in lines[1] and "filelock" in lines[1]


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    serves(NATIVE)
    arguments = ("--ops", "log_normalizer", "top_tokens", "--backends", "cpu", "--json", str(tmp_path / "found.json"))
    done = command(tmp_path, BREAKING, *arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    wrong = next(line for line in done.stdout.splitlines() if line.startswith("log_normalizer"))
    assert wrong.split()[:6] == ["log_normalizer", "cpu", "cpu", "wrong", "1.0e-02", "2.0e-06"]
    assert "V=" in wrong and "at most 2e-06" in wrong
    assert "3 cases: 2 ok, 1 wrong" in done.stdout
    assert "wrong" in (tmp_path / "found.json").read_text()


def test_a_table_has_a_line_for_each_case() -> None:
    results = [
        CheckResult("wkv7 bfloat16 state float16", "wkv7", "triton", "cuda:0", "ok", "", 1.2e-4, 2e-3, 8.14),
        CheckResult("sample", "sample", "triton", "cuda:1", "timeout", "ended after 40 s", None, None, 40.2),
    ]
    assert format_table(results).splitlines() == [
        "case                         backend  device  result   error    limit    s     reason",
        "wkv7 bfloat16 state float16  triton   cuda:0  ok       1.2e-04  2.0e-03  8.1",
        "sample                       triton   cuda:1  timeout                    40.2  ended after 40 s",
        "",
        "2 cases: 1 ok, 1 timeout",
    ]
    assert asdict(results[1])["status"] == "timeout"


def test_nothing_to_check_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match=r"ops \['wkv8'\].*such as wkv7"):
        run_checks([CPU], ops=["wkv8"])
