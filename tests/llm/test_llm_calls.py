"""Calls of the library: iterators, threads, aborts, and the end of a model's life."""

from __future__ import annotations

import asyncio
import gc
import math
import re
import subprocess
import sys
import weakref

import numpy as np
import pytest

from rwkv_batch import LLM, SamplingParams
from rwkv_batch.engine.request import Completion
from rwkv_batch.llm import ScoreRow


def test_bad_prompts_do_not_stop_the_others(llm):
    prompts = ["ok", [1, 999], None, {"messages": [{"role": "alien", "content": ""}]}, [True], {"text": "x"}, "ok too"]
    outputs = dict(llm.generate_iter(prompts, SamplingParams(max_tokens=2)))
    codes = [outputs[i].error_code for i in range(7)]
    assert codes == [None, "token_out_of_range", "bad_type", "bad_messages", "bad_type", "bad_type", None]
    assert "999" in outputs[1].error
    assert [outputs[i].outputs[0].finish_reason for i in range(7)] == ["length", *["error"] * 5, "length"]


def test_a_bad_prompt_costs_nothing_but_itself(llm, caplog):
    prompts = ["ok", [1, 999], "\ud800", {"messages": [{"role": "alien", "content": ""}]}, "ok too"]
    params = SamplingParams(max_tokens=2, n=2)
    outputs = llm.generate(prompts, params)
    codes = [output.error_code for output in outputs]
    assert codes == [None, "token_out_of_range", "invalid_text", "bad_messages", None]
    assert outputs[1].error == "the prompt holds id 999, expected 0 to 256"
    (failed,) = outputs[1].outputs
    assert (failed.index, failed.text, failed.token_ids, failed.finish_reason) == (0, "", [], "error")
    assert math.isnan(failed.cumulative_logprob) and (outputs[1].prompt, outputs[1].prompt_token_ids) == (None, [])
    assert [len(outputs[i].outputs) for i in (0, 4)] == [2, 2]
    assert "3 of 5 results are errors; the first one is of prompt 1: the prompt holds id 999" in caplog.text
    limited = LLM.from_summary(llm.summary, max_prompt_tokens=3).generate(["abcd", "abc"], params)
    assert [output.error_code for output in limited] == ["prompt_too_long", None]


def test_a_bad_pair_costs_nothing_but_itself(llm, caplog):
    pairs = [([1], [2]), ([1], [300]), ("\ud800", ["a", "b"]), ([1], [2])]
    scores = llm.score(pairs)
    assert scores[0].logprob == scores[3].logprob < 0
    assert (scores[1].error_code, scores[1].error[:28]) == ("token_out_of_range", "the continuation holds id 30")
    assert math.isnan(scores[1].logprob)
    assert [score.error_code for score in scores[2]] == ["invalid_text"] * 2
    assert "2 of 4 results are errors; the first one is of pair 1: the continuation holds id 300" in caplog.text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda llm: llm.generate(["a"] * 50 + [None]),
            "prompt 50: got None, expected text, a list of token ids, or a",
        ),
        (lambda llm: llm.generate(None), "prompts: got None, expected a list of prompts"),
        (lambda llm: llm.generate(b"ab"), "prompts: got b'ab', expected a list of prompts"),
        (lambda llm: llm.generate([1.5, 2.5]), r"prompt 0: got 1.5, expected text.*\nprompt 1: got 2.5, expected"),
        (lambda llm: llm.generate([None] * 5), r"prompt 2: got None.*\nand 2 more$"),
        (lambda llm: llm.generate(["a", [True]]), r"prompt 1: got \[True\], expected"),
        (lambda llm: llm.generate(["a", [1.0]]), r"prompt 1: got \[1.0\], expected"),
        (lambda llm: llm.generate([np.zeros((2, 2), int)]), r"prompt 0: got array.*, expected text"),
        (
            lambda llm: llm.generate({"text": "a"}),
            r"got {'text': 'a'}, expected a mapping with one of the keys prompt_",
        ),
        (lambda llm: llm.generate({"prompt": None}), r"got {'prompt': None}, expected text"),
        (lambda llm: llm.generate({"messages": "hi"}), "expected messages: a list of mappings"),
        (lambda llm: llm.generate([[{"role": "user"}]]), r"messages are given as {'messages': \[...\]}"),
        (
            lambda llm: llm.generate(["a"], [{"n": 0}]),
            r"sampling_params 0: SamplingParams.n: got 0, expected an integer",
        ),
        (lambda llm: llm.generate(["a"], "greedy"), "sampling_params: got a text, expected SamplingParams"),
        (lambda llm: llm.generate(["a"], 5), "sampling_params: got 5, expected a list"),
        (lambda llm: llm.generate(["a", "b"], [SamplingParams()]), "got 1 sampling_params for 2 prompts"),
        (
            lambda llm: llm.generate(["a"], SamplingParams(stop_token_ids=[400])),
            "stop_token_ids holds id 400, expected",
        ),
        (lambda llm: list(llm.generate_iter(["a"], [None])), "sampling_params 0: got None, expected SamplingParams"),
        (lambda llm: llm.score([("a", "b")] * 50 + [("a", None)]), r"pair 50: got \('a', None\), expected \(context"),
        (lambda llm: llm.score([("a", [1, 2])]), "both must be text, or both lists of token ids"),
        (lambda llm: llm.score([([1], [[2], "c"])]), "both must be text, or both lists of token ids"),
        (lambda llm: llm.score(5), "pairs: got 5, expected a list of pairs"),
    ],
)
def test_a_wrong_type_is_refused_before_the_first_step(llm, call, message):
    steps = llm.stats().steps
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        call(llm)
    assert llm.stats().steps == steps
    llm.check_integrity()


