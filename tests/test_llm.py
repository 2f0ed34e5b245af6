"""The embedded API over a tiny random model with byte tokens."""

from __future__ import annotations

import asyncio
import gc
import math
import weakref
from time import perf_counter

import pytest
import torch
from checkpoints import make_checkpoint, write_checkpoint

from rwkv_batch import LLM, SamplingParams
from rwkv_batch.engine.request import Completion
from rwkv_batch.errors import BackendError, CapacityError, CheckpointError, ConfigurationError
from rwkv_batch.llm import ScoreRow
from rwkv_batch.models.scoring import ROWS_AT_ONCE

VOCAB = 257


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_checkpoint(make_checkpoint("7.0", vocab=VOCAB), tmp_path_factory.mktemp("llm") / "model.pth")


@pytest.fixture(scope="module")
def llm(path):
    return LLM(path, max_batch_size=4, max_batch_tokens=24)


@pytest.fixture(autouse=True)
def no_slot_leaks(llm):
    yield
    llm.check_integrity()


def test_results_are_in_the_order_of_the_prompts(llm):
    prompts = [f"prompt {i}" * (1 + i % 5) for i in range(30)]
    params = [SamplingParams(max_tokens=1 + i % 7) for i in range(30)]
    outputs = llm.generate(prompts, params)
    assert [output.prompt for output in outputs] == prompts
    for output, p in zip(outputs, params, strict=True):
        assert output.prompt_token_ids == [byte + 1 for byte in output.prompt.encode()]
        assert 1 <= len(output.outputs[0].token_ids) <= p.max_tokens


def test_kinds_of_prompts(llm):
    ids = [66, 67, 68]
    params = SamplingParams(max_tokens=4)
    text, listed, mapped = (llm.generate([p], params)[0] for p in ("ABC", ids, {"prompt_token_ids": ids}))
    assert text.outputs[0].token_ids == listed.outputs[0].token_ids == mapped.outputs[0].token_ids
    assert (text.prompt, listed.prompt) == ("ABC", None)
    chat = llm.generate({"messages": [{"role": "user", "content": "Hi"}]}, params)[0]
    assert chat.prompt == "User: Hi\n\nAssistant:"
    assert llm.generate("", params)[0].prompt_token_ids == [0]


def test_text_is_what_the_tokens_say(llm):
    output = llm.generate(["x"], SamplingParams(max_tokens=20, ignore_eos=True))[0].outputs[0]
    data = bytes(i - 1 for i in output.token_ids if i)
    assert output.text == data.decode(errors="replace")
    assert output.cumulative_logprob == pytest.approx(math.fsum(output.token_logprobs))
    assert output.finish_reason == "length"


def test_stop_strings_cut_the_text(llm):
    free = llm.generate(["y"], SamplingParams(max_tokens=40, ignore_eos=True))[0].outputs[0]
    readable = [i for i, token_id in enumerate(free.token_ids) if 33 < token_id - 1 < 127]
    at = readable[len(readable) // 2]
    stop = bytes([free.token_ids[at] - 1]).decode()
    first = free.text.index(stop)
    for include in (False, True):
        params = SamplingParams(
            max_tokens=40, ignore_eos=True, stop=[stop, "never"], include_stop_str_in_output=include
        )
        cut = llm.generate(["y"], params)[0].outputs[0]
        assert cut.text == free.text[: first + include]
        assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)


@pytest.mark.parametrize("stop", [None, "never"])
def test_a_stop_token_with_text_is_not_of_the_text(llm, stop):
    """Also where every token is watched for a stop string."""
    params = SamplingParams(max_tokens=9, stop_token_ids=[99], logit_bias={99: 100.0}, stop=stop)
    output = llm.generate(["y"], params)[0].outputs[0]
    assert (output.token_ids, output.text) == ([99], "")
    assert (output.finish_reason, output.stop_reason) == ("stop", 99)


