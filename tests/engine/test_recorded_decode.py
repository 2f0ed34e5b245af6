"""Recorded decode steps on a CPU: results are those of steps that are not recorded, to the bit."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from versions import VERSIONS

from rwkv_batch import LLM, SamplingParams
from rwkv_batch.cpu_kernels.build import unavailable
from rwkv_batch.cpu_kernels.recording import Recording
from rwkv_batch.engine.recorded_decode import RecordedDecode

if unavailable():
    pytest.skip(str(unavailable()), allow_module_level=True)

SIZES: dict[str, Any] = dict(n_layer=2, n_embd=64, n_ffn=96, head_size=32, vocab=97)
OBSTACLES = {"toy": "aten.mul.Tensor"}
"""Version → the first operation of torch in its decode steps; the others have none."""
FORMS = [
    (dtype, quantization) for dtype in ("float32", "bfloat16", "float16") for quantization in (None, "int8", "w8a8")
]
PROMPTS = [[(7 * row + i) % 96 + 1 for i in range(1 + row % 5)] for row in range(11)]


@pytest.fixture(autouse=True)
def has_no_matrix_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """With them, bfloat16 products are torch's."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[RecordedDecode]]:
    """The objects that tests make."""
    found = list[RecordedDecode]()
    make = RecordedDecode.__init__

    def noted(self: RecordedDecode, *args: Any) -> None:
        make(self, *args)
        found.append(self)

    monkeypatch.setattr(RecordedDecode, "__init__", noted)
    yield found


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often recordings with a number of calls were replayed. Before each replay the arena is made all NaN."""
    found = Counter[int]()
    replay, run = Recording.replay, RecordedDecode.run

    def counted(self: Recording) -> None:
        found[len(self._calls)] += 1
        replay(self)

    def poisoned(self: RecordedDecode, step: Any) -> Any:
        assert self._arena.is_empty
        self._arena._memory.fill(255)
        return run(self, step)

    monkeypatch.setattr(Recording, "replay", counted)
    monkeypatch.setattr(RecordedDecode, "run", poisoned)
    return found


def load(path: Any, **settings: Any) -> LLM:
    return LLM(path, tokenizer=None, device="cpu", **{"max_batch_size": 4, "max_batch_tokens": 9, **settings})


def serve(llm: LLM, threads: tuple[int, ...] = (2,)) -> list[Any]:
    """Serves rows whose lengths differ, so that the batch shrinks and grows. Returns tokens and log-probabilities."""
    params = [
        SamplingParams(max_tokens=2 + (5 * row) % 12, temperature=1.0, top_p=0.9, logprobs=3, ignore_eos=True, seed=row)
        for row in range(len(PROMPTS))
    ]
    before = torch.get_num_threads()
    try:
        found = []
        for number in threads:
            torch.set_num_threads(number)
            found += llm.generate([{"prompt_token_ids": ids} for ids in PROMPTS], params)
    finally:
        torch.set_num_threads(before)
    outputs = [output.outputs[0] for output in found]
    return [(one.token_ids, one.token_logprobs, str(one.logprobs)) for one in outputs]


def unrecorded(path: Any, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[Any]:
    with monkeypatch.context() as patched:
        patched.setattr(RecordedDecode, "of", lambda *_: None)
        return serve(load(path, **settings))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("dtype", "quantization"), FORMS)
def test_results_are_those_of_steps_that_are_not_recorded(
    version: str, dtype: str, quantization: str | None, checkpoint_file, monkeypatch, made, replays
) -> None:
    path, settings = checkpoint_file(version, **SIZES), dict(dtype=dtype, quantization=quantization)
    expected = unrecorded(path, monkeypatch, **settings)
    assert not made
    assert serve(load(path, **settings)) == expected
    (decode,) = made
    assert decode.obstacle == OBSTACLES.get(version, "")
    if not decode.obstacle:
        assert len(decode._recordings) >= 3
        assert replays.total() >= 10


def test_the_obstacle_is_logged_once(checkpoint_file, caplog, made) -> None:
    with caplog.at_level("INFO"):
        serve(load(checkpoint_file("toy", **SIZES)))
    assert [record.getMessage() for record in caplog.records if "recorded" in record.getMessage()] == [
        "decode steps are not recorded: aten.mul.Tensor"
    ]
    assert not made[0]._recordings


def test_the_definitions_are_not_recorded(checkpoint_file, made) -> None:
    serve(load(checkpoint_file("7.0", **SIZES), backend="reference"))
    assert not made


def test_layers_in_several_places_are_not_recorded() -> None:
    ops, logits = SimpleNamespace(choices=[SimpleNamespace(backend="cpu")]), torch.empty(1, 1)
    model: Any = SimpleNamespace(ops=ops, pipeline=object(), device=torch.device("cpu"))
    pool: Any = SimpleNamespace(num_slots=1)
    assert RecordedDecode.of(model, pool, logits) is None


def test_each_batch_size_is_recorded_once(checkpoint_file, monkeypatch, made) -> None:
    """However many sizes there are: a step that is recorded takes longer than one that is not."""
    path, settings = checkpoint_file("7.0", **SIZES), dict(max_batch_size=100, max_batch_tokens=200)
    recorded = Counter[int]()
    record = RecordedDecode._record

    def counted(self: RecordedDecode, step: Any) -> None:
        recorded[len(step.slots)] += 1
        record(self, step)

    monkeypatch.setattr(RecordedDecode, "_record", counted)
    llm = load(path, **settings)
    params = [SamplingParams(max_tokens=2 + row, ignore_eos=True, seed=row) for row in range(100)]
    for _ in range(2):
        llm.generate([{"prompt_token_ids": [1]}] * 100, params)
    assert recorded == dict.fromkeys(range(1, 101), 1)


@pytest.mark.parametrize("is_loaded_before", [False, True])
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, "meta"])
def test_defaults_of_torch_do_not_matter(
    default: Any, is_loaded_before: bool, checkpoint_file, monkeypatch, made, replays
) -> None:
    """The caller may have set another dtype or device for the tensors that it makes itself."""
    path = checkpoint_file("7.0", **SIZES)
    expected = unrecorded(path, monkeypatch)
    llm = load(path) if is_loaded_before else None
    try:
        if isinstance(default, str):
            torch.set_default_device(default)
        else:
            torch.set_default_dtype(default)
        assert serve(llm or load(path)) == expected
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert made[0]._recordings and replays


def test_the_number_of_threads_may_change(checkpoint_file, monkeypatch, replays) -> None:
    path = checkpoint_file("7.0", **SIZES)
    expected = unrecorded(path, monkeypatch)
    assert serve(load(path), threads=(1, 3, 2)) == expected * 3
    assert replays


def test_several_engines_run_at_a_time(checkpoint_file, monkeypatch, made) -> None:
    path = checkpoint_file("7.0", **SIZES)
    expected = unrecorded(path, monkeypatch)
    engines = [load(path) for _ in range(3)]
    found: list[list[Any]] = [[] for _ in engines]

    def run(index: int) -> None:
        for _ in range(3):
            found[index] += serve(engines[index])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(engines))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected * 3] * 3
    assert all(decode._recordings for decode in made)


@pytest.mark.filterwarnings("ignore")
def test_fewer_slots_after_running_out_of_memory(checkpoint_file, monkeypatch, made) -> None:
    """Pool and logits are other ones then: what was recorded is dropped."""
    path = checkpoint_file("7.0", **SIZES)
    expected = unrecorded(path, monkeypatch)
    run, steps = RecordedDecode.run, Counter[str]()

    def fails_once(self: RecordedDecode, step: Any) -> Any:
        steps["all"] += 1
        if steps["all"] == 9:
            raise MemoryError("not enough")
        return run(self, step)

    monkeypatch.setattr(RecordedDecode, "run", fails_once)
    llm = load(path)
    assert serve(llm) == expected
    assert llm.stats().max_batch_size == 2
    first, second = made[0], made[-1]
    assert first is not second and first._pool is not second._pool and second._recordings


def test_steps_are_not_counted_as_recorded(checkpoint_file) -> None:
    llm = load(checkpoint_file("7.0", **SIZES))
    serve(llm)
    assert llm.stats().recorded_steps == 0 and not llm.stats().unrecorded_steps