def test_inputs_of_every_right_type(llm):
    prompts = ("a", [], [1, 2], (1, 2), np.array([1, 2]), {"prompt": "a"}, {"prompt_token_ids": [1]}, iter_once(["b"]))
    params = SamplingParams(max_tokens=1)
    outputs = llm.generate(prompts[:-1], (params for _ in prompts[:-1])) + llm.generate(prompts[-1], params)
    outputs += llm.generate({"messages": [{"role": "user", "content": "a"}]}, params)
    assert [output.error for output in outputs] == [None] * 9
    scores = llm.score([("a", ""), ("", ["a", "b"]), ([], []), ((1,), (2,)), (np.array([1]), [np.array([2]), [3]])])
    assert [isinstance(score, list) for score in scores] == [False, True, False, False, True]
    assert llm.generate([]) == [] and llm.score([]) == []


def iter_once(items):
    yield from items


def test_the_iterator_pulls_as_it_goes(llm):
    pulled = 0

    def endless():
        nonlocal pulled
        while True:
            pulled += 1
            yield "abc"

    outputs = llm.generate_iter(endless(), SamplingParams(max_tokens=2))
    for _ in range(50):
        next(outputs)
    outputs.close()
    assert pulled < 2000


def test_a_new_call_closes_an_iterator_that_was_left_open(llm):
    outer = llm.generate_iter(["a", "b", "c", "d", "e", "f"], SamplingParams(max_tokens=4))
    next(outer)
    with pytest.warns(RuntimeWarning, match="left open") as caught:
        assert len(llm.generate(["z"])) == 1
    assert caught[0].filename == __file__
    assert len(list(outer)) < 5


def test_calls_of_several_threads(llm):
    params = SamplingParams(max_tokens=5)
    expected = [output.outputs[0].token_ids for output in llm.generate(["a", "b"], params)]

    async def together():
        calls = [asyncio.to_thread(llm.generate, ["a", "b"], params) for _ in range(3)]
        return await asyncio.gather(*calls, asyncio.to_thread(llm.score, [("a", "b")]))

    *generated, scores = asyncio.run(together())
    assert [[output.outputs[0].token_ids for output in outputs] for outputs in generated] == [expected] * 3
    assert scores[0].num_tokens == 1


def test_a_prompt_is_aborted_by_its_index(llm):
    outputs = llm.generate_iter(["short", "long"], [SamplingParams(max_tokens=2), SamplingParams(max_tokens=5000)])
    assert next(outputs)[0] == 0
    llm.abort(1)
    ((index, output),) = outputs
    (sample,) = output.outputs
    assert (index, sample.finish_reason, len(sample.token_ids) < 100) == (1, "abort", True)
    assert sample.text == bytes(i - 1 for i in sample.token_ids if i).decode(errors="replace")


def test_a_row_aborted_before_its_prompt_is_read_has_the_logprobs_so_far(llm, monkeypatch):
    prompt, params = [1 + i % 200 for i in range(200)], SamplingParams(max_tokens=3, prompt_logprobs=1, logprobs=0)
    whole = llm.generate([prompt], params)[0]
    step = llm._engine.step

    def step_and_abort():
        step()
        llm.abort(0)

    monkeypatch.setattr(llm._engine, "step", step_and_abort)
    ((_, output),) = llm.generate_iter([prompt], params)
    (completion,) = output.outputs
    assert (completion.finish_reason, completion.token_ids, completion.logprobs) == ("abort", [], [])
    count = len(output.prompt_logprobs)
    assert 1 < count < 100
    assert output.prompt_logprobs[0] is None
    for got, expected in zip(output.prompt_logprobs[1:], whole.prompt_logprobs[1:count], strict=True):
        assert got.keys() == expected.keys()
    assert output.prompt_token_ids == prompt


def test_a_closed_model_is_free_and_says_so(path):
    with LLM(path, max_batch_size=2) as small:
        assert len(small.generate(["a"], SamplingParams(max_tokens=2))) == 1
        model = weakref.ref(small._model)
    assert model() is None
    small.close()
    for use in (lambda: small.generate(["a"]), lambda: small.score([("a", "b")]), small.stats, small.describe):
        with pytest.raises(RuntimeError, match="this LLM is closed"):
            use()


def test_a_summary_is_all_that_loading_needs(path, llm):
    params = SamplingParams(max_tokens=4)
    again = LLM.from_summary(llm.summary, max_prompt_tokens=3)
    assert again.summary is llm.summary
    assert again.generate(["abc"], params) == llm.generate(["abc"], params)
    (_, refused), *_ = again.generate_iter(["abcd"], params)
    assert refused.error_code == "prompt_too_long"
    (outputs,) = dict(again.serve_scores([ScoreRow(0, 0, "abcd", ["a", "b"])])).values()
    assert [output.error_code for output in outputs] == ["prompt_too_long"] * 2


def test_results_are_let_go(llm):
    """Memory is bounded without the collector of cycles."""

    def alive():
        return sum(type(found) is Completion for found in gc.get_objects())

    gc.collect()
    gc.disable()
    before = alive()
    try:
        for _ in llm.generate_iter((f"row {i}" for i in range(60)), SamplingParams(max_tokens=2)):
            pass
        after = alive()
    finally:
        gc.enable()
    assert after <= before


def test_an_iterator_that_is_open_when_python_ends_says_nothing():
    code = "from rwkv_batch import LLM; outputs = LLM('demo').generate_iter(['a', 'b']); print(next(outputs)[0])"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip() in ("0", "1"), done.stderr) == (0, True, "")
