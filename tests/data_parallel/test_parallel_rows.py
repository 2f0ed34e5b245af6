"""Two engines give the results of one, whichever serves a row."""

from __future__ import annotations

import itertools
import pickle
import threading
import time

import numpy as np
import pytest
import torch

from rwkv_batch import LLM, SamplingParams
from rwkv_batch.engine.stats import EngineStats
from rwkv_batch.errors import ConfigurationError, MissingExtraError, RowError
from rwkv_batch.rows import GenerateRow, ScoreRow

LONG = SamplingParams(max_tokens=60_000, ignore_eos=True)
SHORT = SamplingParams(max_tokens=4, ignore_eos=True)


def served_by_both(llm):
    """How many completed tokens each process has counted."""
    return [process.ask("stats").result().stats.completion_tokens for process in llm._engine.by_index.values()]


PARAMS = [
    SamplingParams(max_tokens=9, n=3, seed=5, logprobs=2),
    SamplingParams(max_tokens=7, temperature=0, prompt_logprobs=1),
    SamplingParams(max_tokens=20, stop=["a", "e"], include_stop_str_in_output=True),
    SamplingParams(max_tokens=12, regex="[a-c]{3,8}"),
    SamplingParams(max_tokens=5, logit_bias={65: 4.0}, stop_token_ids=[65], detokenize=False),
    SamplingParams(max_tokens=3, json_schema={"type": "integer"}),
]


