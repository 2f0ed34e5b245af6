"""Calls of the library: iterators, threads, aborts, and the end of a model's life."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import weakref

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
    with pytest.raises(ValueError, match="prompt 1: the prompt holds id 999, expected 0 to 256"):
        llm.generate(prompts, SamplingParams(max_tokens=2))
    with pytest.raises(ValueError, match="pair 0: the continuation holds id 300"):
        llm.score([([1], [300])])
    with pytest.raises(ValueError, match="must both be text or both be token ids"):
        llm.score([("abc", [1, 2])])


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
