"""Wrong sampling values are refused by field, value and range."""

import copy
import inspect
import pickle
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from rwkv_batch import ConfigurationError, SamplingParams

WRONG = [
    ("n", 0, "an integer from 1 to 65536"),
    ("n", 1.5, "an integer from 1"),
    ("n", True, "an integer from 1"),
    ("temperature", -0.1, "a number from 0 to 100"),
    ("temperature", float("nan"), "a number from 0 to 100"),
    ("temperature", "hot", "a number from 0 to 100"),
    ("temperature", 10**400, "a number from 0 to 100"),
    ("regex", 5, "text, or None"),
    ("json_schema", [], "a schema as text or as a mapping"),
    ("stop", {"a": "b"}, "a non-empty string or a list of non-empty strings"),
    ("top_p", 1.01, "a number from 0 to 1"),
    ("top_k", -2, "an integer from -1"),
    ("min_p", 2, "a number from 0 to 1"),
    ("presence_penalty", 1e9, "a number from -100 to 100"),
    ("frequency_penalty", None, "a number from -100 to 100"),
    ("repetition_penalty", 0, "a number above 0 up to 100"),
    ("penalty_decay", 1.1, "a number from 0 to 1"),
    ("max_tokens", -1, "an integer from 0"),
    ("min_tokens", 17, "at most max_tokens (16)"),
    ("stop", "", "a non-empty string or a list of non-empty strings"),
    ("stop", ["a", 3], "a non-empty string or a list of non-empty strings"),
    ("stop", "a\ud800", "text that has an encoding"),
    ("stop", 5, "a non-empty string or a list of non-empty strings"),
    ("stop_token_ids", 5, "a list of token ids"),
    ("logit_bias", [1], "a map from token id to a finite number"),
    ("logit_bias", {1: "a"}, "a map from token id to a finite number"),
    ("stop_token_ids", [-1], "a list of token ids"),
    ("stop_token_ids", "12", "a list of token ids"),
    ("bad_token_ids", [1.0], "a list of token ids"),
    ("allowed_token_ids", [], "at least one token id"),
    ("ignore_eos", 1, "true or false"),
    ("include_stop_str_in_output", "yes", "true or false"),
    ("logit_bias", {1: float("inf")}, "a map from token id to a finite number"),
    ("logit_bias", {1: 10**100}, "a map from token id to a finite number (float32)"),
    ("logit_bias", {1: True}, "a map from token id to a finite number"),
    ("logit_bias", {"a": 1.0}, "a map from token id to a finite number"),
    ("logprobs", -2, "an integer from -1"),
    ("prompt_logprobs", 1.5, "an integer from -1"),
    ("seed", 2**64, "an integer from"),
    ("top_p_order", "reverse", "'standard' or 'rwkv'"),
    ("top_p_order", pd.NA, "'standard' or 'rwkv'"),
    ("max_tokens", pd.NA, "an integer from 0"),
    ("stop_token_ids", [pd.NA], "a list of token ids"),
    ("stop", pd.NA, "a non-empty string or a list of non-empty strings"),
    ("detokenize", None, "true or false"),
]


@pytest.mark.parametrize(("name", "value", "expected"), WRONG)
def test_wrong_values(name, value, expected):
    with pytest.raises(ValueError, match=re.escape(f"SamplingParams.{name}: got {value!r}, expected {expected}")):
        SamplingParams(**{name: value})


PLAIN = [
    ("n", np.int64(2), 2),
    ("temperature", np.float32(0.5), 0.5),
    ("top_p", np.array(0.25), 0.25),
    ("max_tokens", torch.tensor(5), 5),
    ("ignore_eos", np.bool_(True), True),
    ("stop", np.array(["a", "b"]), ["a", "b"]),
    ("stop", [np.str_("a")], ["a"]),
    ("stop_token_ids", np.array([3, 4], np.uint16), [3, 4]),
    ("bad_token_ids", [np.int32(3), 4], [3, 4]),
    ("allowed_token_ids", torch.tensor([3, 4]), [3, 4]),
    ("stop_token_ids", pd.Series([3, 4]), [3, 4]),
    ("logit_bias", {np.int64(3): np.float32(0.5)}, {3: 0.5}),
    ("seed", np.uint64(2**64 - 1), 2**64 - 1),
    ("logprobs", np.int8(3), 3),
    ("top_p_order", np.str_("rwkv"), "rwkv"),
]


@pytest.mark.parametrize(("name", "value", "expected"), PLAIN)
def test_values_of_numpy_torch_and_pandas_are_taken(name, value, expected):
    found = getattr(SamplingParams(**{name: value}), name)
    assert found == expected
    parts = [*found, *found.values()] if isinstance(found, dict) else found if isinstance(found, list) else [found]
    assert {type(part) for part in parts} <= {int, float, bool, str}


@pytest.mark.parametrize(
    ("name", "value"), [("max_tokens", np.float64(5)), ("n", np.bool_(True)), ("top_k", np.array([1]))]
)
def test_a_number_of_numpy_of_another_kind_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"SamplingParams.{name}: got {re.escape(repr(value.tolist()))}, expected an"):
        SamplingParams(**{name: value})


