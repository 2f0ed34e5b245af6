"""Sampling parameters whose fields are set, or changed in place, between calls and while a call runs."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from rwkv_batch import SamplingParams
from rwkv_batch.llm import GenerateRow

MESSAGES = {"messages": [{"role": "user", "content": "x"}]}


def served(llm, params, prompt="abc"):
    ((_, output),) = llm.serve([GenerateRow(0, 0, prompt, params)])
    return output


def lengths(outputs):
    return [len(output.outputs[0].token_ids) for output in outputs]


@pytest.mark.parametrize("prompt", ["abc", MESSAGES], ids=["text", "messages"])
def test_a_row_is_served_with_the_values_that_its_parameters_have_then(llm, prompt):
    params = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True, stop_token_ids=[200])
    assert lengths([served(llm, params, prompt)]) == [2]
    params.max_tokens = 5
    assert lengths([served(llm, params, prompt)]) == [5]
    params.min_tokens = 3
    params.max_tokens = 2
    output = served(llm, params, prompt)
    assert (output.error_code, output.error) == ("bad_sampling", "min_tokens: got 3, expected at most max_tokens (2)")
    params.max_tokens = 4
    assert lengths([served(llm, params, prompt)]) == [4]


@pytest.mark.parametrize("call", ["serve", "generate", "generate_iter"])
def test_lists_and_mappings_that_are_changed_in_place_count_in_the_next_call(llm, call):
    params: Any = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True, logit_bias={65: 1e4}, stop_token_ids=[])

    def ids():
        if call == "serve":
            return served(llm, params).outputs[0].token_ids
        if call == "generate":
            return llm.generate(["abc"], [params])[0].outputs[0].token_ids
        return dict(llm.generate_iter(["abc"], [params]))[0].outputs[0].token_ids

    assert ids() == [65, 65]
    params.logit_bias[66] = 1e5
    assert ids() == [66, 66]
    params.stop_token_ids.append(66)
    assert ids() == [66]


def test_a_call_takes_the_values_that_the_fields_have_when_it_is_made(llm):
    params = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)
    rest = llm.generate_iter(["a", "b"], params)
    params.max_tokens = 1
    assert lengths(output for _, output in rest) == [3, 3]


def test_rows_that_run_are_not_changed(llm):
    """The engine reads fields of a request at every step."""
    params = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True, stop=["never"])
    first = SamplingParams(max_tokens=1, temperature=0)
    rows = llm.serve([GenerateRow(0, 0, "a", first), GenerateRow(1, 1, "b", params)])
    key, _ = next(rows)
    params.max_tokens, params.stop, params.n = 2, None, 3
    assert (key, lengths(output for _, output in rows)) == (0, [40])


def test_threads_may_share_parameters_that_one_of_them_changes(llm):
    shared = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)
    found: list[int] = []

    def call():
        for _ in range(20):
            found.extend(lengths(llm.generate(["a"], shared)))

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        shared.max_tokens = 2 if shared.max_tokens == 1 else 1
    for thread in threads:
        thread.join()
    assert len(found) == 40 and set(found) <= {1, 2}