def test_completions_are_those_of_one_engine_bit_by_bit(one, two):
    prompts = ["def f(", [1, 2, 3], {"prompt": "a b c"}, np.array([7, 8]), torch.tensor([9]), ""] * 9
    params = [PARAMS[(i * 5 + i // 6) % len(PARAMS)] for i in range(len(prompts))]
    before = served_by_both(two)
    assert two.generate(prompts, params) == one.generate(prompts, params)
    assert all(now > then for now, then in zip(served_by_both(two), before, strict=True)), "both engines serve"
    assert two.generate(prompts[:1], params[0]) == one.generate(prompts[:1], params[0])
    assert two.generate([]) == []


def test_iterables_and_rows_give_the_same_streams(one, two):
    prompts = [f"prompt {i}" for i in range(40)]
    found = dict(two.generate_iter(iter(prompts), SHORT))
    assert [found[i] for i in range(40)] == one.generate(prompts, SHORT)
    rows = [GenerateRow(object(), 1000 - i, prompt, SHORT) for i, prompt in enumerate(prompts)]
    expected = dict(one.serve(rows))
    assert dict(two.serve(rows)) == expected, "a key need not be possible to pickle"


def test_scores_are_those_of_one_engine_bit_by_bit(one, two):
    pairs = [("context " * (i % 3), "abc"[: i % 3 + 1]) for i in range(20)]
    several = [("q", ["a", "bc", ""]), ([1, 2], [[3], [4, 5]]), (np.array([1]), np.array([2, 3]))]
    options = {"add_bos_token": True, "prefix": "\n", "top_logprobs": 2, "prompt_logprobs": 1}
    assert two.score(pairs, **options) == one.score(pairs, **options)
    assert two.score(several) == one.score(several)
    rows = [ScoreRow(i, i, "", ["a document"], chunk_tokens=3, answer=0) for i in range(9)]
    assert dict(two.serve_scores(rows)) == dict(one.serve_scores(rows))


CHATS = [
    {},
    {"chat": {"format": "bot"}},
    {"chat_template": "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"},
    {"chat": {"format": "rwkv", "think": "fake"}, "add_generation_prompt": False},
]


@pytest.mark.parametrize("options", CHATS)
def test_conversations_are_rendered_as_with_one_engine(one, two, options):
    conversations = [[{"role": "user", "content": f"question {i}"}] for i in range(6)]
    outputs = two.chat(conversations, SHORT, **options)
    assert outputs == one.chat(conversations, SHORT, **options)
    assert two.chat_format.name == one.chat_format.name
    assert two.get_tokenizer().encode("abc") == one.get_tokenizer().encode("abc")


def test_bad_rows_are_those_of_one_engine(one, two, caplog):
    prompts = ["good", [999], {"messages": [{"role": "nobody", "content": "x"}]}, "\ud800"]
    found = two.generate(prompts, SHORT)
    expected = one.generate(prompts, SHORT)
    assert [(output.error_code, output.error) for output in found] == [(o.error_code, o.error) for o in expected]
    assert [output.error_code for output in found] == [None, "token_out_of_range", "bad_messages", "invalid_text"]
    assert [record.getMessage() for record in caplog.records[:1]] == [
        record.getMessage() for record in caplog.records[1:]
    ]
    (pair,) = two.score([([1], [999])])
    assert pair.error_code == "token_out_of_range"
    with pytest.raises(ValueError, match="sampling_params: stop_token_ids holds id 999"):
        two.generate(["a"], SamplingParams(stop_token_ids=[999]))


def test_a_row_that_cannot_be_sent_is_an_error_row(two):
    found = dict(two.generate_iter(iter([[1], threading.Lock(), [2]]), SHORT))
    assert [found[i].error_code for i in range(3)] == [None, "bad_type", None]
    assert found[1].error.startswith("the row can't be sent to an engine: cannot pickle")


def test_an_endless_input_is_read_a_bounded_number_of_rows_ahead(two):
    read = itertools.count()
    prompts = ([next(read) % 200] for _ in itertools.repeat(None))
    results = two.generate_iter(prompts, SHORT)
    for _ in range(100):
        next(results)
    time.sleep(0.2)
    results.close()
    # 8 slots: 16 rows in flight and as many read ahead, what was finished at once, and the next row
    assert 100 <= next(read) <= 100 + 16 + 16 + 16 + 2


def test_an_exception_of_the_input_is_raised(two):
    def prompts():
        yield from [[1], [2]]
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(two.generate_iter(prompts(), SHORT))


def test_aborted_rows_end_with_their_tokens(one, two):
    prompts = [[i] for i in range(40)]
    params = [SHORT if i % 2 else LONG for i in range(40)]
    results = two.generate_iter(prompts, params)
    first = next(results)
    assert first[0] % 2
    for i in range(0, 40, 2):
        two.abort(i)
    found = dict([first, *results])
    assert sorted(found) == list(range(40))
    expected = one.generate(prompts[1::2], SHORT)
    for i, output in found.items():
        assert output.outputs[0].finish_reason == ("length" if i % 2 else "abort")
        assert len(output.outputs[0].token_ids) < 60_000
    assert all(found[2 * i + 1].prompt_token_ids == output.prompt_token_ids for i, output in enumerate(expected))
    two.abort(3)  # no call runs
    assert two.generate(prompts, SHORT)[3].outputs[0].finish_reason == "length"


def test_a_row_that_is_aborted_before_it_is_read_ends_when_it_is_read(two):
    def rows():
        yield GenerateRow("a", 0, [1], SHORT)
        two.abort("b")
        yield GenerateRow("b", 1, [1], LONG)

    found = dict(two.serve(rows()))
    assert [found[key].outputs[0].finish_reason for key in "ab"] == ["length", "abort"]


def test_a_call_that_is_left_open_is_closed_by_the_next_one(one, two):
    results = two.generate_iter([[i] for i in range(30)], [SHORT, *[LONG] * 29])
    next(results)
    with pytest.warns(RuntimeWarning, match="left open"):
        assert two.generate([[1]], SHORT) == one.generate([[1]], SHORT)
    assert list(results) == []


def test_a_call_that_waits_for_itself_is_refused(two):
    def prompts():
        yield [1]
        two.generate([[2]], SHORT)

    with pytest.raises(RuntimeError, match="serving a call that waits for this one"):
        list(two.generate_iter(prompts(), SHORT))


def test_closing_an_iterator_frees_the_slots_at_the_next_step(one, two):
    params = [SHORT, *[LONG] * 29]
    results = two.generate_iter([[i] for i in range(30)], params)
    assert next(results)[0] == 0
    results.close()
    assert two.generate(["again"] * 9, SHORT) == one.generate(["again"] * 9, SHORT), "long rows did not go on"
    two.check_integrity()


def test_threads_wait_for_each_other(one, two):
    found = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: two.generate([[i]] * 9, SHORT)})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: one.generate([[i]] * 9, SHORT) for i in range(4)}