def test_the_last_id_of_the_vocabulary_is_legal_everywhere_and_the_next_one_nowhere(llm):
    last = VOCAB - 1
    given = dict(stop_token_ids=[last], allowed_token_ids=[98, last], bad_token_ids=[last], logit_bias={last: 1.0})
    for name, value in given.items():
        output = llm.generate([[last, 66]], SamplingParams(max_tokens=2, **{name: value}))[0]
        assert len(output.outputs[0].token_ids) >= 1
        beyond = {last + 1: 1.0} if name == "logit_bias" else [last + 1]
        (_, refused), *_ = llm.generate_iter(["a"], SamplingParams(**{name: beyond}))
        assert (refused.error_code, f"{name} holds id {VOCAB}" in refused.error) == ("bad_sampling", True)
    (_, refused), *_ = llm.generate_iter([[66, VOCAB]])
    assert refused.error_code == "token_out_of_range"


def test_a_stop_string_counts_behind_min_tokens(llm):
    """As a stop token does, and as in vLLM: the first `min_tokens` tokens end nothing."""
    always = dict(logit_bias={ord("z") + 1: 100.0}, stop="z", max_tokens=20)
    for min_tokens in (0, 5):
        output = llm.generate(["y"], SamplingParams(min_tokens=min_tokens, **always))[0].outputs[0]
        assert len(output.token_ids) == min_tokens + 1
        assert output.finish_reason == "stop"


def test_samples_share_their_prompt(llm):
    before = llm.stats().prompt_tokens
    output = llm.generate(["a prompt of some length"], SamplingParams(n=6, max_tokens=5))[0]
    assert [sample.index for sample in output.outputs] == list(range(6))
    assert len({tuple(sample.token_ids) for sample in output.outputs}) == 6
    assert llm.stats().prompt_tokens - before == len("a prompt of some length") - 1 + 6


def test_logprobs(llm):
    output = llm.generate(["abcd"], SamplingParams(max_tokens=3, logprobs=2, prompt_logprobs=1, n=2))[0]
    assert output.prompt_logprobs[0] is None
    scores = llm.score([("a", "bcd")])[0]
    own = [
        entry[token_id] for entry, token_id in zip(output.prompt_logprobs[1:], output.prompt_token_ids[1:], strict=True)
    ]
    assert [entry.logprob for entry in own] == pytest.approx(scores.token_logprobs, abs=1e-5)
    assert [entry.decoded_token for entry in own] == ["b", "c", "d"]
    for sample in output.outputs:
        for token_id, logprob, entry in zip(sample.token_ids, sample.token_logprobs, sample.logprobs, strict=True):
            assert entry[token_id].logprob == pytest.approx(logprob, abs=1e-6)
            assert [v.rank for v in entry.values()][:2] == [1, 2]
            assert 2 <= len(entry) <= 3


def test_scores_equal_the_rwkv_package(path, llm, oracle):
    pairs = [([5, 6, 7], [8, 9]), ([1], [2]), (list(range(1, 60)), list(range(60, 90))), ([0], [256] * 40)]
    for (context, continuation), got in zip(pairs, llm.score(pairs), strict=True):
        total, each, is_greedy = oracle("7.0", path).loglikelihood(context, continuation)
        assert got.logprob == pytest.approx(total, abs=1e-3)
        assert got.token_logprobs == pytest.approx(each, abs=1e-4)
        assert (got.is_greedy, got.num_tokens) == (is_greedy, len(continuation))


def test_greedy_continuations_are_found(llm):
    greedy = llm.generate(["qrs"], SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True))[0].outputs[0]
    context = [byte + 1 for byte in b"qrs"]
    assert llm.score([(context, greedy.token_ids)])[0].is_greedy
    other = [*greedy.token_ids[:-1], (greedy.token_ids[-1] + 1) % VOCAB]
    assert not llm.score([(context, other)])[0].is_greedy


def test_empty_contexts_start_a_document_and_empty_continuations_are_certain(llm):
    assert llm.score([("", "ab")])[0].token_logprobs == pytest.approx(llm.score([([0], [98, 99])])[0].token_logprobs)
    empty = llm.score([("ab", "")])[0]
    assert (empty.logprob, empty.is_greedy, empty.num_tokens) == (0.0, True, 0)


def test_scoring_shares_contexts_without_changing_results(path):
    pairs = [("a long shared context " * 3 + str(q), choice) for q in range(4) for choice in ("yes", "no", "may be")]
    shared, single = LLM(path), LLM(path, prefix_sharing=False)
    want = single.score(pairs)
    got = shared.score(pairs)
    assert [score.logprob for score in got] == pytest.approx([score.logprob for score in want], abs=1e-4)
    assert shared.stats().prompt_tokens < 0.3 * single.stats().prompt_tokens


