"""The library's completions, over a tiny random model with byte tokens."""

from __future__ import annotations

import math
from time import perf_counter
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint, write_checkpoint

from rwkv_batch import LLM, SamplingParams
from rwkv_batch.engine.engine import Engine
from rwkv_batch.errors import BackendError, CapacityError, CheckpointError, ConfigurationError

VOCAB = 257


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
    """The same holds where a stop string is set, and so every token is searched for it."""
    params = SamplingParams(max_tokens=9, stop_token_ids=[99], logit_bias={99: 100.0}, stop=stop)
    output = llm.generate(["y"], params)[0].outputs[0]
    assert (output.token_ids, output.text) == ([99], "")
    assert (output.finish_reason, output.stop_reason) == ("stop", 99)


def test_the_last_id_of_the_vocabulary_is_legal_everywhere_and_the_next_one_nowhere(llm):
    last = VOCAB - 1
    given: Any = dict(stop_token_ids=[last], allowed_token_ids=[98, last], bad_token_ids=[last], logit_bias={last: 1.0})
    for name, value in given.items():
        output = llm.generate([[last, 66]], SamplingParams(max_tokens=2, **{name: value}))[0]
        assert len(output.outputs[0].token_ids) >= 1
        beyond: Any = {last + 1: 1.0} if name == "logit_bias" else [last + 1]
        (_, refused), *_ = llm.generate_iter(["a"], SamplingParams(**{name: beyond}))
        assert (refused.error_code, f"{name} holds id {VOCAB}" in refused.error) == ("bad_sampling", True)
    (_, refused), *_ = llm.generate_iter([[66, VOCAB]])
    assert refused.error_code == "token_out_of_range"


def test_a_stop_string_counts_behind_min_tokens(llm):
    """A stop string does not end a completion within the first `min_tokens` tokens; vLLM does the same."""
    always: dict[str, Any] = dict(logit_bias={ord("z") + 1: 100.0}, stop="z", max_tokens=20)
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
            assert next(iter(entry)) == token_id
            assert sorted(v.rank for v in entry.values())[:2] == [1, 2]
            assert 2 <= len(entry) <= 3


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
        completions: list[Any] = [one for output in llm.generate(prompts, params) for one in output.outputs]
        scores = [one for row in llm.score([(prompt, choices) for prompt in prompts]) for one in row]
        found.append([(one.token_ids, one.token_logprobs) for one in [*completions, *scores]])
        stats.append(llm.stats())
        if sharing:
            assert isinstance(llm._engine, Engine)
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
    """A state file has the effect of the same tensors inside the checkpoint. Without them the tokens differ."""
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


def test_deferred_state_writes_are_refused_where_no_kernel_has_them(path):
    with pytest.raises(ConfigurationError, match=r"^state_write_interval: got 5, expected an integer from 1 to 4"):
        LLM(path, state_write_interval=5)
    with pytest.raises(ConfigurationError, match="state_write_interval: got 2, expected 1: wkv7 is served by the cpu"):
        LLM(path, device="cpu", state_write_interval=2)


def test_ids_beyond_the_vocabulary_in_sampling_params(llm):
    (_, output), *_ = llm.generate_iter(["a"], SamplingParams(stop_token_ids=[400]))
    assert (output.error_code, "stop_token_ids holds id 400" in output.error) == ("bad_sampling", True)


def test_a_row_gives_the_same_tokens_in_any_company(path, llm):
    params = SamplingParams(max_tokens=8, temperature=1.2, top_p=0.9)
    prompts = [f"{i} prompt" * (i % 4 + 1) for i in range(12)]
    together = [output.outputs[0].token_ids for output in llm.generate(prompts, params)]
    large = LLM(path, max_batch_size=16, batch_invariant=True)
    assert [output.outputs[0].token_ids for output in large.generate(prompts, params)] == together
    assert [output.outputs[0].token_ids for output in LLM(path, seed=1).generate(prompts, params)] != together