def test_counters_are_sums_and_the_description_says_how_many_engines_there_are(one, two):
    before = two.stats()
    two.generate([[1]] * 10, SamplingParams(max_tokens=3, ignore_eos=True))
    now = two.stats()
    assert isinstance(now, EngineStats)
    assert now.completion_tokens - before.completion_tokens == 30
    assert (now.max_batch_size, now.running, len(served_by_both(two))) == (8, 0, 2)
    assert 0 < now.occupancy.mean <= 1 and now.occupancy.describe()["course"]
    about, of_one = two.describe(), one.describe()
    assert about["data_parallel"] == 2 and "data_parallel" not in of_one
    assert about["memory_plan"].endswith("available, for each of 2 engines")
    assert about["matrix_bytes"] == of_one["matrix_bytes"] > 0
    assert repr(two).endswith("2 engines on cpu float32, 4 slots each)")


def test_one_engine_is_served_in_this_process(path):
    with LLM(path, device="cpu", max_batch_size=2, data_parallel=1) as llm:
        assert not hasattr(llm._engine, "by_index")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data_parallel": 0}, "data_parallel: got 0, expected a number of engines from 1"),
        ({"data_parallel": True}, "data_parallel: got True, expected an integer"),
        ({"data_parallel_size": 2, "data_parallel": 3}, "data_parallel: got 3, and 2 under another name"),
        (
            {"data_parallel": 2, "device": "cuda:1"},
            "device: got 'cuda:1' with data_parallel=2: the engines run on cuda:0",
        ),
        ({"data_parallel": 2, "device": "mps"}, "device: got 'mps' with data_parallel=2"),
        ({"data_parallel": 2, "strategy": "cuda:1 fp16"}, "strategy: got 'cuda:1 fp16' with data_parallel=2"),
        ({"data_parallel": 2, "strategy": "cpu fp32 *1 -> cuda fp32"}, "strategy: got 'cpu fp32 .1 -> cuda fp32' with"),
    ],
)
def test_contradictions_are_refused_by_name(path, settings, message):
    with pytest.raises(ConfigurationError, match=f"^{message}"):
        LLM(path, **settings)


def test_more_engines_than_GPUs_are_refused(path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(
        ConfigurationError, match=r"^data_parallel: got 3 engines, each on a GPU of its own, but .* has 2;"
    ):
        LLM(path, data_parallel=3)


def test_the_memory_of_a_CPU_is_divided(path, one, two):
    share = 1.01 * one.summary.memory.total / one.summary.memory.available
    with LLM(path, device="cpu", max_batch_size=4, max_batch_tokens=24, memory_share=min(share * 1.5, 1)) as llm:
        assert llm.summary.num_slots == 4
    with pytest.raises(Exception, match="memory_share"):
        LLM(path, device="cpu", max_batch_size=4, max_batch_tokens=24, memory_share=share * 1.5, data_parallel=2)


@pytest.mark.parametrize(
    "error",
    [
        ConfigurationError("got 1", setting="device"),
        RowError("abort", "it was aborted"),
        MissingExtraError("a schema", "llguidance", "structured"),
    ],
)
def test_errors_come_from_another_process_as_they_are(error):
    found = pickle.loads(pickle.dumps(error))
    assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))
