"""Values of numpy, torch and pandas in calls; `detokenize=False`; `max_tokens=None`."""

from __future__ import annotations

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