def test_None_is_the_largest_number_of_tokens():
    params = SamplingParams(max_tokens=None, min_tokens=65536)
    assert (params.max_tokens, params.token_limit) == (None, 65536)
    with pytest.raises(ValueError, match=r"min_tokens: got 65537, expected at most max_tokens \(65536\)"):
        SamplingParams(max_tokens=None, min_tokens=65537)


def test_one_constraint_at_a_time():
    with pytest.raises(ValueError, match="at most one of json_schema, regex, grammar"):
        SamplingParams(regex="a", json_schema={})


def test_stop_strings_are_always_a_tuple():
    assert SamplingParams().stop_strings == ()
    assert SamplingParams(stop="x").stop_strings == ("x",)
    assert SamplingParams(stop=["x", "y"]).stop_strings == ("x", "y")


def test_what_is_done_to_a_list_or_map_afterwards_changes_nothing():
    ids, strings, bias = [1], ["a"], {1: 0.5}
    params = SamplingParams(stop=strings, stop_token_ids=ids, allowed_token_ids=ids, bad_token_ids=ids, logit_bias=bias)
    ids.append(2)
    strings.append("b")
    bias[2] = 1.0
    assert (params.stop, params.logit_bias) == (["a"], {1: 0.5})
    assert params.stop_token_ids == params.allowed_token_ids == params.bad_token_ids == [1]


def test_a_field_may_be_set_and_is_checked():
    params = SamplingParams(stop=["a"])
    copy = params.clone()
    params.max_tokens, params.stop = None, "b"
    assert (params.max_tokens, params.stop_strings, copy.stop) == (None, ("b",), ["a"])
    with pytest.raises(ValueError, match=r"SamplingParams\.top_p: got 2, expected a number from 0 to 1"):
        params.top_p = 2
    with pytest.raises(ConfigurationError, match=r"max_token: SamplingParams has no such argument \(did you mean"):
        params.max_token = 3
    params.max_tokens, params.min_tokens = 4, 8
    with pytest.raises(ValueError, match=r"min_tokens: got 8, expected at most max_tokens \(4\)"):
        params.clone()
    given = [5]
    params = SamplingParams(stop_token_ids=given, logit_bias={1: 2})
    given.append(6)
    assert params.stop_token_ids == [5]


def test_fields_may_be_optional():
    params = SamplingParams.from_optional(n=None, temperature=None, top_p=0.5, max_tokens=None, stop=None, seed=3)
    assert params == SamplingParams(top_p=0.5, max_tokens=None, seed=3)


def test_fields_have_an_order_and_a_signature():
    assert SamplingParams(2, 0.5) == SamplingParams(n=2, temperature=0.5)
    with pytest.raises(TypeError, match="got 99 values"):
        SamplingParams(*[1] * 99)  # type: ignore[arg-type]
    parameters = inspect.signature(SamplingParams).parameters
    assert tuple(parameters) == SamplingParams.field_names()
    assert {name: one.default for name, one in parameters.items()} == vars(SamplingParams())


def test_parameters_survive_pickling_and_replacing():
    params = SamplingParams(stop=["a"], seed=5, logprobs=-1)
    assert pickle.loads(pickle.dumps(params)) == copy.deepcopy(params) == replace(params) == params
    assert params.logprobs == 65536
    assert SamplingParams(prompt_logprobs=True).prompt_logprobs == 1


def test_values_by_position_keep_their_meaning_where_fields_are_added():
    """The fields of the first version, in its order."""
    first = [
        "n",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "penalty_decay",
        "max_tokens",
        "min_tokens",
        "stop",
        "stop_token_ids",
        "ignore_eos",
        "include_stop_str_in_output",
        "logit_bias",
        "allowed_token_ids",
        "bad_token_ids",
        "logprobs",
        "prompt_logprobs",
        "seed",
        "top_p_order",
        "json_schema",
        "regex",
        "grammar",
    ]
    assert list(SamplingParams.field_names()[: len(first)]) == first


def test_a_pickle_of_a_version_with_fewer_fields_has_their_defaults():
    params = SamplingParams(max_tokens=3, stop=["a"])
    for name in ("bad_words", "detokenize", "truncate_prompt_tokens"):
        del params.__dict__[name]
    found = pickle.loads(pickle.dumps(params))
    assert found == found.clone() == SamplingParams(max_tokens=3, stop=["a"])
    assert replace(found, seed=1) == SamplingParams(max_tokens=3, stop=["a"], seed=1)


def test_a_clone_has_lists_and_mappings_of_its_own():
    params = SamplingParams(stop=["a"], logit_bias={1: 2.0}, bad_token_ids=[3], bad_words=["x"])
    found = params.clone()
    for name in ("stop", "logit_bias", "bad_token_ids", "bad_words"):
        assert getattr(found, name) == getattr(params, name) and getattr(found, name) is not getattr(params, name)