@pytest.mark.parametrize(("slots", "host_gib", "where"), [(8, 0, "device"), (1, 1, "host"), (1, 0, "nowhere")])
def test_shared_prefixes_change_no_bit_in_float32(slots, host_gib, where):
    """Three levels, generated and scored; states beside the pool, in host memory, or with a place for only one."""
    system = "The system prompt of this test is a sentence that all rows share. "
    prompts = [system + f"Topic {i % 2}, in so many words: question {i} of many?" for i in range(6)]
    choices = [" six", " eight legs", " none"]
    params = SamplingParams(max_tokens=4, n=2, ignore_eos=True)
    found, stats, start = [], [], perf_counter()
    for sharing in (True, False):
        llm = LLM(
            "demo",
            dtype="float32",
            device="cpu",
            batch_invariant=True,
            max_batch_size=slots,
            max_batch_tokens=slots + 40,
            prefix_sharing=sharing,
            prefix_host_gib=host_gib,
        )
        completions = [one for output in llm.generate(prompts, params) for one in output.outputs]
        scores = [one for row in llm.score([(prompt, choices) for prompt in prompts]) for one in row]
        found.append([(one.token_ids, one.token_logprobs) for one in [*completions, *scores]])
        stats.append(llm.stats())
        if sharing:
            snapshots = llm._engine.snapshots
            kept = (snapshots.peak > 1, snapshots.peak_on_host > 0)
            assert kept == {"device": (True, False), "host": (True, True), "nowhere": (False, False)}[where]
    assert found[0] == found[1]
    shared, single = stats
    assert shared.requested_tokens == single.requested_tokens
    assert where == "nowhere" or shared.prompt_tokens < 0.75 * single.prompt_tokens
    for some in stats:  # the samples of a row share their prompt either way
        saved = (some.requested_tokens - some.prompt_tokens) * some.prompt_seconds / some.prompt_tokens
        assert some.saved_seconds == pytest.approx(saved)
        assert 0 < some.prompt_seconds < perf_counter() - start


def test_a_state_file_starts_every_sequence(tmp_path):
    """As the same tensors do inside the checkpoint, and not as no tensors do."""
    tensors = make_checkpoint("6.0", vocab=VOCAB)
    states = {f"blocks.{i}.att.time_state": 5 * torch.randn(2, 64, 64) for i in range(3)}
    without = write_checkpoint(tensors, tmp_path / "without.pth")
    inside = write_checkpoint(tensors | states, tmp_path / "inside.pth")
    torch.save(states, tmp_path / "states.pth")

    def tokens(path, **settings):
        llm = LLM(path, max_batch_size=2, max_batch_tokens=24, **settings)
        results = llm.generate(["a", "b", "c"], SamplingParams(max_tokens=8, temperature=0.0))
        return [result.outputs[0].token_ids for result in results]

    assert tokens(without, init_state=tmp_path / "states.pth") == tokens(inside) != tokens(without)


def test_a_wrong_budget_for_prefixes_is_refused(path):
    with pytest.raises(ConfigurationError, match=r"^prefix_host_gib: got -1, expected a number of GiB from 0"):
        LLM(path, prefix_host_gib=-1)


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


def test_ids_beyond_the_vocabulary_in_sampling_params(llm):
    (_, output), *_ = llm.generate_iter(["a"], SamplingParams(stop_token_ids=[400]))
    assert (output.error_code, "stop_token_ids holds id 400" in output.error) == ("bad_sampling", True)


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


def test_a_row_gives_the_same_tokens_in_any_company(path, llm):
    params = SamplingParams(max_tokens=8, temperature=1.2, top_p=0.9)
    prompts = [f"{i} prompt" * (i % 4 + 1) for i in range(12)]
    together = [output.outputs[0].token_ids for output in llm.generate(prompts, params)]
    large = LLM(path, max_batch_size=16, batch_invariant=True)
    assert [output.outputs[0].token_ids for output in large.generate(prompts, params)] == together
    assert [output.outputs[0].token_ids for output in LLM(path, seed=1).generate(prompts, params)] != together


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