def test_all_samples_of_a_row_share_its_prompt_in_every_window(path):
    small = LLM(path, max_batch_size=2, max_batch_tokens=64)
    small.generate(["a prompt of some length"] * 3, SamplingParams(n=150, max_tokens=1))
    assert small.stats().prompt_tokens <= 3 * (len("a prompt of some length") - 1) + 450


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
        (dict(quantization=["int8"]), ConfigurationError, r"^quantization: got \[.int8.\]"),
        (dict(strategy="cpu fp8"), ConfigurationError, "^strategy: got 'cpu fp8'"),
        (dict(device="tpu"), ConfigurationError, "^device: got 'tpu'"),
        (dict(tokenizer="world"), ConfigurationError, "257"),
    ],
)
def test_wrong_settings_are_refused(path, settings, error, message):
    with pytest.raises(error, match=message):
        LLM(path, **settings)


def test_structured_text(llm):
    pytest.importorskip("llguidance", reason="structured output needs the extra `structured`")
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
    choices: list[dict[str, Any]] = [dict(quantization="int8"), dict(dtype="bfloat16"), dict(strategy="cpu fp16i8")]
    for settings in choices:
        small = LLM(path, **settings)
        assert len(small.generate(["abc"], SamplingParams(max_tokens=4, ignore_eos=True))[0].outputs[0].token_ids) == 4
        assert small.describe()["quantization"] == (("bfloat16" not in settings.values() and "int8") or None)


def test_processed_logprobs_are_of_the_distribution_that_is_drawn_from(path, llm):
    params = SamplingParams(max_tokens=3, temperature=0.5, top_k=2, seed=1, logprobs=3, prompt_logprobs=1)
    with LLM(path, max_batch_size=2, logprobs_mode="processed_logprobs") as processed:
        (raw,), (found,) = llm.generate(["ab"], params), processed.generate(["ab"], params)
        assert found.prompt_logprobs == raw.prompt_logprobs
        assert processed.score([("ab", "cd")]) == llm.score([("ab", "cd")])
        (greedy,) = processed.generate(["ab"], SamplingParams(max_tokens=2, temperature=0))
        (banned,) = processed.generate(["ab"], SamplingParams(max_tokens=2, allowed_token_ids=[66]))
    before, after = raw.outputs[0], found.outputs[0]
    assert before.token_ids == after.token_ids
    assert after.cumulative_logprob == pytest.approx(sum(after.token_logprobs))
    positions = zip(after.token_ids, after.token_logprobs, before.logprobs, after.logprobs, strict=True)
    for token, logprob, tops_before, tops_after in positions:
        first, second, third = sorted(tops_before.values(), key=lambda one: one.rank)[:3]
        likely = sorted(tops_after.values(), key=lambda one: one.rank)
        odds = 2 * (first.logprob - second.logprob)  # the temperature doubles differences of logits
        expected = [-math.log1p(math.exp(-odds)), -math.log1p(math.exp(odds)), -math.inf]
        assert [one.logprob for one in likely] == pytest.approx(expected, abs=1e-5)
        assert tops_after[token].logprob == logprob
        assert third.logprob > -math.inf
    assert greedy.outputs[0].token_logprobs == pytest.approx(
        llm.generate(["ab"], SamplingParams(max_tokens=2, temperature=0))[0].outputs[0].token_logprobs
    )
    assert banned.outputs[0].token_logprobs == [0.0, 0.0]


def test_no_tokens_have_no_logprobs(llm):
    params = SamplingParams(max_tokens=0, logprobs=2)
    assert llm.generate(["abcd"], params)[0].outputs[0].logprobs == []


@pytest.mark.parametrize("pairs", ["ab", ["ab"], ("import ", "os"), [{"context": "a", "continuation": "b"}], [("a",)]])
def test_what_is_no_pair_is_not_scored(llm, pairs):
    with pytest.raises(ValueError, match=r"pair 0: got .*, expected \(context, continuation\)"):
        llm.score(pairs)
    llm.check_integrity()


def test_a_text_is_no_sampling_params(llm):
    with pytest.raises(ValueError, match=r"sampling_params: got a text, expected SamplingParams\(\.\.\.\)"):
        llm.generate(["a"], "temperature=0")
