"""Values of numpy, torch and pandas in calls; `detokenize=False`; `max_tokens=None`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from rwkv_batch import SamplingParams

IDS = [5, 6, 7]
FORMS = {
    "list of np.int64": list(np.array(IDS)),
    "array of uint16": np.array(IDS, np.uint16),
    "tensor": torch.tensor(IDS),
    "int32 tensor": torch.tensor(IDS, dtype=torch.int32),
    "series": pd.Series(IDS),
    "series of nullable integers": pd.Series(IDS, dtype="Int64"),
}


@pytest.mark.parametrize("ids", FORMS.values(), ids=FORMS)
def test_token_ids_in_every_form_give_the_same_results(llm, ids):
    params = SamplingParams(max_tokens=3, temperature=0)
    (expected,) = llm.generate([IDS], params)
    for prompt in (ids, {"prompt_token_ids": ids}):
        (found,) = llm.generate([prompt], params)
        assert (found.prompt_token_ids, found.outputs[0].token_ids) == (IDS, expected.outputs[0].token_ids)
    assert llm.score([(ids, ids)])[0].logprob == llm.score([(IDS, IDS)])[0].logprob
    several = llm.score([(ids, [ids, ids])])[0]
    assert [one.num_tokens for one in several] == [3, 3]


def test_rows_of_a_matrix_of_ids_are_prompts(llm):
    params = SamplingParams(max_tokens=1)
    for matrix in (np.array([IDS, IDS]), torch.tensor([IDS, IDS])):
        assert [one.prompt_token_ids for one in llm.generate(matrix, params)] == [IDS, IDS]


@pytest.mark.parametrize(
    "prompt",
    [[5, pd.NA], pd.NA, pd.Series([5, None], dtype="Int64"), torch.tensor([5.0]), torch.tensor(5), np.array([True])],
    ids=str,
)
def test_values_that_are_no_token_ids_are_refused_with_a_sentence(llm, prompt):
    with pytest.raises(ValueError, match=r"(?s)prompt 0: got .*, expected text, a list of token ids"):
        llm.generate([prompt])
    outputs = dict(llm.generate_iter([prompt]))
    assert outputs[0].error_code == "bad_type" and outputs[0].error.startswith("the prompt ")


def test_without_detokenizing_there_is_no_text_and_no_decoding(llm, monkeypatch):
    given: Any = dict(max_tokens=4, temperature=0, logprobs=2, prompt_logprobs=1)
    (with_text,) = llm.generate(["abc"], SamplingParams(**given))
    monkeypatch.setattr(llm.tokenizer, "decode", None)
    monkeypatch.setattr(llm._outputs._detokenizer, "texts", None)
    (without,) = llm.generate(["abc"], SamplingParams(**given, detokenize=False))
    assert with_text.outputs[0].text and without.outputs[0].text == ""
    assert without.outputs[0].token_ids == with_text.outputs[0].token_ids
    logprobs = [*without.outputs[0].logprobs, *without.prompt_logprobs[1:]]
    assert {one.decoded_token for position in logprobs for one in position.values()} == {None}


def test_texts_beside_rows_without_text_are_their_own(llm):
    params = [SamplingParams(max_tokens=3, seed=i, detokenize=i % 2 == 0) for i in range(5)]
    found = [output.outputs[0] for output in llm.generate(["ab"] * 5, params)]
    assert [one.text for one in found] == [
        llm.tokenizer.decode(one.token_ids) if i % 2 == 0 else "" for i, one in enumerate(found)
    ]


def test_no_limit_of_tokens_runs_to_the_stop(llm):
    """A model that must say 9 until 8 is likely, and has no other limit."""
    params = SamplingParams(max_tokens=None, allowed_token_ids=[8, 9], logit_bias={9: 4.0}, stop_token_ids=[8])
    outputs = llm.generate(["ab", "cd"], params)
    assert {output.outputs[0].finish_reason for output in outputs} == {"stop"}
    assert {output.outputs[0].stop_reason for output in outputs} == {8}


@pytest.mark.parametrize("prompt", ["abcdef", list(range(98, 104))])
@pytest.mark.parametrize(("kept", "left"), [(2, [102, 103]), (1, [103]), (6, None), (99, None), (-1, None), (0, [0])])
def test_a_prompt_is_cut_to_its_last_tokens(llm, prompt, kept, left):
    params = SamplingParams(max_tokens=3, temperature=0, prompt_logprobs=0)
    (cut,) = llm.generate([prompt], replace(params, truncate_prompt_tokens=kept))
    (whole,) = llm.generate([left or prompt], params)
    assert (cut.prompt_token_ids, cut.prompt_logprobs) == (whole.prompt_token_ids, whole.prompt_logprobs)
    assert cut.outputs == whole.outputs


def test_bad_words_are_never_sampled(llm):
    params = SamplingParams(max_tokens=40, temperature=1.5, seed=1, ignore_eos=True)
    words = sorted(set(llm.generate(["a"], params)[0].outputs[0].token_ids))[:5]
    text = [llm.tokenizer.decode([i]) for i in words if 33 < i < 128]
    (without,) = llm.generate(["a"], replace(params, bad_words=text, bad_token_ids=[5]))
    assert text and not set(text) & set(without.outputs[0].text)
    assert without == llm.generate(["a"], replace(params, bad_token_ids=[5, *(ord(one) + 1 for one in text)]))[0]
    with pytest.raises(ValueError, match="bad_words holds 'two words', which is 9 tokens"):
        llm.generate(["a"], SamplingParams(bad_words=["two words"]))


def test_stop_strings_end_a_completion_without_texts(llm):
    params = SamplingParams(max_tokens=60, temperature=1.2, seed=3, ignore_eos=True)
    (free,) = llm.generate(["a"], params)
    stop = free.outputs[0].text[5:6]
    (stopped,) = llm.generate(["a"], replace(params, stop=stop))
    (silent,) = llm.generate(["a"], replace(params, stop=stop, detokenize=False))
    assert stopped.outputs[0].finish_reason == silent.outputs[0].finish_reason == "stop"
    assert (stopped.outputs[0].stop_reason, silent.outputs[0].text) == (stop, "")