def test_all_samples_of_a_row_share_its_prompt_in_every_window(path):
    small = LLM(path, max_batch_size=2, max_batch_tokens=64)
    small.generate(["a prompt of some length"] * 3, SamplingParams(n=150, max_tokens=1))
    assert small.stats().prompt_tokens <= 3 * (len("a prompt of some length") - 1) + 450


def test_scoring_never_holds_all_logits(llm, monkeypatch):
    rows = []
    head = llm._model._head
    monkeypatch.setattr(llm._model, "_head", lambda x, dtype=None: rows.append(len(x)) or head(x, dtype=dtype))
    llm.score([([1], [2] * 300)])
    assert sum(rows) == 300
    assert max(rows) <= ROWS_AT_ONCE


def test_without_a_tokenizer_ids_go_in_and_out(path):
    bare = LLM(path, tokenizer=None)
    output = bare.generate([[1, 2]], SamplingParams(max_tokens=3))[0]
    assert output.outputs[0].text == ""
    assert len(output.outputs[0].token_ids) == 3
    with pytest.raises(ValueError, match="loaded with tokenizer=None"):
        bare.generate(["text"])
    with pytest.raises(ValueError, match="stop strings need a tokenizer"):
        bare.generate([[1]], SamplingParams(stop="x"))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (dict(state_dtype="bfloat16"), ConfigurationError, "^state_dtype: got 'bfloat16'"),
        (dict(ln_x_eps=-1.0), ConfigurationError, "^ln_x_eps: got -1.0"),
        (dict(max_batch_size=0), ConfigurationError, "^max_batch_size: got 0"),
        (dict(max_batch_size=8, max_batch_tokens=4), ConfigurationError, "^max_batch_tokens: got 4, expected at least"),
        (dict(max_batch_size=10**9), CapacityError, "not enough memory"),
        (dict(init_state="nowhere.pth"), CheckpointError, "^init_state: nowhere.pth is not a file"),
        (dict(backend="cuda"), BackendError, "backend 'cuda' cannot serve this model"),
        (dict(backend="rocm"), ConfigurationError, "^backend: got 'rocm'"),
        (dict(dtype="fp8"), ConfigurationError, "^dtype: got 'fp8'"),
        (dict(quantization="int4"), ConfigurationError, "^quantization: got 'int4'"),
        (dict(strategy="cpu fp8"), ConfigurationError, "^strategy: got 'cpu fp8'"),
        (dict(device="tpu"), ConfigurationError, "^device: got 'tpu'"),
        (dict(tokenizer="world"), ConfigurationError, "257"),
    ],
)
def test_wrong_settings_are_refused(path, settings, error, message):
    with pytest.raises(error, match=message):
        LLM(path, **settings)


def test_structured_text(llm):
    pytest.importorskip("xgrammar", reason="structured output needs the extra `structured`")
    outputs = llm.generate(["a", "b"], SamplingParams(max_tokens=40, regex="[a-c]{3,9}!"))
    for output in outputs:
        assert output.outputs[0].text[-1] == "!"
        assert set(output.outputs[0].text[:-1]) <= set("abc")
    endless = SamplingParams(max_tokens=40, regex="ab", ignore_eos=True, min_tokens=9)
    ended = llm.generate(["a"], endless)[0].outputs[0]
    assert (ended.text, ended.finish_reason) == ("ab", "stop")
    with pytest.raises(ValueError, match="regex"):
        llm.generate(["a"], SamplingParams(regex="(unclosed"))


def test_int8_and_half_precision_run(path):
    for settings in (dict(quantization="int8"), dict(dtype="bfloat16"), dict(strategy="cpu fp16i8")):
        small = LLM(path, **settings)
        assert len(small.generate(["abc"], SamplingParams(max_tokens=4, ignore_eos=True))[0].outputs[0].token_ids) == 4
        assert small.describe()["quantization"] == (("bfloat16" not in settings.values() and "int8") or None)


def scored_by(model, context, continuation):
    total, each, is_greedy = model.loglikelihood(context, continuation)
    return pytest.approx(total, abs=1e-3), pytest.approx(each, abs=1e-4), is_greedy


