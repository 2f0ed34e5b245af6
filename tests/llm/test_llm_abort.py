"""Rows of a real model that are aborted at random moments: all other results keep every bit."""

from __future__ import annotations

import random
from typing import Any

import pytest

from rwkv_batch import LLM, SamplingParams
from rwkv_batch.engine.engine import Engine
from rwkv_batch.rows import ErrorRow, GenerateRow, RowInFlight, ScoreRow

HEADER = "def mean(values):\n    return "
ROWS: list[Any] = [
    *(GenerateRow(f"plain {i}", i, f"{HEADER}{i}", SamplingParams(max_tokens=30, seed=i)) for i in range(6)),
    *(GenerateRow(f"samples {i}", i, HEADER * 4 + "x" * i, SamplingParams(n=3, max_tokens=12)) for i in range(4)),
    GenerateRow("penalties", 20, HEADER, SamplingParams(max_tokens=40, presence_penalty=0.5, top_p=0.8, logprobs=2)),
    GenerateRow("stop", 21, "import os\n", SamplingParams(max_tokens=40, stop=["\n", "os"])),
    GenerateRow("regex", 22, "n = ", SamplingParams(max_tokens=40, regex="[0-9]{20}")),
    GenerateRow("prompt", 23, HEADER * 3, SamplingParams(max_tokens=5, prompt_logprobs=1)),
    ScoreRow("scores", 24, HEADER, ["sum", "values", "None of it"]),
    ScoreRow("long scores", 25, HEADER * 20, ["sum(values)"], prompt_logprobs=0),
]


@pytest.fixture(scope="module")
def demo():
    pytest.importorskip("llguidance")
    with LLM("demo", device="cpu", dtype="float32", max_batch_size=3, max_batch_tokens=24, batch_invariant=True) as llm:
        yield llm


def serve(llm: LLM, rows: list[Any], aborts: dict[int, list[str]]) -> dict[Any, Any]:
    """Serves rows in one call: key → finished row. `aborts` maps the number of a step to keys to abort after it."""
    engine = llm._engine
    assert isinstance(engine, Engine)
    step, first = engine.step, llm.stats().steps

    def step_and_abort():
        step()
        for key in aborts.get(llm.stats().steps - first, ()):
            llm.abort(key)

    engine.step = step_and_abort
    try:
        found = {}
        for finished in llm.serving.run([rows]):
            llm.check_integrity()
            for one in finished:
                assert one.key not in found
                found[one.key] = one
        return found
    finally:
        del engine.step


def numbers(one):
    """Everything that a finished row holds."""
    assert isinstance(one, RowInFlight)
    return [
        (
            completion.token_ids.tolist(),
            completion.token_logprobs.tolist(),
            completion.finish_reason,
            completion.stop_reason,
            completion.text_bytes,
            [
                (entry.logprob, entry.rank, entry.top_ids, entry.top_logprobs)
                for scores in (completion.logprobs, completion.prompt_scores, completion.next_scores)
                for entry in scores or ()
            ],
        )
        for completion in one.completions
    ]


@pytest.fixture(scope="module")
def expected(demo):
    """Each row served alone."""
    return {row.key: numbers(serve(demo, [row], {})[row.key]) for row in ROWS}


def is_aborted(one):
    if isinstance(one, ErrorRow):
        return one.error.code == "abort"
    return any(completion.finish_reason == "abort" for completion in one.completions)


@pytest.mark.parametrize("seed", range(6))
def test_random_aborts_change_no_other_result(demo, expected, seed):
    chance = random.Random(seed)
    rows = chance.sample(ROWS, len(ROWS))
    victims = chance.sample([row.key for row in rows], 8)
    aborts: dict[int, list[str]] = {}
    for key in victims:
        aborts.setdefault(chance.randrange(1, 40), []).append(key)
    found = serve(demo, rows, aborts)
    assert found.keys() == expected.keys()
    ended = {key for key, one in found.items() if is_aborted(one)}
    assert len(ended) >= 3 and ended <= set(victims)
    for key, one in found.items():
        if key not in ended:
            assert numbers(one) == expected[key]
        elif isinstance(one, RowInFlight):
            for (tokens, *_), (whole, *_) in zip(numbers(one), expected[key], strict=True):
                assert tokens == whole[: len(tokens)]
    assert demo._engine.pool.num_free == 3


def test_no_slot_counts_as_running_after_the_last_result(demo: LLM) -> None:
    """The iterator is still open: it may get further rows, as under a harness that sends them one by one."""
    results = demo.generate_iter(["a", "b"], SamplingParams(max_tokens=3, ignore_eos=True))
    next(results)
    next(results)
    assert demo.stats().running == 0
    results.close()  # type: ignore[attr-defined]