def test_several_continuations_of_one_context(path, llm, oracle):
    context, choices = list(range(40, 80)), [[5], [6, 7, 8], [], [9], [6, 7], [5], [200] * 50]
    single, several, last = llm.score([(context, [1]), (context, choices), ([3], [4])])
    assert (single.num_tokens, last.num_tokens) == (1, 1)
    for choice, got in zip(choices, several, strict=True):
        assert got.token_ids == choice
        if choice:
            expected = scored_by(oracle("7.0", path), context, choice)
            assert (got.logprob, got.token_logprobs, got.is_greedy) == expected
    assert (several[2].logprob, several[2].is_greedy) == (0.0, True)
    before = llm.stats().prompt_tokens
    llm.score([(context, choices)])
    assert llm.stats().prompt_tokens - before == len(context) + 2 + 1 + 49
    assert [score.logprob for score in llm.score([("ab", ["c", "de"])])[0]] == pytest.approx(
        [score.logprob for score in llm.score([("ab", "c"), ("ab", "de")])], abs=1e-4
    )


def test_one_token_choices_need_one_hidden_state(llm, monkeypatch):
    rows = []
    head = llm._model._head
    monkeypatch.setattr(llm._model, "_head", lambda x, dtype=None: rows.append(len(x)) or head(x, dtype=dtype))
    before = llm.stats().prompt_tokens
    llm.score([(list(range(1, 30)), [[i] for i in range(20)])])
    assert (rows, llm.stats().prompt_tokens - before) == ([1], 29)


def test_no_tokens_have_no_logprobs(llm):
    params = SamplingParams(max_tokens=0, logprobs=2)
    assert llm.generate(["abcd"], params)[0].outputs[0].logprobs == []


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


def test_top_and_prompt_logprobs_of_scores(path, llm, oracle):
    context, choices = [7, 8, 9, 10], [[5], [6, 7]]
    ((first, second),) = llm.score([(context, choices)], top_logprobs=3, prompt_logprobs=1)
    logits, _ = oracle("7.0", path).forward([*context, 6], full_output=True)
    logprobs = logits.double().log_softmax(-1)
    for entries, token, position in (
        (first.top_logprobs[0], 5, 3),
        *zip(second.top_logprobs, [6, 7], [3, 4], strict=True),
    ):
        best = logprobs[position].topk(3)
        assert list(entries)[:3] == best.indices.tolist()
        assert [entry.logprob for entry in entries.values()][:3] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert entries[token].logprob == pytest.approx(logprobs[position, token].item(), abs=1e-4)
    assert first.prompt_logprobs[0] is None
    own = [entries[token].logprob for entries, token in zip(first.prompt_logprobs[1:], context[1:], strict=True)]
    assert own == pytest.approx([logprobs[i, token].item() for i, token in enumerate(context[1:])], abs=1e-4)
    assert second.prompt_logprobs == first.prompt_logprobs
    plain = llm.score([(context, choices)])[0]
    assert [score.logprob for score in plain] == pytest.approx([first.logprob, second.logprob], abs=1e-4)
    assert (plain[0].top_logprobs, plain[0].prompt_logprobs) == (None, None)
    assert llm.score([(context, [])], prompt_logprobs=0)[0].prompt_logprobs[1].keys() == {8}
    with pytest.raises(ValueError, match="logprobs"):
        llm.score([], top_logprobs=-1)


def test_token_0_before_contexts_on_request(llm):
    with_it = llm.score([("ab", "c"), ([0, 98], [99])], add_bos_token=True)
    by_hand = llm.score([([0, 98, 99], [100]), ([0, 98], [99])])
    assert [score.logprob for score in with_it] == pytest.approx([score.logprob for score in by_hand], abs=1e-4)


@pytest.mark.parametrize("sharing", [True, False])
def test_equal_contexts_of_several_rows(path, sharing):
    llm = LLM(path, prefix_sharing=sharing, max_batch_size=3)
    rows = [("the same context", ["a", "bc"]), ("the same context", ["a", "bc"]), ("the same context", ["d"])]
    scores = llm.score(rows * 3)
    want = [[s.logprob for s in llm.score([row])[0]] for row in rows]
    assert [[s.logprob for s in outputs] for outputs in scores] == [pytest.approx(w, abs=1e-4) for w in want * 3]
    llm.check_integrity()
